"""One optimizer step: accumulated gradients of the objective, then an Optax update."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import (
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)
from jaxtyping import Array, DTypeLike, Float, Int

from pmc_jax.model import (
    ModelConfig,
    abstract_params,
    constrain,
    constrain_params,
    forward,
    gradient_slots,
    layer_states,
    param_shardings,
    param_specs,
    routed,
    token_nll,
)
from pmc_jax.model.specs import Params
from pmc_jax.unlearning.objective import LossRows, PMCLoss, loss_tokens, pmc_loss


@struct.dataclass
class TrainState:
    """What an optimizer step changes: weights, moments, and the number of updates."""

    params: Params
    opt_state: optax.OptState
    step: Any  # an array, or its description in `abstract_state`


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update."""
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def abstract_state(
    cfg: ModelConfig,
    optimizer: optax.GradientTransformation,
    dtype: DTypeLike,
    mesh: Mesh | None = None,
) -> TrainState:
    """Shapes, dtypes and places of a state whose weights are in `dtype`, without their values."""
    shapes = abstract_params(cfg, dtype)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(shapes, jax.eval_shape(optimizer.init, shapes), count)
    if mesh is None:
        whole: Sharding = SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda _: whole, param_specs(cfg))
    else:
        whole = NamedSharding(mesh, PartitionSpec())
        shardings = param_shardings(cfg, mesh)

    def place(leaf: Any, sharding: Sharding = whole) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return TrainState(
        jax.tree.map(place, state.params, shardings),
        optax.tree_utils.tree_map_params(
            optimizer, place, state.opt_state, shardings, transform_non_params=place
        ),
        place(state.step),
    )


def place_state(
    state: TrainState, cfg: ModelConfig, optimizer: optax.GradientTransformation
) -> TrainState:
    """The same state, its weights and moments where `param_shardings` has them."""
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda leaf, spec: constrain(leaf, *spec.axes),
        state.opt_state,
        param_specs(cfg),
    )
    return TrainState(constrain_params(state.params, cfg), opt_state, state.step)


def restarted(
    counts: Int[Array, "*rows time"], segments: Int[Array, "*rows time"]
) -> Int[Array, "*rows time"]:
    """How far `counts`, which never fall along a row, have come since their segment began."""
    before = jnp.roll(segments, 1, axis=-1).at[..., 0].set(-1)
    first = jnp.where(segments != before, counts, 0)
    return counts - jax.lax.cummax(first, axis=first.ndim - 1)


def sequence_states(
    params: Params,
    tokens: Int[Array, "rows time"],
    segments: Int[Array, "rows time"],
    cfg: ModelConfig,
    dtype: DTypeLike,
    remat: str,
    layer: int | None = None,
) -> Float[Array, "rows time embed"]:
    """Hidden states of rows of sequences: after `layer` (from 0), or the final ones."""
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    positions = restarted(places, segments)
    if layer is None:
        return forward(params, tokens, positions, segments, cfg, dtype=dtype, remat=remat)
    layers = layer + 1
    return layer_states(
        params, tokens, positions, segments, cfg, layers=layers, dtype=dtype, remat=remat
    )


def sequence_nll(
    params: Params,
    tokens: Int[Array, "rows time"],
    segments: Int[Array, "rows time"],
    cfg: ModelConfig,
    dtype: DTypeLike,
    remat: str,
) -> Float[Array, "rows time"]:
    """Token NLLs of rows of sequences; those of first tokens mean nothing."""
    hidden = sequence_states(params, tokens, segments, cfg, dtype, remat)
    return token_nll(params, hidden, tokens, cfg)


Losses = Any
"""A struct of scalars, one of them `loss`, that add up over the parts of a batch."""

Objective = Callable[..., Losses]
"""`(params, part, batch, *fixed) -> losses` of a part of an optimizer batch.

Means are over the whole `batch`, so that losses and gradients of its parts add up to its
own. `fixed` is what an objective reads besides and no step changes, such as the weights of
the target model.
"""


