"""Fine-tuning, which makes target models and models that never saw the forget set."""

import dataclasses
from typing import ClassVar

from pmc_jax.settings import one_of
from pmc_jax.unlearning.method import Examples, Method, Task, TaskWithAnswers


@dataclasses.dataclass(frozen=True)
class FineTune(Method):
    """Ordinary fine-tuning: the token mean of the NLL of pairs, each visited once an epoch.

    Attributes:
        pairs: "all" trains on forget and retain pairs alike, "retain" or "forget" on these.
    """

    name: str = "finetune"
    pairs: str = one_of("all", "all", "retain", "forget")

    sentence: ClassVar[str] = (
        "on questions with their answers: ordinary fine-tuning, which unlearns nothing."
    )

    unlearns: ClassVar[bool] = False

    @property
    def sees_answers(self) -> bool:  # type: ignore[override]
        """Whether forget pairs are among those it trains on."""
        return self.pairs != "retain"

    def examples_of(self, task: Task) -> Examples:
        """The chosen pairs."""
        forget = task.true_answers() if isinstance(task, TaskWithAnswers) else []
        retain = list(task.retain) if self.pairs != "forget" else []
        return Examples(len(forget) + len(retain), [*forget, *retain])
