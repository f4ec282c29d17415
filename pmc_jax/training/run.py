"""A whole run: every step logged, checkpointed, and stopped if it goes wrong."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp

from pmc_jax.errors import Stopped, UserError
from pmc_jax.model.specs import Params
from pmc_jax.runs.checkpoints import RunState, finish, save
from pmc_jax.runs.metrics import Metrics
from pmc_jax.runs.throughput import speeds
from pmc_jax.runtime.processes import agree
from pmc_jax.runtime.progress import Stage


@jax.jit
def all_finite(params: Params) -> jax.Array:
    """Whether no weight is NaN or infinite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()


@runtime_checkable  # the tests check types as they run
class Record(Protocol):
    """What a step of any method tells about itself."""

    @property
    def step(self) -> int:
        """Its number, from 0."""

    @property
    def questions(self) -> list[int]:
        """What it visited."""

    @property
    def loss(self) -> float:
        """The objective."""

    @property
    def seconds(self) -> dict[str, float]:
        """By part, and their `total`."""

    def as_json(self) -> dict[str, Any]:
        """The fields of its line in `metrics.jsonl`."""

    def line(self) -> str:
        """What a person watches."""


@contextmanager
def note_termination() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come, which meanwhile ends nothing.

    Schedulers send it some time before they kill.
    """
    came = False

    def note(*_: Any) -> None:
        nonlocal came
        came = True

    if threading.current_thread() is not threading.main_thread():  # handlers are the main one's
        yield lambda: False
        return
    former = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGTERM, former)


def unlearn(
    steps: Iterator[tuple[RunState, Record]],
    state: RunState,
    extra: dict[str, Any],
    *,
    total: int,
    every: int,
    schedule: optax.Schedule,
    parameters: int,
    manager: ocp.CheckpointManager,
    metrics: Metrics,
    progress: Stage,
) -> tuple[RunState, dict[str, Any]]:
    """Take `steps`, which lead from `state` to the last one. Donates `state.train`.

    A checkpoint is saved after every `every` steps, after the last, and after the one in which
    SIGTERM comes. `extra` is the JSON that goes along with it; its `seconds` count the time
    that checkpoints took. `parameters` of the model are for the log's FLOP/s.

    Raises:
        UserError: when the loss or, at a checkpoint, the weights are no longer finite, a
            checkpoint cannot be written, or several processes part ways.
        Stopped: after SIGTERM, with the last step saved.
    """
    rate = jax.jit(schedule)
    first = int(state.train.step)
    if first:
        progress.say(f"continuing after step {first} of {total}")
    elif total:
        progress.say("compiling during the first step …")
    with note_termination() as terminating:
        for current, record in steps:
            state = current
            done = record.step + 1
            stop = agree(terminating(), partial(decided, state, record))
            due = done % every == 0 or done == total or stop
            if not math.isfinite(record.loss) or (due and not all_finite(state.train.params)):
                finish(manager)
                raise not_finite(record, Path(manager.directory), manager.latest_step())
            row = {"learning_rate": float(rate(record.step)), **record.as_json()}
            metrics.append({**row, "per_second": speeds(row, parameters)})
            if due:
                started = time.perf_counter()
                save(manager, done, state, extra)
                seconds = extra["seconds"]
                spent = seconds["checkpoint"] + time.perf_counter() - started
                extra = {**extra, "seconds": {**seconds, "checkpoint": spent}}
            if record.step == first:
                took = record.seconds["total"]
                progress.say(f"first step: {took:.1f} s, compiling or reading programs included")
            progress.update(done, record.line())
            if stop and done < total:
                finish(manager)
                raise Stopped(f"stopped after step {done} of {total}; the same command goes on")
    return state, extra


def decided(state: RunState, record: Record) -> bytes:
    """What every process finds for itself in a step and all must find alike."""
    memory = state.memory
    arrays = (memory.score, memory.length, memory.tokens)
    return repr(record.loss).encode() + b"".join(array.tobytes() for array in arrays)


def not_finite(record: Record, checkpoints: Path, last: int | None) -> UserError:
    """The end of a run whose numbers have left the reals."""
    return UserError(
        f"loss is {record.loss} and the weights are no longer finite at step {record.step} "
        f"(questions {record.questions}); last good checkpoint: {last} in {checkpoints}; "
        "try a lower optimizer.learning_rate"
    )
