"""Methods that compare an answer's log-probability with the target model's."""

import dataclasses
from collections.abc import Mapping
from itertools import islice
from typing import Any

from pmc_jax.model.specs import Params
from pmc_jax.unlearning.method import BaselineMethod, Examples, Task
from pmc_jax.unlearning.target_model import reference_nll


@dataclasses.dataclass(frozen=True)
class ReferencedMethod(BaselineMethod):
    """A method whose loss needs N_ref of every answer, which never changes.

    It is computed once, before the first step, so that the target model need not stay in memory.
    """

    def prepare(self, task: Task, examples: Examples, params: Params) -> dict[str, Any]:
        """N_ref of every forget answer, and of what is preferred to it."""

        def reference(pairs: list[Any]) -> list[float]:
            found = reference_nll(
                params, [pair[:2] for pair in pairs], model=task.model, training=task.training
            )
            return found.tolist()

        preferred = iter(reference([example for own in examples.preferred for example in own]))
        return {
            "references": {
                "forget": reference(list(examples.forget)),
                "preferred": [list(islice(preferred, len(own))) for own in examples.preferred],
            }
        }

    def with_prepared(
        self, task: Task, examples: Examples, prepared: Mapping[str, Any]
    ) -> Examples:
        """The examples with N_ref of each answer."""
        found = prepared["references"]
        forget = [
            example._replace(reference=value)
            for example, value in zip(examples.forget, found["forget"], strict=True)
        ]
        preferred = [
            [example._replace(reference=value) for example, value in zip(own, values, strict=True)]
            for own, values in zip(examples.preferred, found["preferred"], strict=True)
        ]
        return dataclasses.replace(examples, forget=forget, preferred=preferred)
