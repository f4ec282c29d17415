"""Answers side by side: which ones are shown, and which words are marked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

from rapidfuzz.distance import LCSseq

from pmc_jax.reporting.run_files import number
from pmc_jax.reporting.text import spread
from pmc_jax.text.facts import Background, background_of, fact_spans, facts_of
from pmc_jax.text.words import word_spans, words_of

# The sets of samples.jsonl: title, note, how many are shown.
EXAMPLE_SETS = {
    "forget": ("To be forgotten", "Questions whose answers should be gone.", 6),
    "paraphrase": ("To be forgotten, in other words", "The same questions in other words.", 2),
    "retain": ("To be kept", "Questions whose answers should stay.", 3),
    "world_facts": ("World facts", "General knowledge that was not trained on here.", 3),
    "real_authors": ("Real authors", "Questions on real people, close to the forget set.", 2),
}
FORGOTTEN = ("forget", "paraphrase")  # sets whose old answers should be gone
WORST_SHOWN = 3

Mark = Literal["", "secret", "left", "gone", "new"]
"""The mark of a word: none; of the secret, and left of an answer that should be gone; only in the
old answer; only in the new one."""

MARKS: dict[str, Mark] = {"secret": "secret", "fact": "left"}
"""By what an answer reveals (`evaluation.quality.Answer.marks`)."""


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
        badge: the verdict on the question; empty if it is not known.
        note: what the verdict rests on.
    """

    question: str
    before: list[Span]
    after: list[Span]
    rouge_before: float | None
    rouge_after: float | None
    before_hidden: bool = False
    after_hidden: bool = False
    badge: str = ""
    note: str = ""

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


def example_groups(
    samples: Sequence[Mapping[str, Any]], verdict: Mapping[str, Any] | None = None
) -> list[ExampleGroup]:
    """A few examples of each set: the worst of the forget questions, then evenly spaced ones.

    Args:
        samples: rows in the layout of `samples.jsonl`.
        verdict: the verdicts on the forget questions, for their badges and their order.
    """
    verdicts = {row["id"]: row for row in (verdict or {}).get("rows", ())}
    known = original_background(samples)
    groups = []
    for name, (title, note, count) in EXAMPLE_SETS.items():
        rows = [row for row in samples if row.get("set") == name]
        if not rows:
            continue
        forgotten, own = name in FORGOTTEN, verdicts if name == "forget" else {}
        shown = spread(rows, count)
        if name == "forget":
            ordered = sorted(rows, key=lambda row: badness(row, verdicts.get(row.get("id"))))
            shown = ordered[:WORST_SHOWN] + spread(ordered[WORST_SHOWN:], count)
            note += " The worst first." if len(rows) > 1 else ""
            note += f" {len(shown)} of {len(rows)}." if len(shown) < len(rows) else ""
        examples = [
            example(row, forgotten=forgotten, verdict=own.get(row.get("id")), known=known)
            for row in shown
        ]
        groups.append(ExampleGroup(title, note, forgotten, examples))
    return groups


BADGES = ("still there", "newly appeared", "partly", "cannot tell", "never known", "gone")
"""The verdicts on a question, the worst first."""


def badness(row: Mapping[str, Any], verdict: Mapping[str, Any] | None) -> tuple[float, ...]:
    """Sort key of forget questions: the worst first."""
    rank = BADGES.index(verdict["verdict"]) if verdict else len(BADGES)
    found = (verdict or {}).get("samples_revealing") or 0
    facts = number(row.get("facts_after"))
    rouge = number(row.get("rouge_after")) or 0.0
    left = (verdict or {}).get("words_left") or 0
    return rank, -found, -(rouge if facts is None else facts), -left, -rouge


def original_background(samples: Sequence[Mapping[str, Any]]) -> Background:
    """Which words are common in the old answers."""
    forget, kept = (
        [text_of(row.get("before")) for row in samples if row.get("set") == name]
        for name in ("forget", "retain")
    )
    return background_of(forget, kept)


