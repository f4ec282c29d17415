"""The PMC loop: sample, score, remember, train; one optimizer step at a time."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from pmc_jax.data.batches import retain_draw, train_sequence
from pmc_jax.model import batch_shards, to_devices
from pmc_jax.runs.checkpoints import RunState
from pmc_jax.training.batch import updates_per_epoch
from pmc_jax.training.packing import divided, packed, row_width
from pmc_jax.training.pmc_run import PMCRun, at_step, step_questions, total_steps
from pmc_jax.training.responses import (
    remember_best,
    sample_responses,
    tokens_saved,
    whole_responses,
)
from pmc_jax.unlearning import LossRows, ResponseMemory, needs_sampling


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What one step did; one line of `metrics.jsonl`.

    `tokens_sampled` were decoded. `tokens_saved` estimates how many more it would have taken to
    finish the samples that were dropped: each taken to be as long as the step's finished ones
    are on average, or as it already is.
    """

    step: int
    epoch: int
    questions: list[int]
    loss: float
    collapse_loss: float
    retain_loss: float
    gradient_norm: float
    update_norm: float | None
    mean_selected_score: float
    questions_sampled: int
    tokens_sampled: int
    tokens_saved: int
    tokens_trained: int
    seconds: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """The line's fields."""
        return dataclasses.asdict(self)

    def line(self) -> str:
        """What a person watches: selected score and tokens per second, in under 50 columns."""

        def speed(tokens: int, seconds: float) -> str:
            return f"{tokens / seconds / 1000:.1f}k/s" if tokens else "none"

        sampling = speed(self.tokens_sampled, self.seconds["sample"])
        training = speed(self.tokens_trained, self.seconds["train"])
        return f"score {self.mean_selected_score:.2f}  sampling {sampling}  training {training}"


def build_rows(
    run: PMCRun, memory: ResponseMemory, step: int, questions: Sequence[int]
) -> tuple[LossRows, int]:
    """The step's micro-batches `[accumulation, rows, width]`: remembered responses, retain pairs.

    A row holds several sequences; a short last step has rows without any. Also how many tokens
    they have, padding aside.
    """
    batch, template = run.batch, run.template
    drawn = retain_draw(
        run.seed, step, run.pmc.retain_per_forget * len(questions), len(run.task.retain)
    )
    pairs = [
        (run.task.prompts[i], memory.tokens[i, : memory.length[i]].tolist()) for i in questions
    ] + [run.task.retain[i] for i in drawn]
    sequences = [
        train_sequence(prompt, answer, template.end_id, batch.max_length, template.stop_ids)
        for prompt, answer in pairs
    ]
    width = row_width([len(p) + len(a) for p, a in sequences], batch.max_length)
    collapse = divided(sequences[: len(questions)], batch.accumulation, batch.batch_size)
    retain = divided(
        sequences[len(questions) :],
        batch.accumulation,
        batch.batch_size * run.pmc.retain_per_forget,
    )
    rows = packed(
        [[*own, *pairs] for own, pairs in zip(collapse, retain, strict=True)],
        width,
        batch_shards(),
    )
    collapsing = np.array([len(own) for own in collapse])
    on_devices = LossRows(
        tokens=to_devices(rows.tokens, None, "batch", None),
        segments=to_devices(rows.segments, None, "batch", None),
        loss_mask=to_devices(rows.loss_mask, None, "batch", None),
        retain=to_devices(rows.segments > collapsing[:, None, None], None, "batch", None),
    )
    return on_devices, sum(len(p) + len(a) for p, a in sequences)


def pmc_step(run: PMCRun, state: RunState, step: int) -> tuple[RunState, StepRecord]:
    """One optimizer step of PMC. Donates `state.train`."""
    clock = [time.perf_counter()]
    questions = step_questions(run, step)
    sampled = needs_sampling(state.memory, questions, always=run.pmc.keep_sampling)
    responses = sample_responses(run, state, step, sampled)
    clock.append(time.perf_counter())
    whole = whole_responses(run, sampled, responses)
    memory = remember_best(run, state.memory, step, sampled, responses, whole)
    rows, tokens_trained = build_rows(run, memory, step, questions)
    clock.append(time.perf_counter())
    weight = at_step(run, step, run.pmc.retain_weight, run.pmc.final_retain_weight)
    train, losses, norms = run.train_step(state.train, rows, *(() if weight is None else (weight,)))
    losses = jax.block_until_ready(losses)
    clock.append(time.perf_counter())
    record = StepRecord(
        step=step,
        epoch=step // updates_per_epoch(len(run.task.prompts), run.batch),
        questions=questions,
        loss=float(losses.loss),
        collapse_loss=float(losses.collapse_loss),
        retain_loss=float(losses.retain_loss),
        gradient_norm=float(norms.gradient),
        update_norm=None if norms.update is None else float(norms.update),
        mean_selected_score=float(np.mean(memory.score[questions])),
        questions_sampled=len(sampled),
        tokens_sampled=sum(len(tokens) for row in responses for tokens in row),
        tokens_saved=tokens_saved(responses, whole),
        tokens_trained=tokens_trained,
        seconds={
            "sample": clock[1] - clock[0],
            "score": clock[2] - clock[1],
            "train": clock[3] - clock[2],
            "total": clock[3] - clock[0],
        },
    )
    return RunState(train=train, memory=memory), record


def pmc_steps(run: PMCRun, state: RunState) -> Iterator[tuple[RunState, StepRecord]]:
    """Steps from where `state` stands to the last one; each `state` is the newest."""
    for step in range(int(state.train.step), total_steps(run)):
        state, record = pmc_step(run, state, step)
        yield state, record
