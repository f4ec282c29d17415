"""What a token costs by its whole distribution, from the logits that predict it.

z are the model's logits and p = softmax(z); p_ref = softmax(z_ref) belongs to the frozen
target model; y is the token itself.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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
