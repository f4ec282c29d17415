"""The PMC loop: sample, score, remember, train; one optimizer step at a time."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike, PRNGKeyArray

from pmc_jax.data.batches import epoch_order, retain_draw, train_sequence
from pmc_jax.data.prompts import PromptTemplate
from pmc_jax.decoding import Sampling, generate
from pmc_jax.model import ModelConfig, decoding_params
from pmc_jax.model.specs import Params
from pmc_jax.training.checkpoints import RunState
from pmc_jax.training.micro_batches import micro_batches, padded_length
from pmc_jax.training.step import TrainStep
from pmc_jax.unlearning import (
    LossRows,
    ResponseMemory,
    needs_sampling,
    response_score,
    select,
    selection_keys,
    update_memory,
)
from pmc_jax.unlearning.config import PMCConfig


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """How many questions a step holds and how they are shared out.

    Attributes:
        epochs: visits of every forget question.
        batch_size: forget questions per micro-batch.
        accumulation: micro-batches per optimizer step.
        max_length: most tokens of prompt and response together.
        rows: most responses decoded at a time.
    """

    epochs: int = 10
    batch_size: int = 8
    accumulation: int = 1
    max_length: int = 200
    rows: int = 512

    @property
    def questions_per_step(self) -> int:
        """Forget questions per optimizer step."""
        return self.batch_size * self.accumulation


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


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What one step did; one line of `metrics.jsonl`."""

    step: int
    epoch: int
    questions: list[int]
    loss: float
    collapse_loss: float
    retain_loss: float
    mean_selected_score: float
    questions_sampled: int
    tokens_sampled: int
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


