"""The losses that PMC is compared with.

With y the answer to a forget question q, N(y) = −log p_θ(y | q) summed over the answer's
|y| loss tokens (end token included), N_ref(y) the same under the frozen target model, f and
r the token means of the NLL over forget answers and over retain answers, and σ the logistic
function. A mean over answers weighs every answer the same, a token mean every token. λ r is
added by `method_loss`; with `retain_loss=kl`, r is the token mean of the divergence from the
target model.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Shaped

from pmc_jax.unlearning.config import (
    AltPOConfig,
    CEUConfig,
    DPOConfig,
    FineTuneConfig,
    GAConfig,
    GDConfig,
    IDKConfig,
    MethodConfig,
    NPOConfig,
    RetainingConfig,
    RetainOnlyConfig,
    RMUConfig,
    SatImpConfig,
    SimNPOConfig,
    UNDIALConfig,
    WGAConfig,
)


@struct.dataclass
class Targets:
    """Answers of one kind as a loss sees them.

    The rows may be a part of an optimizer batch. What a loss is a mean over is counted in
    the whole of it, so that losses and gradients of the parts add up to those of the whole.

    Attributes:
        losses: what each token costs: its NLL, or what the method has in its place.
        mask: True at answer and end tokens.
        segments: the number of a token's answer, from 1.
        reference: N_ref of each answer; one without tokens is filler.
        tokens, answers: how many the whole optimizer batch has.
    """

    losses: Float[Array, "rows time"]
    mask: Bool[Array, "rows time"]
    segments: Int[Array, "rows time"]
    reference: Float[Array, " answers"]
    tokens: Int[Array, ""]
    answers: Int[Array, ""]


@struct.dataclass
class MethodLoss:
    """A method's own term, its retain term r, and the objective they add up to."""

    loss: Float[Array, ""]
    forget_loss: Float[Array, ""]
    retain_loss: Float[Array, ""]


def segment_sums(
    values: Shaped[Array, "rows time"], segments: Int[Array, "rows time"], count: int
) -> Shaped[Array, " count"]:
    """Sums over the tokens of segments 1, …, `count`; a mask is counted."""
    values = values.astype(jnp.int32) if values.dtype == bool else values
    sums = jax.ops.segment_sum(values.reshape(-1), segments.reshape(-1), count + 1)
    return sums[1:]


def answer_sum(targets: Targets) -> Float[Array, " answers"]:
    """What all tokens of an answer cost: N(y) where that is their NLL."""
    costs = jnp.where(targets.mask, targets.losses, 0)
    return segment_sums(costs, targets.segments, targets.reference.shape[0])


def answer_lengths(targets: Targets) -> Int[Array, " answers"]:
    """|y|: the loss tokens of each answer, 0 for filler."""
    return segment_sums(targets.mask, targets.segments, targets.reference.shape[0])


def token_mean(
    targets: Targets, values: Float[Array, "rows time"] | None = None
) -> Float[Array, ""]:
    """Mean over all loss tokens of `values`, by default of what they cost."""
    values = targets.losses if values is None else values
    return jnp.where(targets.mask, values, 0).sum() / targets.tokens.clip(1)


def answer_mean(targets: Targets, values: Float[Array, " answers"]) -> Float[Array, ""]:
    """Mean over all answers of one value each."""
    return jnp.where(answer_lengths(targets) > 0, values, 0).sum() / targets.answers.clip(1)


def mean_of_answers(targets: Targets) -> Float[Array, ""]:
    """Mean over all answers of the mean over an answer's tokens."""
    return answer_mean(targets, answer_sum(targets) / answer_lengths(targets).clip(1))


def ascent_loss(forget: Targets) -> Float[Array, ""]:
    """−f: gradient ascent (GA; Jang et al. 2023), and gradient difference (GD; Liu et al. 2022)."""
    return -token_mean(forget)


def npo_loss(forget: Targets, beta: float) -> Float[Array, ""]:
    """−(2/β) mean log σ(β (N(y) − N_ref(y))) (NPO; Zhang et al. 2024, arXiv 2404.05868).

    At θ = θ_ref, and for every θ as β → 0, its gradient is that of −mean N(y).
    """
    margin = answer_sum(forget) - forget.reference
    return -2 / beta * answer_mean(forget, jax.nn.log_sigmoid(beta * margin))


