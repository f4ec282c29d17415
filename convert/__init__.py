"""Hugging Face checkpoints to `pmc_jax` parameters and back."""
