"""Autoregressive decoding: many samples per prompt, one compiled loop."""

from pmc_jax.decoding.generate import generate, row_keys
from pmc_jax.decoding.nucleus import draw, filter_threshold
from pmc_jax.decoding.sampler import Samples, Sampling, sample

__all__ = [
    "Samples",
    "Sampling",
    "draw",
    "filter_threshold",
    "generate",
    "row_keys",
    "sample",
]