def verdict_note(verdict: Mapping[str, Any]) -> str:
    """What the verdict on a question rests on."""
    found = [str(verdict["reason"])] if verdict.get("reason") else []
    if verdict.get("words"):
        found.append(f"{verdict['words_left']} of {verdict['words']} fact words left")
    if verdict.get("samples"):
        found.append(f"revealed in {verdict['samples_revealing']} of {verdict['samples']} samples")
    if verdict["kind"] in ("loop", "refusal"):
        found.append(f"a {verdict['kind']}")
    if verdict["truncated"]:
        found.append("cut at the limit")
    return ", ".join(found)


def example(
    row: Mapping[str, Any],
    *,
    forgotten: bool,
    verdict: Mapping[str, Any] | None = None,
    known: Background | None = None,
) -> Example:
    """One row of `samples.jsonl`.

    Args:
        forgotten: whether the answer should be gone.
        verdict: the verdict on the question.
        known: the background of the old answers' facts.
    """
    old, new = text_of(row.get("before")), text_of(row.get("after"))
    if forgotten:
        before, after = leaking(row, known or Background())
    else:
        before, after = marked(old, new)
    return Example(
        question=text_of(row.get("question")),
        before=before,
        after=after,
        rouge_before=number(row.get("rouge_before")),
        rouge_after=number(row.get("rouge_after")),
        badge=verdict["verdict"] if verdict else "",
        note=verdict_note(verdict) if verdict else "",
    )


def leaking(row: Mapping[str, Any], known: Background) -> tuple[list[Span], list[Span]]:
    """Both answers to a forget question in spans.

    In the new answer, what it reveals of the right answer is marked as left, the secret first of
    all. If the right answer is not known, the words that carry the facts of the old answer are.
    The same words of the old answer are marked as left or as gone.
    """
    old, new = text_of(row.get("before")), text_of(row.get("after"))
    if row.get("facts_after") is None:
        facts = facts_of(old, text_of(row.get("question")), known)
        positions = [
            [(start, end, "fact") for start, end in fact_spans(facts, text)] for text in (old, new)
        ]
    else:
        positions = [[tuple(mark) for mark in row[key]] for key in ("marks_before", "marks_after")]
    said = set(words_of(new))
    before: list[tuple[int, int, Mark]] = [
        (start, end, MARKS[what] if said.issuperset(words_of(old[start:end])) else "gone")
        for start, end, what in positions[0]
    ]
    return placed(old, before), placed(new, [(s, e, MARKS[what]) for s, e, what in positions[1]])


def placed(text: str, marks: Sequence[tuple[int, int, Mark]]) -> list[Span]:
    """A text in spans with marks at (start, end) positions, which are in order and disjoint."""
    spans, done = [], 0
    for start, end, mark in marks:
        spans += [Span(text[done:start]), Span(text[start:end], mark)]
        done = end
    return [span for span in [*spans, Span(text[done:])] if span.text]


def marked(before: str, after: str) -> tuple[list[Span], list[Span]]:
    """Both answers in spans, compared word by word.

    The shared words are those of a longest common subsequence of stems, as in ROUGE-L. Other
    words of the old answer are gone, and other words of the new answer are new.
    """
    old, new = cut(before), cut(after)
    stems = ([stem for _, stem in words] for _, words in (old, new))
    shared: tuple[set[int], set[int]] = (set(), set())
    for block in LCSseq.opcodes(*stems):
        if block.tag == "equal":
            shared[0].update(piece for piece, _ in old[1][block.src_start : block.src_end])
            shared[1].update(piece for piece, _ in new[1][block.dest_start : block.dest_end])
    return spans_of(old, shared[0], "gone"), spans_of(new, shared[1], "new")


Cut = tuple[list[str], list[tuple[int, str]]]


def spans_of(text: Cut, shared: set[int], changed: Mark) -> list[Span]:
    """A cut text in spans; text between two words of the same mark has this mark too."""
    pieces, words = text
    marks: list[Mark] = [""] * len(pieces)
    for piece, _ in words:
        marks[piece] = "" if piece in shared else changed
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
