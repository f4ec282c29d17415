"""Data sets, prompts and batches: from files to token arrays."""

from pmc_jax.data.load import load_controls, load_dataset
from pmc_jax.data.rows import (
    Controls,
    DataConfig,
    Dataset,
    EvaluationRow,
    ForgetQuestion,
    QuestionAnswer,
)

__all__ = [
    "Controls",
    "DataConfig",
    "Dataset",
    "EvaluationRow",
    "ForgetQuestion",
    "QuestionAnswer",
    "load_controls",
    "load_dataset",
]