def updates_per_epoch(questions: int, batch: BatchConfig) -> int:
    """Optimizer steps that visit every question once."""
    return -(-questions // batch.questions_per_step)


def visited(seed: int, step: int, count: int, batch: BatchConfig) -> list[int]:
    """Which of `count` questions a step visits: a slice of the epoch's permutation, none twice."""
    epoch, place = divmod(step, updates_per_epoch(count, batch))
    first = place * batch.questions_per_step
    order = epoch_order(seed, epoch, count)
    return [int(i) for i in order[first : first + batch.questions_per_step]]


def step_questions(run: PMCRun, step: int) -> list[int]:
    """The questions of a step."""
    return visited(run.seed, step, len(run.task.prompts), run.batch)


def response_limit(prompt: Sequence[int], max_length: int, max_new_tokens: int | None) -> int:
    """Most tokens to sample so that prompt, response and end token fit `max_length`."""
    room = max_length - len(prompt) - 1
    return room if max_new_tokens is None else min(room, max_new_tokens)


def greedy_originals(
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    model: ModelConfig,
    template: PromptTemplate,
    batch: BatchConfig,
    max_new_tokens: int | None,
    dtype: DTypeLike = jnp.float32,
) -> list[str]:
    """y0: the target model's own greedy answer to every forget prompt."""
    responses = generate(
        decoding_params(params, model, dtype),
        prompts,
        cfg=model,
        sampling=Sampling(temperature=0.0, stop_ids=template.stop_ids),
        key=jax.random.key(0),  # greedy decoding draws nothing
        limits=[response_limit(prompt, batch.max_length, max_new_tokens) for prompt in prompts],
        rows=batch.rows,
        dtype=dtype,
    )
    return [template.decode(row[0]) for row in responses]


def sample_responses(
    run: PMCRun, params: Params, step: int, questions: Sequence[int]
) -> list[list[list[int]]]:
    """n responses per question from the current weights, stop tokens included."""
    if not questions:
        return []
    pmc, prompts = run.pmc, [run.task.prompts[i] for i in questions]
    return generate(
        decoding_params(params, run.model, run.dtype),
        prompts,
        cfg=run.model,
        sampling=Sampling(
            temperature=pmc.temperature,
            top_k=pmc.top_k,
            top_p=pmc.top_p,
            stop_ids=run.template.stop_ids,
        ),
        key=run.key,
        limits=[response_limit(p, run.batch.max_length, pmc.max_new_tokens) for p in prompts],
        samples=pmc.samples,
        step=step,
        question_ids=questions,
        rows=run.batch.rows,
        dtype=run.dtype,
    )


def select_samples(
    run: PMCRun, step: int, questions: Sequence[int], scores: np.ndarray
) -> list[int]:
    """The chosen sample of each question; `scores` is [questions, samples].

    Filled up to the questions of a whole step, so that every step has the same shapes.
    """
    count = run.batch.questions_per_step
    ids, padded = np.zeros(count, np.uint32), np.zeros((count, scores.shape[1]))
    ids[: len(questions)], padded[: len(questions)] = questions, scores
    temperature = run.pmc.selection_temperature
    keys = selection_keys(run.key, step, jnp.asarray(ids)) if temperature > 0 else None
    return select(padded, temperature, keys)[: len(questions)].tolist()


def remember_best(
    run: PMCRun,
    memory: ResponseMemory,
    step: int,
    questions: Sequence[int],
    responses: Sequence[Sequence[Sequence[int]]],
) -> ResponseMemory:
    """Score the samples against y0, select one per question, and update the memory."""
    if not questions:
        return memory
    pmc = run.pmc
    scores = np.array(
        [
            [
                response_score(
                    run.task.originals[i],
                    run.template.decode(tokens),
                    min_len=pmc.min_len,
                    reject_wordless=pmc.reject_wordless,
                )
                for tokens in row
            ]
            for i, row in zip(questions, responses, strict=True)
        ]
    )
    chosen = select_samples(run, step, questions, scores)
    return update_memory(
        memory,
        questions,
        [float(scores[row, j]) for row, j in enumerate(chosen)],
        [responses[row][j] for row, j in enumerate(chosen)],
    )


def build_rows(
    run: PMCRun, memory: ResponseMemory, step: int, questions: Sequence[int]
) -> LossRows:
    """The step's micro-batches `[accumulation, rows, time]`: remembered responses and retain pairs.

    Each micro-batch holds its collapse rows, then its retain rows; a short last step is
    filled with rows that carry no loss.
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
    length = padded_length(sequences, batch.max_length)
    collapse = micro_batches(
        sequences[: len(questions)], length, batch.accumulation, batch.batch_size
    )
    retain = micro_batches(
        sequences[len(questions) :],
        length,
        batch.accumulation,
        batch.batch_size * run.pmc.retain_per_forget,
    )
    tokens, mask, loss_mask = (
        jnp.asarray(np.concatenate(both, axis=1)) for both in zip(collapse, retain, strict=True)
    )
    is_retain = jnp.arange(tokens.shape[1]) >= batch.batch_size
    return LossRows(
        tokens=tokens,
        mask=mask,
        loss_mask=loss_mask,
        retain=jnp.broadcast_to(is_retain, tokens.shape[:2]),
    )


def pmc_step(run: PMCRun, state: RunState, step: int) -> tuple[RunState, StepRecord]:
    """One optimizer step of PMC. Donates `state.train`."""
    clock = [time.perf_counter()]
    questions = step_questions(run, step)
    sampled = needs_sampling(state.memory, questions)
    responses = sample_responses(run, state.train.params, step, sampled)
    clock.append(time.perf_counter())
    memory = remember_best(run, state.memory, step, sampled, responses)
    rows = build_rows(run, memory, step, questions)
    clock.append(time.perf_counter())
    train, losses = run.train_step(state.train, rows)
    losses = jax.block_until_ready(losses)
    clock.append(time.perf_counter())
    record = StepRecord(
        step=step,
        epoch=step // updates_per_epoch(len(run.task.prompts), run.batch),
        questions=questions,
        loss=float(losses.loss),
        collapse_loss=float(losses.collapse_loss),
        retain_loss=float(losses.retain_loss),
        mean_selected_score=float(np.mean(memory.score[questions])),
        questions_sampled=len(sampled),
        tokens_sampled=sum(len(tokens) for row in responses for tokens in row),
        tokens_trained=int(rows.mask.sum()),
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
    total = run.batch.epochs * updates_per_epoch(len(run.task.prompts), run.batch)
    for step in range(int(state.train.step), total):
        state, record = pmc_step(run, state, step)
        yield state, record
