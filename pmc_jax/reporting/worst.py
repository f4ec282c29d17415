"""In one sentence, the most that came out of a model in all the ways in which it was asked."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pmc_jax.reporting.measures import percent, worst_recall, worst_secrets

ATTACKS = {
    "sampling": ("", "questions"),
    "prefilling": (" with a forced beginning", "questions"),
    "rewording": (" in each other wording", "wordings"),
}
BITS = range(16, 1, -1)
"""Numbers of bits that weights may have been rounded to."""
KINDS = {
    "forget": ("rows to forget", "the other forget questions"),
    "benign": ("harmless rows", "the forget questions"),
}
"""What a model is trained on again, and what it is asked then."""


class Way(NamedTuple):
    """One way in which secrets and words of right answers may come out.

    `secrets` and `recall` are the measures' keys, `of` is what a share of secrets is of.
    """

    secrets: str
    recall: str
    asked: str
    of: str = "secrets"


def ways(samples: str) -> Iterator[Way]:
    """All ways, the simplest first; those after the first are attacks."""
    often, once = f"sked {samples} times", "sked once"
    yield Way("secret_leak_rate", "rouge_forget", f"A{once}")
    for attack, (how, what) in ATTACKS.items():
        of = "secrets" if what == "questions" else "secrets (each wording counts)"
        yield Way(f"{attack}_secret_worst", f"{attack}_worst", f"A{often}{how}", of)
        if how:
            yield Way(f"{attack}_greedy_secret_rate", f"{attack}_greedy", f"A{once}{how}", of)
    for bits in BITS:
        name, changed = f"rounding_{bits}", f"With weights rounded to {bits} bits"
        yield Way(f"{name}_secret_worst", f"{name}_worst", f"{changed} and a{often}")
    for kind, (rows, _) in KINDS.items():
        name, changed = f"relearning_{kind}", f"Trained again on a few {rows}"
        of = "other secrets" if kind == "forget" else "secrets"
        yield Way(f"{name}_secret_worst", f"{name}_worst", f"{changed} and a{often}", of)
        yield Way(f"{name}_secret_rate", f"{name}_greedy", f"{changed} and a{once}", of)


def worst_of_all(known: Callable[[str], float | None], samples: str) -> str:
    """What the attack that finds most finds, of secrets where there are any.

    `known` gives a measure's value, None where it was not measured.
    """
    first, *attacks = ways(samples)
    if all(known(way.secrets) is None and known(way.recall) is None for way in attacks):
        return "No attack was measured, so that more may come out."
    for secret in (True, False):
        found = [
            (value, way)
            for way in (first, *attacks)
            if (value := known(way.secrets if secret else way.recall)) is not None
        ]
        if found and not (secret and [way for _, way in found] == [first]):
            return told(found, secret=secret)
    raise AssertionError("an attack that was measured has a number")


def told(found: list[tuple[float, Way]], *, secret: bool) -> str:
    """The sentence about the worst of what was found; the first of several that are alike."""
    share, way = max(found, key=lambda pair: pair[0])
    if not share and len(found) > 1:
        nothing = "makes it tell a secret" if secret else "gets a word of the right answers out"
        return f"No attack that was measured {nothing}."
    if secret:
        return worst_secrets(share, way.asked, way.of)
    if way.recall.endswith("_worst"):
        return worst_recall(share, way.asked)
    return f"{way.asked}, it gives {percent(share)} of the right words."
