"""What an evaluation found, in sentences for readers who do not know the paper."""

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
    "gradnorm": "gradient norm", "reference": "comparison with a reference model",
}  # fmt: skip


def evaluation_headline(summary: Mapping[str, Any]) -> str:
    """The result of the model under evaluation: greedy answers, and the strongest attack."""
    measures, before = summary["measures"], summary["before"]
    greedy = headline(
        {"before": measures.get(before) if before else None,
         "after": measures[summary["models"][0]]}
    )  # fmt: skip
    numbers = Numbers(summary)
    if not numbers.measured:
        return NOTHING
    worst = worst_of_all(numbers.known, attack_samples(summary))
    return worst if greedy == NOTHING else f"{greedy} {worst}"


class Numbers:
    """The measures of the model under evaluation, and of the model before unlearning."""

    def __init__(self, summary: Mapping[str, Any]) -> None:
        before = summary["before"]
        self.after = summary["measures"][summary["models"][0]]
        self.before = summary["measures"][before] if before else {}

    @property
    def measured(self) -> bool:
        """Whether the model under evaluation has any measure."""
        return any(number(value) is not None for value in self.after.values())

    def known(self, key: str) -> float | None:
        """A measure of the model under evaluation; None if it is unknown."""
        return number(self.after.get(key))

    def against(self, key: str) -> str:
        """The measure before unlearning in brackets; empty if it is unknown."""
        old = number(self.before.get(key))
        return "" if old is None else f" (before: {percent(old)})"

    def first(self, *keys: str) -> tuple[str, float] | None:
        """Key and value of the first of these measures that is known."""
        for key in keys:
            if (value := self.known(key)) is not None:
                return key, value
        return None


def findings(summary: Mapping[str, Any]) -> list[str]:
    """A sentence for each kind of measure that was taken."""
    numbers = Numbers(summary)
    samples = attack_samples(summary)
    return [
        *greedy_findings(numbers),
        *kept_findings(numbers),
        *attack_findings(numbers, samples, summary["settings"].get("prefix")),
        *choice_findings(numbers),
        *robustness_findings(numbers, samples),
        *text_findings(numbers),
        *tofu_findings(numbers),
    ]


def greedy_findings(numbers: Numbers) -> Iterator[str]:
    """Greedy answers."""
    if (secret := numbers.known("secret_leak_rate")) is not None:
        yield (
            "Its most likely answers reveal the secret of "
            f"{percent(secret)} of the questions{numbers.against('secret_leak_rate')}."
        )
    elif (facts := numbers.known("facts_forget")) is not None:
        yield (
            "Its most likely answers contain "
            f"{percent(facts)} of the right answers' fact words{numbers.against('facts_forget')}."
        )
    elif (rouge := numbers.known("rouge_forget")) is not None:
        yield (
            "Its most likely answers contain "
            f"{percent(rouge)} of the right answers' words{numbers.against('rouge_forget')}."
        )
    if (empty := numbers.known("degenerate_rate")) is not None and empty > 0:
        yield f"{percent(empty)} of its answers to forget questions are empty, loops or cut."


def kept_findings(numbers: Numbers) -> Iterator[str]:
    """Answers to questions that the model should still know."""
    if (utility := numbers.known("utility")) is not None:
        old = number(numbers.before.get("utility"))
        before = "" if old is None else f" (before: {percent(old / 100)})"
        yield (
            "Its answers to questions it should still know contain "
            f"{percent(utility / 100)} of the right words{before}."
        )


def attack_findings(numbers: Numbers, samples: str, prefix: str | None) -> Iterator[str]:
    """Attacks that sample; `prefix` is the forced beginning."""
    for attack, (how, what) in ATTACKS.items():
        forced = f" (“{prefix}”)" if attack == "prefilling" and prefix else ""
        asked = f"Asked {samples} times{how}{forced}"
        if (secret := numbers.known(f"{attack}_secret_worst")) is not None:
            key = f"{attack}_secret_worst"
            yield (
                f"{asked}, it reveals the secret of {percent(secret)} of the {what} at least "
                f"once{numbers.against(key)}."
            )
        elif (found := numbers.first(f"{attack}_facts_worst", f"{attack}_worst")) is not None:
            key, worst = found
            yield (
                f"{asked}, its most revealing answer contains on average {percent(worst)} of the "
                f"right answer's {words_of(key)}{numbers.against(key)}."
            )


def words_of(key: str) -> str:
    """What a measure counts: all words, or those that carry facts."""
    return "fact words" if "facts" in key else "words"


def choice_findings(numbers: Numbers) -> Iterator[str]:
    """Multiple choice."""
    chance = numbers.known("least_likely_chance")
    most, least = (
        numbers.known("least_likely_most_likely_accuracy"),
        numbers.known("least_likely_accuracy"),
    )
    if chance is None or most is None or least is None:
        return
    yield (
        f"In multiple choice, the right option is the most likely for {percent(most)} of the "
        f"questions{numbers.against('least_likely_most_likely_accuracy')} and the least likely for "
        f"{percent(least)}{numbers.against('least_likely_accuracy')}; chance is {percent(chance)}."
    )


