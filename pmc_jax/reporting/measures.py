"""The measures before and after a run: their descriptions and how they are written."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pmc_jax.reporting.run_files import number

FORGET, KEEP, HEALTH = "To be forgotten", "To be kept", "Health of the answers"


@dataclass(frozen=True)
class Measure:
    """One line of the table.

    Attributes:
        key: name in the summary.
        label: name in tables; {samples} stands for the samples of the sampling attack.
        group: heading under which it appears.
        percent: whether values run from 0 to 100 instead of 0 to 1.
        higher_is_better: whether more is better; None if neither is.
        meaning: a short description for readers who do not know the paper; {samples} as in
            `label`.
        near_chance: whether the accuracy of a random guess is best.
        p_value: whether it is a p-value, written with two digits; all others are in percent.
    """

    key: str
    label: str
    group: str
    percent: bool
    higher_is_better: bool | None
    meaning: str
    near_chance: bool = False
    p_value: bool = False

    @property
    def arrow(self) -> str:
        """The better direction as a sign."""
        return "≈" if self.near_chance else {True: "↑", False: "↓", None: ""}[self.higher_is_better]

    def format(self, value: float | None) -> str:
        """In percent with one decimal; a dash if the value is unknown."""
        if value is None:
            return "–"
        if self.p_value:
            return f"{value:.2g}"
        text = f"{value if self.percent else 100 * value:.1f}"
        return text if text.strip("-0.") else text.removeprefix("-")


MEASURES = (
    Measure(
        "unlearn_quality",
        "Unlearn quality",
        FORGET,
        True,
        True,
        "share of the answers' words that is gone: the mean over the questions below",
    ),
    Measure(
        "rouge_forget",
        "ROUGE forget",
        FORGET,
        False,
        False,
        "share of the answer's words in the new answer, in order",
    ),
    Measure(
        "rouge_paraphrase",
        "ROUGE paraphrase",
        FORGET,
        False,
        False,
        "the same for paraphrased questions",
    ),
    Measure(
        "facts_forget",
        "Facts forget",
        FORGET,
        False,
        False,
        "share of the words that carry the answer's facts in the new answer",
    ),
    Measure(
        "facts_paraphrase",
        "Facts paraphrase",
        FORGET,
        False,
        False,
        "the same for paraphrased questions",
    ),
    Measure(
        "worst_case_leakage",
        "Worst-case leakage ({samples} samples)",
        FORGET,
        False,
        False,
        "share of the answer's words in the most revealing of {samples} sampled answers",
    ),
    Measure(
        "worst_case_facts",
        "Worst-case facts ({samples} samples)",
        FORGET,
        False,
        False,
        "share of the fact words in the most revealing of {samples} sampled answers",
    ),
    Measure(
        "secret_leak_rate",
        "Secret leak rate",
        FORGET,
        False,
        False,
        "share of questions whose answer contains the phrase that must not come out",
    ),
    Measure(
        "secret_leak_rate_sampled",
        "Secret leak rate ({samples} samples)",
        FORGET,
        False,
        False,
        "share of questions of which any of {samples} sampled answers contains this phrase",
    ),
    Measure(
        "utility",
        "Utility",
        KEEP,
        True,
        True,
        "what the model still knows: the mean over the questions below",
    ),
    Measure(
        "rouge_retain",
        "ROUGE retain",
        KEEP,
        False,
        True,
        "share of the right words on questions to be kept",
    ),
    Measure(
        "rouge_world_facts",
        "ROUGE world facts",
        KEEP,
        False,
        True,
        "share of the right words on general knowledge",
    ),
    Measure(
        "rouge_real_authors",
        "ROUGE real authors",
        KEEP,
        False,
        True,
        "share of the right words on real people, the questions closest to the forget set",
    ),
    Measure(
        "degenerate_rate",
        "Degenerate answers",
        HEALTH,
        False,
        False,
        "share of answers to forget questions that are empty, loops or cut: the sum of these",
    ),
    Measure("empty_rate", "Empty", HEALTH, False, False, "answers without a word"),
    Measure(
        "loop_rate", "Loops", HEALTH, False, False, "answers that repeat the same words"
    ),
    Measure(
        "truncated_rate", "Cut", HEALTH, False, False,
        "answers that reached the limit of tokens without an end",
    ),
    Measure(
        "refusal_rate", "Refusals", HEALTH, False, None,
        "answers that say that they know nothing (by rule, approximate)",
    ),
    Measure(
        "assertion_rate", "Other assertions", HEALTH, False, None,
        "answers that assert something else than the right answer (approximate)",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A measure with its values before and after; either may be unknown."""

    measure: Measure
    before: float | None
    after: float | None

    @property
    def before_text(self) -> str:
        """The value before as text."""
        return self.measure.format(self.before)

    @property
    def after_text(self) -> str:
        """The value after as text."""
        return self.measure.format(self.after)

    @property
    def change_text(self) -> str:
        """The difference of the values with its sign; empty if one is unknown."""
        if self.before is None or self.after is None:
            return ""
        text = self.measure.format(self.after - self.before)
        return text if text.startswith("-") or not text.strip("0.") else f"+{text}"


