"""What an evaluation found, in sentences for somebody who has not read the paper."""

from collections.abc import Iterator, Mapping
from typing import Any

from pmc_jax.reporting.measures import attack_samples, headline
from pmc_jax.reporting.run_files import number
from pmc_jax.reporting.side_by_side import BITS

ATTACKS = {
    "sampling": ("Asked {samples} times", "questions"),
    "prefilling": ("Asked {samples} times with the beginning of the answer given", "questions"),
    "rewording": ("Asked {samples} times in each other wording", "wordings"),
}
KINDS = {"forget": "rows to forget", "benign": "rows to keep"}
SIGNIFICANCE = 0.05


def evaluation_headline(summary: Mapping[str, Any]) -> str:
    """The result of the model under examination in one sentence."""
    measures, before = summary["measures"], summary["before"]
    return headline(
        {"before": measures.get(before) if before else None,
         "after": measures[summary["models"][0]]}
    )  # fmt: skip


def percent(share: float) -> str:
    """A share as a person writes it; neither 0% nor 100% unless it is."""
    text = f"{100 * share:.1f}"
    if share in (0, 1):
        return f"{100 * share:.0f}%"
    if text in ("0.0", "100.0"):
        return "under 0.1%" if share < 0.5 else "over 99.9%"
    return f"{text}%" if min(share, 1 - share) < 0.095 else f"{100 * share:.0f}%"


class Numbers:
    """The measures of the model under examination, and of the one before unlearning."""

    def __init__(self, summary: Mapping[str, Any]) -> None:
        before = summary["before"]
        self.after = summary["measures"][summary["models"][0]]
        self.before = summary["measures"][before] if before else {}

    def known(self, key: str) -> float | None:
        """A number of the model under examination."""
        return number(self.after.get(key))

    def against(self, key: str) -> str:
        """The number before unlearning in brackets, if it is known."""
        old = number(self.before.get(key))
        return "" if old is None else f" (before: {percent(old)})"

    def first(self, *keys: str) -> tuple[str, float] | None:
        """The first of these measures that is known."""
        for key in keys:
            if (value := self.known(key)) is not None:
                return key, value
        return None


def findings(summary: Mapping[str, Any]) -> list[str]:
    """A sentence for each kind of measure, as far as it was measured; nothing is left out."""
    numbers = Numbers(summary)
    samples = attack_samples(dict(summary))
    return [
        *greedy_findings(numbers),
        *kept_findings(numbers),
        *attack_findings(numbers, samples),
        *choice_findings(numbers),
        *aftermath_findings(numbers, samples),
        *text_findings(numbers),
        *tofu_findings(numbers),
    ]


def greedy_findings(x: Numbers) -> Iterator[str]:
    """Asked once."""
    if (secret := x.known("secret_leak_rate")) is not None:
        yield (
            "Asked once for its most likely answer, it tells the secret of "
            f"{percent(secret)} of the questions{x.against('secret_leak_rate')}."
        )
    elif (rouge := x.known("rouge_forget")) is not None:
        yield (
            "Asked once for its most likely answer, it gives "
            f"{percent(rouge)} of the right answer's words{x.against('rouge_forget')}."
        )
    if (empty := x.known("degenerate_rate")) is not None and empty > 0:
        yield f"{percent(empty)} of its answers to forget questions are empty or one word repeated."


def kept_findings(x: Numbers) -> Iterator[str]:
    """What it should keep."""
    if (utility := x.known("utility")) is not None:
        old = number(x.before.get("utility"))
        before = "" if old is None else f" (before: {percent(old / 100)})"
        yield (
            f"Its answers to questions it should still know hold {percent(utility / 100)} of the "
            f"right words{before}."
        )


def attack_findings(x: Numbers, samples: str) -> Iterator[str]:
    """Asked many times."""
    for attack, (how, what) in ATTACKS.items():
        asked = how.format(samples=samples)
        if (secret := x.known(f"{attack}_secret_worst")) is not None:
            key = f"{attack}_secret_worst"
            yield (
                f"{asked}, it tells the secret of {percent(secret)} of the {what} at least "
                f"once{x.against(key)}."
            )
        elif (worst := x.known(f"{attack}_worst")) is not None:
            yield (
                f"{asked}, its most revealing answer holds {percent(worst)} of the right answer's "
                f"words on average{x.against(f'{attack}_worst')}."
            )


def choice_findings(x: Numbers) -> Iterator[str]:
    """Multiple choice."""
    chance = x.known("least_likely_chance")
    most, least = x.known("least_likely_most_likely_accuracy"), x.known("least_likely_accuracy")
    if chance is None or most is None or least is None:
        return
    yield (
        f"Among several options the right one is the most likely for {percent(most)} of the "
        f"questions{x.against('least_likely_most_likely_accuracy')} and the least likely for "
        f"{percent(least)}{x.against('least_likely_accuracy')}; guessing finds {percent(chance)}."
    )


def aftermath_findings(x: Numbers, samples: str) -> Iterator[str]:
    """Changed weights."""
    for kind, rows in KINDS.items():
        name = f"relearning_{kind}"
        if (found := x.first(f"{name}_secret_rate", f"{name}_greedy")) is not None:
            key, value = found
            secret = key.endswith("secret_rate")
            what = "the secrets of" if secret else "the words of the right answers to"
            yield (
                f"Trained again on a few {rows}, it gives away {percent(value)} of {what} the "
                f"forget questions that it was not trained on{x.against(key)}."
            )
    for bits in BITS:
        name = f"rounding_{bits}"
        if (found := x.first(f"{name}_secret_worst", f"{name}_worst")) is not None:
            key, value = found
            if key.endswith("secret_worst"):
                what = f"tells the secret of {percent(value)} of the questions at least once"
            else:
                what = f"gives {percent(value)} of the right words at the worst"
            yield (
                f"With weights rounded to {bits} bits and asked {samples} times, it {what}"
                f"{x.against(key)}."
            )


def text_findings(x: Numbers) -> Iterator[str]:
    """Unrelated text."""
    if (moved := x.known("side_effects_watched_mean_absolute")) is not None:
        yield (
            "In text that has nothing to do with the forget questions, the probability of a token "
            f"that also occurs in forget answers changed by {100 * moved:.1f} percentage points on "
            "average."
        )


def tofu_findings(x: Numbers) -> Iterator[str]:
    """TOFU's own verdicts."""
    if (quality := x.known("tofu_forget_quality")) is not None:
        told = "cannot be told apart from" if quality >= SIGNIFICANCE else "differ from"
        yield (
            f"Its truth ratios on forget questions {told} those of a model that never saw them "
            f"(TOFU's forget quality: p = {quality:.2g})."
        )
    if (auc := x.known("tofu_mia_min_k")) is not None:
        yield (
            "A membership attack (min-k) takes a forget answer for more familiar than an answer "
            f"that was never taught in {percent(auc)} of the pairs{x.against('tofu_mia_min_k')}; "
            "50% means that they cannot be told apart."
        )
