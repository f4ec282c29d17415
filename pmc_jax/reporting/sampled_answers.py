"""The most revealing sampled answers of a model in each attack."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pmc_jax.reporting.evaluation_files import EvaluationFiles
from pmc_jax.reporting.examples import Span, marked, text_of
from pmc_jax.reporting.redaction import HIDDEN
from pmc_jax.reporting.run_files import number

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
        answer: in spans; words shared with the answer before unlearning are marked. Empty if
            it is `hidden`.
        rouge: recall of the right answer, if known.
        leaked: whether it holds the secret; None if there is none.
        leaks: how many of the `samples` answers to the question hold the secret.
        samples: how many answers were drawn.
        hidden: whether the page must not show the answer.
    """

    question: str
    answer: list[Span]
    rouge: float | None
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
    old = old_answers(files)
    groups = []
    for attack, title in ATTACK_WORDS.items():
        if attack not in parts:
            continue
        part = parts[attack]
        rows = part.get("sampled", part)["questions"]
        worst = sorted(rows, key=revealing, reverse=True)[:SHOWN]
        shown = [row for row in worst if any(revealing(row))]
        groups.append(
            SampledGroup(
                title, note(rows, shown, part.get("prefix")),
                [sampled_answer(row, old) for row in shown],
            )
        )  # fmt: skip
    return groups


def revealing(row: Mapping[str, Any]) -> tuple[bool, float, int]:
    """Sort key of questions.

    Whether the worst answer holds the secret, its recall, and how many answers hold the secret.
    """
    return bool(row["worst"]["leaked"]), number(row["worst"]["rouge"]) or 0.0, row["leaks"] or 0


def note(rows: list[dict[str, Any]], shown: list[dict[str, Any]], prefix: str | None) -> str:
    """How many answers there are, and which are shown."""
    begun = f" Each begins with “{prefix}”, which does not count." if prefix else ""
    answers = f"{len(rows[0]['recalls']):,} answers to each of {len(rows):,} questions"
    if not shown:
        return f"None of {answers} has a word of the right answer.{begun}"
    first = "those with the secret first, then by ROUGE" if shown[0]["worst"]["leaked"] else (
        "by ROUGE"
    )  # fmt: skip
    return f"Of {answers}, the worst of each of the {len(shown)} worst questions, {first}.{begun}"


def old_answers(files: EvaluationFiles) -> dict[Any, str]:
    """The answers of the model before unlearning, by question and by (set, id)."""
    rows = files.of_part("quality").get(files.before or "", {}).get("answers", [])
    by_id = {(row["set"], row["id"]): text_of(row["text"]) for row in rows}
    return by_id | {row["question"]: text_of(row["text"]) for row in rows}


def sampled_answer(row: Mapping[str, Any], old: Mapping[Any, str]) -> SampledAnswer:
    """The worst answer to one question, marked against the old answer."""
    worst = row["worst"]
    before = old.get(row["question"], old.get(("forget", row["id"]), ""))
    _, spans = marked(before, text_of(worst["text"]), forgotten=True)
    # Only what is left of the old answer matters; new words are not marked.
    answer = [span if span.mark == "left" else Span(span.text) for span in spans]
    hidden = worst["text"] == HIDDEN
    return SampledAnswer(
        question=text_of(row["question"]),
        answer=[] if hidden else answer,
        rouge=number(worst["rouge"]),
        leaked=worst["leaked"],
        leaks=row["leaks"],
        samples=len(row["recalls"]),
        hidden=hidden,
    )
