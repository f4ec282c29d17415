"""Reports of runs, evaluations and comparisons: pages, figures and text tables."""

from pmc_jax.reporting.evaluation_page import shown_summary, write_evaluation_report
from pmc_jax.reporting.page import write_report
from pmc_jax.reporting.text import format_examples, format_table

__all__ = [
    "format_examples",
    "format_table",
    "shown_summary",
    "write_evaluation_report",
    "write_report",
]
