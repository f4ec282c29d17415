"""Data sets, prompts and batches: from files or rows in memory to token arrays."""

from pmc_jax.data.dataset import Dataset
from pmc_jax.data.load import load_dataset
from pmc_jax.data.rows import (
    Controls,
    DataConfig,
    EvaluationRow,
    ForgetPair,
    ForgetQuestion,
    QuestionAnswer,
)

__all__ = [
    "Controls",
    "DataConfig",
    "Dataset",
    "EvaluationRow",
    "ForgetPair",
    "ForgetQuestion",
    "QuestionAnswer",
    "load_dataset",
]
