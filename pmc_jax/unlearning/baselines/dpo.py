"""Direct preference optimisation (DPO; Rafailov et al. 2023, arXiv 2305.18290) of refusals."""

import dataclasses
from typing import ClassVar

import jax
from jaxtyping import Array, Float

from pmc_jax.settings import bounded, path_to
from pmc_jax.unlearning.baselines.references import ReferencedMethod
from pmc_jax.unlearning.baselines.refusals import drawn_refusals
from pmc_jax.unlearning.losses import Targets, answer_mean, answer_sum
from pmc_jax.unlearning.method import Examples, Task


def dpo_loss(forget: Targets, preferred: Targets, beta: float) -> Float[Array, ""]:
    """−(2/β) mean log σ(β [(log π/π_ref)(preferred) − (log π/π_ref)(y)]).

    Answer i of `preferred` is to the question of answer i of `forget`. The DPO paper has the
    factor 1 in place of 2/β, which is that of TOFU, AltPO and OpenUnlearning.
    """
    gained = preferred.reference - answer_sum(preferred)
    lost = forget.reference - answer_sum(forget)
    values = jax.nn.log_sigmoid(beta * (gained - lost))
    return -2 / beta * answer_mean(forget, values)


@dataclasses.dataclass(frozen=True)
class DPO(ReferencedMethod):
    """Direct preference optimisation of a refusal over each forget answer, plus λ r.

    Attributes:
        beta: the inverse temperature β.
        refusals: a text file with one refusal a line; null: the data set's `idontknow.jsonl`,
            or else "I don't know.".
    """

    name: str = "dpo"
    beta: float = bounded(0.1, above=0)
    refusals: str | None = path_to(None)

    reads: ClassVar[tuple[str, ...]] = ("refusals",)
    sentence: ClassVar[str] = (
        "by direct preference optimisation (DPO, arXiv 2305.18290) to prefer refusals to "
        "the answers to be forgotten, and on answers to keep."
    )

    def examples_of(self, task: Task) -> Examples:
        """The true answers, a refusal for each, and the retain pairs."""
        refusals = [[refusal] for refusal in drawn_refusals(task, self.refusals)]
        return dataclasses.replace(super().examples_of(task), preferred=refusals)

    def loss(self, forget: Targets, preferred: Targets) -> Float[Array, ""]:
        """The DPO loss."""
        return dpo_loss(forget, preferred, self.beta)