def measured_rows(summary: Mapping[str, Any]) -> list[Row]:
    """The measures that are known before or after, in table order."""
    rows = [row_of(summary, measure) for measure in MEASURES]
    return [row for row in rows if row.before is not None or row.after is not None]


def unmeasured(summary: Mapping[str, Any]) -> list[str]:
    """Labels of the measures that this run does not have."""
    known = {row.measure.key for row in measured_rows(summary)}
    rows = [row_of(summary, measure) for measure in MEASURES]
    return [row.measure.label for row in rows if row.measure.key not in known]


def row_of(summary: Mapping[str, Any], measure: Measure) -> Row:
    """The values of one measure in a run's summary."""
    before, after = (summary.get(when) or {} for when in ("before", "after"))
    samples = attack_samples(summary)
    measure = dataclasses.replace(
        measure,
        label=measure.label.format(samples=samples),
        meaning=measure.meaning.format(samples=samples),
    )
    return Row(measure, number(before.get(measure.key)), number(after.get(measure.key)))


def attack_samples(summary: Mapping[str, Any]) -> str:
    """The number of samples of the sampling attack; "many" if it is unknown."""
    return str((summary.get("settings") or {}).get("evaluation.attack_samples") or "many")


NOTHING = "Nothing was measured."


def percent(share: float) -> str:
    """A share in percent; written as 0% or 100% only if it is exactly that."""
    text = f"{100 * share:.1f}"
    if share in (0, 1):
        return f"{100 * share:.0f}%"
    if text in ("0.0", "100.0"):
        return "under 0.1%" if share < 0.5 else "over 99.9%"
    return f"{text}%" if min(share, 1 - share) < 0.095 else f"{100 * share:.0f}%"


def headline(summary: Mapping[str, Any]) -> str:
    """The result in one or two sentences: of greedy answers, and the worst sampled answers."""
    by_key = {row.measure.key: row for row in measured_rows(summary)}
    forgot = forgot_clause(by_key)
    kept = kept_clause(by_key)
    greedy = f"{forgot}, while {kept}" if forgot and kept else forgot or kept
    sentence = f"{greedy[0].upper()}{greedy[1:]}." if greedy else ""
    worst = worst_sentence(by_key, attack_samples(summary))
    return f"{sentence} {worst}".strip() or NOTHING


def worst_sentence(by_key: dict[str, Row], samples: str) -> str:
    """What the sampling attack finds; empty if it was not measured."""
    secrets, recall = by_key.get("secret_leak_rate_sampled"), by_key.get("worst_case_leakage")
    facts = by_key.get("worst_case_facts")
    if secrets is not None and secrets.after is not None:
        return worst_secrets(secrets.after, f"Asked {samples} times")
    if facts is not None and facts.after is not None:
        return worst_recall(facts.after, f"Asked {samples} times", "fact words")
    if recall is None or recall.after is None:
        return ""
    return worst_recall(recall.after, f"Asked {samples} times")


def worst_secrets(share: float, asked: str, of: str = "secrets") -> str:
    """How many secrets the model reveals when it is `asked` in some way."""
    return f"{asked}, it reveals {f'{percent(share)} of the {of}' if share else 'no secret'}."


def worst_recall(recall: float, asked: str, words: str = "right words") -> str:
    """What the most revealing of many answers contains."""
    return f"{asked}, its most revealing answer contains {percent(recall)} of the {words}."


def forgot_clause(by_key: dict[str, Row]) -> str:
    """The change of unlearn quality, or else of the overlap with forget answers."""
    for key, name in (
        ("unlearn_quality", "Unlearn quality"),
        ("rouge_forget", "ROUGE on forget questions"),
    ):
        row = by_key.get(key)
        if row is None or row.after is None:
            continue
        if row.before is None:
            return f"{name} is {row.after_text}"
        if row.before_text == row.after_text:
            return f"{name} stayed at {row.after_text}"
        verb = "rose" if row.after > row.before else "fell"
        return f"{name} {verb} from {row.before_text} to {row.after_text}"
    return ""


def kept_clause(by_key: dict[str, Row]) -> str:
    """The share of its value that utility kept."""
    row = by_key.get("utility")
    if row is None or row.after is None:
        return ""
    if row.before is None or row.before <= 0:
        return f"utility is {row.after_text}"
    share = row.after / row.before
    if row.before_text == row.after_text:
        return f"utility stayed at {row.after_text}"
    if share >= 1:
        return f"utility went from {row.before_text} to {row.after_text}"
    # Rounded down, so that 94.9% does not read as 95%.
    return f"utility kept {math.floor(100 * share)}% of its value"
