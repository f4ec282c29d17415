"""From rows of answers to the loss of a method other than PMC: forward passes, then means."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
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
from pmc_jax.training.step import Objective, restarted, sequence_states
from pmc_jax.unlearning.baselines import MethodLoss, Targets, method_loss, segment_sums
from pmc_jax.unlearning.config import (
    BaselineConfig,
    CEUConfig,
    MethodConfig,
    RMUConfig,
    UNDIALConfig,
    has_retain_term,
)
from pmc_jax.unlearning.rmu import (
    activation_distance,
    control_vector,
    only_trained,
    steered_layer,
)
from pmc_jax.unlearning.token_losses import (
    adjusted_cross_entropy,
    complement_cross_entropy,
    kl_divergence,
)


@struct.dataclass
class AnswerRows:
    """Prompts with answers of one kind, one or several to a row.

    Attributes:
        tokens: prompt, answer and end token, the next sequence behind them.
        segments: 0 at padding, else the number of the answer within its micro-batch, from 1.
        loss_mask: True at answer and end tokens.
        reference: N_ref of each of a micro-batch's answers; filler where it has fewer.
    """

    tokens: Int[Array, "*parts rows time"]
    segments: Int[Array, "*parts rows time"]
    loss_mask: Bool[Array, "*parts rows time"]
    reference: Float[Array, "*parts answers"]


@struct.dataclass
class MethodBatch:
    """An optimizer batch `[accumulation, rows, time]` or a part `[rows, time]` of it.

    Answer i of `preferred` is to the question of answer i of `answers`. A kind that the method
    does not have has no rows.
    """

    answers: AnswerRows
    preferred: AnswerRows
    retain: AnswerRows


KINDS = ("answers", "preferred", "retain")


@struct.dataclass
class Frozen:
    """What is fixed before the first step and read in every one.

    Attributes:
        params: the target model's weights, as far as the method needs and changes them.
        control: the vector that RMU steers activations to.
    """

    params: Params
    control: Float[Array, " size"]


@dataclasses.dataclass(frozen=True)
class TokenLoss:
    """What a token costs.

    Attributes:
        values: of logits, as `token_values` wants it; or, with a `layer`, of activations
            after it and what they are compared with.
        target: whether it compares with the target model.
    """

    values: Callable[..., Array]
    target: bool = False
    layer: int | None = None


NLL = TokenLoss(negative_log_likelihood)


def token_losses(method: MethodConfig, cfg: ModelConfig) -> dict[str, TokenLoss]:
    """What the tokens of each kind of rows cost under `method`."""
    answers = retain = NLL
    match method:
        case CEUConfig():
            answers = TokenLoss(complement_cross_entropy)
        case UNDIALConfig(beta=beta):
            answers = TokenLoss(partial(adjusted_cross_entropy, beta=beta), target=True)
        case RMUConfig():
            answers = TokenLoss(activation_distance, layer=steered_layer(method, cfg))
    if has_retain_term(method) and isinstance(method, BaselineConfig):
        match method.retain_loss:
            case "kl":
                retain = TokenLoss(kl_divergence, target=True)
            case "activations":
                retain = dataclasses.replace(answers, target=True)
    return {"answers": answers, "preferred": NLL, "retain": retain}


def freeze(
    method: MethodConfig, params: Params, cfg: ModelConfig, dtype: DTypeLike, seed: int
) -> Frozen:
    """What `method` needs of the target model, whose weights are `params`."""
    needed: Params = {}
    if any(loss.target for loss in token_losses(method, cfg).values()):
        needed = params
        if isinstance(method, RMUConfig):
            needed = {"layers": {"down": params["layers"]["down"]}}
    control = np.zeros(0)
    if isinstance(method, RMUConfig):
        control = control_vector(method, seed, cfg.hidden_size)
    wide = params["embed"].dtype
    return Frozen(frozen_params(needed, cfg, dtype), jnp.asarray(control, wide))


@partial(jax.jit, static_argnames=("cfg", "dtype"))
def frozen_params(params: Params, cfg: ModelConfig, dtype: DTypeLike) -> Params:
    """A copy of all or some weights that lasts through training, parted as they are.

    Matrices are in `dtype`, to which every matrix product would bring them anyway.
    """

    def copy(leaves: Params, specs: Params) -> Params:
        return {
            name: copy(leaf, specs[name]) if isinstance(leaf, dict) else one(leaf, specs[name])
            for name, leaf in leaves.items()
        }

    def one(leaf: Array, spec: Spec) -> Array:
        leaf = leaf.astype(dtype) if spec.init == "normal" else leaf
        return constrain(jnp.copy(leaf), *spec.axes)

    return copy(params, param_specs(cfg))


def overlaid(params: Params, some: Params) -> Params:
    """`params` with the leaves that `some` has in their place."""
    return {
        name: overlaid(leaf, some[name])
        if isinstance(leaf, dict) and name in some
        else some.get(name, leaf)
        for name, leaf in params.items()
    }


def without_first(rows: AnswerRows, count: int) -> AnswerRows:
    """The same rows, but the first `count` tokens of an answer carry no loss."""
    seen = jnp.cumsum(rows.loss_mask, axis=-1)
    before = restarted(seen - rows.loss_mask, rows.segments)
    later = before >= count
    return dataclasses.replace(rows, loss_mask=rows.loss_mask & later)


def answer_count(batch: AnswerRows) -> Int[Array, ""]:
    """How many answers of an optimizer batch `[accumulation, rows, time]` carry loss."""
    size = batch.reference.shape[-1]
    lengths = jax.vmap(lambda mask, segments: segment_sums(mask, segments, size))(
        batch.loss_mask, batch.segments
    )
    return (lengths > 0).sum()


def states_of(
    params: Params,
    rows: Mapping[str, AnswerRows],
    layer: int | None,
    cfg: ModelConfig,
    dtype: DTypeLike,
    remat: str,
) -> dict[str, Float[Array, "rows time embed"]]:
    """The states of each kind of rows after `layer`, or the final ones, by one forward pass."""
    if not rows:
        return {}
    tokens = jnp.concatenate([own.tokens for own in rows.values()])
    segments = jnp.concatenate([own.segments for own in rows.values()])
    states = sequence_states(params, tokens, segments, cfg, dtype, remat, layer)
    found, start = {}, 0
    for kind, own in rows.items():
        end = start + own.tokens.shape[0]
        found[kind] = states[start:end]
        start = end
    return found


def method_objective(
    method: MethodConfig, cfg: ModelConfig, dtype: DTypeLike = jnp.float32, remat: str = "none"
) -> Objective:
    """The method's loss of a part of an optimizer batch: `(params, part, batch, frozen)`."""
    losses = token_losses(method, cfg)

    def targets(rows: AnswerRows, whole: AnswerRows, values: Float[Array, "rows time"]) -> Targets:
        return Targets(
            losses=values,
            mask=rows.loss_mask,
            segments=rows.segments,
            reference=rows.reference,
            tokens=whole.loss_mask.sum(),
            answers=answer_count(whole),
        )

    def objective(
        params: Params, part: MethodBatch, batch: MethodBatch, frozen: Frozen
    ) -> MethodLoss:
        if isinstance(method, CEUConfig):
            part, batch = (
                dataclasses.replace(
                    each, answers=without_first(each.answers, method.skipped_tokens)
                )
                for each in (part, batch)
            )
        if isinstance(method, RMUConfig):
            params = only_trained(params, method, cfg)
        target = overlaid(jax.lax.stop_gradient(params), frozen.params)
        rows = {kind: getattr(part, kind) for kind in KINDS}
        values = {kind: jnp.zeros(own.tokens.shape) for kind, own in rows.items()}
        for layer in dict.fromkeys(loss.layer for loss in losses.values()):
            here = {
                kind: own
                for kind, own in rows.items()
                if losses[kind].layer == layer and own.tokens.shape[0]
            }
            compared = {kind: own for kind, own in here.items() if losses[kind].target}
            states = states_of(params, here, layer, cfg, dtype, remat)
            goals = states_of(target, compared, layer, cfg, dtype, "none")
            for kind, own in here.items():
                if layer is not None:
                    goal = goals.get(kind, frozen.control)
                    values[kind] = losses[kind].values(states[kind], goal)
                else:
                    models = [(params, states[kind])]
                    models += [(target, goals[kind])] if kind in goals else []
                    values[kind] = token_values(losses[kind].values, models, own.tokens, cfg)
        found = (targets(rows[kind], getattr(batch, kind), values[kind]) for kind in KINDS)
        return method_loss(method, *found)

    return objective