def pmc_objective(
    cfg: ModelConfig, retain_weight: float, dtype: DTypeLike = jnp.float32, remat: str = "none"
) -> Objective:
    """The PMC loss of rows of token sequences; λ is `retain_weight` unless a step has its own."""

    def objective(
        params: Params, part: LossRows, batch: LossRows, own_weight: Array | None = None
    ) -> PMCLoss:
        nll = sequence_nll(params, part.tokens, part.segments, cfg, dtype, remat)
        weight = retain_weight if own_weight is None else own_weight
        return pmc_loss(nll, part, loss_tokens(batch), weight)

    return objective


def accumulated_gradients(
    params: Params,
    batch: Any,
    objective: Objective,
    cfg: ModelConfig,
    *fixed: Any,
    dtype: DTypeLike | None = None,
) -> tuple[Params, Losses]:
    """Gradients and losses over micro-batches, which lie along the first axis of `batch`.

    A micro-batch's gradients and their sum are in `dtype`; None: in the weights'.
    """
    slots = params if dtype is None else gradient_slots(params, dtype)

    def loss(slots: Params, part: Any) -> tuple[Array, Losses]:
        own = slots if dtype is None else routed(params, slots)
        losses = objective(own, part, batch, *fixed)
        return losses.loss, losses

    structure: Any = None  # of the losses, whose declared shapes admit no stacked scalars

    def add(total: Params, part: Any) -> tuple[Params, list[Array]]:
        nonlocal structure
        (_, losses), gradients = jax.value_and_grad(loss, has_aux=True)(slots, part)
        scalars, structure = jax.tree.flatten(losses)
        total = jax.tree.map(jnp.add, total, constrain_params(gradients, cfg))
        return total, scalars

    gradients, scalars = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, slots), batch)
    return gradients, jax.tree.unflatten(structure, [parts.sum(axis=0) for parts in scalars])


@struct.dataclass
class Norms:
    """Euclidean norms over all leaves, summed up in at least fp32.

    Attributes:
        gradient: of the objective's gradients, before any clipping.
        update: of what the optimizer adds to the weights; None where it is not wanted.
    """

    gradient: Float[Array, ""]
    update: Float[Array, ""] | None


TrainStep = Callable[..., tuple[TrainState, Losses, Norms]]
"""`(state, batch, *fixed) -> (state, losses, norms)`; donates `state`."""


def euclidean_norm(tree: Params) -> Float[Array, ""]:
    """The square root of the sum of all squares, summed up in at least fp32."""

    def squares(leaf: Array) -> Array:
        return jnp.sum(jnp.square(leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))))

    return jnp.sqrt(sum(map(squares, jax.tree.leaves(tree)), jnp.zeros(())))


def updated(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    gradients: Params,
    update_norm: bool,
) -> tuple[TrainState, Norms]:
    """The state after one update, and the norms of what led there.

    The gradients are there only after their norm, which else would keep a copy in memory. That
    of the updates keeps one on a CPU.
    """
    norm = euclidean_norm(gradients)
    gradients, norm = jax.lax.optimization_barrier((gradients, norm))
    gradients = optax.tree.cast_like(gradients, state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norms = Norms(norm, euclidean_norm(updates) if update_norm else None)
    return TrainState(params, opt_state, state.step + 1), norms


def make_objective_step(
    optimizer: optax.GradientTransformation,
    objective: Objective,
    cfg: ModelConfig,
    gradient_dtype: DTypeLike | None = None,
    update_norm: bool = False,
) -> TrainStep:
    """A compiled optimizer step of any objective; gradients as in `accumulated_gradients`."""

    def train_step(state: TrainState, batch: Any, *fixed: Any) -> tuple[TrainState, Losses, Norms]:
        gradients, losses = accumulated_gradients(
            state.params, batch, objective, cfg, *fixed, dtype=gradient_dtype
        )
        state, norms = updated(optimizer, state, gradients, update_norm)
        return place_state(state, cfg, optimizer), losses, norms

    return jax.jit(train_step, donate_argnums=0)


def make_train_step(
    optimizer: optax.GradientTransformation,
    cfg: ModelConfig,
    retain_weight: float,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: str = "none",
    gradient_dtype: DTypeLike | None = None,
    update_norm: bool = False,
) -> TrainStep:
    """A compiled step of PMC on `LossRows` `[accumulation, rows, time]`, and perhaps its own λ."""
    objective = pmc_objective(cfg, retain_weight, dtype, remat)
    return make_objective_step(optimizer, objective, cfg, gradient_dtype, update_norm)
