"""What an evaluation found, in sentences for somebody who has not read the paper."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pmc_jax.reporting.measures import (
    NOTHING,
    attack_samples,
    headline,
    percent,
)
from pmc_jax.reporting.run_files import number
from pmc_jax.reporting.side_by_side import model_order
from pmc_jax.reporting.text import short_names
from pmc_jax.reporting.worst import ATTACKS, BITS, KINDS, worst_of_all

SIGNIFICANCE = 0.05


MEMBERSHIP = {
    "loss": "loss", "zlib": "zlib", "min_k": "min-k", "min_k_plus_plus": "min-k++",
    "reference": "comparison with a reference model",
}  # fmt: skip


def evaluation_headline(summary: Mapping[str, Any]) -> str:
    """The result of the model under examination: greedily, and the worst of all attacks."""
    measures, before = summary["measures"], summary["before"]
    greedy = headline(
        {"before": measures.get(before) if before else None,
         "after": measures[summary["models"][0]]}
    )  # fmt: skip
    numbers = Numbers(summary)
    if not numbers.measured:
        return NOTHING
    worst = worst_of_all(numbers.known, attack_samples(dict(summary)))
    return worst if greedy == NOTHING else f"{greedy} {worst}"


class Numbers:
    """The measures of the model under examination, and of the one before unlearning."""

    def __init__(self, summary: Mapping[str, Any]) -> None:
        before = summary["before"]
        self.after = summary["measures"][summary["models"][0]]
        self.before = summary["measures"][before] if before else {}

    @property
    def measured(self) -> bool:
        """Whether there is any number of the model under examination."""
        return any(number(value) is not None for value in self.after.values())

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
        *attack_findings(numbers, samples, summary["settings"].get("prefix")),
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


def attack_findings(x: Numbers, samples: str, prefix: str | None) -> Iterator[str]:
    """Asked many times; `prefix` is how answers were made to begin."""
    for attack, (how, what) in ATTACKS.items():
        forced = f" (“{prefix}”)" if attack == "prefilling" and prefix else ""
        asked = f"Asked {samples} times{how}{forced}"
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
    for kind, (rows, asked) in KINDS.items():
        name = f"relearning_{kind}"
        if (found := x.first(f"{name}_secret_rate", f"{name}_greedy")) is not None:
            key, value = found
            secret = key.endswith("secret_rate")
            what = "secrets of" if secret else "words of the right answers to"
            often = f"{name}_secret_worst" if secret else f"{name}_worst"
            yield (
                f"Trained again on a few {rows}, it gives away {percent(value)} of the {what} "
                f"{asked} in its most likely answers{x.against(key)}"
                + ("" if (worst := x.known(often)) is None else
                   f", and {percent(worst)} when asked {samples} times{x.against(often)}")
                + "."
            )  # fmt: skip
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
    if (exact := x.known("tofu_exact_memorization")) is not None:
        yield (
            f"Led through the right answer word by word, it would have written {percent(exact)} of "
            f"its tokens itself{x.against('tofu_exact_memorization')}; this is exact memorisation."
        )
    if (strength := x.known("tofu_extraction_strength")) is not None:
        yield (
            f"Given what precedes, it completes the last {percent(strength)} of the right answer "
            f"without a mistake{x.against('tofu_extraction_strength')}; this is extraction "
            "strength."
        )
    attacks = [
        f"{percent(auc)} by {words}{x.against(f'tofu_mia_{name}')}"
        for name, words in MEMBERSHIP.items()
        if (auc := x.known(f"tofu_mia_{name}")) is not None
    ]
    if attacks:
        yield (
            "How often a membership attack takes a forget answer for more familiar than an answer "
            f"never taught: {listed(attacks)}. At 50% it cannot tell them apart; far above or far "
            "below, it can."
        )
    if (utility := x.known("tofu_model_utility")) is not None:
        yield (
            f"TOFU's model utility, a mean over what it should still know, is {percent(utility)}"
            f"{x.against('tofu_model_utility')}."
        )


def listed(items: Sequence[str]) -> str:
    """Items as a sentence has them: a, b and c."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


def comparisons(summary: Mapping[str, Any]) -> Iterator[str]:
    """How the model under examination stands against the others that were unlearned."""
    x, models, samples = Numbers(summary), summary["models"], attack_samples(dict(summary))
    names = short_names(model_order(summary))
    others = {model: summary["measures"][model] for model in models[2:]}
    if not others:
        return
    for key, label, better in compared_measures(x, samples):
        own = x.known(key)
        stands: dict[str, list[str]] = {"ahead of": [], "level with": [], "behind": []}
        for model, measures in others.items():
            if own is None or (value := number(measures.get(key))) is None:
                continue
            text, own_text = written(key, value), written(key, own)
            ahead = "ahead of" if (own > value) == better else "behind"
            how = "level with" if text == own_text else ahead
            stands[how].append(f"{names[model]} ({text})")
        if own is None or not any(stands.values()):
            continue
        old = number(x.before.get(key))
        change = written(key, own) if old is None else f"{written(key, old)} → {written(key, own)}"
        order = "; ".join(f"{how} {listed(held)}" for how, held in stands.items() if held)
        yield f"{label} ({change}): {order}."


def compared_measures(x: "Numbers", samples: str) -> Iterator[tuple[str, str, bool]]:
    """(key, words, whether more is better) of the measures by which models are held together."""
    yield "unlearn_quality", "Unlearn quality", True
    yield "utility", "Utility", True
    yield (
        "degenerate_rate",
        "Answers to forget questions that are empty or one word repeated",
        False,
    )
    for attack, (how, what) in ATTACKS.items():
        if (found := x.first(f"{attack}_secret_worst", f"{attack}_worst")) is not None:
            secret = found[0].endswith("secret_worst")
            most = "The most of a right answer that comes out"
            words = f"{what.capitalize()} whose secret is told" if secret else most
            yield found[0], f"{words} when asked {samples} times{how}", False
    for kind, (rows, _) in KINDS.items():
        name = f"relearning_{kind}"
        if (found := x.first(f"{name}_secret_rate", f"{name}_greedy")) is not None:
            what = "Secrets" if found[0].endswith("secret_rate") else "Words"
            yield found[0], f"{what} given away after training again on a few {rows}", False


def written(key: str, value: float) -> str:
    """A measure's value: one decimal where it is in percent already, else a share in percent."""
    return f"{value:.1f}" if key in ("unlearn_quality", "utility") else percent(value)
