"""AdamW with the schedule of the published runs."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from pmc_jax.model import ModelConfig, decay_mask
from pmc_jax.model.specs import Params


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019) and its learning-rate schedule.

    `schedule` "linear" warms up over `warmup_epochs` epochs and falls to 0 at the
    end; "constant" is constant. `max_grad_norm` clips the global gradient norm.
    """

    learning_rate: float = 1e-5
    schedule: str = "linear"
    warmup_epochs: float = 1.0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    max_grad_norm: float | None = None


def make_schedule(cfg: OptimizerConfig, updates: int, updates_per_epoch: int) -> optax.Schedule:
    """Learning rate of update k of T = `updates`, with w warm-up updates.

    lr·k/w for k < w, else lr·(T−k)/(T−w); the first is 0 if w > 0.
    """
    if cfg.schedule == "constant":
        return optax.constant_schedule(cfg.learning_rate)
    warmup = min(round(cfg.warmup_epochs * updates_per_epoch), updates)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, cfg.learning_rate, max(warmup, 1)),
            optax.linear_schedule(cfg.learning_rate, 0.0, max(updates - warmup, 1)),
        ],
        [warmup],
    )


def only_where(trained: Params) -> optax.GradientTransformation:
    """No update where `trained` is False, not even of the sign of a zero."""

    def held(updates: optax.Updates) -> optax.Updates:
        return jax.tree.map(lambda u, own: jnp.where(own, u, -0.0), updates, trained)

    return optax.stateless(lambda updates, _: held(updates))


def make_optimizer(
    cfg: OptimizerConfig,
    model: ModelConfig,
    schedule: optax.Schedule,
    trained: Params | None = None,
) -> optax.GradientTransformation:
    """AdamW whose weight decay spares biases and norm weights.

    `trained` is True where weights are updated, as arrays that broadcast to them; None:
    everywhere. Gradients are 0 elsewhere.
    """
    adamw = optax.adamw(
        schedule,
        b1=cfg.beta1,
        b2=cfg.beta2,
        eps=cfg.epsilon,
        weight_decay=cfg.weight_decay,
        mask=decay_mask(model),
    )
    parts = [adamw]
    if cfg.max_grad_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(cfg.max_grad_norm))
    if trained is not None:
        parts.append(only_where(trained))
    return parts[0] if len(parts) == 1 else optax.chain(*parts)
