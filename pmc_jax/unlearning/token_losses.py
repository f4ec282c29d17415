"""What a token costs by its whole distribution, from the logits that predict it.

z are the model's logits and p = softmax(z); p_ref = softmax(z_ref) belongs to the frozen
target model; y is the token itself.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def complement_cross_entropy(
    scores: Float[Array, "*places vocab"], tokens: Int[Array, "*places"]
) -> Float[Array, "*places"]:
    """−Σ_v q(v) log p(v), q = softmax(z with z(y) = −∞) without gradient.

    CE-U (Yang 2025, arXiv 2503.01224): the token's own distribution without y is its target.
    Equal to −log(1 − p(y)) plus the entropy of q; the gradient with respect to z is p − q.
    """
    is_token = jnp.arange(scores.shape[-1]) == tokens[..., None]
    target = jax.nn.softmax(jnp.where(is_token, -jnp.inf, jax.lax.stop_gradient(scores)))
    return -jnp.sum(target * jax.nn.log_softmax(scores), axis=-1)


def adjusted_cross_entropy(
    scores: Float[Array, "*places vocab"],
    target_scores: Float[Array, "*places vocab"],
    tokens: Int[Array, "*places"],
    beta: float,
) -> Float[Array, "*places"]:
    """−Σ_v q(v) log p(v), q = softmax(z_ref − β·1[v = y]).

    UNDIAL (Dong et al. 2025, arXiv 2402.10052; its strength γ is this β, as OpenUnlearning has
    it): self-distillation from the target model whose logit of y is lowered. As β → ∞, q is
    p_ref without y.
    """
    is_token = jnp.arange(scores.shape[-1]) == tokens[..., None]
    target = jax.nn.softmax(jnp.where(is_token, target_scores - beta, target_scores))
    return -jnp.sum(target * jax.nn.log_softmax(scores), axis=-1)


def kl_divergence(
    scores: Float[Array, "*places vocab"],
    target_scores: Float[Array, "*places vocab"],
    tokens: Int[Array, "*places"],
) -> Float[Array, "*places"]:
    """KL(p_ref ‖ p) = Σ_v p_ref(v) (log p_ref(v) − log p(v)); whatever y is.

    As a retain loss: the KL minimisation of TOFU (Maini et al. 2024, arXiv 2401.06121), and
    OpenUnlearning's retain_loss_type KL.
    """
    target = jax.nn.log_softmax(target_scores)
    return jnp.sum(jnp.exp(target) * (target - jax.nn.log_softmax(scores)), axis=-1)
