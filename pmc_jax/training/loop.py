"""The PMC loop: sample, score, remember, train; one optimizer step at a time."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, DTypeLike, PRNGKeyArray

from pmc_jax.data.batches import epoch_order, retain_draw, train_sequence
from pmc_jax.data.prompts import PromptTemplate
from pmc_jax.decoding import (
    FINISHED,
    RUNNING,
    Decoding,
    PruneBatch,
    Responses,
    Sampling,
    generate,
    is_whole,
)
from pmc_jax.model import ModelConfig, batch_shards, decoding_params, to_devices
from pmc_jax.model.specs import Params
from pmc_jax.training.checkpoints import RunState
from pmc_jax.training.packing import divided, packed, row_width
from pmc_jax.training.step import TrainStep
from pmc_jax.unlearning import (
    LossRows,
    ResponseMemory,
    cannot_be_selected,
    needs_sampling,
    response_score,
    score_bound,
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
        gradient_dtype: what gradients and their sum over micro-batches are kept in; None: the
            weights' dtype.
        rows: most responses decoded at a time.
        prune: a sample that can no longer be selected is not decoded any further.
        wave: samples of a question decoded at a time; the next ones are left out once one
            scores 0. 0: all at once.
        chunk: decode steps between two looks at what has finished or can be dropped.
        compact: few samples go into a smaller shape, and those that are left move into one.
        grow_cache: the cache grows with the samples; else it has its full length at once.

    From `prune` on they save work and change no result but through rounding; `prune` and
    `wave` do nothing where selection is at a temperature.
    """

    epochs: int = 10
    batch_size: int = 8
    accumulation: int = 1
    max_length: int = 200
    gradient_dtype: str | None = None
    rows: int = 512
    prune: bool = True
    wave: int = 0
    chunk: int = 8
    compact: bool = True
    grow_cache: bool = True

    @property
    def decoding(self) -> Decoding:
        """How samples are decoded."""
        return Decoding(chunk=self.chunk, compact=self.compact, grow_cache=self.grow_cache)

    @property
    def questions_per_step(self) -> int:
        """Forget questions per optimizer step."""
        return self.batch_size * self.accumulation

    def sampled_at_once(self, samples: int) -> int:
        """Questions whose `samples` responses are decoded at a time: a step's, as `rows` allow.

        The same in all steps, so that all have the same few shapes.
        """
        return max(1, min(self.rows // samples, self.questions_per_step))


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


def total_steps(run: PMCRun) -> int:
    """Optimizer steps of the whole run."""
    return run.batch.epochs * updates_per_epoch(len(run.task.prompts), run.batch)


def at_step(run: PMCRun, step: int, first: float, final: float | None) -> float | None:
    """A setting on its linear way from the first step to the last; None: it has no way to go."""
    if final is None:
        return None
    return first + (final - first) * step / max(total_steps(run) - 1, 1)


def response_limit(prompt: Sequence[int], max_length: int, max_new_tokens: int | None) -> int:
    """Most tokens to sample so that prompt, response and end token fit `max_length`."""
    room = max_length - len(prompt) - 1
    return room if max_new_tokens is None else min(room, max_new_tokens)


def sample_limit(run: PMCRun, question: int) -> int:
    """Most tokens of a sampled response to a forget question."""
    prompt = run.task.prompts[question]
    return response_limit(prompt, run.batch.max_length, run.pmc.max_new_tokens)


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


def score_response(run: PMCRun, question: int, tokens: Sequence[int]) -> float:
    """The score of a whole response to a forget question."""
    return response_score(
        run.task.originals[question],
        run.template.decode(tokens),
        min_len=run.pmc.min_len,
        reject_wordless=run.pmc.reject_wordless,
    )


def pruning(run: PMCRun, memory: ResponseMemory, questions: Sequence[int]) -> PruneBatch | None:
    """Which samples of `questions` need not be decoded any further, as `generate` asks for it.

    Without `prune` the bound of a sample is 0, so that one that scores 0 still spares those
    after it.
    """
    if run.pmc.selection_temperature > 0 or not (run.batch.prune or run.batch.wave):
        return None
    known: dict[tuple[int, int], float] = {}

    def prune(places: Sequence[int], found: Responses) -> Bool[np.ndarray, "batch samples"]:
        scores, bounds = np.full(found.status.shape, np.inf), np.zeros(found.status.shape)
        remembered = np.full(len(scores), np.inf)
        asked = [questions[place] for place in places]
        remembered[: len(asked)] = memory.score[asked]
        for row, j in np.argwhere(found.status[: len(asked)] == FINISHED).tolist():
            if (asked[row], j) not in known:
                tokens = found.tokens[row, j, : found.length[row, j]].tolist()
                known[asked[row], j] = score_response(run, asked[row], tokens)
            scores[row, j] = known[asked[row], j]
        running = (found.status[: len(asked)] == RUNNING) & run.batch.prune
        for row, j in np.argwhere(running).tolist():
            tokens = found.tokens[row, j, : found.length[row, j]].tolist()
            settled = run.template.decode_settled(tokens)
            bounds[row, j] = score_bound(run.task.originals[asked[row]], settled)
        return cannot_be_selected(remembered, scores, bounds)

    return prune


def sample_responses(
    run: PMCRun, state: RunState, step: int, questions: Sequence[int]
) -> list[list[list[int]]]:
    """n responses per question from the current weights, stop tokens included.

    Those that cannot be selected may be cut short.
    """
    if not questions:
        return []
    pmc, prompts = run.pmc, [run.task.prompts[i] for i in questions]
    return generate(
        decoding_params(state.train.params, run.model, run.dtype),
        prompts,
        cfg=run.model,
        temperature=at_step(run, step, pmc.temperature, pmc.final_temperature),
        sampling=Sampling(
            temperature=pmc.temperature,
            top_k=pmc.top_k,
            top_p=pmc.top_p,
            stop_ids=run.template.stop_ids,
        ),
        key=run.key,
        limits=[sample_limit(run, i) for i in questions],
        samples=pmc.samples,
        step=step,
        question_ids=questions,
        rows=run.batch.sampled_at_once(pmc.samples) * pmc.samples,
        dtype=run.dtype,
        decoding=run.batch.decoding,
        wave=run.batch.wave,
        prune=pruning(run, state.memory, questions),
    )


def whole_responses(
    run: PMCRun, questions: Sequence[int], responses: Sequence[Sequence[Sequence[int]]]
) -> Bool[np.ndarray, "questions samples"]:
    """Which responses came to their end."""
    stops = run.template.stop_ids
    whole = [
        [is_whole(tokens, sample_limit(run, i), stops) for tokens in row]
        for i, row in zip(questions, responses, strict=True)
    ]
    return np.array(whole, bool).reshape(len(questions), run.pmc.samples)


def tokens_saved(
    responses: Sequence[Sequence[Sequence[int]]], whole: Bool[np.ndarray, "questions samples"]
) -> int:
    """How many tokens the cut responses lack, were they as long as the whole ones on average."""
    lengths = np.array([len(tokens) for row in responses for tokens in row])
    whole = whole.reshape(-1)
    if not whole.any():
        return 0
    return round(float(np.maximum(lengths[whole].mean() - lengths[~whole], 0).sum()))


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
    keys = selection_keys(run.key, step, to_devices(ids)) if temperature > 0 else None
    return select(padded, temperature, keys)[: len(questions)].tolist()


def remember_best(
    run: PMCRun,
    memory: ResponseMemory,
    step: int,
    questions: Sequence[int],
    responses: Sequence[Sequence[Sequence[int]]],
    whole: Bool[np.ndarray, "questions samples"],
) -> ResponseMemory:
    """Score the whole samples against y0, select one per question, and update the memory."""
    if not questions:
        return memory
    scores = np.full(whole.shape, np.inf)
    for row, j in np.argwhere(whole).tolist():
        scores[row, j] = score_response(run, questions[row], responses[row][j])
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
    """The step's micro-batches `[accumulation, rows, width]`: remembered responses, retain pairs.

    A row holds several sequences; a short last step has rows without any.
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
    return LossRows(
        tokens=to_devices(rows.tokens, None, "batch", None),
        segments=to_devices(rows.segments, None, "batch", None),
        loss_mask=to_devices(rows.loss_mask, None, "batch", None),
        retain=to_devices(rows.segments > collapsing[:, None, None], None, "batch", None),
    )


def pmc_step(run: PMCRun, state: RunState, step: int) -> tuple[RunState, StepRecord]:
    """One optimizer step of PMC. Donates `state.train`."""
    clock = [time.perf_counter()]
    questions = step_questions(run, step)
    sampled = needs_sampling(state.memory, questions, always=run.pmc.keep_sampling)
    responses = sample_responses(run, state, step, sampled)
    clock.append(time.perf_counter())
    whole = whole_responses(run, sampled, responses)
    memory = remember_best(run, state.memory, step, sampled, responses, whole)
    rows = build_rows(run, memory, step, questions)
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
        tokens_trained=int((rows.segments > 0).sum()),
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
