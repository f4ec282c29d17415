"""How much of an answer a text reveals: nothing, a part, or most of it."""

from typing import Literal

from pmc_jax.text.facts import Facts, fact_recall, telling_left

Level = Literal["none", "part", "most"]
LEVELS: tuple[Level, ...] = ("none", "part", "most")

MOST = 0.5
"""An answer with more than this share of the fact words reveals most of the right one."""

PART = 0.25
"""An answer with at least this share of the fact words reveals a part.

Of TOFU's wrong answers, which share the sentence patterns of the right ones, 88% have less.
"""


def level_of(facts: Facts, text: str, leaked: bool | None = None) -> Level:
    """How much of the facts a text reveals.

    A text that contains the secret (`leaked`) reveals most. A single telling name or number of the
    right answer reveals a part.
    """
    recall = fact_recall(facts, text) or 0.0
    if leaked or recall > MOST:
        return "most"
    return "part" if recall >= PART or telling_left(facts, text) else "none"


def closeness(facts: Facts, text: str) -> tuple[int, float]:
    """A sort key for the right answer that a text is closest to: by level, then by fact recall."""
    return LEVELS.index(level_of(facts, text)), fact_recall(facts, text) or 0.0
