"""From records to typed rows: all checks of a data set's content, wherever it comes from."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from pmc_jax.data.records import Record
from pmc_jax.data.rows import EvaluationRow, ForgetQuestion, QuestionAnswer
from pmc_jax.errors import UserError

RETAIN_SEED = 12345

EvaluationSets = dict[str, tuple[EvaluationRow, ...]]


@dataclasses.dataclass(frozen=True)
class DataRecords:
    """The records of a data set, from files or from memory; None where it has none.

    Attributes:
        perturbed: the forget rows again, in the same order, with paraphrases.
        retain_perturbed: retain rows with paraphrased and wrong answers.
        text: paragraphs unrelated to the forget questions.
        refusals: answers such as "I don't know.".
    """

    forget: Sequence[Record]
    retain: Sequence[Record]
    perturbed: Sequence[Record] | None = None
    world_facts: Sequence[Record] | None = None
    real_authors: Sequence[Record] | None = None
    retain_perturbed: Sequence[Record] | None = None
    holdout: Sequence[Record] | None = None
    text: Sequence[str] | None = None
    refusals: Sequence[str] = ()


def forget_questions(records: Sequence[Record]) -> tuple[ForgetQuestion, ...]:
    """The questions of forget rows, without their answers."""
    return tuple(
        ForgetQuestion(i, record.text("question"), record.optional_text("system"))
        for i, record in enumerate(records)
    )


def retain_pairs(records: Sequence[Record]) -> tuple[QuestionAnswer, ...]:
    """Retain rows; each needs a question and an answer."""
    return tuple(
        QuestionAnswer(i, r.text("question"), r.answers()[0], r.optional_text("system"))
        for i, r in enumerate(records)
    )


def evaluation_rows(records: Sequence[Record] | None) -> tuple[EvaluationRow, ...]:
    """Rows that need a question and an answer."""
    return tuple(
        EvaluationRow(
            id=i,
            question=r.text("question"),
            answer=r.answers()[0],
            accepted=r.answers()[1:],
            secret=r.optional_text("secret"),
            perturbed=r.texts("perturbed_answer"),
            system=r.optional_text("system"),
            paraphrased=r.optional_text("paraphrased_answer"),
            variants=r.texts("variants"),
        )
        for i, r in enumerate(records or ())
    )


def evaluation_sets(records: DataRecords, retain_rows: int | None) -> EvaluationSets:
    """The evaluation sets that the records allow, by name."""
    sets = forget_sets(records.forget, records.perturbed)
    sets["retain"] = draw_rows(evaluation_rows(records.retain), retain_rows)
    for name, rows in (
        ("world_facts", records.world_facts),
        ("real_authors", records.real_authors),
    ):
        if rows is not None:
            sets[name] = evaluation_rows(rows)
    return sets


def forget_sets(forget: Sequence[Record], perturbed: Sequence[Record] | None) -> EvaluationSets:
    """The set "forget" and, if the rows have its fields, the set "paraphrase".

    A field is in all rows or in none, so a misspelt name is not taken for an absent field.
    """
    if perturbed is None:
        perturbed = forget
    _check_aligned(forget, perturbed)
    _all_or_none(forget, "answer")
    secrets = [
        a.optional_text("secret") or b.optional_text("secret")
        for a, b in zip(forget, perturbed, strict=True)
    ]
    sets = {
        "forget": tuple(
            EvaluationRow(
                id=i,
                question=ours.text("question"),
                answer=next(iter(ours.optional_answers()), None),
                accepted=ours.optional_answers()[1:],
                secret=secret,
                perturbed=theirs.texts("perturbed_answer"),
                system=ours.optional_text("system"),
                paraphrased=theirs.optional_text("paraphrased_answer"),
                variants=ours.texts("variants") or theirs.texts("variants"),
            )
            for i, (ours, theirs, secret) in enumerate(zip(forget, perturbed, secrets, strict=True))
        )
    }
    if _all_or_none(perturbed, "paraphrased_question"):
        sets["paraphrase"] = tuple(
            EvaluationRow(
                id=row.id,
                question=theirs.text("paraphrased_question"),
                answer=theirs.text("paraphrased_answer"),
                secret=row.secret,
                perturbed=row.perturbed,
                system=row.system,
            )
            for row, theirs in zip(sets["forget"], perturbed, strict=True)
        )
    return sets


def draw_rows(rows: tuple[EvaluationRow, ...], count: int | None) -> tuple[EvaluationRow, ...]:
    """`count` rows drawn with replacement, always the same ones; None: each row once."""
    if count is None:
        return rows
    if count < 1:
        raise UserError(f"data.retain_rows={count}: expected a positive number or null")
    drawn = np.random.default_rng(RETAIN_SEED).integers(0, len(rows), count)
    return tuple(rows[i] for i in drawn)


def public_text(rows: Iterable[EvaluationRow]) -> list[str]:
    """Questions with their answers as text, for data without text of its own."""
    return [f"{row.question} {row.answer}" for row in rows if row.answer]


def _check_aligned(forget: Sequence[Record], perturbed: Sequence[Record]) -> None:
    if len(forget) != len(perturbed):
        raise UserError(
            f"{perturbed[-1].where}: the last of {len(perturbed)} rows; expected as many rows as "
            f"the forget file has ({len(forget)})"
        )
    for ours, theirs in zip(forget, perturbed, strict=True):
        if ours.text("question") != theirs.text("question"):
            raise theirs.error("question", f"differs from that of {ours.where}")


def _all_or_none(records: Sequence[Record], field: str) -> bool:
    having = [record for record in records if record.fields.get(field) is not None]
    if having and len(having) < len(records):
        lacking = next(record for record in records if record.fields.get(field) is None)
        raise lacking.error(field, f"is missing, but {having[0].where} has it")
    return bool(having)
