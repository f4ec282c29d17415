"""How much of the model's own original answer a response still holds.

The reward of the paper is r(x) = 1 - ROUGE-L recall(y0, x). The code uses the score
s = 1 - r, so that 0 means nothing is left of the old answer and lower is better.
"""

import math
import re

from pmc_jax.text.rouge import lcs_recall, rouge_words


def short_answer_penalty(response: str, min_len: int) -> float:
    """exp(-w) for a response of w < `min_len` words, else 0.

    Words are split at single spaces, as the published code does: an empty response
    counts as one word.
    """
    words = len(response.strip().split(" "))
    return math.exp(-words) if words < min_len else 0.0


def response_score(
    original: str, response: str, *, min_len: int = 0, reject_wordless: bool = False
) -> float:
    """The score s(x) in [0, 1] of a response against the original answer y0.

    An original without any [a-z0-9] word (a non-Latin script) is compared character
    by character; an empty original is matched by an empty response alone. With
    `reject_wordless` a response without words, where the original has some, scores
    1: it would otherwise score 0 and never be replaced. The published algorithm has
    `reject_wordless=False` and `min_len=0`.
    """
    reference, words = rouge_words(original), rouge_words(response)
    if reference:
        score = 1.0 if reject_wordless and not words else lcs_recall(reference, words)
    elif original.strip():
        score = lcs_recall("".join(original.split()), "".join(response.split()))
    else:
        score = 1.0 if not response.strip() else 0.0
    return min(score + short_answer_penalty(response, min_len), 1.0)


def score_bound(original: str, settled: str) -> float:
    """The least score that a response can have which begins with `settled`.

    ROUGE-L recall never decreases as a response grows, and penalties only add to it. The last
    word of `settled` does not count, unless a character follows it: it may yet become another.
    """
    if reference := rouge_words(original):
        return lcs_recall(reference, rouge_words(re.sub(r"[a-z0-9]+\Z", "", settled.lower())))
    return lcs_recall("".join(original.split()), "".join(settled.split()))
