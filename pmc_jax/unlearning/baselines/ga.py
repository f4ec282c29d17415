"""Gradient ascent (GA; Jang et al. 2023)."""

import dataclasses
from typing import ClassVar

from jaxtyping import Array, Float

from pmc_jax.unlearning.losses import Targets, token_mean
from pmc_jax.unlearning.method import Examples, Method, Task, TaskWithAnswers


def ascent_loss(forget: Targets) -> Float[Array, ""]:
    """−f: minus the mean NLL over the tokens of forget answers."""
    return -token_mean(forget)


@dataclasses.dataclass(frozen=True)
class GA(Method):
    """Gradient ascent on the forget answers: −f."""

    name: str = "ga"

    sees_answers: ClassVar[bool] = True
    sentence: ClassVar[str] = "by gradient ascent on the answers to be forgotten."

    def examples_of(self, task: Task) -> Examples:
        """The true answers."""
        assert isinstance(task, TaskWithAnswers)  # sees_answers
        return Examples(len(task.prompts), task.true_answers())

    def loss(self, forget: Targets, preferred: Targets) -> Float[Array, ""]:
        """−f."""
        return ascent_loss(forget)
