"""Steps of the methods that PMC is compared with, and of fine-tuning.

They share PMC's data order, retain draws, optimizer, checkpoints and log; only what a
micro-batch holds and what is minimised differ.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float

from pmc_jax.data.batches import retain_draw, train_sequence
from pmc_jax.data.prompts import PromptTemplate
from pmc_jax.model import ModelConfig, batch_shards, to_devices, to_host
from pmc_jax.model.specs import Params
from pmc_jax.runs.checkpoints import RunState
from pmc_jax.training.batch import BatchConfig, updates_per_epoch, visited
from pmc_jax.training.objectives import AnswerRows, Frozen, MethodBatch
from pmc_jax.training.packing import Pair, divided, packed, row_width
from pmc_jax.training.step import TrainStep, sequence_nll
from pmc_jax.training.targets import MethodData
from pmc_jax.unlearning.baselines import segment_sums
from pmc_jax.unlearning.config import (
    AltPOConfig,
    DPOConfig,
    MethodConfig,
    NPOConfig,
    has_retain_term,
)


@dataclasses.dataclass(frozen=True)
class BaselineRun:
    """Everything that stays the same from the first step to the last.

    Attributes:
        answer_reference, preferred_reference: N_ref of every answer, and of every one that is
            preferred to it; zeros where the method has no need of it.
    """

    method: MethodConfig
    data: MethodData
    template: PromptTemplate
    batch: BatchConfig
    seed: int
    train_step: TrainStep
    answer_reference: Float[np.ndarray, " answers"]
    preferred_reference: Sequence[Float[np.ndarray, " _"]]
    frozen: Frozen


@dataclasses.dataclass(frozen=True)
class BaselineRecord:
    """What one step did; a loss that the method does not have is None."""

    step: int
    epoch: int
    questions: list[int]
    loss: float
    forget_loss: float | None
    retain_loss: float | None
    gradient_norm: float
    update_norm: float | None
    tokens_trained: int
    seconds: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """The line's fields."""
        return dataclasses.asdict(self)

    def line(self) -> str:
        """What a person watches, in under 50 columns."""
        speed = self.tokens_trained / self.seconds["train"] / 1000
        return f"loss {self.loss:.3f}  training {speed:.1f}k/s"


def needs_reference(method: MethodConfig) -> bool:
    """Whether the loss compares with log-probabilities of the target model."""
    return isinstance(method, NPOConfig | DPOConfig | AltPOConfig)


def answer_rows(
    run: BaselineRun,
    pairs: Sequence[Pair],
    reference: Float[np.ndarray, " pairs"],
    width: int,
    per_part: int,
) -> AnswerRows:
    """Sequences of one kind in micro-batches `[accumulation, rows, width]`."""
    parts = run.batch.accumulation
    rows = packed(divided(pairs, parts, per_part), width, batch_shards())
    filled = np.zeros(parts * per_part, reference.dtype)
    filled[: len(reference)] = reference
    return AnswerRows(
        tokens=to_devices(rows.tokens, None, "batch", None),
        segments=to_devices(rows.segments, None, "batch", None),
        loss_mask=to_devices(rows.loss_mask, None, "batch", None),
        reference=to_devices(filled.reshape(parts, per_part)),
    )