def simnpo_loss(forget: Targets, beta: float, gamma: float) -> Float[Array, ""]:
    """−(2/β) mean log σ(β (N(y)/|y| − γ)) (SimNPO; Fan et al. 2024, arXiv 2410.07163).

    The paper's γ is β times this one, which is the `delta` of OpenUnlearning.
    """
    per_token = answer_sum(forget) / answer_lengths(forget).clip(1)
    return -2 / beta * answer_mean(forget, jax.nn.log_sigmoid(beta * (per_token - gamma)))


def dpo_loss(forget: Targets, preferred: Targets, beta: float) -> Float[Array, ""]:
    """−(2/β) mean log σ(β [(log π/π_ref)(preferred) − (log π/π_ref)(y)]).

    DPO (Rafailov et al. 2023, arXiv 2305.18290) with a refusal preferred, or an alternative
    answer (AltPO; Mekala et al. 2024, arXiv 2409.13474); answer i of `preferred` is to the
    question of answer i of `forget`. The DPO paper has the factor 1 instead of 2/β, which is
    that of TOFU, AltPO and OpenUnlearning.
    """
    gained = preferred.reference - answer_sum(preferred)
    lost = forget.reference - answer_sum(forget)
    values = jax.nn.log_sigmoid(beta * (gained - lost))
    return -2 / beta * answer_mean(forget, values)


def wga_loss(forget: Targets, alpha: float) -> Float[Array, ""]:
    """Token mean of p^α log p, p^α without gradient (WGA; Wang et al. 2025, arXiv 2502.19301)."""
    weight = jax.lax.stop_gradient(jnp.exp(-alpha * forget.losses))
    return -token_mean(forget, weight * forget.losses)


def satimp_loss(forget: Targets, beta1: float, beta2: float) -> Float[Array, ""]:
    """Token mean of p^β₁ (1 − p)^β₂ log p, the weight without gradient.

    SatImp (Yang et al. 2025, arXiv 2505.11953): saturation times importance.
    """
    # A certain token's NLL may be rounded to just below 0, where (1 - p)^β₂ has no value.
    p = jax.lax.stop_gradient(jnp.exp(-forget.losses).clip(max=1))
    return -token_mean(forget, p**beta1 * (1 - p) ** beta2 * forget.losses)


def forget_term(
    method: MethodConfig, forget: Targets, preferred: Targets, retain: Targets
) -> Float[Array, ""]:
    """The method's loss but for λ r.

    `forget` are the answers that the method visits: forget answers, refusals in their place
    for IDK, and whatever pairs for fine-tuning.
    """
    match method:
        case FineTuneConfig() | IDKConfig() | CEUConfig() | UNDIALConfig():
            return token_mean(forget)
        case GAConfig() | GDConfig():
            return ascent_loss(forget)
        case NPOConfig(beta=beta):
            return npo_loss(forget, beta)
        case SimNPOConfig(beta=beta, gamma=gamma):
            return simnpo_loss(forget, beta, gamma)
        case DPOConfig(beta=beta) | AltPOConfig(beta=beta):
            return dpo_loss(forget, preferred, beta)
        case WGAConfig(alpha=alpha):
            return wga_loss(forget, alpha)
        case SatImpConfig(beta1=beta1, beta2=beta2):
            return satimp_loss(forget, beta1, beta2)
        case RMUConfig():
            return mean_of_answers(forget)
        case RetainOnlyConfig():
            return jnp.zeros_like(token_mean(retain))
    raise TypeError(f"no loss for {method}")


def method_loss(
    method: MethodConfig, forget: Targets, preferred: Targets, retain: Targets
) -> MethodLoss:
    """The method's own term plus λ r, where it has a retain term."""
    term = forget_term(method, forget, preferred, retain)
    by_answer = isinstance(method, RMUConfig) and method.retain_loss == "activations"
    r = mean_of_answers(retain) if by_answer else token_mean(retain)
    weight = method.retain_weight if isinstance(method, RetainingConfig) else 0.0
    return MethodLoss(term + weight * r, term, r)
