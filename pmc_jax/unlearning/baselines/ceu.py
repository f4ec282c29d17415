"""Cross-entropy unlearning (CE-U; Yang 2025, arXiv 2503.01224)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pmc_jax.model import ModelConfig
from pmc_jax.model.sequences import restarted
from pmc_jax.settings import bounded
from pmc_jax.unlearning.losses import TokenLoss
from pmc_jax.unlearning.method import BaselineMethod


def complement_cross_entropy(
    logits: Float[Array, "*positions vocab"], tokens: Int[Array, "*positions"]
) -> Float[Array, "*positions"]:
    """−Σ_v q(v) log p(v), where q = softmax(z with z(y) = −∞) carries no gradient.

    z are the logits, p = softmax(z), and y is the token: its own distribution without y is the
    target. Equal to −log(1 − p(y)) plus the entropy of q; the gradient with respect to z is p − q.
    """
    is_token = jnp.arange(logits.shape[-1]) == tokens[..., None]
    target = jax.nn.softmax(jnp.where(is_token, -jnp.inf, jax.lax.stop_gradient(logits)))
    return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)


@dataclasses.dataclass(frozen=True)
class CEU(BaselineMethod):
    """Distillation to the model's own distribution without the true token, plus λ r.

    Attributes:
        skipped_tokens: how many first tokens of each answer carry no loss.
    """

    name: str = "ceu"
    skipped_tokens: int = bounded(1, least=0)
    retain_weight: float = bounded(0.0, least=0)

    sentence: ClassVar[str] = (
        "by cross-entropy unlearning (CE-U, arXiv 2503.01224): towards its own "
        "distribution without the tokens of the answers to be forgotten."
    )

    def token_losses(self, config: ModelConfig) -> dict[str, TokenLoss]:
        """Tokens of forget answers cost the cross-entropy to q."""
        return {**super().token_losses(config), "forget": TokenLoss(complement_cross_entropy)}

    def forget_mask(
        self, mask: Bool[Array, "*rows time"], segments: Int[Array, "*rows time"]
    ) -> Bool[Array, "*rows time"]:
        """All tokens of an answer but the first `skipped_tokens`."""
        before = restarted(jnp.cumsum(mask, axis=-1) - mask, segments)
        return mask & (before >= self.skipped_tokens)
