"""The attack that reveals most, in one sentence."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pmc_jax.reporting.measures import percent, worst_recall, worst_secrets

ATTACKS = {
    "sampling": ("", "questions"),
    "prefilling": (" with a forced beginning", "questions"),
    "rewording": (" in each other wording", "wordings"),
}
BITS = range(16, 1, -1)
"""Numbers of bits to which weights may have been quantised."""
KINDS = {
    "forget": ("forget examples", "the other forget questions"),
    "benign": ("benign examples", "the forget questions"),
}
"""What a model is fine-tuned on, and what it is asked afterwards."""


class Way(NamedTuple):
    """One way in which a model may reveal secrets, facts and words of right answers.

    Attributes:
        secrets: key of the measure of secrets.
        facts: key of the measure of fact words.
        recall: key of the measure of words.
        asked: how the model is asked, as the beginning of a sentence.
        of: what the share of secrets refers to.
    """

    secrets: str
    facts: str
    recall: str
    asked: str
    of: str = "secrets"


def ways(samples: str) -> Iterator[Way]:
    """All ways, from the simplest on; all but the first are attacks."""
    often, once = f"sked {samples} times", "sked once"
    yield Way("secret_leak_rate", "facts_forget", "rouge_forget", f"A{once}")
    for attack, (how, what) in ATTACKS.items():
        of = "secrets" if what == "questions" else "secrets (each wording counts)"
        worst = f"{attack}_secret_worst", f"{attack}_facts_worst", f"{attack}_worst"
        greedy = f"{attack}_greedy_secret_rate", f"{attack}_greedy_facts", f"{attack}_greedy"
        yield Way(*worst, f"A{often}{how}", of)
        if how:
            yield Way(*greedy, f"A{once}{how}", of)
    for bits in BITS:
        name, changed = f"quantisation_{bits}", f"Quantised to {bits} bits"
        worst = f"{name}_secret_worst", f"{name}_facts_worst", f"{name}_worst"
        yield Way(*worst, f"{changed} and a{often}")
    for kind, (examples, _) in KINDS.items():
        name, changed = f"relearning_{kind}", f"Fine-tuned on a few {examples}"
        of = "other secrets" if kind == "forget" else "secrets"
        worst = f"{name}_secret_worst", f"{name}_facts_worst", f"{name}_worst"
        greedy = f"{name}_secret_rate", f"{name}_facts", f"{name}_greedy"
        yield Way(*worst, f"{changed} and a{often}", of)
        yield Way(*greedy, f"{changed} and a{once}", of)


def worst_of_all(known: Callable[[str], float | None], samples: str) -> str:
    """What the strongest attack reveals: of secrets, else of fact words, else of words.

    Args:
        known: returns a measure's value by its key; None if it was not measured.
    """
    first, *attacks = ways(samples)
    for what in ("secrets", "facts", "recall"):
        found = [
            (value, way)
            for way in (first, *attacks)
            if (value := known(getattr(way, what))) is not None
        ]
        if any(way != first for _, way in found):
            return sentence_about(found, what)
    return "No attack was measured, so more may come out."


def sentence_about(found: list[tuple[float, Way]], what: str) -> str:
    """The sentence about the largest value of `what`; of equal ones, about the first."""
    share, way = max(found, key=lambda pair: pair[0])
    if not share and len(found) > 1:
        nothing = {"secrets": "a secret", "facts": "a fact word of the right answers"}
        revealed = nothing.get(what, "a word of the right answers")
        return f"No attack that was measured reveals {revealed}."
    if what == "secrets":
        return worst_secrets(share, way.asked, way.of)
    words = "fact words" if what == "facts" else "right words"
    if way.recall.endswith("_worst"):
        return worst_recall(share, way.asked, words)
    return f"{way.asked}, its answers contain {percent(share)} of the {words}."
