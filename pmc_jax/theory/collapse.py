"""Many runs of relearning, each followed until a single category is left."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from pmc_jax.theory.relearning import draw, relearn

CHUNK = 16
"""Rounds between two looks at which runs are done."""

SMALLEST = 256
"""No batch is made smaller than this: it would only cost a compilation."""


class Collapse(NamedTuple):
    """When and where each run collapsed.

    Attributes:
        time: the first round t at which π_t is one-hot; -1 if it was not by the last round.
        category: the category that was left; -1 likewise.
    """

    time: Int[np.ndarray, " runs"]
    category: Int[np.ndarray, " runs"]


@jax.jit
def _chunk(
    keys: Key[Array, " runs"], state: Int[Array, "runs N"], first: Int[Array, ""]
) -> tuple[Int[Array, "runs N"], Int[Array, " runs"]]:
    """Rounds `first`, `first` + 1, … of every run, and the first that left one category, or -1."""

    def step(
        carry: tuple[Int[Array, "runs N"], Int[Array, " runs"]], t: Int[Array, ""]
    ) -> tuple[tuple[Int[Array, "runs N"], Int[Array, " runs"]], None]:
        state, time = carry
        state = jax.vmap(lambda key, row: relearn(jax.random.fold_in(key, t), row))(keys, state)
        done = (state == state[:, :1]).all(1)
        return (state, jnp.where(done & (time < 0), t, time)), None

    start = (state, jnp.full(state.shape[0], -1))
    (state, time), _ = jax.lax.scan(step, start, first + jnp.arange(CHUNK))
    return state, time


def collapse(
    keys: Key[Array, " runs"], probs: Float[Array, " K"], samples: int, max_rounds: int
) -> Collapse:
    """Relearn from `probs` with N = `samples` until every run has collapsed.

    A run depends on its own key only. Runs that are done are dropped and the rest go on in
    batches of few sizes, so that the cost is that of the rounds really needed.
    """
    runs = keys.shape[0]
    time, category = np.full(runs, -1), np.full(runs, -1)
    if np.count_nonzero(probs) == 1:
        return Collapse(np.zeros(runs, int), np.full(runs, int(jnp.argmax(probs))))
    # Round 0 of `fold_in` is the draw from `probs`, round t the t-th relearning after it.
    first_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 0)
    state = np.array(jax.vmap(draw, (0, None, None))(first_keys, probs, samples))
    time[(state == state[:, :1]).all(1)] = 1
    for first in range(2, max_rounds + 1, CHUNK):
        alive = np.flatnonzero(time < 0)
        if len(alive) == 0:
            break
        size = max(SMALLEST, 1 << (len(alive) - 1).bit_length())
        # Filled up by repeating some runs, whose results come out the same again.
        batch = np.resize(alive, min(size, runs))
        state[batch], time[batch] = _chunk(
            keys[batch], jnp.asarray(state[batch]), jnp.asarray(first)
        )
    time[time > max_rounds] = -1
    category[time > 0] = state[time > 0, 0]
    return Collapse(time, category)
