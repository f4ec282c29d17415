"""Selection of one response per question (section 4 of the paper)."""

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, UInt32

from pmc_jax.model import to_devices, to_host

SELECTION = 0xFFFFFFFF
"""A sample index that no response has. Its RNG keys are for selection."""

categorical = jax.jit(jax.vmap(jax.random.categorical))


@jax.jit
def selection_keys(
    key: PRNGKeyArray, step: int | Array, question_ids: UInt32[Array, " questions"]
) -> Key[Array, " questions"]:
    """A key per question for `select`, derived from a sample index that no response has."""
    key = jax.random.fold_in(key, step)

    def one(question: Array) -> PRNGKeyArray:
        return jax.random.fold_in(jax.random.fold_in(key, question), SELECTION)

    return jax.vmap(one)(question_ids)


def select(
    scores: Float[np.ndarray, "questions samples"],
    temperature: float = 0.0,
    keys: Key[Array, " questions"] | None = None,
) -> Int[np.ndarray, " questions"]:
    """Choose one sample per question by Bradley–Terry on the reward r = 1 − s.

    P(x̂ = x_i) = exp(r_i / τ) / Σ_j exp(r_j / τ), where τ is `temperature`. The limit τ → 0, which
    is `temperature=0`, takes the first index with the lowest score. τ > 0 needs one key per
    question.
    """
    if temperature == 0:
        return np.argmin(scores, axis=1)
    if keys is None:
        raise ValueError("Bradley–Terry selection at a temperature needs a key per question")
    return to_host(categorical(keys, to_devices((1 - scores) / temperature)))
