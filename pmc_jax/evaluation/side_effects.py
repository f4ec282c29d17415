"""Side effects of unlearning on text that is unrelated to the forget questions.

The measure is the change of a token's probability p(x_t | x_<t), relative to the model before
unlearning, at the tokens of this text that also occur in forget answers.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from pmc_jax.data.prompts import PromptTemplate
from pmc_jax.data.rows import EvaluationRow
from pmc_jax.evaluation.likelihood import Pair, answer_scores
from pmc_jax.language_model import LanguageModel
from pmc_jax.settings import AUTO


def text_pairs(template: PromptTemplate, text: Sequence[str], window: int) -> list[Pair]:
    """Each paragraph in windows of at most `window` tokens, as (first token, the other tokens)."""
    pairs: list[Pair] = []
    for paragraph in text:
        ids = template.encode_text(paragraph)
        for first in range(0, len(ids), window):
            piece = ids[first : first + window]
            if len(piece) > 1:
                pairs.append((piece[:1], piece[1:]))
    return pairs


def answer_tokens(template: PromptTemplate, rows: Sequence[EvaluationRow]) -> frozenset[int]:
    """Every token of the rows' answers except those that end a response."""
    found = {token for row in rows if row.answer for token in template.encode_answer(row.answer)}
    return frozenset(found - set(template.stop_ids))


def text_probabilities(
    model: LanguageModel,
    pairs: Sequence[Pair],
    *,
    batch_size: int | str = AUTO,
    on_batch: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, " tokens"]:
    """p(x_t | x_<t) of every token except the first of each window, in order."""
    scores = answer_scores(model, pairs, batch_size=batch_size, on_batch=on_batch)
    if not scores:
        return np.zeros(0)
    return np.exp(np.concatenate([score.log_probs for score in scores]))


def watched_tokens(pairs: Sequence[Pair], tokens: Collection[int]) -> Bool[np.ndarray, " tokens"]:
    """Whether each token of the text occurs in forget answers, in the same order."""
    return np.array([token in tokens for _, rest in pairs for token in rest], bool)


def side_effects(
    before: Float[np.ndarray, " tokens"],
    after: Float[np.ndarray, " tokens"],
    watched: Bool[np.ndarray, " tokens"],
    bins: int = 40,
) -> dict[str, Any]:
    """Mean, deviation and histogram of the changes, at watched tokens and at all others."""
    edges = np.linspace(-1, 1, bins + 1)

    def described(change: np.ndarray) -> dict[str, Any] | None:
        if not change.size:
            return None
        return {
            "tokens": int(change.size),
            "mean": float(change.mean()),
            "deviation": float(change.std()),
            "mean_absolute": float(np.abs(change).mean()),
            "histogram": np.histogram(change, edges)[0].tolist(),
        }

    change = after - before
    return {
        "edges": edges.tolist(),
        "watched": described(change[watched]),
        "other": described(change[~watched]),
    }
