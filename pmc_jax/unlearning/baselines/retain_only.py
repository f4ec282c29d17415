"""Training on retain answers alone: what further training does without any unlearning."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from pmc_jax.unlearning.losses import Targets
from pmc_jax.unlearning.method import BaselineMethod, Examples, Task


@dataclasses.dataclass(frozen=True)
class RetainOnly(BaselineMethod):
    """λ r alone: the control that is trained for as long as a method that unlearns."""

    name: str = "retain_only"

    sees_answers: ClassVar[bool] = False
    sentence: ClassVar[str] = (
        "on answers to keep alone: a control without any unlearning. The answers to be "
        "forgotten were never a training target."
    )

    def examples_of(self, task: Task) -> Examples:
        """The retain pairs; an epoch is as long as the forget questions make it."""
        return Examples(len(task.prompts), retain=self.retained(task))

    def loss(self, forget: Targets, preferred: Targets) -> Float[Array, ""]:
        """0."""
        return jnp.zeros_like(forget.losses, shape=())
