"""What a model still knows: answers, unlearn quality, utility, leakage under sampling."""

from pmc_jax.evaluation.quality import (
    Answer,
    Evaluation,
    EvaluationConfig,
    Respondent,
    evaluate,
    measures,
)

__all__ = ["Answer", "Evaluation", "EvaluationConfig", "Respondent", "evaluate", "measures"]
