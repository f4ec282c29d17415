"""Hugging Face checkpoints to `pmc_jax` parameters and back."""

import pmc_jax  # noqa: F401  (which handles Ctrl-C from here on, if this is a command)
