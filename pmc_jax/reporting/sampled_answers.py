"""The most revealing sampled answers of a model in each attack."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pmc_jax.reporting.evaluation_files import EvaluationFiles
from pmc_jax.reporting.examples import MARKS, Span, placed, text_of
from pmc_jax.reporting.redaction import HIDDEN
from pmc_jax.reporting.run_files import number
from pmc_jax.text.counts import counted

ATTACK_WORDS = {
    "sampling": "Original questions",
    "prefilling": "With a forced beginning",
    "rewording": "Other wordings",
}
SHOWN = 3  # answers of each attack


@dataclass(frozen=True)
class SampledAnswer:
    """The most revealing of the answers to one question.

    Attributes:
        question: the question.
        answer: in spans; what it reveals of the right answer is marked. Empty if it is `hidden`.
        rouge: recall of the right answer, if known.
        facts: recall of its fact words, if known.
        leaked: whether it contains the secret; None if there is none.
        leaks: how many of the `samples` answers to the question contain the secret.
        samples: how many answers were drawn.
        hidden: whether the page must not show the answer.
    """

    question: str
    answer: list[Span]
    rouge: float | None
    facts: float | None
    leaked: bool | None
    leaks: int | None
    samples: int
    hidden: bool


@dataclass(frozen=True)
class SampledGroup:
    """Answers in one attack, the most revealing first; empty if none reveals anything."""

    title: str
    note: str
    answers: list[SampledAnswer]


def sampled_groups(files: EvaluationFiles) -> list[SampledGroup]:
    """The most revealing answers of the model under evaluation in each attack."""
    parts = files.parts[files.evaluated]
    groups = []
    for attack, title in ATTACK_WORDS.items():
        if attack not in parts:
            continue
        part = parts[attack]
        rows = part.get("sampled", part).get("questions", [])
        if not rows:
            continue
        worst = sorted(rows, key=revealing, reverse=True)[:SHOWN]
        shown = [row for row in worst if any(revealing(row))]
        groups.append(
            SampledGroup(
                title, note(rows, shown, part.get("prefix")),
                [sampled_answer(row) for row in shown],
            )
        )  # fmt: skip
    return groups


def revealing(row: Mapping[str, Any]) -> tuple[bool, float, float, int]:
    """Sort key of questions.

    Whether the worst answer contains the secret, its fact recall and recall, and how many answers
    contain the secret.
    """
    worst = row["worst"]
    facts, rouge = number(worst.get("facts")) or 0.0, number(worst["rouge"]) or 0.0
    return bool(worst["leaked"]), facts, rouge, row["leaks"] or 0


def note(rows: list[dict[str, Any]], shown: list[dict[str, Any]], prefix: str | None) -> str:
    """How many answers there are, and which are shown."""
    begun = f" Each begins with “{prefix}”, which does not count." if prefix else ""
    each = counted(len(rows[0]["recalls"]), "answer", "answers")
    answers = f"{each} to each of {counted(len(rows), 'question', 'questions')}"
    if not shown:
        return f"None of {answers} has a word of the right answer.{begun}"
    first = "those with the secret first, then by fact recall" if shown[0]["worst"]["leaked"] else (
        "by fact recall"
    )  # fmt: skip
    return f"Of {answers}, the worst of each of the {len(shown)} worst questions, {first}.{begun}"


def sampled_answer(row: Mapping[str, Any]) -> SampledAnswer:
    """The worst answer to one question."""
    worst = row["worst"]
    marks = [(start, end, MARKS[what]) for start, end, what in worst.get("marks", ())]
    hidden = worst["text"] == HIDDEN
    return SampledAnswer(
        question=text_of(row["question"]),
        answer=[] if hidden else placed(text_of(worst["text"]), marks),
        rouge=number(worst["rouge"]),
        facts=number(worst.get("facts")),
        leaked=worst["leaked"],
        leaks=row["leaks"],
        samples=len(row["recalls"]),
        hidden=hidden,
    )
