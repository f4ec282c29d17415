"""Many runs of relearning, each until a single category is left."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from pmc_jax.theory.relearning import draw, relearn

CHUNK = 16
"""The number of rounds between checks for finished runs."""

MIN_BATCH = 256
"""The smallest batch of runs; a smaller one would only cost a compilation."""


class Collapse(NamedTuple):
    """When and where each run collapsed.

    Attributes:
        time: the first round t at which π_t is one-hot; -1 if there is none.
        category: the category that is left; -1 if several are.
    """

    time: Int[np.ndarray, " runs"]
    category: Int[np.ndarray, " runs"]


@jax.jit
def _chunk(
    keys: Key[Array, " runs"], state: Int[Array, "runs N"], first: Int[Array, ""]
) -> tuple[Int[Array, "runs N"], Int[Array, " runs"]]:
    """Run `CHUNK` rounds from `first` on.

    Returns:
        state: the categories after them.
        time: the first round that left a single category; -1 if there is none.
    """

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

    A run depends on its own key only. Finished runs are dropped, and the others continue in
    batches of few sizes, so few rounds are computed in vain.
    """
    runs = keys.shape[0]
    time, category = np.full(runs, -1), np.full(runs, -1)
    if np.count_nonzero(probs) == 1:
        return Collapse(np.zeros(runs, int), np.full(runs, int(jnp.argmax(probs))))
    # `fold_in` of 0 is the key of the draw from `probs`, of t that of the t-th relearning.
    first_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 0)
    state = np.array(jax.vmap(draw, (0, None, None))(first_keys, probs, samples))
    time[(state == state[:, :1]).all(1)] = 1
    for first in range(2, max_rounds + 1, CHUNK):
        alive = np.flatnonzero(time < 0)
        if len(alive) == 0:
            break
        size = max(MIN_BATCH, 1 << (len(alive) - 1).bit_length())
        # Some runs are repeated to fill the batch; their results are the same again.
        batch = np.resize(alive, min(size, runs))
        state[batch], time[batch] = _chunk(
            keys[batch], jnp.asarray(state[batch]), jnp.asarray(first)
        )
    time[time > max_rounds] = -1
    category[time > 0] = state[time > 0, 0]
    return Collapse(time, category)
