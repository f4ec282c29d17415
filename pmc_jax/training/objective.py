"""From a batch to a method's loss: forward passes, token losses, then means."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, DTypeLike, Float, Int

from pmc_jax.model import ModelConfig, token_values
from pmc_jax.model.sequences import sequence_states
from pmc_jax.model.specs import Params
from pmc_jax.model.trainable import Trainable, joined_weights
from pmc_jax.training.batch import Batch
from pmc_jax.unlearning.losses import KINDS, Targets, TokenLoss, segment_sums
from pmc_jax.unlearning.method import Method
from pmc_jax.unlearning.target_model import overlaid


@struct.dataclass
class Losses:
    """A method's own loss, its retain loss r, and the objective: their sum with weight λ."""

    loss: Float[Array, ""]
    forget_loss: Float[Array, ""]
    retain_loss: Float[Array, ""]


def target_weights(part: Trainable | None, trained: Params, frozen: Mapping[str, Any]) -> Params:
    """The target model's weights.

    With an adapter they are the base, with the adapter that the run started from if there is
    one. Otherwise the trained weights give way to their copies in `frozen`.
    """
    if part is not None and part.adapter is not None:
        return part.joined(frozen.get("start", {}), frozen["base"])
    trained = overlaid(jax.lax.stop_gradient(trained), frozen.get("params", {}))
    return joined_weights(part, trained, frozen)


Objective = Callable[[Params, Batch, Batch, float | Array, Any], Losses]
"""`(params, part, batch, retain_weight, frozen) -> losses` of a part of an optimizer batch.

Means are over the whole `batch`, so that losses and gradients of its parts add up to its own.
`frozen` is what `Method.frozen` gives.
"""


def only_trained(params: Params, trained: Params | None) -> Params:
    """The same weights, with gradients for those alone that are `trained`; None: all."""
    if trained is None:
        return params

    def one(leaf: Array, own: Any) -> Array:
        if not np.any(own):
            return jax.lax.stop_gradient(leaf)
        return jnp.where(own, leaf, jax.lax.stop_gradient(leaf))

    return jax.tree.map(one, params, trained)


def answer_count(mask: Array, segments: Int[Array, "parts rows time"], size: int) -> Int[Array, ""]:
    """How many of the numbered answers of an optimizer batch carry loss."""
    lengths = jax.vmap(lambda mask, segments: segment_sums(mask, segments, size))(mask, segments)
    return (lengths > 0).sum()


def targets_of(
    method: Method, kind: str, part: Batch, batch: Batch, values: Float[Array, "rows time"]
) -> Targets:
    """The answers of one kind in a part of an optimizer batch, with what their tokens cost."""

    def mask_of(some: Batch) -> Array:
        segments = some.segments_of(kind)
        mask = some.loss_mask & (segments > 0)
        return method.forget_mask(mask, segments) if kind == "forget" else mask

    whole, size = mask_of(batch), batch.sizes[KINDS.index(kind)]
    return Targets(
        losses=values,
        mask=mask_of(part),
        segments=part.segments_of(kind),
        reference=part.reference[part.slots(kind)],
        tokens=whole.sum(),
        answers=answer_count(whole, batch.segments_of(kind), size),
    )


def token_costs(
    params: Params,
    target: Params,
    frozen: Any,
    part: Batch,
    losses: dict[str, TokenLoss],
    cfg: ModelConfig,
    dtype: DTypeLike,
    remat: str,
) -> dict[str, Float[Array, "rows time"]]:
    """What the tokens of a part cost under each kind's loss.

    Every distinct loss is computed once, for the tokens of all kinds. `target` are the target
    model's weights.
    """

    @cache
    def states(of_target: bool, layer: int | None) -> Float[Array, "rows time embed"]:
        """Hidden states after a layer, or the final ones."""
        weights, kept = (target, "none") if of_target else (params, remat)
        return sequence_states(weights, part.tokens, part.segments, cfg, dtype, kept, layer)

    @cache
    def cost(loss: TokenLoss) -> Float[Array, "rows time"]:
        if loss.layer is not None:
            goal = states(True, loss.layer) if loss.target else frozen["control"]
            return loss.values(states(False, loss.layer), goal)
        models = [(params, states(False, None))]
        if loss.target:
            models.append((target, states(True, None)))
        return token_values(loss.values, models, part.tokens, cfg)

    return {kind: cost(loss) for kind, loss in losses.items()}


def make_objective(
    method: Method,
    cfg: ModelConfig,
    dtype: DTypeLike = jnp.float32,
    remat: str = "none",
    trained_part: Trainable | None = None,
) -> Objective:
    """The objective of a method for a model of this shape, as a function of what is trained."""
    losses, trained = method.token_losses(cfg), method.trained_weights(cfg)
    if trained_part is not None:
        trained = trained_part.mask(trained)

    def objective(
        params: Params, part: Batch, batch: Batch, retain_weight: float | Array, frozen: Any
    ) -> Losses:
        own = only_trained(params, trained)
        params = joined_weights(trained_part, own, frozen)
        target = target_weights(trained_part, own, frozen)
        present = {kind: losses[kind] for kind in KINDS if part.sizes[KINDS.index(kind)]}
        none = dict.fromkeys(KINDS, jnp.zeros(part.tokens.shape))
        costs = none | token_costs(params, target, frozen, part, present, cfg, dtype, remat)
        targets = {kind: targets_of(method, kind, part, batch, costs[kind]) for kind in KINDS}
        forget = method.loss(targets["forget"], targets["preferred"])
        retain = method.retain_term(targets["retain"])
        return Losses(forget + retain_weight * retain, forget, retain)

    return objective
