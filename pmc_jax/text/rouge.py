"""ROUGE-L recall (Lin 2004), which measures how much of an answer is left.

Latin texts have the words of the `rouge_score` package with `use_stemmer=True`: runs of a–z and
0–9 after lowercasing, stemmed. That package sees no other script. Here the words and signs of
other scripts count too, as in `pmc_jax.text.words`.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

import regex
from rapidfuzz.distance import LCSseq

from pmc_jax.text.words import LETTER, SIGN, WORD, comparable, normalised, stem

_LATIN = re.compile(r"[a-z0-9]+")
_OTHER_SCRIPT = re.compile(r"[^\0-\u024f\u1e00-\u1eff\u2000-\u2bff]")
_WORDS = regex.compile(rf"[a-z0-9]+|{SIGN}|{WORD}", regex.V1)
_LETTER = regex.compile(rf"[a-z0-9]|{LETTER}", regex.V1)
_LAST_MARKS = regex.compile(r"\p{M}+\Z", regex.V1)


@lru_cache(maxsize=1 << 15)
def rouge_words(text: str) -> tuple[str, ...]:
    """The words of a text that ROUGE compares, in order."""
    letters = normalised(text)
    if not _OTHER_SCRIPT.search(letters):
        return tuple(map(stem, _LATIN.findall(letters)))
    found = _WORDS.findall(letters)
    return tuple(stem(word) if word.isascii() else comparable(word) for word in found)


def settled_rouge_words(text: str) -> tuple[str, ...]:
    """The words that every text which begins with `text` has first.

    The last word or sign of `text` is left out unless something follows it: letters or marks may
    yet be added to it.
    """
    last = _LAST_MARKS.sub("", normalised(text))[-1:]
    return rouge_words(text)[:-1] if _LETTER.match(last) else rouge_words(text)


def lcs_recall(reference: Sequence[str], candidate: Sequence[str]) -> float:
    """Length of the longest common subsequence over the reference's; 0 if either is empty."""
    if not reference or not candidate:
        return 0.0
    return LCSseq.similarity(reference, candidate) / len(reference)


def rouge_l_recall(reference: str, candidate: str) -> float:
    """Share of the reference's words that the candidate repeats in order, 0 to 1."""
    return lcs_recall(rouge_words(reference), rouge_words(candidate))
