"""Answers side by side: which ones are shown, and which words are marked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

from rapidfuzz.distance import LCSseq

from pmc_jax.reporting.run_files import number
from pmc_jax.reporting.text import spread
from pmc_jax.text.words import word_spans

# The sets of samples.jsonl: title, note, how many are shown.
EXAMPLE_SETS = {
    "forget": ("Forget", "Questions whose answers should be gone.", 6),
    "paraphrase": ("Forget, paraphrased", "The same questions in other words.", 2),
    "retain": ("Retain", "Questions whose answers should stay.", 3),
    "world_facts": ("World facts", "General knowledge that was not trained on here.", 3),
    "real_authors": ("Real authors", "Questions on real people, close to the forget set.", 2),
}
FORGOTTEN = ("forget", "paraphrase")  # sets whose old answers should be gone
MOST_LEAKING = 3

Mark = Literal["", "left", "gone", "new"]
"""The mark of a word: none; left of an answer that should be gone; only in the old answer; only
in the new one."""


@dataclass(frozen=True)
class Span:
    """A piece of an answer whose words have the same mark."""

    text: str
    mark: Mark = ""


@dataclass(frozen=True)
class Example:
    """One question with its old and its new answer.

    Attributes:
        question: the question.
        before: the old answer in spans.
        after: the new answer in spans.
        rouge_before: ROUGE of the old answer, if known.
        rouge_after: ROUGE of the new answer, if known.
        before_hidden: whether the page must not show the old answer.
        after_hidden: whether the page must not show the new answer.
    """

    question: str
    before: list[Span]
    after: list[Span]
    rouge_before: float | None
    rouge_after: float | None
    before_hidden: bool = False
    after_hidden: bool = False

    @property
    def unchanged(self) -> bool:
        """Whether both answers are the same text; false if the old answer is hidden."""
        return not self.before_hidden and joined(self.before) == joined(self.after)

    def unmarked(self) -> "Example":
        """The example without marks."""
        before, after = ([Span(joined(spans))] for spans in (self.before, self.after))
        return replace(self, before=before, after=after)


@dataclass(frozen=True)
class ExampleGroup:
    """Examples of one set under a title; those of `forgotten` questions have a line each."""

    title: str
    note: str
    forgotten: bool
    examples: list[Example]

    def changed(self, change: Callable[[Example], Example]) -> "ExampleGroup":
        """The group with every example changed."""
        return replace(self, examples=[change(example) for example in self.examples])


def example_groups(samples: Sequence[Mapping[str, Any]]) -> list[ExampleGroup]:
    """A few evenly spaced examples of each set, after the forget questions that leak most."""
    groups = []
    for name, (title, note, count) in EXAMPLE_SETS.items():
        rows = [row for row in samples if row.get("set") == name]
        if not rows:
            continue
        shown = spread(rows, count)
        known = any(number(row.get("rouge_after")) is not None for row in rows)
        if name == "forget" and len(rows) > count and known:
            leaking = most_leaking(rows)
            shown = leaking + spread([row for row in rows if row not in leaking], count)
            note = leaking_note(len(leaking), len(rows), count)
        forgotten = name in FORGOTTEN
        examples = [example(row, forgotten=forgotten) for row in shown]
        groups.append(ExampleGroup(title, note, forgotten, examples))
    return groups


def most_leaking(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows whose new answers hold most of the right answer, if they hold any of it."""
    leaking = [row for row in rows if number(row.get("rouge_after"))]
    return sorted(leaking, key=lambda row: -(number(row["rouge_after"]) or 0.0))[:MOST_LEAKING]


def leaking_note(leaking: int, rows: int, count: int) -> str:
    """Which forget questions are shown."""
    if not leaking:
        return (
            f"None of these answers to {rows} questions has a word of the right answer left. "
            f"Here are {count}, evenly spaced."
        )
    questions = "question" if leaking == 1 else f"{leaking} questions"
    return (
        f"First the {questions} (of {rows}) with the most left of the right answer, "
        f"then {count} evenly spaced ones."
    )


def example(row: Mapping[str, Any], *, forgotten: bool) -> Example:
    """One row of samples.jsonl."""
    before, after = marked(text_of(row.get("before")), text_of(row.get("after")), forgotten)
    return Example(
        question=text_of(row.get("question")),
        before=before,
        after=after,
        rouge_before=number(row.get("rouge_before")),
        rouge_after=number(row.get("rouge_after")),
    )


def marked(before: str, after: str, forgotten: bool) -> tuple[list[Span], list[Span]]:
    """Both answers in spans, compared word by word.

    The shared words are those of a longest common subsequence of stems, as in ROUGE-L. Other
    words of the old answer are gone, and other words of the new answer are new. Shared words
    are marked as left if the answer should be `forgotten`.
    """
    old, new = cut(before), cut(after)
    stems = ([stem for _, stem in words] for _, words in (old, new))
    shared: tuple[set[int], set[int]] = (set(), set())
    for block in LCSseq.opcodes(*stems):
        if block.tag == "equal":
            shared[0].update(piece for piece, _ in old[1][block.src_start : block.src_end])
            shared[1].update(piece for piece, _ in new[1][block.dest_start : block.dest_end])
    left: Mark = "left" if forgotten else ""
    return spans_of(old, shared[0], left, "gone"), spans_of(new, shared[1], left, "new")


Cut = tuple[list[str], list[tuple[int, str]]]


def spans_of(text: Cut, shared: set[int], left: Mark, changed: Mark) -> list[Span]:
    """A cut text in spans; text between two words of the same mark has this mark too."""
    pieces, words = text
    marks: list[Mark] = [""] * len(pieces)
    for piece, _ in words:
        marks[piece] = left if piece in shared else changed
    for gap in range(2, len(pieces) - 1, 2):
        if marks[gap - 1] == marks[gap + 1]:
            marks[gap] = marks[gap - 1]
    groups = groupby(zip(pieces, marks, strict=True), lambda pair: pair[1])
    spans = [Span("".join(piece for piece, _ in group), mark) for mark, group in groups]
    return [span for span in spans if span.text]


def cut(text: str) -> Cut:
    """The pieces of `text`, and (piece, stem) of those that are words."""
    pieces, words, end = [], [], 0
    for start, stop, word in word_spans(text):
        pieces += [text[end:start], text[start:stop]]
        words.append((len(pieces) - 1, word))
        end = stop
    return [*pieces, text[end:]], words


def joined(spans: Sequence[Span]) -> str:
    """The text of spans."""
    return "".join(span.text for span in spans)


def text_of(value: Any) -> str:
    """A JSON value as a string."""
    return "" if value is None else str(value)
