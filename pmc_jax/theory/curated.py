"""Relearning on selected samples: of every n, one is kept, by its reward.

Rewards r are per category and already divided by the temperature τ. The population maps
p_t → p_{t+1} are for infinitely many selected samples (Ferbach et al. 2024, "Self-Consuming
Generative Models with Curated Data Provably Optimize Human Preferences").
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp, xlogy
from jaxtyping import Array, Float, Int, PRNGKeyArray

MOST_COMPOSITIONS = 1_000_000
"""Beyond this many terms the exact sum is refused: Monte Carlo is the way then."""


def compositions(total: int, K: int) -> Int[np.ndarray, "ways K"]:
    """All ways to share `total` draws out over K categories: C(total+K−1, K−1) rows.

    Raises:
        ValueError: if there are more than `MOST_COMPOSITIONS`.
    """
    ways = math.comb(total + K - 1, K - 1)
    if ways > MOST_COMPOSITIONS:
        raise ValueError(
            f"{ways:,} ways to draw {total} of {K} categories are too many to enumerate "
            f"(at most {MOST_COMPOSITIONS:,}): use bradley_terry_monte_carlo"
        )
    rows = np.zeros((1, 0), int)
    for _ in range(K - 1):
        choices = total - rows.sum(1) + 1  # 0, 1, … up to what is left
        ends = np.cumsum(choices)
        taken = np.arange(ends[-1]) - np.repeat(ends - choices, choices)
        rows = np.column_stack([np.repeat(rows, choices, axis=0), taken])
    return np.column_stack([rows, total - rows.sum(1)])


def bradley_terry_update(
    probs: Float[Array, " K"], rewards: Float[Array, " K"], n: int
) -> Float[Array, " K"]:
    """p_{t+1}(x) = p_t(x) E[n e^{r(x)} / (e^{r(x)} + Σ_{i<n} e^{r(x_i)})], exactly.

    The expectation over x_1 … x_{n−1} ~ p_t is summed over all compositions of n − 1 draws:
    for small n and K (n = 5, K = 20 has 8,855 of them).

    Raises:
        ValueError: if there are more than `MOST_COMPOSITIONS`.
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
    """`bradley_terry_update`, the expectation being the mean over `draws` random (x_1 … x_{n−1}).

    Normalised, since the mean has an error.
    """
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

    P(best reward ≤ v) = P(r ≤ v)^n, so that with a = P(r ≤ r(x)) and ℓ = P(r = r(x)) the
    level of x is the best with probability a^n − (a−ℓ)^n, of which x has p(x)/ℓ. The
    difference is taken as a^n (1 − (1−ℓ/a)^n): no ℓ is so small that it is lost.
    """
    at_most = jnp.where(rewards[None, :] <= rewards[:, None], probs, 0).sum(1)
    level = jnp.where(rewards[None, :] == rewards[:, None], probs, 0).sum(1)
    offered = level > 0
    at_most, level = jnp.where(offered, at_most, 1), jnp.where(offered, level, 1)
    # Both sums may round; a share above 1 would be no number.
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
    """N = `samples` categories, each selected among n draws from p, as a finite run has them.

    Selected by Bradley–Terry, P(x_i) ∝ e^{r(x_i)}, or, if `best`, the first of the largest
    reward.
    """
    draw_key, select_key = jax.random.split(key)
    drawn = jax.random.categorical(draw_key, jnp.log(probs), shape=(samples, n))
    found = rewards[drawn]
    chosen = found.argmax(1) if best else jax.random.categorical(select_key, found)
    return jnp.take_along_axis(drawn, chosen[:, None], 1)[:, 0]
