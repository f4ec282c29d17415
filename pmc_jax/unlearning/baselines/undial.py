"""Self-distillation with adjusted logits (UNDIAL; Dong et al. 2025, arXiv 2402.10052)."""

import dataclasses
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pmc_jax.model import ModelConfig
from pmc_jax.settings import bounded
from pmc_jax.unlearning.losses import TokenLoss
from pmc_jax.unlearning.method import BaselineMethod


def adjusted_cross_entropy(
    logits: Float[Array, "*positions vocab"],
    target_logits: Float[Array, "*positions vocab"],
    tokens: Int[Array, "*positions"],
    beta: float,
) -> Float[Array, "*positions"]:
    """−Σ_v q(v) log p(v), q = softmax(z_ref − β·1[v = y]).

    z_ref are the frozen target model's logits, p is the model's distribution and y the token.
    The paper's strength γ is this β, as OpenUnlearning names it. As β → ∞, q is p_ref without y.
    """
    is_token = jnp.arange(logits.shape[-1]) == tokens[..., None]
    target = jax.nn.softmax(jnp.where(is_token, target_logits - beta, target_logits))
    return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)


@dataclasses.dataclass(frozen=True)
class UNDIAL(BaselineMethod):
    """Self-distillation from the target model with lowered logits of true tokens, plus λ r.

    Attributes:
        beta: by how much the logits of true tokens are lowered.
    """

    name: str = "undial"
    beta: float = bounded(10.0, above=0)
    retain_weight: float = bounded(0.0, least=0)

    sentence: ClassVar[str] = (
        "by self-distillation (UNDIAL, arXiv 2402.10052): towards its original "
        "distribution with the tokens of the answers to be forgotten made less likely."
    )

    def token_losses(self, config: ModelConfig) -> dict[str, TokenLoss]:
        """Tokens of forget answers cost the cross-entropy to q."""
        forget = TokenLoss(partial(adjusted_cross_entropy, beta=self.beta), target=True)
        return {**super().token_losses(config), "forget": forget}
