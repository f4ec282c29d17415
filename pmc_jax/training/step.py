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
from jaxtyping import Array, DTypeLike, Float

from pmc_jax.model import (
    ModelConfig,
    constrain,
    constrain_params,
    gradient_slots,
    routed,
    shardings_of,
)
from pmc_jax.model.specs import Params, abstract_specs
from pmc_jax.model.trainable import Trainable, trained_specs
from pmc_jax.training.batch import Batch
from pmc_jax.training.objective import Losses, Objective, make_objective
from pmc_jax.unlearning.method import Method


@struct.dataclass
class TrainState:
    """What an optimizer step changes: trained weights, moments, and the number of updates."""

    params: Params
    opt_state: optax.OptState
    step: Any  # an array, or its description in `abstract_state`


@struct.dataclass
class RunState:
    """All that a run needs to continue: weights, moments, step, and the state of the method.

    RNG and data order are functions of seed and step, so they need no state.
    """

    train: TrainState
    method: Any


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update."""
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def abstract_state(
    cfg: ModelConfig,
    optimizer: optax.GradientTransformation,
    dtype: DTypeLike,
    mesh: Mesh | None = None,
    part: Trainable | None = None,
) -> TrainState:
    """Shapes, dtypes and shardings of a state whose weights are in `dtype`, without values."""
    specs = trained_specs(cfg, part)
    shapes = abstract_specs(specs, dtype)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(shapes, jax.eval_shape(optimizer.init, shapes), count)
    if mesh is None:
        whole: Sharding = SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda _: whole, specs)
    else:
        whole = NamedSharding(mesh, PartitionSpec())
        shardings = shardings_of(specs, mesh)

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
    state: TrainState, specs: Params, optimizer: optax.GradientTransformation
) -> TrainState:
    """The same state, its weights and moments sharded as `shardings_of` their table says."""
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda leaf, spec: constrain(leaf, *spec.axes),
        state.opt_state,
        specs,
    )
    return TrainState(constrain_params(state.params, specs), opt_state, state.step)


def accumulated_gradients(
    params: Params,
    batch: Batch,
    objective: Objective,
    cfg: ModelConfig,
    retain_weight: float | Array,
    frozen: Any,
    *,
    dtype: DTypeLike | None = None,
    part: Trainable | None = None,
) -> tuple[Params, Losses]:
    """Gradients and losses over micro-batches, which lie along the first axis of `batch`.

    A micro-batch's gradients and their sum are in `dtype`; None: in the weights'. `params` is what
    `part` says is trained.
    """
    slots = params if dtype is None else gradient_slots(params, dtype)
    specs = trained_specs(cfg, part)

    def loss(slots: Params, some: Any) -> tuple[Array, Losses]:
        own = slots if dtype is None else routed(params, slots)
        losses = objective(own, some, batch, retain_weight, frozen)
        return losses.loss, losses

    structure: Any = None  # of the losses, whose declared shapes admit no stacked scalars

    def add(total: Params, some: Any) -> tuple[Params, list[Array]]:
        nonlocal structure
        (_, losses), gradients = jax.value_and_grad(loss, has_aux=True)(slots, some)
        scalars, structure = jax.tree.flatten(losses)
        total = jax.tree.map(jnp.add, total, constrain_params(gradients, specs))
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


TrainStep = Callable[[TrainState, Batch, Any, Any], tuple[TrainState, Losses, Norms]]
"""`(state, batch, retain_weight, frozen) -> (state, losses, norms)`; donates `state`."""


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
    """The state after one update, and the norms of gradient and update.

    The barrier makes XLA compute the norm before it reuses the gradients' memory; otherwise it
    would keep a copy. On a CPU the norm of the updates still costs one.
    """
    norm = euclidean_norm(gradients)
    gradients, norm = jax.lax.optimization_barrier((gradients, norm))
    gradients = optax.tree.cast_like(gradients, state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norms = Norms(norm, euclidean_norm(updates) if update_norm else None)
    return TrainState(params, opt_state, state.step + 1), norms


def make_train_step(
    optimizer: optax.GradientTransformation,
    method: Method,
    cfg: ModelConfig,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: str = "none",
    gradient_dtype: DTypeLike | None = None,
    update_norm: bool = False,
    part: Trainable | None = None,
) -> TrainStep:
    """A compiled optimizer step of a method; gradients as in `accumulated_gradients`.

    `part` is what is trained; None: all weights. Otherwise `frozen` has the rest as "base".
    """
    objective = make_objective(method, cfg, dtype, remat, part)

    def train_step(
        state: TrainState, batch: Batch, retain_weight: float | Array, frozen: Any
    ) -> tuple[TrainState, Losses, Norms]:
        gradients, losses = accumulated_gradients(
            state.params, batch, objective, cfg, retain_weight, frozen, dtype=gradient_dtype,
            part=part,
        )  # fmt: skip
        state, norms = updated(optimizer, state, gradients, update_norm)
        return place_state(state, trained_specs(cfg, part), optimizer), losses, norms

    return jax.jit(train_step, donate_argnums=0)
