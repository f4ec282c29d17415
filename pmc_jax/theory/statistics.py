"""Statistics of distributions and trajectories; all accept batches."""

import jax.numpy as jnp
from jax.scipy.special import rel_entr
from jaxtyping import Array, Bool, Float, Int


def heterozygosity(probs: Float[Array, "*batch K"]) -> Float[Array, "*batch"]:
    """H = 1 − Σ_k π_k², the probability that two draws differ; 0 if and only if π is one-hot."""
    return 1 - (probs**2).sum(-1)


def total_variation(
    p: Float[Array, "*batch K"], q: Float[Array, "*batch K"]
) -> Float[Array, "*batch"]:
    """The total variation distance ½ Σ_k |p_k − q_k|."""
    return jnp.abs(p - q).sum(-1) / 2


def kl_divergence(
    p: Float[Array, "*batch K"], q: Float[Array, "*batch K"]
) -> Float[Array, "*batch"]:
    """KL(p‖q) = Σ_k p_k log(p_k / q_k) in nats; infinite if q is 0 where p is not."""
    return rel_entr(p, q).sum(-1)


def outside_mass(
    probs: Float[Array, "*batch K"], support: Bool[Array, " K"]
) -> Float[Array, "*batch"]:
    """The probability of the categories outside `support`."""
    return jnp.where(support, 0, probs).sum(-1)


def mean_and_variance(
    probs: Float[Array, "*batch K"], values: Float[Array, " K"]
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """E[v] and Var[v], where v is a value for each category, such as its reward."""
    mean = (probs * values).sum(-1)
    return mean, (probs * (values - mean[..., None]) ** 2).sum(-1)


def collapse_time(path: Float[Array, "*batch rounds K"]) -> Int[Array, "*batch"]:
    """The first round at which a trajectory is one-hot; −1 if there is none."""
    done = (path > 0).sum(-1) == 1
    return jnp.where(done.any(-1), done.argmax(-1), -1)