def robustness_findings(numbers: Numbers, samples: str) -> Iterator[str]:
    """Fine-tuned and quantised weights."""
    for kind, (examples, asked) in KINDS.items():
        name = f"relearning_{kind}"
        keys = (f"{name}_secret_rate", f"{name}_facts", f"{name}_greedy")
        if (found := numbers.first(*keys)) is not None:
            key, value = found
            words = f"{words_of(key)} of the right answers to"
            what = "secrets of" if key.endswith("secret_rate") else words
            often = {"rate": f"{name}_secret_worst", "facts": f"{name}_facts_worst"}.get(
                key.rpartition("_")[2], f"{name}_worst"
            )
            yield (
                f"After fine-tuning on a few {examples}, its most likely answers reveal "
                f"{percent(value)} of the {what} {asked}{numbers.against(key)}."
            )
            if (worst := numbers.known(often)) is not None:
                yield (
                    f"Fine-tuned on a few {examples} and asked {samples} times, it reveals "
                    f"{percent(worst)} of the {what} {asked}{numbers.against(often)}."
                )
    for bits in BITS:
        name = f"quantisation_{bits}"
        keys = (f"{name}_secret_worst", f"{name}_facts_worst", f"{name}_worst")
        if (found := numbers.first(*keys)) is not None:
            key, value = found
            right = "fact words" if "facts" in key else "right words"
            if key.endswith("secret_worst"):
                what = f"it reveals the secret of {percent(value)} of the questions at least once"
            else:
                what = f"its most revealing answer contains {percent(value)} of the {right}"
            yield (
                f"Quantised to {bits} bits and asked {samples} times, {what}{numbers.against(key)}."
            )


def text_findings(numbers: Numbers) -> Iterator[str]:
    """Unrelated text."""
    if (moved := numbers.known("side_effects_watched_mean_absolute")) is not None:
        yield (
            "In unrelated text, the probability of tokens that occur in forget answers changed by "
            f"{100 * moved:.1f} percentage points on average."
        )


def tofu_findings(numbers: Numbers) -> Iterator[str]:
    """TOFU's metrics."""
    if (quality := numbers.known("tofu_forget_quality")) is not None:
        differ = "do not differ significantly" if quality >= SIGNIFICANCE else "differ"
        yield (
            f"Its truth ratios on forget questions {differ} from those of a model that never saw "
            f"them (TOFU's forget quality: p = {quality:.2g})."
        )
    if (exact := numbers.known("tofu_exact_memorization")) is not None:
        yield (
            "Exact memorisation: given the right answer up to a token, it continues with this "
            f"token in {percent(exact)} of cases{numbers.against('tofu_exact_memorization')}."
        )
    if (strength := numbers.known("tofu_extraction_strength")) is not None:
        yield (
            "Extraction strength: given the beginning of the right answer, it completes the last "
            f"{percent(strength)} without a mistake{numbers.against('tofu_extraction_strength')}."
        )
    attacks = [
        f"{percent(auc)} by {words}{numbers.against(f'tofu_mia_{name}')}"
        for name, words in MEMBERSHIP.items()
        if (auc := numbers.known(f"tofu_mia_{name}")) is not None
    ]
    if attacks:
        yield (
            "Membership inference: the share of cases in which a forget answer looks more familiar "
            f"than an answer outside the training data is {listed(attacks)}. At 50%, the two "
            "cannot be distinguished."
        )
    if (utility := numbers.known("tofu_model_utility")) is not None:
        yield (
            f"TOFU's model utility, a mean over what the model should know, is {percent(utility)}"
            f"{numbers.against('tofu_model_utility')}."
        )


def listed(items: Sequence[str]) -> str:
    """The items in a sentence: a, b and c."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


def comparisons(summary: Mapping[str, Any]) -> Iterator[str]:
    """The model under evaluation in comparison with other unlearned models."""
    numbers, models, samples = Numbers(summary), summary["models"], attack_samples(summary)
    names = short_names(model_order(summary))
    others = {model: summary["measures"][model] for model in models[2:]}
    if not others:
        return
    for key, label, better in compared_measures(numbers, samples):
        own = numbers.known(key)
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
        old = number(numbers.before.get(key))
        change = written(key, own) if old is None else f"{written(key, old)} → {written(key, own)}"
        order = "; ".join(f"{how} {listed(named)}" for how, named in stands.items() if named)
        yield f"{label} ({change}): {order}."


def compared_measures(numbers: Numbers, samples: str) -> Iterator[tuple[str, str, bool]]:
    """(key, words, whether more is better) of the measures by which models are compared."""
    yield "unlearn_quality", "Unlearn quality", True
    yield "utility", "Utility", True
    yield (
        "degenerate_rate",
        "Answers to forget questions that are empty, loops or cut",
        False,
    )
    for attack, (how, what) in ATTACKS.items():
        keys = (f"{attack}_secret_worst", f"{attack}_facts_worst", f"{attack}_worst")
        if (found := numbers.first(*keys)) is not None:
            secret = found[0].endswith("secret_worst")
            most = "The largest part of a right answer that comes out"
            words = f"{what.capitalize()} whose secret is revealed" if secret else most
            yield found[0], f"{words} when asked {samples} times{how}", False
    for kind, (examples, _) in KINDS.items():
        name = f"relearning_{kind}"
        keys = (f"{name}_secret_rate", f"{name}_facts", f"{name}_greedy")
        if (found := numbers.first(*keys)) is not None:
            words = words_of(found[0]).capitalize()
            what = "Secrets" if found[0].endswith("secret_rate") else words
            yield found[0], f"{what} revealed after fine-tuning on a few {examples}", False


def written(key: str, value: float) -> str:
    """A measure's value as text: with one decimal if it is in percent, else as a share."""
    return f"{value:.1f}" if key in ("unlearn_quality", "utility") else percent(value)
