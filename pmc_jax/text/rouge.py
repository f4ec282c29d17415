"""ROUGE-L recall (Lin 2004), which measures how much of an answer is left.

Words and stems are those of the `rouge_score` package with `use_stemmer=True`.
"""

import functools
import re
from collections.abc import Sequence

from nltk.stem.porter import PorterStemmer
from rapidfuzz.distance import LCSseq

_STEMMER = PorterStemmer()


@functools.lru_cache(maxsize=1 << 18)
def _stem(word: str) -> str:
    return _STEMMER.stem(word) if len(word) > 3 else word


@functools.lru_cache(maxsize=1 << 15)
def rouge_words(text: str) -> tuple[str, ...]:
    """The stemmed words of `text`: runs of [a-z0-9] after lowercasing."""
    return tuple(_stem(word) for word in re.findall(r"[a-z0-9]+", text.lower()))


def words_of(text: str) -> list[str]:
    """The stemmed words of `text` in any script: runs of letters and digits.

    For ASCII text they are those of `rouge_words`, which ignores all other scripts.
    """
    return [_stem(word) for word in re.findall(r"[^\W_]+", text.lower())]


def lcs_recall(reference: Sequence[str], candidate: Sequence[str]) -> float:
    """Length of the longest common subsequence over the reference's; 0 if either is empty."""
    if not reference or not candidate:
        return 0.0
    return LCSseq.similarity(reference, candidate) / len(reference)


def rouge_l_recall(reference: str, candidate: str) -> float:
    """Share of the reference's words that the candidate repeats in order, 0 to 1."""
    return lcs_recall(rouge_words(reference), rouge_words(candidate))
