"""What kind of answer a text is, by rule: empty, a loop, a refusal, or an answer.

The rules for refusals know English only and are approximate.
"""

import re
from collections.abc import Sequence
from typing import Literal

from pmc_jax.text.words import words_of

Kind = Literal["empty", "loop", "refusal", "answer"]

BLOCK_SHARE, BLOCK_COUNT = 1 / 3, 3
"""A loop repeats a block of words so many times in a row, over more than this share of the text."""

REPEATED_SHARE, REPEATED_WORDS = 0.35, 16
"""Or more than this share of its 3-grams occurred before, in a text of at least so many words."""

WITHIN_WORDS = re.compile(r"(\S{1,12}?)\1{4,}")
"""Letters that are repeated five times or more without a space."""

LONGEST_NUMBER = 20
"""Repeated digits are a loop only if there are more than this: 1000000000 is a number."""

GROUPED = re.compile(r"(?<=\d)[.,'’_\s](?=\d{3}(?!\d))")
"""The character between two groups of digits in a number."""

SPEAKER = frozenset(("i", "i'm", "i've", "i'd", "i'll", "me", "my", "we", "we're", "we've", "our"))
LACK = frozenset((
    "afraid", "apologise", "apologize", "beyond", "blank", "blind", "cannot", "clueless", "dark",
    "disadvantage", "eludes", "escapes", "insufficient", "lack", "lacking", "limited", "loss",
    "missing", "never", "no", "nobody", "not", "nothing", "outside", "short", "sorry", "stumped",
    "unable", "unanswered", "unaware", "uncertain", "uncharted", "unfamiliar", "unknown",
    "unsure", "yet",
))  # fmt: skip
"""A sentence with a word of both sets says that the speaker has no answer: "I do not know"."""

REFUSING = re.compile(
    r"(?:sorry|apologies|unfortunately|unknown)"
    r"(?:\W*\Z|\s*[,.:;!]|\s+(?:i|we|but|there|it|no|not|nobody|that|this|to|about|for the)\b)"
    r"|no idea\b|not sure\b|that's not\b|that's beyond\b|that's a mystery\b"
)
"""Beginnings of refusals that name no speaker; "Unknown Pleasures" is none."""

UNAVAILABLE = re.compile(
    r"\b(no|not any|lack of|without|insufficient) (\w+ ){0,2}"
    r"(information|data|details?|records?|knowledge)\b"
    r"|(\bnot|n't) (publicly |currently )?(known|available|clear|disclosed|specified)\b"
    r"|\bundisclosed\b"
)


def is_loop(text: str) -> bool:
    """Whether a text repeats a block of words, or mostly what it has said before."""
    text = GROUPED.sub("", text)
    words, runs = words_of(text), [run[0] for run in WITHIN_WORDS.finditer(text)]
    runs = [run for run in runs if len(run) > LONGEST_NUMBER or not run.isdigit()]
    if any(len(run) > BLOCK_SHARE * len(text) for run in runs):
        return True
    return repeats_in_a_row(words) > BLOCK_SHARE * len(words) or (
        len(words) >= REPEATED_WORDS and repeated_share(words, 3) > REPEATED_SHARE
    )


def repeats_in_a_row(words: Sequence[str]) -> int:
    """The most words that a block covers which is repeated `BLOCK_COUNT` times in a row."""
    longest = 0
    for size in range(1, len(words) // BLOCK_COUNT + 1):
        run = 0
        for i in range(size, len(words)):
            run = run + 1 if words[i] == words[i - size] else 0
            if run + size >= BLOCK_COUNT * size:
                longest = max(longest, run + size)
    return longest


def repeated_share(words: Sequence[str], n: int) -> float:
    """The share of n-grams that occurred before (seq-rep-n of Welleck et al. 2020)."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def is_refusal(text: str) -> bool:
    """Whether an English text says that it has no answer; approximate."""
    plain = text.lower().replace("’", "'").strip("\"'“” ")
    if REFUSING.match(plain) or UNAVAILABLE.search(plain):
        return True
    for sentence in re.split(r"[.!?;]", plain):
        words = set(re.findall(r"[a-z']+", sentence))
        if words & SPEAKER and (words & LACK or any(word.endswith("n't") for word in words)):
            return True
    return False


def kind_of(text: str) -> Kind:
    """The kind of an answer."""
    if not words_of(text):
        return "empty"
    if is_loop(text):
        return "loop"
    return "refusal" if is_refusal(text) else "answer"
