"""One optimizer step: accumulated gradients of the objective, then an Optax update."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, DTypeLike, Float

from pmc_jax.model import (
    ModelConfig,
    abstract_params,
    constrain,
    constrain_params,
    forward,
    param_shardings,
    param_specs,
    token_nll,
)
from pmc_jax.model.specs import Params
from pmc_jax.unlearning.objective import LossRows, PMCLoss, loss_tokens, pmc_loss


@struct.dataclass
class TrainState:
    """What an optimizer step changes: weights, moments, and the number of updates."""

    params: Params
    opt_state: optax.OptState
    step: Array


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
    state = TrainState(shapes, jax.eval_shape(optimizer.init, shapes), jnp.zeros((), jnp.int32))
    if mesh is None:
        return state
    whole = NamedSharding(mesh, PartitionSpec())

    def place(leaf: Array, sharding: NamedSharding = whole) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    shardings = param_shardings(cfg, mesh)
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


def sequence_nll(
    params: Params, rows: LossRows, cfg: ModelConfig, dtype: DTypeLike, remat: str
) -> Float[Array, "rows time"]:
    """Token NLLs of right-padded rows."""
    positions = jnp.broadcast_to(jnp.arange(rows.tokens.shape[1]), rows.tokens.shape)
    hidden = forward(params, rows.tokens, positions, rows.mask, cfg, dtype=dtype, remat=remat)
    return token_nll(params, hidden, rows.tokens, cfg)


def accumulated_gradients(
    params: Params,
    rows: LossRows,
    cfg: ModelConfig,
    retain_weight: float,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: str = "none",
) -> tuple[Params, PMCLoss]:
    """Gradients and losses over micro-batches `[accumulation, rows, time]`.

    Every loss token of the optimizer batch weighs the same, however the micro-batches
    share them out. Accumulators have the weights' dtype.
    """
    totals = loss_tokens(rows)

    def loss(params: Params, part: LossRows) -> tuple[Array, PMCLoss]:
        losses = pmc_loss(
            sequence_nll(params, part, cfg, dtype, remat), part, totals, retain_weight
        )
        return losses.loss, losses

    def add(total: tuple[Params, PMCLoss], part: LossRows) -> tuple[tuple[Params, PMCLoss], None]:
        (_, losses), gradients = jax.value_and_grad(loss, has_aux=True)(params, part)
        gradients = constrain_params(gradients, cfg)
        return jax.tree.map(jnp.add, total, (gradients, losses)), None

    wide = jnp.promote_types(dtype, jnp.float32)
    zeros = jax.tree.map(jnp.zeros_like, params), PMCLoss(*(jnp.zeros((), wide),) * 3)
    (gradients, losses), _ = jax.lax.scan(add, zeros, rows)
    return gradients, losses


TrainStep = Callable[[TrainState, LossRows], tuple[TrainState, PMCLoss]]


def make_train_step(
    optimizer: optax.GradientTransformation,
    cfg: ModelConfig,
    retain_weight: float,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: str = "none",
) -> TrainStep:
    """A compiled `(state, rows [accumulation, rows, time]) -> (state, losses)`; donates `state`."""

    def train_step(state: TrainState, rows: LossRows) -> tuple[TrainState, PMCLoss]:
        gradients, losses = accumulated_gradients(
            state.params, rows, cfg, retain_weight, dtype=dtype, remat=remat
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return place_state(TrainState(params, opt_state, state.step + 1), cfg, optimizer), losses

    return jax.jit(train_step, donate_argnums=0)
