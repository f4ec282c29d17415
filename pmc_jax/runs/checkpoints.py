"""Checkpoints of a run by Orbax: atomic, asynchronous, kept by policy, verified when read."""

import dataclasses
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.serialization import from_state_dict, to_state_dict
from jaxtyping import Array, UInt32

from pmc_jax.data.files import writing
from pmc_jax.errors import UserError
from pmc_jax.model.bits import element_index, mixed
from pmc_jax.runs.sealed import seal
from pmc_jax.runtime.processes import from_first, is_first, several
from pmc_jax.settings import bounded, flat

logger = logging.getLogger(__name__)

S = TypeVar("S")
"""The state of a run: any pytree."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save, and what to keep.

    Attributes:
        every: steps between checkpoints; the last step has one, too.
        keep: number of newest checkpoints to keep.
    """

    every: int = bounded(25, least=1)
    keep: int = bounded(2, least=1)


class CorruptCheckpoint(Exception):
    """A checkpoint whose content is not what was saved."""


@contextmanager
def open_checkpoints(
    directory: Path, config: CheckpointConfig, like: Any
) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints under `directory`, which is made if absent. All are written at the end.

    Args:
        like: a state with the shapes of those that are saved and restored.

    Raises:
        UserError: as `finish`.
    """
    # In the background of a CPU, a save would hold the arrays, and the next step would copy them.
    options = ocp.CheckpointManagerOptions(
        max_to_keep=config.keep, create=True,
        enable_async_checkpointing=jax.default_backend() != "cpu",
    )  # fmt: skip
    with untraced():
        with writing(directory):
            manager = ocp.CheckpointManager(
                directory.resolve(), options=options, handler_registry=handlers(like)
            )
        try:
            yield manager
            finish(manager)
        finally:
            with suppress(Exception):  # a failed write has been reported already
                manager.close()


def handlers(like: Any) -> Any:
    """What writes and reads arrays, as many at a time as the largest of them takes.

    Otherwise a compressed copy of the whole state would wait in memory to be written.
    """
    largest = max(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))
    limit: Any = (largest + 1) / 1e9  # any number is accepted, though the annotation is int
    arrays = ocp.StandardCheckpointHandler(save_concurrent_gb=limit, restore_concurrent_gb=limit)
    found = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for arguments in (ocp.args.StandardSave, ocp.args.StandardRestore):
        found.add("state", arguments, arrays)
    for arguments in (ocp.args.JsonSave, ocp.args.JsonRestore):
        found.add("extra", arguments, ocp.JsonCheckpointHandler())
    return found


def without_traceback(record: logging.LogRecord) -> bool:
    """Whether a record has no traceback."""
    return not record.exc_info


@contextmanager
def untraced() -> Iterator[None]:
    """Hide the tracebacks of Orbax's and TensorStore's threads; the error itself is raised.

    After an error, the filter stays, because other threads may fail later, even while Python shuts
    down.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    for own in loggers:
        own.addFilter(without_traceback)
    quiet_about_late_writes()
    yield
    for own in loggers:
        own.removeFilter(without_traceback)


