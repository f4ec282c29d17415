"""Relearning: draw N samples, fit by maximum likelihood, repeat.

The state is the samples themselves, as an array of categories. The fitted distribution is
their frequencies π̂ = X/N, so a sample from it is one of the last round's samples, drawn
uniformly with replacement. This is exact, needs only integers, and a lost category cannot
come back by rounding.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray


def draw(key: PRNGKeyArray, probs: Float[Array, " K"], samples: int) -> Int[Array, " N"]:
    """`samples` categories drawn from π; a category of probability 0 never occurs."""
    return jax.random.categorical(key, jnp.log(probs), shape=(samples,))


def frequencies(categories: Int[Array, "*batch N"], K: int) -> Float[Array, "*batch K"]:
    """The maximum-likelihood fit π̂_k = X_k / N."""
    counts = (categories[..., None] == jnp.arange(K)).sum(-2)
    return counts / categories.shape[-1]


def relearn(
    key: PRNGKeyArray, categories: Int[Array, " N"], retain: Int[Array, " M"] | None = None
) -> Int[Array, " N"]:
    """N samples from the model fitted to the last N samples and to the M retained ones.

    X ~ Multinomial(N, π_t) with π_t = (X_t + R) / (N + M), where R counts `retain`; without
    it, π_t = X_t / N.
    """
    pool = categories if retain is None else jnp.concatenate([categories, retain])
    return pool[jax.random.randint(key, categories.shape, 0, pool.shape[0])]


def trajectory(
    key: PRNGKeyArray,
    probs: Float[Array, " K"],
    samples: int,
    rounds: int,
    retain: Int[Array, " M"] | None = None,
) -> Float[Array, "{rounds}+1 K"]:
    """π_0, π_1, …, π_rounds of one run from π_0 = `probs`; use `vmap` over keys for many runs.

    With `retain`, these fixed samples are added to the samples of every round:
    π_{t+1} = (X + R) / (N + M).
    """
    K = probs.shape[0]

    def fitted(categories: Int[Array, " N"]) -> Float[Array, " K"]:
        kept = categories if retain is None else jnp.concatenate([categories, retain])
        return frequencies(kept, K)

    def step(
        categories: Int[Array, " N"], key: PRNGKeyArray
    ) -> tuple[Int[Array, " N"], Float[Array, " K"]]:
        new = relearn(key, categories, retain)
        return new, fitted(new)

    if rounds == 0:
        return probs[None]
    keys = jax.random.split(key, rounds)
    start = draw(keys[0], probs, samples)
    _, later = jax.lax.scan(step, start, keys[1:])
    return jnp.concatenate([probs[None], fitted(start)[None], later])
