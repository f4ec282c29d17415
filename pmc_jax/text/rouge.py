"""ROUGE-L recall, the measure of what is left of an answer (Lin 2004).

Words and stems are those of the `rouge_score` package with its stemmer on.
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

    Those of `rouge_words` where all are ASCII. ROUGE sees nothing of other scripts.
    """
    return [_stem(word) for word in re.findall(r"[^\W_]+", text.lower())]


def lcs_recall(reference: Sequence[str], candidate: Sequence[str]) -> float:
    """Longest common subsequence over the reference's length; 0 if either is empty."""
    if not reference or not candidate:
        return 0.0
    return LCSseq.similarity(reference, candidate) / len(reference)


def rouge_l_recall(reference: str, candidate: str) -> float:
    """Share of the reference's words that the candidate repeats in order, 0 to 1."""
    return lcs_recall(rouge_words(reference), rouge_words(candidate))
