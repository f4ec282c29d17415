"""Relearning on curated samples: one of every n is selected by its reward.

Rewards r are given for each category, divided by the temperature τ. The maps p_t → p_{t+1}
hold for infinitely many selected samples (Ferbach et al. 2024, "Self-Consuming Generative
Models with Curated Data Provably Optimize Human Preferences").
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp, xlogy
from jaxtyping import Array, Float, Int, PRNGKeyArray

MAX_COMPOSITIONS = 1_000_000
"""The largest number of terms in the exact sum; beyond it, use Monte Carlo."""


def compositions(total: int, K: int) -> Int[np.ndarray, "ways K"]:
    """All ways to distribute `total` draws over K categories: C(total+K−1, K−1) rows.

    Raises:
        ValueError: if there are more than `MAX_COMPOSITIONS`.
    """
    ways = math.comb(total + K - 1, K - 1)
    if ways > MAX_COMPOSITIONS:
        raise ValueError(
            f"{ways:,} ways to draw {total} of {K} categories are too many to enumerate "
            f"(at most {MAX_COMPOSITIONS:,}): use bradley_terry_monte_carlo"
        )
    rows = np.zeros((1, 0), int)
    for _ in range(K - 1):
        choices = total - rows.sum(1) + 1  # 0, 1, … up to the draws that are left
        ends = np.cumsum(choices)
        taken = np.arange(ends[-1]) - np.repeat(ends - choices, choices)
        rows = np.column_stack([np.repeat(rows, choices, axis=0), taken])
    return np.column_stack([rows, total - rows.sum(1)])


def bradley_terry_update(
    probs: Float[Array, " K"], rewards: Float[Array, " K"], n: int
) -> Float[Array, " K"]:
    """p_{t+1}(x) = p_t(x) E[n e^{r(x)} / (e^{r(x)} + Σ_{i<n} e^{r(x_i)})], exactly.

    The expectation over x_1 … x_{n−1} ~ p_t is a sum over all compositions of n − 1 draws, so n
    and K must be small (n = 5 and K = 20 have 8,855 compositions).

    Raises:
        ValueError: if there are more than `MAX_COMPOSITIONS`.
    """
    ways = compositions(n - 1, probs.shape[0])
    log_factorial = np.array([math.lgamma(i + 1) for i in range(n)])
    log_ways = log_factorial[-1] - log_factorial[ways].sum(1)
    counts = jnp.asarray(ways, probs.dtype)
    chance = jnp.exp(jnp.asarray(log_ways, probs.dtype) + xlogy(counts, probs).sum(1))
    log_others = logsumexp(rewards, b=counts, axis=1)
    share = jnp.exp(rewards - jnp.logaddexp(rewards, log_others[:, None]))
    return probs * n * (chance @ share)


def bradley_terry_monte_carlo(
    key: PRNGKeyArray, probs: Float[Array, " K"], rewards: Float[Array, " K"], n: int, draws: int
) -> Float[Array, " K"]:
    """`bradley_terry_update` with a mean over `draws` random (x_1 … x_{n−1}) as the expectation.

    The result is normalised, since the mean has an error.
    """
    others = jax.random.categorical(key, jnp.log(probs), shape=(draws, n - 1))
    log_others = logsumexp(rewards[others], axis=1)
    share = jnp.exp(rewards - jnp.logaddexp(rewards, log_others[:, None]))
    new = probs * n * share.mean(0)
    return new / new.sum()


def bradley_terry_limit(
    probs: Float[Array, " K"], rewards: Float[Array, " K"]
) -> Float[Array, " K"]:
    """The limit n → ∞ of `bradley_terry_update`: p_{t+1} = p_t e^r / E[e^r]."""
    return jax.nn.softmax(jnp.log(probs) + rewards)


def argmax_update(
    probs: Float[Array, " K"], rewards: Float[Array, " K"], n: int | Array
) -> Float[Array, " K"]:
    """The limit τ → 0 of `bradley_terry_update`: the best of n, and the first index on ties.

    P(best reward ≤ v) = P(r ≤ v)^n. With a = P(r ≤ r(x)) and ℓ = P(r = r(x)), the best reward
    is r(x) with probability a^n − (a−ℓ)^n, and the first sample with it is x with probability
    p(x)/ℓ. The difference is computed as a^n (1 − (1−ℓ/a)^n), so a small ℓ is not rounded
    away.
    """
    at_most = jnp.where(rewards[None, :] <= rewards[:, None], probs, 0).sum(1)
    level = jnp.where(rewards[None, :] == rewards[:, None], probs, 0).sum(1)
    offered = level > 0
    at_most, level = jnp.where(offered, at_most, 1), jnp.where(offered, level, 1)
    # Rounding of the sums could make the share exceed 1, and its logarithm NaN.
    share = jnp.minimum(level / at_most, 1)
    return probs / level * at_most**n * -jnp.expm1(n * jnp.log1p(-share))


def curated_sample(
    key: PRNGKeyArray,
    probs: Float[Array, " K"],
    rewards: Float[Array, " K"],
    n: int,
    samples: int,
    *,
    best: bool = False,
) -> Int[Array, " N"]:
    """N = `samples` categories for a finite run, each selected among n draws from p.

    Selection follows Bradley–Terry, P(x_i) ∝ e^{r(x_i)}, or, if `best`, takes the first sample
    with the largest reward.
    """
    draw_key, select_key = jax.random.split(key)
    drawn = jax.random.categorical(draw_key, jnp.log(probs), shape=(samples, n))
    found = rewards[drawn]
    chosen = found.argmax(1) if best else jax.random.categorical(select_key, found)
    return jnp.take_along_axis(drawn, chosen[:, None], 1)[:, 0]
