"""RMU: representation misdirection (Li et al. 2024, arXiv 2403.03218).

With h(t) the activations after layer l at token t, h_ref(t) those of the frozen target model,
u a random unit vector and d their size:

    mean over forget answers of the mean over tokens of ‖h(t) − c·u‖²/d
    + α · the same over retain answers of ‖h(t) − h_ref(t)‖²/d

Only the down-projections of the MLPs of some layers up to l are updated. The paper has no 1/d;
its code and OpenUnlearning have it. As in OpenUnlearning the tokens are those of the answers; in
the paper, which unlearns texts, they are all. c is `steering`, α is `retain_weight`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pmc_jax.data.batches import CONTROL_STREAM
from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, param_specs
from pmc_jax.model.specs import Params
from pmc_jax.unlearning.config import RMUConfig


def steered_layer(method: RMUConfig, cfg: ModelConfig) -> int:
    """l, counted from 0; by default layer 7 of 32 and as deep in other models, but at least 2.

    Raises:
        UserError: if the model has no such layer.
    """
    if method.layer is None:
        return min(max(cfg.num_layers // 4 - 1, 2), cfg.num_layers - 1)
    if method.layer >= cfg.num_layers:
        raise UserError(
            f"method.layer={method.layer}: expected less than {cfg.num_layers}, "
            "the model's number of layers"
        )
    return method.layer


def activation_distance(
    states: Float[Array, "*places embed"], goal: Float[Array, "*goals embed"]
) -> Float[Array, "*places"]:
    """‖h − goal‖²/d at each place, in at least fp32."""
    wide = jnp.promote_types(states.dtype, jnp.float32)
    return jnp.mean((states.astype(wide) - goal.astype(wide)) ** 2, axis=-1)


def control_vector(method: RMUConfig, seed: int, size: int) -> Float[np.ndarray, " size"]:
    """c·u, u a unit vector whose entries were uniform in [0, 1)."""
    drawn = np.random.default_rng([CONTROL_STREAM, seed]).random(size)
    return method.steering * drawn / np.linalg.norm(drawn)


def is_trained(method: RMUConfig, cfg: ModelConfig) -> Bool[np.ndarray, "layers 1 1"]:
    """The layers whose down-projections are updated: the last `trained_layers` up to l."""
    behind = steered_layer(method, cfg) - np.arange(cfg.num_layers)
    return ((behind >= 0) & (behind < method.trained_layers))[:, None, None]


def trained_weights(method: RMUConfig, cfg: ModelConfig) -> Params:
    """True where a weight is updated; each leaf broadcasts to that of the parameters."""
    none = jax.tree.map(lambda _: np.zeros((), bool), param_specs(cfg))
    return {**none, "layers": {**none["layers"], "down": is_trained(method, cfg)}}


def only_trained(params: Params, method: RMUConfig, cfg: ModelConfig) -> Params:
    """The same weights, with gradients for those alone that are updated."""
    return jax.tree.map(
        lambda leaf, trained: (
            jnp.where(trained, leaf, jax.lax.stop_gradient(leaf))
            if trained.any()
            else jax.lax.stop_gradient(leaf)
        ),
        params,
        trained_weights(method, cfg),
    )
