"""What is measured before and after a run, in words, and how it is written down."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from pmc_jax.reporting.run_files import number

FORGET, KEEP, HEALTH = "To be forgotten", "To be kept", "Health of the answers"


@dataclass(frozen=True)
class Measure:
    """One line of the table.

    Attributes:
        percent: whether values run from 0 to 100 instead of 0 to 1.
        higher_is_better: which way it should go; None for what is neither.
        near_chance: whether it should be what guessing gives, neither more nor less.
        p_value: whether it is written as it is, with two digits; all else is in percent.
        meaning: one short phrase for somebody who has not read the paper. In it and in
            `label`, {samples} stands for how often the sampling attack asks.
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
        """Which way is better, as a sign."""
        return "≈" if self.near_chance else {True: "↑", False: "↓", None: ""}[self.higher_is_better]

    def format(self, value: float | None) -> str:
        """In percent with one decimal; a dash for what is unknown."""
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
        "how much of the answers is gone, over the kinds of questions below",
    ),
    Measure(
        "rouge_forget",
        "ROUGE forget",
        FORGET,
        False,
        False,
        "share of the answer's words that still come out, in order",
    ),
    Measure(
        "rouge_paraphrase",
        "ROUGE paraphrase",
        FORGET,
        False,
        False,
        "share of its words that come out when the question is put in other words",
    ),
    Measure(
        "worst_case_leakage",
        "Worst-case leakage ({samples} samples)",
        FORGET,
        False,
        False,
        "share of its words in the most revealing of {samples} sampled answers",
    ),
    Measure(
        "secret_leak_rate",
        "Secret leak rate",
        FORGET,
        False,
        False,
        "share of questions whose answer still holds the very phrase to be forgotten",
    ),
    Measure(
        "secret_leak_rate_sampled",
        "Secret leak rate ({samples} samples)",
        FORGET,
        False,
        False,
        "share of questions of which any of {samples} sampled answers holds that phrase",
    ),
    Measure(
        "utility",
        "Utility",
        KEEP,
        True,
        True,
        "what the model still knows: the mean over the kinds of questions below",
    ),
    Measure(
        "rouge_retain",
        "ROUGE retain",
        KEEP,
        False,
        True,
        "share of the right words on questions it was told to keep",
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
        "share of the right words on real people, the nearest neighbours of what is forgotten",
    ),
    Measure(
        "degenerate_rate",
        "Degenerate answers",
        HEALTH,
        False,
        False,
        "share of answers to forget questions that are empty or one word repeated",
    ),
)


@dataclass(frozen=True)
class Row:
    """A measure with its values before and after; either may be unknown."""

    measure: Measure
    before: float | None
    after: float | None

    @property
    def before_text(self) -> str:
        return self.measure.format(self.before)

    @property
    def after_text(self) -> str:
        return self.measure.format(self.after)

    @property
    def change_text(self) -> str:
        """The difference of the values, signed; empty if one is unknown."""
        if self.before is None or self.after is None:
            return ""
        text = self.measure.format(self.after - self.before)
        return text if text.startswith("-") or not text.strip("0.") else f"+{text}"


def measured_rows(summary: dict[str, Any]) -> list[Row]:
    """The measures known before or after, in the order of the table."""
    rows = [row_of(summary, measure) for measure in MEASURES]
    return [row for row in rows if row.before is not None or row.after is not None]


def unmeasured(summary: dict[str, Any]) -> list[str]:
    """Labels of the measures that the data of this run could not give."""
    known = {row.measure.key for row in measured_rows(summary)}
    rows = [row_of(summary, measure) for measure in MEASURES]
    return [row.measure.label for row in rows if row.measure.key not in known]


def row_of(summary: dict[str, Any], measure: Measure) -> Row:
    """The values of one measure in a run's summary."""
    before, after = (summary.get(when) or {} for when in ("before", "after"))
    samples = attack_samples(summary)
    measure = dataclasses.replace(
        measure,
        label=measure.label.format(samples=samples),
        meaning=measure.meaning.format(samples=samples),
    )
    return Row(measure, number(before.get(measure.key)), number(after.get(measure.key)))


def attack_samples(summary: dict[str, Any]) -> str:
    """How many answers the sampling attack draws to a question, or "many" if not told."""
    return str((summary.get("settings") or {}).get("evaluation.attack_samples") or "many")


NOTHING = "Nothing was measured."


def percent(share: float) -> str:
    """A share as a person writes it; neither 0% nor 100% unless it is."""
    text = f"{100 * share:.1f}"
    if share in (0, 1):
        return f"{100 * share:.0f}%"
    if text in ("0.0", "100.0"):
        return "under 0.1%" if share < 0.5 else "over 99.9%"
    return f"{text}%" if min(share, 1 - share) < 0.095 else f"{100 * share:.0f}%"


def headline(summary: dict[str, Any]) -> str:
    """The result, as far as it was measured: of greedy answers, and the worst of sampled ones."""
    by_key = {row.measure.key: row for row in measured_rows(summary)}
    forgot = forgot_clause(by_key)
    kept = kept_clause(by_key)
    greedy = f"{forgot}, while {kept}" if forgot and kept else forgot or kept
    sentence = f"{greedy[0].upper()}{greedy[1:]}." if greedy else ""
    worst = worst_sentence(by_key, attack_samples(summary))
    return f"{sentence} {worst}".strip() or NOTHING


def worst_sentence(by_key: dict[str, Row], samples: str) -> str:
    """What sampling finds at the worst; empty if nothing was sampled."""
    secrets, recall = by_key.get("secret_leak_rate_sampled"), by_key.get("worst_case_leakage")
    if secrets is not None and secrets.after is not None:
        return worst_secrets(secrets.after, f"Asked {samples} times")
    if recall is None or recall.after is None:
        return ""
    return worst_recall(recall.after, f"Asked {samples} times")


def worst_secrets(share: float, asked: str, of: str = "secrets") -> str:
    """How many secrets come out when a model is `asked` in some way."""
    return f"{asked}, it tells {f'{percent(share)} of the {of}' if share else 'no secret'}."


def worst_recall(recall: float, asked: str) -> str:
    """What the most revealing of many answers holds."""
    return f"{asked}, it gives {percent(recall)} of the right words in its most revealing answer."


def forgot_clause(by_key: dict[str, Row]) -> str:
    """How unlearn quality, or else the overlap with forget answers, changed."""
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
    """Which share of its value utility kept."""
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
    # Rounded down: 94.9% must not read as the 95% it has not reached.
    return f"utility kept {math.floor(100 * share)}% of its value"
