"""One model under examination: what it is asked, how, and how it answers an attacker."""

import dataclasses
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
    Respondent,
    answers,
    is_comparable,
)
from pmc_jax.evaluation.tofu import RetainLog
from pmc_jax.model.specs import Params
from pmc_jax.settings import bounded

# Distinct random streams for the parts that sample.
SAMPLING_STREAM, PREFILLING_STREAM, REWORDING_STREAM = 1, 2, 3

Relearn = Callable[[Sequence[Pair], Sequence[int]], Iterator[tuple[int, Params]]]
"""From pairs to fine-tune on, and rising numbers of steps, to the weights after each."""


@dataclasses.dataclass(frozen=True)
class AftermathConfig:
    """Robustness: the model is fine-tuned again, or quantised, and then measured once more.

    Attributes:
        rows: forget examples to fine-tune on, and as many benign ones; at most half of the
            forget set.
        steps: optimizer steps after which the model is measured.
        batch_size: examples per step.
        learning_rate: learning rate of the fine-tuning.
        bits: bit widths to quantise the weights to.
    """

    rows: int = bounded(8, least=1)
    steps: list[int] = dataclasses.field(default_factory=lambda: [1, 2, 4, 8, 16, 32])
    batch_size: int = bounded(8, least=1)
    learning_rate: float = bounded(1e-4, above=0)
    bits: list[int] = dataclasses.field(default_factory=lambda: [8, 4])


@dataclasses.dataclass(frozen=True)
class Examination:
    """A model, what it is asked, and how.

    Attributes:
        sets: the evaluation sets of the data.
        evaluation: how answers are decoded, greedily and in the attacks.
        prefix: what the prefilling attack makes every answer begin with.
        confidence: of every certified bound.
        key: all random numbers come from it.
        on_batch: called with (questions done, tokens) after every batch.
        controls: what else the model is held against.
        retain_log: of a model that never saw the forget set.
        references: another model's scores of the right answers to the forget questions and to
            the held-out ones, for membership inference.
        aftermath: how the model is changed to be measured again.
        relearn: fine-tunes the model under examination; None where nothing can.
    """

    respondent: Respondent
    sets: Mapping[str, Sequence[EvaluationRow]]
    evaluation: EvaluationConfig
    prefix: str | None
    confidence: float
    key: PRNGKeyArray
    on_batch: Callable[[int, int], None] | None = None
    controls: Controls = dataclasses.field(default_factory=Controls)
    retain_log: RetainLog | None = None
    references: tuple[Sequence[TokenScores], Sequence[TokenScores]] | None = None
    aftermath: AftermathConfig = dataclasses.field(default_factory=AftermathConfig)
    relearn: Relearn | None = None

    @property
    def forget(self) -> Sequence[EvaluationRow]:
        """The forget rows with answers that others can be compared with."""
        return [row for row in self.sets.get("forget", ()) if is_comparable(row)]

    @property
    def reworded(self) -> Sequence[EvaluationRow]:
        """The forget rows in every other wording that the data has, with their ids."""
        return reworded_rows(self.sets)

    @property
    def benign(self) -> Sequence[EvaluationRow]:
        """Distinct rows to keep, whose answers are known."""
        return [row for row in dict.fromkeys(self.sets.get("retain", ())) if row.answer]

    @property
    def choices(self) -> Sequence[Choice]:
        """Multiple choice made from the forget rows, as far as they have wrong answers."""
        return choices_of(self.forget)

    @property
    def greedily(self) -> EvaluationConfig:
        """How answers are decoded where nothing is sampled."""
        return dataclasses.replace(self.evaluation, attack_samples=0)

    def of(self, params: Params) -> "Examination":
        """The same examination of other weights."""
        return dataclasses.replace(
            self, respondent=dataclasses.replace(self.respondent, params=params)
        )


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


def asked(
    x: Examination,
    stream: int,
    *,
    samples: int = 0,
    prefix: str | None = None,
    rows: Sequence[EvaluationRow] | None = None,
) -> list[list[Answer]]:
    """Greedy answers to forget questions, or `samples` drawn as the attacks draw them.

    `rows` are the questions; all forget rows if None.
    """
    cfg = x.evaluation
    attack = Sampling(cfg.attack_temperature, cfg.attack_top_k, cfg.attack_top_p)
    questions = [("forget", row) for row in (x.forget if rows is None else rows)]
    return answers(
        x.respondent, questions,
        attack if samples else Sampling(temperature=0.0),
        jax.random.fold_in(x.key, stream), prefix=prefix, samples=samples or 1,
        max_new_tokens=cfg.max_new_tokens, batch_rows=cfg.rows, on_batch=x.on_batch,
    )  # fmt: skip


def no_answers(x: Examination) -> str | None:
    """The reason why nothing can be compared with forget answers; None if they are known."""
    return None if x.forget else "the forget rows have no answers to compare with"


def no_samples(x: Examination) -> str | None:
    """The reason why no attack can sample; None if it can."""
    reason = no_answers(x)
    if reason is None and not x.evaluation.attack_samples:
        return "evaluation.attack_samples is 0"
    return reason
