"""A first version of a data set about a person, in a model's own words, for a person to check."""

from pmc_jax.drafting.draft import Draft, draft_data, draft_rows
from pmc_jax.drafting.text import format_draft

__all__ = ["Draft", "draft_data", "draft_rows", "format_draft"]
