"""AdamW with the schedule of the published runs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, DTypeLike, Float, UInt32

from pmc_jax.model import ModelConfig
from pmc_jax.model.bits import element_index, mixed
from pmc_jax.model.specs import Params, decayed
from pmc_jax.model.trainable import Trainable, trained_specs
from pmc_jax.settings import bounded, one_of


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW (Loshchilov and Hutter 2019) and its learning-rate schedule.

    Attributes:
        learning_rate: the highest learning rate of the schedule.
        schedule: "linear": warm-up, then a linear decay to 0; "constant": no change.
        warmup_epochs: epochs of linear warm-up.
        weight_decay: decoupled weight decay, not on biases and norm weights.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root of the second moment.
        max_grad_norm: clip gradients to this global norm; None: no clipping.
        moment_dtype: dtype of both moments; None: that of the weights.
    """

    learning_rate: float = bounded(1e-5, least=0, most=1)
    schedule: str = one_of("linear", "linear", "constant")
    warmup_epochs: float = bounded(1.0, least=0)
    weight_decay: float = bounded(0.01, least=0, most=100)
    beta1: float = bounded(0.9, least=0, below=1)
    beta2: float = bounded(0.999, least=0, below=1)
    epsilon: float = bounded(1e-8, above=0, most=1)
    max_grad_norm: float | None = bounded(None, above=0)
    moment_dtype: str | None = one_of(None, "float32", "bfloat16")


def make_schedule(settings: Optimizer, updates: int, updates_per_epoch: float) -> optax.Schedule:
    """Learning rate of update k of T = `updates`, with w warm-up updates.

    lr·k/w for k < w, else lr·(T−k)/(T−w); the first is 0 if w > 0.
    """
    if settings.schedule == "constant":
        return optax.constant_schedule(settings.learning_rate)
    warmup = min(round(settings.warmup_epochs * updates_per_epoch), updates)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, settings.learning_rate, max(warmup, 1)),
            optax.linear_schedule(settings.learning_rate, 0.0, max(updates - warmup, 1)),
        ],
        [warmup],
    )


def only_where(trained: Params) -> optax.GradientTransformation:
    """No update where `trained` is False: adding −0.0 leaves even the sign of a zero unchanged."""

    def held(updates: optax.Updates) -> optax.Updates:
        return jax.tree.map(lambda u, own: jnp.where(own, u, -0.0), updates, trained)

    return optax.stateless(lambda updates, _: held(updates))


def stochastically_rounded(
    x: Float[Array, "*shape"], dither: UInt32[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`x` in bfloat16, rounded up or down at random so that its expectation is `x`.

    A bfloat16 is the upper half of a float32. `dither` is uniform in [0, 2¹⁶): added to the
    lower half, it carries as often as that half is large.
    """
    x = x.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + dither
    cut = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), cut, x).astype(jnp.bfloat16)


def cast_moments(state: optax.ScaleByAdamState, dtype: DTypeLike) -> optax.ScaleByAdamState:
    """Both moments cast to `dtype`, to bfloat16 with stochastic rounding.

    With rounding to the nearest, a second moment in bfloat16 would never fall: β₂ = 0.999 takes
    away 0.1%, which is less than half the distance between neighbours.
    """
    if dtype != jnp.bfloat16:
        mu, nu = optax.tree.cast((state.mu, state.nu), dtype)
        return state._replace(mu=mu, nu=nu)
    leaves, structure = jax.tree.flatten(state.mu)
    both = zip(leaves, jax.tree.leaves(state.nu), strict=True)
    mu, nu = [], []
    for number, (first, second) in enumerate(both):
        # Apart by more than any leaf has elements, so that hardly two of them share bits.
        start = mixed(mixed(state.count.astype(jnp.uint32)) + jnp.uint32(number))
        bits = mixed(element_index(first.shape) ^ start)
        mu.append(stochastically_rounded(first, bits & 0xFFFF))
        nu.append(stochastically_rounded(second, bits >> 16))
    return state._replace(
        mu=jax.tree.unflatten(structure, mu), nu=jax.tree.unflatten(structure, nu)
    )


def scale_by_adam(settings: Optimizer) -> optax.GradientTransformation:
    """Adam's direction; between updates its moments are in `settings.moment_dtype`."""
    adam = optax.scale_by_adam(b1=settings.beta1, b2=settings.beta2, eps=settings.epsilon)
    if settings.moment_dtype is None:
        return adam
    dtype = jnp.dtype(settings.moment_dtype)

    def init(params: Any) -> optax.ScaleByAdamState:
        state = adam.init(params)
        mu, nu = optax.tree.cast((state.mu, state.nu), dtype)
        return state._replace(mu=mu, nu=nu)

    def update(
        gradients: Any, state: optax.ScaleByAdamState, params: Any = None
    ) -> tuple[Any, optax.ScaleByAdamState]:
        mu, nu = (optax.tree.cast_like(moment, gradients) for moment in (state.mu, state.nu))
        updates, wide = adam.update(gradients, state._replace(mu=mu, nu=nu), params)
        return updates, cast_moments(wide, dtype)

    return optax.GradientTransformation(init, update)


def make_optimizer(
    settings: Optimizer,
    model: ModelConfig,
    schedule: optax.Schedule,
    trained: Params | None = None,
    part: Trainable | None = None,
) -> optax.GradientTransformation:
    """AdamW whose weight decay spares biases and norm weights.

    `part` is what is trained; None: all weights. `trained` is True where they are updated, as
    arrays that broadcast to them; None: everywhere. Gradients are 0 elsewhere.
    """
    adamw = optax.chain(
        scale_by_adam(settings),
        optax.add_decayed_weights(settings.weight_decay, decayed(trained_specs(model, part))),
        optax.scale_by_learning_rate(schedule),
    )
    parts = [adamw]
    if settings.max_grad_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(settings.max_grad_norm))
    if trained is not None:
        parts.append(only_where(trained))
    return parts[0] if len(parts) == 1 else optax.chain(*parts)