def method_batch(run: BaselineRun, step: int, questions: Sequence[int]) -> tuple[MethodBatch, int]:
    """The answers to the step's questions, what is preferred to them, and the retain pairs.

    Also how many tokens they have, padding aside.
    """
    data, batch, end = run.data, run.batch, run.template.end_id
    per_forget = run.method.retain_per_forget if has_retain_term(run.method) else 0
    epoch = step // updates_per_epoch(data.visited, batch)
    turns = [(i, epoch % len(data.preferred[i])) for i in questions] if data.preferred else []
    drawn = retain_draw(run.seed, step, per_forget * len(questions), max(len(data.retain), 1))
    kinds = (
        [data.answers[i] for i in questions] if data.answers else [],
        [data.preferred[i][turn] for i, turn in turns],
        [data.retain[i] for i in drawn],
    )
    answers, preferred, retain = (
        [
            train_sequence(prompt, answer, end, batch.max_length, run.template.stop_ids)
            for prompt, answer in pairs
        ]
        for pairs in kinds
    )
    lengths = [len(p) + len(a) for p, a in (*answers, *preferred, *retain)]
    rows = partial(answer_rows, run, width=row_width(lengths, batch.max_length))
    size, wide = batch.batch_size, run.answer_reference.dtype
    on_devices = MethodBatch(
        answers=rows(
            answers,
            run.answer_reference[questions] if answers else np.zeros(0, wide),
            per_part=size if data.answers else 0,
        ),
        preferred=rows(
            preferred,
            np.array([run.preferred_reference[i][turn] for i, turn in turns], wide),
            per_part=size if data.preferred else 0,
        ),
        retain=rows(retain, np.zeros(len(retain), wide), per_part=size * per_forget),
    )
    return on_devices, sum(lengths)


def reference_nll(
    params: Params,
    pairs: Sequence[Pair],
    *,
    model: ModelConfig,
    template: PromptTemplate,
    batch: BatchConfig,
    dtype: DTypeLike = jnp.float32,
    remat: str = "none",
) -> Float[np.ndarray, " pairs"]:
    """N_ref: the summed NLL of every answer under `params`, cut as training cuts it."""

    size = batch.batch_size

    @jax.jit
    def summed(params: Params, tokens: Array, segments: Array, loss_mask: Array) -> Array:
        nll = sequence_nll(params, tokens, segments, model, dtype, remat)
        return segment_sums(jnp.where(loss_mask, nll, 0), segments, size)

    found = []
    for first in range(0, len(pairs), size):
        sequences = [
            train_sequence(prompt, answer, template.end_id, batch.max_length, template.stop_ids)
            for prompt, answer in pairs[first : first + size]
        ]
        width = row_width([len(p) + len(a) for p, a in sequences], batch.max_length)
        rows = packed([sequences], width, batch_shards())
        arrays = (to_devices(array[0], "batch", None) for array in rows)
        found.append(to_host(summed(params, *arrays))[: len(sequences)])
    return np.concatenate(found) if found else np.zeros(0, jnp.promote_types(dtype, jnp.float32))


def baseline_step(run: BaselineRun, state: RunState, step: int) -> tuple[RunState, BaselineRecord]:
    """One optimizer step. Donates `state.train`."""
    started = time.perf_counter()
    questions = visited(run.seed, step, run.data.visited, run.batch)
    batch, tokens_trained = method_batch(run, step, questions)
    laid_out = time.perf_counter()
    train, losses, norms = run.train_step(state.train, batch, run.frozen)
    losses = jax.block_until_ready(losses)
    ended = time.perf_counter()
    record = BaselineRecord(
        step=step,
        epoch=step // updates_per_epoch(run.data.visited, run.batch),
        questions=questions,
        loss=float(losses.loss),
        forget_loss=float(losses.forget_loss) if run.data.answers else None,
        retain_loss=float(losses.retain_loss) if run.data.retain else None,
        gradient_norm=float(norms.gradient),
        update_norm=None if norms.update is None else float(norms.update),
        tokens_trained=tokens_trained,
        seconds={
            "batch": laid_out - started,
            "train": ended - laid_out,
            "total": ended - started,
        },
    )
    return RunState(train=train, memory=state.memory), record


def baseline_steps(run: BaselineRun, state: RunState) -> Iterator[tuple[RunState, BaselineRecord]]:
    """Steps from where `state` stands to the last one; each `state` is the newest."""
    total = run.batch.epochs * updates_per_epoch(run.data.visited, run.batch)
    for step in range(int(state.train.step), total):
        state, record = baseline_step(run, state, step)
        yield state, record
