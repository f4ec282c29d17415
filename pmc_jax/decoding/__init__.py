"""Autoregressive decoding: many samples for each prompt, in one compiled loop."""

from pmc_jax.decoding.choice import Sampling
from pmc_jax.decoding.draw import draw, filter_threshold
from pmc_jax.decoding.generate import PruneBatch, generate, is_whole, row_keys
from pmc_jax.decoding.sampler import (
    DROPPED,
    FINISHED,
    RUNNING,
    WAITING,
    Decoding,
    Responses,
    sample,
    suffix_lengths,
)

__all__ = [
    "DROPPED",
    "FINISHED",
    "RUNNING",
    "WAITING",
    "Decoding",
    "PruneBatch",
    "Responses",
    "Sampling",
    "draw",
    "filter_threshold",
    "generate",
    "is_whole",
    "row_keys",
    "sample",
    "suffix_lengths",
]
