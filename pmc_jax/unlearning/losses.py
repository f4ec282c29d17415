"""Building blocks of all methods' losses: answers in rows of tokens, and means over them.

With y an answer, N(y) = −log p_θ(y | q) summed over its |y| loss tokens (end token included)
and N_ref(y) the same under the frozen target model. A mean over answers gives every answer
the same weight, a token mean every token.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Shaped

from pmc_jax.model import negative_log_likelihood

KINDS = ("forget", "preferred", "retain")
"""What a sequence is to a method: an answer to a forget question, one that is preferred to it,
or the answer of a retain pair."""


@struct.dataclass
class Targets:
    """Answers of one kind as a loss sees them.

    They may be part of an optimizer batch. Means are over the whole batch, so that losses and
    gradients of its parts add up to those of the whole.

    Attributes:
        losses: the cost of each token: its NLL, or the method's own cost.
        mask: True at answer and end tokens.
        segments: the number of a token's answer, from 1; 0 elsewhere.
        reference: N_ref of each answer; a slot without an answer has no tokens, and 0 here.
        tokens, answers: how many the whole optimizer batch has.
    """

    losses: Float[Array, "rows time"]
    mask: Bool[Array, "rows time"]
    segments: Int[Array, "rows time"]
    reference: Float[Array, " answers"]
    tokens: Int[Array, ""]
    answers: Int[Array, ""]


def segment_sums(
    values: Shaped[Array, "rows time"], segments: Int[Array, "rows time"], count: int
) -> Shaped[Array, " count"]:
    """Sums over the tokens of segments 1, …, `count`; a mask is counted."""
    values = values.astype(jnp.int32) if values.dtype == bool else values
    sums = jax.ops.segment_sum(values.reshape(-1), segments.reshape(-1), count + 1)
    return sums[1:]


def answer_sum(targets: Targets) -> Float[Array, " answers"]:
    """The summed cost of each answer's tokens: N(y) where tokens cost their NLL."""
    costs = jnp.where(targets.mask, targets.losses, 0)
    return segment_sums(costs, targets.segments, targets.reference.shape[0])


def answer_lengths(targets: Targets) -> Int[Array, " answers"]:
    """|y|: the loss tokens of each answer, 0 for filler."""
    return segment_sums(targets.mask, targets.segments, targets.reference.shape[0])


def token_mean(
    targets: Targets, values: Float[Array, "rows time"] | None = None
) -> Float[Array, ""]:
    """Mean of `values`, by default the costs, over all loss tokens; 0 if there are none."""
    values = targets.losses if values is None else values
    return jnp.where(targets.mask, values, 0).sum() / targets.tokens.clip(1)


def answer_mean(targets: Targets, values: Float[Array, " answers"]) -> Float[Array, ""]:
    """Mean of one value per answer over all answers."""
    return jnp.where(answer_lengths(targets) > 0, values, 0).sum() / targets.answers.clip(1)


def mean_of_answers(targets: Targets) -> Float[Array, ""]:
    """Mean over all answers of the mean cost of an answer's tokens."""
    return answer_mean(targets, answer_sum(targets) / answer_lengths(targets).clip(1))


@dataclasses.dataclass(frozen=True)
class TokenLoss:
    """What a token costs.

    Attributes:
        values: `values(logits, tokens)`; with `target`, `values(logits, target_logits, tokens)`;
            with a `layer`, `values(activations, goal)`, where the goal is the target model's
            activations (`target`) or `frozen["control"]`. One number for each token.
        target: whether the cost compares with the frozen target model.
        layer: see `values`.
    """

    values: Callable[..., Array]
    target: bool = False
    layer: int | None = None


NLL = TokenLoss(negative_log_likelihood)


def kl_divergence(
    logits: Float[Array, "*positions vocab"],
    target_logits: Float[Array, "*positions vocab"],
    tokens: Int[Array, "*positions"],
) -> Float[Array, "*positions"]:
    """KL(p_ref ‖ p) = Σ_v p_ref(v) (log p_ref(v) − log p(v)), whatever the token.

    As a retain loss: the KL minimisation of TOFU (Maini et al. 2024, arXiv 2401.06121), and
    OpenUnlearning's retain_loss_type KL.
    """
    target = jax.nn.log_softmax(target_logits)
    return jnp.sum(jnp.exp(target) * (target - jax.nn.log_softmax(logits)), axis=-1)


KL = TokenLoss(kl_divergence, target=True)
