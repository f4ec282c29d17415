"""The training loop of every method: each step taken, logged, checkpointed, and checked."""

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

from pmc_jax.errors import NotFinite, Stopped, UserError
from pmc_jax.model.specs import Params
from pmc_jax.runs.checkpoints import finish, save
from pmc_jax.runs.metrics import Metrics
from pmc_jax.runs.throughput import speeds
from pmc_jax.runtime.memory import ran_out, reason, return_freed
from pmc_jax.runtime.processes import agree
from pmc_jax.runtime.progress import Stage, duration_text, speed_text
from pmc_jax.training.batch import step_batch
from pmc_jax.training.sizes import less_memory
from pmc_jax.training.step import RunState, TrainStep
from pmc_jax.unlearning.method import Method, Run


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What one step did; one line of `metrics.jsonl`.

    Attributes:
        step, epoch: from 0.
        questions: the questions that it visited.
        loss: the objective.
        forget_loss: the method's own loss; None if it has no answers to forget questions.
        retain_loss: the retain loss without its weight λ; None if there are no retain pairs.
        gradient_norm, update_norm: Euclidean norms over all trained weights; None if not computed.
        tokens_trained: without padding.
        measures: the method's own numbers.
        seconds: by part, and their `total`.
        note: the measures in words, for the progress line.
    """

    step: int
    epoch: int
    questions: list[int]
    loss: float
    forget_loss: float | None
    retain_loss: float | None
    gradient_norm: float
    update_norm: float | None
    tokens_trained: int
    measures: Mapping[str, int | float]
    seconds: Mapping[str, float]
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """The fields of its line in `metrics.jsonl`, with the measures among them."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        measures, seconds = fields.pop("measures"), fields.pop("seconds")
        del fields["note"]
        return {**fields, **measures, "seconds": dict(seconds)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "StepRecord":
        """The record of a line in `metrics.jsonl`."""
        own = {field.name for field in dataclasses.fields(cls)} - {"measures", "note"}
        others = set(row) - own - {"learning_rate", "per_second"}
        measures = {name: row[name] for name in row if name in others}
        return cls(**{name: row[name] for name in own}, measures=measures)

    def line(self) -> str:
        """The text of the progress line, in at most 60 columns."""
        speed = speed_text(self.tokens_trained, self.seconds["train"])
        return f"{self.note or f'loss {self.loss:.3f}'}  training {speed}"


def take_step(
    run: Run[Method], train_step: TrainStep, frozen: Any, state: RunState, step: int
) -> tuple[RunState, StepRecord]:
    """One optimizer step of any method. Donates `state.train`."""
    started = time.perf_counter()
    questions = run.questions(step)
    weights = run.weights(state.train.params, frozen)
    chosen = run.method.step_examples(run, state.method, weights, step, questions)
    return_freed()
    batch, tokens_trained = step_batch(run, step, chosen)
    weight = run.method.retain_weight_at(run, chosen.state, step)
    ready = time.perf_counter()
    train, losses, norms = train_step(state.train, batch, weight, frozen)
    losses = jax.block_until_ready(losses)
    ended = time.perf_counter()
    record = StepRecord(
        step=step,
        epoch=run.epoch(step),
        questions=questions,
        loss=float(losses.loss),
        forget_loss=float(losses.forget_loss) if chosen.forget else None,
        retain_loss=float(losses.retain_loss) if run.examples.retain else None,
        gradient_norm=float(norms.gradient),
        update_norm=None if norms.update is None else float(norms.update),
        tokens_trained=tokens_trained,
        measures=chosen.measures,
        seconds={
            **chosen.seconds,
            "prepare": ready - started - sum(chosen.seconds.values()),
            "train": ended - ready,
            "total": ended - started,
        },
        note=chosen.note,
    )
    after = run.method.after_step(run, chosen.state, step, record.retain_loss or 0.0)
    return RunState(train=train, method=after), record


METRICS = "metrics"
"""The key of a checkpoint's JSON with the lines of `metrics.jsonl` so far."""


@dataclasses.dataclass
class RunFiles:
    """The files that record a run's steps. A run in memory has none.

    Attributes:
        manager: the checkpoints.
        every: steps between two checkpoints.
        metrics: the lines of `metrics.jsonl`.
        extra: the JSON that each checkpoint holds besides the state and the lines of metrics;
            its `seconds` count the time that checkpoints took.
    """

    manager: ocp.CheckpointManager
    every: int
    metrics: Metrics
    extra: dict[str, Any]

    def save(self, done: int, state: RunState) -> None:
        """Save a checkpoint after `done` steps."""
        started = time.perf_counter()
        save(self.manager, done, state, {**self.extra, METRICS: list(self.metrics.rows)})
        seconds = self.extra["seconds"]
        spent = seconds["checkpoint"] + time.perf_counter() - started
        self.extra = {**self.extra, "seconds": {**seconds, "checkpoint": spent}}


SHORTER = {
    "sample": "method.samples or method.max_new_tokens",
    "train": "training.epochs or training.max_length",
}
"""The settings on which the time of a part of a step depends most."""

LONG_SECONDS = 120.0
"""A run that takes longer says how long, and what would shorten it."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """How long a run will take, from its first steps.

    Attributes:
        total: steps of the run.
        afterwards: seconds after training.
    """

    total: int
    afterwards: float

    def of(self, records: Sequence[StepRecord]) -> str | None:
        """What to say after the steps `records`; the first one compiles. None for a short run."""
        last = records[-1]
        each = last.seconds["total"]
        steps = self.total - last.step - 1
        left = steps * each + self.afterwards
        if left < LONG_SECONDS:
            return None
        longest = max(last.seconds.keys() - {"total"}, key=lambda part: last.seconds[part])
        shorter = SHORTER.get(longest, "training.epochs")
        text = f"about {duration_text(left)} left: {steps} steps of {each:.1f} s"
        if self.afterwards:
            text += f", and {duration_text(self.afterwards)} for the evaluation"
        if self.afterwards > steps * each:
            shorter = "evaluation.attack_samples, or evaluation=quick"
        return f"{text}; lower {shorter} to shorten it"


def steps(
    run: Run[Method],
    train_step: TrainStep,
    frozen: Any,
    state: RunState,
    files: RunFiles | None = None,
) -> Iterator[tuple[RunState, StepRecord]]:
    """The steps from where `state` stands to the last one, each with the state after it.

    Raises:
        UserError: if a step samples from logits that are not finite.
    """
    for step in range(int(state.train.step), run.total):
        try:
            state, record = take_step(run, train_step, frozen, state, step)
        except NotFinite as error:
            if step == 0:
                raise run.task.model.not_finite(error.index, "a forget question") from error
            raise UserError(
                f"the logits are not finite at step {step} (questions {run.questions(step)}); "
                f"{last_good(files)}try a lower optimizer.learning_rate"
            ) from error
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not ran_out(error):
                raise
            raise out_of_memory(run, step, error) from None
        yield state, record


def out_of_memory(run: Run[Method], step: int, error: BaseException) -> UserError:
    """The error for a step that does not fit into memory, with what to change."""
    training = run.task.training
    changes = less_memory(training, run.task.model.remat, run.task.part)
    typed = [f"{key}={value}" for key, value in changes.items()]
    tried = f"; try {' or '.join(typed)}" if typed else ""
    return UserError(
        f"out of memory at step {step}, which trains on {training.part_size} forget questions at "
        f"a time ({reason(error)}){tried}"
    )


def train(
    run: Run[Method],
    train_step: TrainStep,
    frozen: Any,
    state: RunState,
    *,
    schedule: optax.Schedule,
    parameters: int,
    files: RunFiles | None,
    progress: Stage,
    on_step: Callable[[StepRecord], object] | None = None,
    afterwards: float = 0.0,
) -> tuple[RunState, list[StepRecord]]:
    """Train from `state` to the last step. Donates `state.train`.

    A checkpoint is saved after every `files.every` steps, after the last one, and after the one
    in which SIGTERM arrives.

    Args:
        schedule: the learning rate by step, for the log.
        parameters: of the model, for the log's FLOP/s.
        on_step: called with the record of every step.
        afterwards: seconds that the run will take after training.

    Raises:
        UserError: if the loss, the gradient or, at a checkpoint, a weight is not finite; if a step
            samples from logits that are not; a checkpoint cannot
            be written; or the processes of a run find different results.
        Stopped: after SIGTERM, with the last step saved.
    """
    rate, total = jax.jit(schedule), run.total
    first, records = int(state.train.step), []
    if first:
        progress.say(f"continuing after step {first} of {total}")
    elif total:
        progress.say("compiling during the first step …")
    estimate = Estimate(total, afterwards)
    with note_termination() if files is not None else nullcontext(lambda: False) as terminating:
        for current, record in steps(run, train_step, frozen, state, files):
            state = current
            done = record.step + 1
            stop = agree(terminating(), partial(decided, state, record))
            due = done == total or stop or (files is not None and done % files.every == 0)
            numbers = record.loss, record.gradient_norm
            if not all(map(math.isfinite, numbers)) or (due and not all_finite(state.train.params)):
                raise not_finite(record, files)
            records.append(record)
            row = {"learning_rate": float(rate(record.step)), **record.as_json()}
            if files is not None:
                files.metrics.append({**row, "per_second": speeds(row, parameters)})
                if due:
                    files.save(done, state)
            if on_step is not None:
                on_step(record)
            if record.step == first:
                took = record.seconds["total"]
                progress.say(f"first step: {took:.1f} s, including compilation")
            elif record.step == first + 1 and (told := estimate.of(records)):
                progress.say(told)
            progress.update(done, record.line())
            if stop and done < total:
                assert files is not None
                finish(files.manager)
                raise Stopped(f"stopped after step {done} of {total}; the same command continues")
    return state, records


@jax.jit
def all_finite(params: Params) -> jax.Array:
    """Whether no weight is NaN or infinite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()


@contextmanager
def note_termination() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has arrived; inside the block it does not end the process.

    Schedulers send it some time before they kill.
    """
    came = False

    def note(*_: Any) -> None:
        nonlocal came
        came = True

    if threading.current_thread() is not threading.main_thread():  # only it can have handlers
        yield lambda: False
        return
    former = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGTERM, former)


def decided(state: RunState, record: StepRecord) -> bytes:
    """What every process computes for itself in a step; all must agree on it."""
    arrays = (np.asarray(leaf) for leaf in jax.tree.leaves(state.method))
    return repr(record.loss).encode() + b"".join(array.tobytes() for array in arrays)


def not_finite(record: StepRecord, files: RunFiles | None) -> UserError:
    """The error for a loss, gradient or weights that are not finite."""
    what = f"loss is {record.loss}"
    if math.isfinite(record.loss):
        what = "a weight is not finite"
        if not math.isfinite(record.gradient_norm):
            what = f"the norm of the gradient is {record.gradient_norm}"
    elif record.step == 0:
        return UserError(
            f"{what} at step 0 (questions {record.questions}), before any weight has changed: the "
            "target model gives logits that are not finite, or so large that the method's loss "
            "overflows"
        )
    return UserError(
        f"{what} at step {record.step} (questions {record.questions}); {last_good(files)}try a "
        "lower optimizer.learning_rate"
    )


def last_good(files: RunFiles | None) -> str:
    """The last checkpoint, as part of an error."""
    if files is None:
        return ""
    finish(files.manager)
    last = files.manager.latest_step()
    found = "none" if last is None else last
    return f"last good checkpoint: {found} in {files.manager.directory}; "
