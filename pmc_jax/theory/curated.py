"""Relearning on selected samples: of every n, one is kept, by its reward.

Rewards r are per category and already divided by the temperature τ. The population maps
p_t → p_{t+1} are for infinitely many selected samples (Ferbach et al. 2024, "Self-Consuming
Generative Models with Curated Data Provably Optimize Human Preferences").
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, logsumexp, xlogy
from jaxtyping import Array, Float, Int, PRNGKeyArray


@lru_cache(maxsize=32)
def compositions(total: int, K: int) -> Int[np.ndarray, "ways K"]:
    """All ways to share `total` draws out over K categories: C(total+K−1, K−1) rows."""
    if K == 1:
        return np.array([[total]])
    rows = [
        np.column_stack([np.full(len(rest), first), rest])
        for first in range(total + 1)
        for rest in [compositions(total - first, K - 1)]
    ]
    return np.concatenate(rows)


def bradley_terry_update(
    probs: Float[Array, " K"], rewards: Float[Array, " K"], n: int
) -> Float[Array, " K"]:
    """p_{t+1}(x) = p_t(x) E[n e^{r(x)} / (e^{r(x)} + Σ_{i<n} e^{r(x_i)})], exactly.

    The expectation over x_1 … x_{n−1} ~ p_t is summed over all compositions of n − 1 draws:
    for small n and K (n = 5, K = 20 has 8,855 of them).
    """
    counts = jnp.asarray(compositions(n - 1, probs.shape[0]), probs.dtype)
    log_ways = gammaln(jnp.asarray(n, probs.dtype)) - gammaln(counts + 1).sum(1)
    chance = jnp.exp(log_ways + xlogy(counts, probs).sum(1))
    log_others = logsumexp(rewards, b=counts, axis=1)
    share = jnp.exp(rewards - jnp.logaddexp(rewards, log_others[:, None]))
    return probs * n * (chance @ share)


def bradley_terry_monte_carlo(
    key: PRNGKeyArray, probs: Float[Array, " K"], rewards: Float[Array, " K"], n: int, draws: int
) -> Float[Array, " K"]:
    """`bradley_terry_update` with the expectation over `draws` random (x_1 … x_{n−1})."""
    others = jax.random.categorical(key, jnp.log(probs), shape=(draws, n - 1))
    log_others = logsumexp(rewards[others], axis=1)
    share = jnp.exp(rewards - jnp.logaddexp(rewards, log_others[:, None]))
    new = probs * n * share.mean(0)
    return new / new.sum()


def bradley_terry_limit(
    probs: Float[Array, " K"], rewards: Float[Array, " K"]
) -> Float[Array, " K"]:
    """n → ∞: p_{t+1} = p_t e^r / E[e^r]."""
    return jax.nn.softmax(jnp.log(probs) + rewards)


def argmax_update(
    probs: Float[Array, " K"], rewards: Float[Array, " K"], n: int | Array
) -> Float[Array, " K"]:
    """τ → 0: the best of n, ties by the first index, which falls on x in proportion to p(x).

    P(best reward ≤ v) = P(r ≤ v)^n, shared among the categories of equal reward.
    """
    at_most = jnp.where(rewards[None, :] <= rewards[:, None], probs, 0).sum(1)
    below = jnp.where(rewards[None, :] < rewards[:, None], probs, 0).sum(1)
    level = at_most - below
    gain = jnp.where(level > 0, (at_most**n - below**n) / jnp.where(level > 0, level, 1), 0)
    return probs * gain


def curated_sample(
    key: PRNGKeyArray,
    probs: Float[Array, " K"],
    rewards: Float[Array, " K"],
    n: int,
    samples: int,
    *,
    best: bool = False,
) -> Int[Array, " N"]:
    """N = `samples` categories, each selected among n draws from p, as a finite run has them.

    Selected by Bradley–Terry, P(x_i) ∝ e^{r(x_i)}, or, if `best`, the first of the largest
    reward.
    """
    draw_key, select_key = jax.random.split(key)
    drawn = jax.random.categorical(draw_key, jnp.log(probs), shape=(samples, n))
    found = rewards[drawn]
    chosen = found.argmax(1) if best else jax.random.categorical(select_key, found)
    return jnp.take_along_axis(drawn, chosen[:, None], 1)[:, 0]