def quiet_about_late_writes() -> None:
    """Say nothing of writes that end after another one has failed, as late as Python's own end."""
    hook = sys.unraisablehook

    def without_late_writes(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    if getattr(hook, "__name__", "") != without_late_writes.__name__:
        sys.unraisablehook = without_late_writes


def finish(manager: ocp.CheckpointManager) -> None:
    """Wait until all checkpoints are written.

    Raises:
        UserError: if one could not be, because the disk is full or for another reason.
    """
    with naming_the_last_good(manager):
        manager.wait_until_finished()


@contextmanager
def naming_the_last_good(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Whatever goes wrong while checkpoints are written, as one line."""
    try:
        yield
    except Exception as error:
        # Orbax raises whatever its storage layer meets.
        manager.reload()
        last = manager.latest_step()
        raise UserError(
            f"{manager.directory}: a checkpoint could not be written ({reason_of(error)}); "
            + ("there is none before it" if last is None else f"last good one: {last}")
        ) from error


def reason_of(error: Exception) -> str:
    """Why a file could not be written: the operating system's reason, if there is one."""
    text = " ".join(str(error).split())
    number = error.errno if isinstance(error, OSError) else None
    if found := re.search(r"os_error_code='(\d+)'", text):
        number = int(found[1])
    return os.strerror(number) if number else text[:300] or type(error).__name__


@jax.jit
def checksum(
    bits: UInt32[Array | np.ndarray, "..."], first: UInt32[Array, ""] | int = 0
) -> UInt32[Array, ""]:
    """Σ_i bits_i · w_i mod 2³² with odd pseudo-random weights w_i; `first` is the least i.

    Any change of one word, and so any flipped bit, changes it; other damage goes unnoticed
    once in 2³² cases. An integer sum has no order, so it is the same on every device and in
    every sharding.
    """
    index = element_index(bits.shape) + jnp.uint32(first)
    return jnp.sum(bits * (mixed(index) | 1), dtype=jnp.uint32)


def words(leaf: Array | np.ndarray) -> UInt32[Array | np.ndarray, "..."]:
    """An array's bits as 32-bit words (one per element where elements are smaller)."""
    if isinstance(leaf, np.ndarray):
        narrow = {1: np.uint8, 2: np.uint16}.get(leaf.dtype.itemsize, np.uint32)
        return np.ascontiguousarray(leaf).reshape(-1).view(narrow).astype(np.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)


@jax.jit
def checksum_of(leaf: Array | np.ndarray) -> UInt32[Array, ""]:
    """`checksum(words(leaf))` without a copy: layer by layer, if the leaf has layers."""
    if leaf.ndim < 3:
        return checksum(words(leaf))
    each = math.prod(leaf.shape[1:])

    def add(total: Any, layer: Any) -> tuple[Any, None]:
        first, values = layer
        return total + checksum(words(values), first), None

    first = jnp.arange(len(leaf), dtype=jnp.uint32) * jnp.uint32(each % 2**32)
    return jax.lax.scan(add, jnp.uint32(0), (first, leaf))[0]


def checksums(state: dict[str, Any]) -> dict[str, int]:
    """The checksum of every array by its dotted path, computed one after the other."""
    # NumPy's as words, since JAX would round 64-bit numbers
    return {
        path: int(checksum(words(leaf)) if isinstance(leaf, np.ndarray) else checksum_of(leaf))
        for path, leaf in flat(state).items()
    }


def save(manager: ocp.CheckpointManager, step: int, state: Any, extra: dict[str, Any]) -> None:
    """Write `state` and the JSON object `extra` as checkpoint `step`, in the background.

    Raises:
        UserError: if this one, or the one before it, could not be written.
    """
    tree = to_state_dict(state)
    content = {"extra": extra, "checksums": checksums(tree)}
    with naming_the_last_good(manager):
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(tree),
                extra=ocp.args.JsonSave({**content, "sha256": seal(content)}),
            ),
        )


def restore(manager: ocp.CheckpointManager, step: int, like: S) -> tuple[S, dict[str, Any]]:
    """The state (shapes as in `like`) and JSON of checkpoint `step`.

    Raises:
        CorruptCheckpoint: if it is torn or its content is not what was saved.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, to_state_dict(like))
    try:
        found = manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), extra=ocp.args.JsonRestore()
            ),
        )
    except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
        raise  # says nothing about the files
    except Exception as error:
        # Orbax raises whatever its storage layer meets in a torn or corrupted file.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if several():  # the others may have read their parts well, and wait for this process
            raise UserError(
                f"{manager.directory / str(step)} is corrupt ({reason}); remove it, or "
                "continue once with one process, which sets it aside"
            ) from error
        raise CorruptCheckpoint(reason) from error
    content = dict(found.extra)
    if content.pop("sha256", None) != seal(content):
        raise CorruptCheckpoint("its JSON is not what was saved")
    sums = checksums(found.state)
    damaged = [path for path in sums if sums[path] != content["checksums"].get(path)]
    if damaged:
        raise CorruptCheckpoint(f"{', '.join(damaged[:3])} not as saved")
    return from_state_dict(like, found.state), content["extra"]


def restore_latest(manager: ocp.CheckpointManager, like: S) -> tuple[S, dict[str, Any]] | None:
    """The newest good checkpoint's state (shapes as in `like`) and JSON; None if none.

    A corrupt one is named in a warning, moved to `corrupt/`, and the one before it used.

    Raises:
        UserError: if there are checkpoints and none is good; they stay where they are.
    """
    steps = from_first(lambda: sorted(manager.all_steps(), reverse=True))
    corrupt: list[int] = []
    for step in steps:
        try:
            found = restore(manager, step, like)
        except CorruptCheckpoint as error:
            if is_first():
                bad = manager.directory / str(step)
                logger.warning("checkpoint %s is corrupt (%s)", bad, error)
            corrupt.append(step)
            continue
        if corrupt:
            from_first(partial(set_aside, Path(manager.directory), corrupt))
            manager.reload()
        return found
    if steps:
        raise UserError(
            f"{manager.directory}: none of the checkpoints {steps} is readable; "
            "start anew with overwrite=true"
        )
    return None


def set_aside(directory: Path, steps: Sequence[int]) -> None:
    """Move the checkpoints `steps` to `corrupt/` beside the others, under free names."""
    aside = directory.parent / "corrupt"
    aside.mkdir(exist_ok=True)
    for step in steps:
        number = sum(path.name.split(".")[0] == str(step) for path in aside.iterdir())
        (directory / str(step)).rename(aside / (f"{step}.{number}" if number else str(step)))
