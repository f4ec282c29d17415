"""The report of a run: a page, plots, and the tables printed on a terminal."""

from pmc_jax.reporting.page import write_report
from pmc_jax.reporting.text import format_examples, format_table

__all__ = ["format_examples", "format_table", "write_report"]
