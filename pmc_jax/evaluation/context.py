"""The inputs of an evaluation of one model: the model, the questions and the settings."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
from jaxtyping import PRNGKeyArray

from pmc_jax.data.rows import Controls, EvaluationRow
from pmc_jax.decoding import Sampling
from pmc_jax.evaluation.choices import Choice, choices_of
from pmc_jax.evaluation.likelihood import Pair, TokenScores
from pmc_jax.evaluation.quality import (
    Answer,
    EvaluationConfig,
    answers,
    background,
    is_comparable,
)
from pmc_jax.evaluation.tofu import RetainLog
from pmc_jax.language_model import LanguageModel
from pmc_jax.settings import bounded
from pmc_jax.text.facts import Background

# Distinct random streams for the parts that sample.
SAMPLING_STREAM, PREFILLING_STREAM, REWORDING_STREAM = 1, 2, 3

Relearn = Callable[[Sequence[Pair], Sequence[int]], Iterator[tuple[int, LanguageModel]]]
"""Fine-tunes on pairs and yields the model, ready for decoding, after each number of steps."""


@dataclasses.dataclass(frozen=True)
class RobustnessConfig:
    """How the model is fine-tuned again, or quantised, and then measured once more.

    Attributes:
        examples: number of forget examples to fine-tune on, and of benign examples; at most half
            of the forget set.
        steps: optimizer steps after which the model is measured.
        batch_size: examples per step.
        learning_rate: learning rate of the fine-tuning.
        bits: bit widths to quantise the weights to.
    """

    examples: int = bounded(8, least=1)
    steps: list[int] = bounded([1, 2, 4, 8, 16, 32], least=1)
    batch_size: int = bounded(8, least=1, most=2**16)
    learning_rate: float = bounded(1e-4, above=0, most=1)
    bits: list[int] = bounded([8, 4], least=2, most=16)


@dataclasses.dataclass(frozen=True)
class EvaluationContext:
    """Everything that the parts of an evaluation need.

    Attributes:
        model: the model under evaluation, ready for decoding.
        sets: the evaluation sets of the data.
        evaluation: how answers are decoded, greedily and in the attacks.
        max_length: the most tokens of prompt and answer together.
        prefix: the text that the prefilling attack forces every answer to begin with.
        confidence: confidence of every certified bound.
        key: the source of all random numbers.
        on_batch: called with (answers done, tokens) after every batch.
        controls: further data: unrelated text, held-out questions, TOFU's retain questions.
        retain_log: TOFU's metrics of a model that never saw the forget set.
        references: another model's scores of the right answers to forget questions and to
            held-out questions, for membership inference.
        robustness: how the model is changed before it is measured again.
        relearn: fine-tunes the model under evaluation; None if that is not possible.
    """

    model: LanguageModel
    sets: Mapping[str, Sequence[EvaluationRow]]
    evaluation: EvaluationConfig
    max_length: int
    prefix: str | None
    confidence: float
    key: PRNGKeyArray
    on_batch: Callable[[int, int], None] | None = None
    controls: Controls = dataclasses.field(default_factory=Controls)
    retain_log: RetainLog | None = None
    references: tuple[Sequence[TokenScores], Sequence[TokenScores]] | None = None
    robustness: RobustnessConfig = dataclasses.field(default_factory=RobustnessConfig)
    relearn: Relearn | None = None

    @property
    def forget(self) -> Sequence[EvaluationRow]:
        """The forget questions whose right answers have words to compare with."""
        return [row for row in self.sets.get("forget", ()) if is_comparable(row)]

    @property
    def asked(self) -> Sequence[EvaluationRow]:
        """All forget questions."""
        return self.sets.get("forget", ())

    @functools.cached_property
    def known(self) -> Background:
        """The background of the forget answers' facts."""
        return background(self.sets)

    @property
    def reworded(self) -> Sequence[EvaluationRow]:
        """The forget questions in every other wording that the data has, with their ids."""
        return reworded_rows(self.sets)

    @property
    def benign(self) -> Sequence[EvaluationRow]:
        """Distinct retain questions whose answers are known."""
        return [row for row in dict.fromkeys(self.sets.get("retain", ())) if row.answer]

    @property
    def choices(self) -> Sequence[Choice]:
        """Multiple choice made from the forget questions that have wrong answers."""
        return choices_of(self.forget)

    @property
    def greedy(self) -> EvaluationConfig:
        """The evaluation settings without the sampling attack."""
        return dataclasses.replace(self.evaluation, attack_samples=0)

    def with_model(self, model: LanguageModel) -> "EvaluationContext":
        """The same evaluation of another model."""
        return dataclasses.replace(self, model=model)


def reworded_rows(sets: Mapping[str, Sequence[EvaluationRow]]) -> list[EvaluationRow]:
    """Paraphrased forget questions with their answers, and the `variants` with the row's own."""
    paraphrased = [row for row in sets.get("paraphrase", ()) if is_comparable(row)]
    variants = [
        dataclasses.replace(row, question=question, variants=())
        for row in sets.get("forget", ())
        if is_comparable(row)
        for question in row.variants
    ]
    return [*paraphrased, *variants]


def forget_answers(
    context: EvaluationContext,
    stream: int,
    *,
    samples: int = 0,
    prefix: str | None = None,
    rows: Sequence[EvaluationRow] | None = None,
) -> list[list[Answer]]:
    """Greedy answers to forget questions, or `samples` answers as the attacks draw them.

    Args:
        stream: number of the random stream.
        rows: the questions; None: the forget questions whose answers can be compared with.
    """
    config = context.evaluation
    questions = [("forget", row) for row in (context.forget if rows is None else rows)]
    return answers(
        context.model, questions,
        config.attack if samples else Sampling(temperature=0.0),
        jax.random.fold_in(context.key, stream), max_length=context.max_length, prefix=prefix,
        samples=samples or 1, max_new_tokens=config.max_new_tokens,
        decode_batch=config.decode_batch, on_batch=context.on_batch, known=context.known,
    )  # fmt: skip


def no_answers(context: EvaluationContext) -> str | None:
    """The reason why nothing can be compared with forget answers; None if it can."""
    return None if context.forget else "the forget rows have no answers to compare with"


def no_samples(context: EvaluationContext) -> str | None:
    """The reason why no attack can sample and compare with answers; None if it can."""
    return no_answers(context) or no_attack(context)


def no_attack(context: EvaluationContext) -> str | None:
    """The reason why no attack can sample; None if it can."""
    if not context.asked:
        return "the data has no forget questions"
    return None if context.evaluation.attack_samples else "evaluation.attack_samples is 0"
