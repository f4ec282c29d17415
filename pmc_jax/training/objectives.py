"""From rows of answers to the loss of a method other than PMC: forward passes, then means."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from pmc_jax.model import (
    ModelConfig,
    constrain,
    negative_log_likelihood,
    param_specs,
    token_values,
)
from pmc_jax.model.specs import Params, Spec
from pmc_jax.training.step import Objective, sequence_states
from pmc_jax.unlearning.baselines import MethodLoss, Targets, method_loss
from pmc_jax.unlearning.config import (
    BaselineConfig,
    CEUConfig,
    MethodConfig,
    UNDIALConfig,
    has_retain_term,
)
from pmc_jax.unlearning.token_losses import (
    adjusted_cross_entropy,
    complement_cross_entropy,
    kl_divergence,
)


@struct.dataclass
class AnswerRows:
    """Right-padded prompts and answers with N_ref of each; unused rows carry no loss."""

    tokens: Int[Array, "*rows time"]
    mask: Bool[Array, "*rows time"]
    loss_mask: Bool[Array, "*rows time"]
    reference: Float[Array, "*rows"]


@struct.dataclass
class MethodBatch:
    """An optimizer batch `[accumulation, rows, time]` or a part `[rows, time]` of it.

    Row i of `preferred` answers the question of row i of `answers`. A kind that the method
    does not have has no rows.
    """

    answers: AnswerRows
    preferred: AnswerRows
    retain: AnswerRows


KINDS = ("answers", "preferred", "retain")


@dataclasses.dataclass(frozen=True)
class TokenLoss:
    """What a token costs, as `token_values` wants it.

    `target`: it takes the target model's logits too.
    """

    values: Callable[..., Array]
    target: bool = False


NLL = TokenLoss(negative_log_likelihood)


def token_losses(method: MethodConfig) -> dict[str, TokenLoss]:
    """What the tokens of each kind of rows cost under `method`."""
    answers = retain = NLL
    match method:
        case CEUConfig():
            answers = TokenLoss(complement_cross_entropy)
        case UNDIALConfig(beta=beta):
            values = partial(adjusted_cross_entropy, beta=beta)
            answers = TokenLoss(values, target=True)
    kl = isinstance(method, BaselineConfig) and method.retain_loss == "kl"
    if kl and has_retain_term(method):
        retain = TokenLoss(kl_divergence, target=True)
    return {"answers": answers, "preferred": NLL, "retain": retain}


def without_first(rows: AnswerRows, count: int) -> AnswerRows:
    """The same rows, but the first `count` tokens of an answer carry no loss."""
    later = jnp.cumsum(rows.loss_mask, axis=-1) > count
    return dataclasses.replace(rows, loss_mask=rows.loss_mask & later)


def needs_target(method: MethodConfig) -> bool:
    """Whether every step computes with the target model's weights."""
    return any(loss.target for loss in token_losses(method).values())


@partial(jax.jit, static_argnames=("cfg", "dtype"))
def frozen_params(params: Params, cfg: ModelConfig, dtype: DTypeLike) -> Params:
    """A copy of the target model's weights that lasts through training, parted as they are.

    Matrices are in `dtype`, to which every matrix product would bring them anyway.
    """

    def one(leaf: Array, spec: Spec) -> Array:
        leaf = leaf.astype(dtype) if spec.init == "normal" else leaf
        return constrain(jnp.copy(leaf), *spec.axes)

    return jax.tree.map(one, params, param_specs(cfg))


def final_states(
    params: Params,
    rows: Mapping[str, AnswerRows],
    cfg: ModelConfig,
    dtype: DTypeLike,
    remat: str,
) -> dict[str, Float[Array, "rows time embed"]]:
    """The final hidden states of each kind of rows, by one forward pass."""
    if not rows:
        return {}
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows.values())
    states = sequence_states(params, joined.tokens, joined.mask, cfg, dtype, remat)
    found, start = {}, 0
    for kind, own in rows.items():
        end = start + own.tokens.shape[0]
        found[kind] = states[start:end]
        start = end
    return found


def method_objective(
    method: MethodConfig, cfg: ModelConfig, dtype: DTypeLike = jnp.float32, remat: str = "none"
) -> Objective:
    """The method's loss of a part of an optimizer batch.

    `(params, part, batch, frozen)`: `frozen` are the target model's weights as
    `frozen_params` has them where the method needs them, else anything.
    """
    losses = token_losses(method)

    def objective(
        params: Params, part: MethodBatch, batch: MethodBatch, frozen: Params
    ) -> MethodLoss:
        if isinstance(method, CEUConfig):
            part, batch = (
                dataclasses.replace(
                    each, answers=without_first(each.answers, method.skipped_tokens)
                )
                for each in (part, batch)
            )
        rows = {kind: getattr(part, kind) for kind in KINDS}
        some = {kind: own for kind, own in rows.items() if own.tokens.shape[0]}
        compared = {kind: own for kind, own in some.items() if losses[kind].target}
        states = final_states(params, some, cfg, dtype, remat)
        target_states = final_states(frozen, compared, cfg, dtype, "none")

        def targets(kind: str) -> Targets:
            own, whole = rows[kind], getattr(batch, kind)
            values = jnp.zeros(own.tokens.shape)
            if kind in states:
                models = [(params, states[kind])]
                models += [(frozen, target_states[kind])] if kind in compared else []
                values = token_values(losses[kind].values, models, own.tokens, cfg)
            return Targets(
                losses=values,
                mask=own.loss_mask,
                reference=own.reference,
                tokens=whole.loss_mask.sum(),
                answers=whole.loss_mask.any(axis=-1).sum(),
            )

        return method_loss(method, *map(targets, KINDS))

    return objective
