"""What a model still knows: answers, unlearn quality, utility, leakage under sampling."""

from pmc_jax.evaluation.quality import (
    Answer,
    Evaluation,
    EvaluationConfig,
    Respondent,
    answer_rows,
    attacked_rows,
    evaluate,
    measures,
    quality,
    questions_asked,
    sample_rows,
)

__all__ = [
    "Answer",
    "Evaluation",
    "EvaluationConfig",
    "Respondent",
    "answer_rows",
    "attacked_rows",
    "evaluate",
    "measures",
    "quality",
    "questions_asked",
    "sample_rows",
]
