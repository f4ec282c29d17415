"""AdamW with the schedule of the published runs."""

import dataclasses

import optax

from pmc_jax.model import ModelConfig, decay_mask


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


def make_optimizer(
    cfg: OptimizerConfig, model: ModelConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """AdamW whose weight decay spares biases and norm weights."""
    adamw = optax.adamw(
        schedule,
        b1=cfg.beta1,
        b2=cfg.beta2,
        eps=cfg.epsilon,
        weight_decay=cfg.weight_decay,
        mask=decay_mask(model),
    )
    if cfg.max_grad_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(cfg.max_grad_norm), adamw)
