"""A run of PMC: what no step changes, and the questions and settings of each step."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import DTypeLike, PRNGKeyArray

from pmc_jax.data.prompts import PromptTemplate
from pmc_jax.model import ModelConfig
from pmc_jax.training.batch import BatchConfig, updates_per_epoch, visited
from pmc_jax.training.step import TrainStep
from pmc_jax.unlearning.config import PMCConfig


@dataclasses.dataclass(frozen=True)
class UnlearningTask:
    """The encoded data of a run. Nothing here comes from a ground-truth forget answer.

    Attributes:
        prompts: forget prompts as token ids.
        originals: y0, the target model's own greedy answer to each of them.
        retain: (prompt, answer with end token) pairs as token ids.
    """

    prompts: Sequence[Sequence[int]]
    originals: Sequence[str]
    retain: Sequence[tuple[Sequence[int], Sequence[int]]]

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt, by whose width all steps share programs."""
        return max(map(len, self.prompts))


@dataclasses.dataclass(frozen=True)
class PMCRun:
    """Everything that stays the same from the first step to the last."""

    task: UnlearningTask
    model: ModelConfig
    template: PromptTemplate
    pmc: PMCConfig
    batch: BatchConfig
    key: PRNGKeyArray
    seed: int
    train_step: TrainStep
    dtype: DTypeLike = jnp.float32


def step_questions(run: PMCRun, step: int) -> list[int]:
    """The questions of a step."""
    return visited(run.seed, step, len(run.task.prompts), run.batch)


def total_steps(run: PMCRun) -> int:
    """Optimizer steps of the whole run."""
    return run.batch.epochs * updates_per_epoch(len(run.task.prompts), run.batch)


def at_step(run: PMCRun, step: int, first: float, final: float | None) -> float | None:
    """A setting on its linear way from the first step to the last; None: it has no way to go."""
    if final is None:
        return None
    return first + (final - first) * step / max(total_steps(run) - 1, 1)
