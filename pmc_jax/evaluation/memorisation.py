"""How much of an answer a model completes by itself, given the words before.

Both measures ignore the end token, as in OpenUnlearning. Their input says for each token whether
it is the model's greedy choice.
"""

import numpy as np
from jaxtyping import Bool


def exact_memorisation(greedy: Bool[np.ndarray, " tokens"]) -> float | None:
    """Share of tokens that are the greedy choice (Tirumala et al. 2022); None without tokens."""
    return float(np.mean(greedy)) if greedy.size else None


def extraction_strength(greedy: Bool[np.ndarray, " tokens"]) -> float:
    """1 − k/L, where k is the shortest prefix after which all tokens are greedy.

    (Carlini et al. 2021.) As in OpenUnlearning, the last token always counts as extracted, so
    that the value is at least 1/L. It is 0 without tokens.
    """
    if not greedy.size:
        return 0.0
    wrong = np.flatnonzero(~greedy)
    prefix = int(wrong[-1]) + 1 if wrong.size else 0
    return 1 - min(prefix, greedy.size - 1) / greedy.size
