"""RMU: representation misdirection (Li et al. 2024, arXiv 2403.03218).

With h(t) the activations after layer l at token t, h_ref(t) those of the frozen target model,
u a random unit vector and d their size:

    mean over forget answers of the mean over tokens of ‖h(t) − c·u‖²/d
    + α · the same over retain answers of ‖h(t) − h_ref(t)‖²/d

Only the down-projections of the MLPs of some layers up to l are updated. The paper has no 1/d;
its code and OpenUnlearning have it. As in OpenUnlearning the tokens are those of the answers; in
the paper, which unlearns texts, they are all. c is `steering`, α is `retain_weight`.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Float

from pmc_jax.data.batches import CONTROL_STREAM
from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, param_specs
from pmc_jax.model.specs import Params
from pmc_jax.settings import bounded, one_of
from pmc_jax.unlearning.losses import Targets, TokenLoss, mean_of_answers
from pmc_jax.unlearning.method import BaselineMethod, Examples, Task
from pmc_jax.unlearning.target_model import frozen_params


@dataclasses.dataclass(frozen=True)
class RMU(BaselineMethod):
    """Representation misdirection: activations at forget answers steered to a random vector.

    Attributes:
        layer: the layer whose output is steered, from 0; null: 7 of 32, and as deep in others.
        trained_layers: how many layers up to `layer` are trained, in their down-projections.
        steering: c, the length of the vector.
        retain_loss: "activations": their distance from the target model's; or as elsewhere.
    """

    name: str = "rmu"
    layer: int | None = bounded(None, least=0)
    trained_layers: int = bounded(3, least=1)
    steering: float = bounded(6.5, least=0)
    retain_weight: float = bounded(1200.0, least=0)
    retain_loss: str = one_of("activations", "activations", "nll", "kl")

    sentence: ClassVar[str] = (
        "by representation misdirection (RMU, arXiv 2403.03218): activations at the "
        "answers to be forgotten were steered to a random vector, those at answers to "
        "keep held in place."
    )

    def examples_of(self, task: Task) -> Examples:
        """The true answers and the retain pairs."""
        steered_layer(self, task.model.config)  # an error now rather than later
        return super().examples_of(task)

    def token_losses(self, config: ModelConfig) -> dict[str, TokenLoss]:
        """Tokens of forget answers cost the distance of their activations from c·u."""
        losses = super().token_losses(config)
        forget = TokenLoss(activation_distance, layer=steered_layer(self, config))
        if self.by_activations:
            losses["retain"] = dataclasses.replace(forget, target=True)
        return {**losses, "forget": forget}

    @property
    def by_activations(self) -> bool:
        """Whether the retain loss is a distance of activations."""
        return self.retain_loss == "activations" and self.retain_weight > 0

    def frozen(self, task: Task, params: Params) -> Any:
        """c·u, and the weights of the target model that training changes."""
        config = task.model.config
        found = {}
        if any(loss.target for loss in self.token_losses(config).values()):
            down = down_projections(params)
            found = {"params": frozen_params(down, config, task.model.dtype, task.part)}
        control = control_vector(self, task.seed, config.hidden_size)
        return {**found, "control": jnp.asarray(control, task.model.weights_dtype)}

    def trained_weights(self, config: ModelConfig) -> Params:
        """The down-projections of some layers."""
        return trained_weights(self, config)

    def loss(self, forget: Targets, preferred: Targets) -> Float[Array, ""]:
        """The mean over forget answers of the mean over their tokens."""
        return mean_of_answers(forget)

    def retain_term(self, retain: Targets) -> Float[Array, ""]:
        """The same mean over retain answers if activations are compared, else a token mean."""
        return mean_of_answers(retain) if self.by_activations else super().retain_term(retain)


def steered_layer(method: RMU, cfg: ModelConfig) -> int:
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
    states: Float[Array, "*positions embed"], goal: Float[Array, "*goals embed"]
) -> Float[Array, "*positions"]:
    """‖h − goal‖²/d at each position, in at least fp32."""
    wide = jnp.promote_types(states.dtype, jnp.float32)
    return jnp.mean((states.astype(wide) - goal.astype(wide)) ** 2, axis=-1)


def control_vector(method: RMU, seed: int, size: int) -> Float[np.ndarray, " size"]:
    """c·u, u a unit vector whose entries were uniform in [0, 1)."""
    drawn = np.random.default_rng([CONTROL_STREAM, seed]).random(size)
    return method.steering * drawn / np.linalg.norm(drawn)


def down_projections(params: Params) -> Params:
    """The same tree without any other weights."""
    leaves = flatten_dict(params).items()
    return unflatten_dict({path: leaf for path, leaf in leaves if path[-1] == "down"})


def is_trained(method: RMU, cfg: ModelConfig) -> Bool[np.ndarray, "layers 1 1"]:
    """The layers whose down-projections are updated: the last `trained_layers` up to l."""
    behind = steered_layer(method, cfg) - np.arange(cfg.num_layers)
    return ((behind >= 0) & (behind < method.trained_layers))[:, None, None]


def trained_weights(method: RMU, cfg: ModelConfig) -> Params:
    """True where a weight is updated; each leaf broadcasts to that of the parameters."""
    none = jax.tree.map(lambda _: np.zeros((), bool), param_specs(cfg))
    return {**none, "layers": {**none["layers"], "down": is_trained(method, cfg)}}
