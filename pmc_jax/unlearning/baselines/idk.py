"""IDK: training on refusals (Maini et al. 2024, arXiv 2401.06121)."""

import dataclasses
from typing import ClassVar

from pmc_jax.settings import path_to
from pmc_jax.unlearning.baselines.refusals import drawn_refusals
from pmc_jax.unlearning.method import BaselineMethod, Examples, Task


@dataclasses.dataclass(frozen=True)
class IDK(BaselineMethod):
    """The token mean of a refusal's NLL, plus λ r.

    Attributes:
        refusals: a text file with one refusal a line; null: the data set's `idontknow.jsonl`,
            or else "I don't know.".
    """

    name: str = "idk"
    refusals: str | None = path_to(None)

    sees_answers: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ("refusals",)
    sentence: ClassVar[str] = "to refuse the questions it should forget, and on answers to keep."

    def examples_of(self, task: Task) -> Examples:
        """A refusal for each question, and the retain pairs."""
        refusals = drawn_refusals(task, self.refusals)
        return Examples(len(task.prompts), refusals, retain=self.retained(task))
