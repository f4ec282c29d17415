"""Data sets, prompts and batches: from files to token arrays."""

from pmc_jax.data.load import load_dataset
from pmc_jax.data.rows import DataConfig, Dataset, EvaluationRow, ForgetQuestion, QuestionAnswer

__all__ = [
    "DataConfig",
    "Dataset",
    "EvaluationRow",
    "ForgetQuestion",
    "QuestionAnswer",
    "load_dataset",
]
