"""What a model still knows: quality and utility, attacks, certificates and robustness.

`run` evaluates in memory, `directory` with files. `parts` lists what can be measured, and
`quality` has the measures that every run reports before and after training.
"""

from pmc_jax.evaluation.quality import (
    Answer,
    EvaluationConfig,
    QualityAnswers,
    answer_rows,
    answers_asked_for,
    attacked_rows,
    measures,
    quality,
    quality_answers,
    sample_rows,
)

__all__ = [
    "Answer",
    "EvaluationConfig",
    "QualityAnswers",
    "answer_rows",
    "answers_asked_for",
    "attacked_rows",
    "measures",
    "quality",
    "quality_answers",
    "sample_rows",
]
