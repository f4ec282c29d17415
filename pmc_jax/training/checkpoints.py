"""Checkpoints of a run by Orbax: atomic, asynchronous, kept by policy."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import struct
from flax.serialization import from_state_dict, to_state_dict

from pmc_jax.errors import UserError
from pmc_jax.training.step import TrainState
from pmc_jax.unlearning import ResponseMemory

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Save every `every` steps (and after the last one), keep the newest `keep`."""

    every: int = 25
    keep: int = 2


@struct.dataclass
class RunState:
    """All that a run needs to go on: weights, moments, step, and response memory.

    RNG and data order are functions of seed and step, so they need no state.
    """

    train: TrainState
    memory: ResponseMemory


def open_checkpoints(directory: Path, cfg: CheckpointConfig) -> ocp.CheckpointManager:
    """The checkpoints under `directory`, which is made if absent."""
    options = ocp.CheckpointManagerOptions(max_to_keep=cfg.keep, create=True)
    return ocp.CheckpointManager(directory.resolve(), options=options)


def save(manager: ocp.CheckpointManager, step: int, state: RunState, extra: dict[str, Any]) -> None:
    """Write `state` and the JSON object `extra` as checkpoint `step`, in the background."""
    manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(to_state_dict(state)), extra=ocp.args.JsonSave(extra)
        ),
    )


def restore_latest(
    manager: ocp.CheckpointManager, like: RunState
) -> tuple[RunState, dict[str, Any]] | None:
    """The newest readable checkpoint's state (shapes as in `like`) and JSON; None if none.

    An unreadable checkpoint is named in a warning and the one before it used.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, to_state_dict(like))
    for step in steps:
        try:
            found = manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), extra=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:
            # Orbax raises whatever its storage layer meets in a torn or corrupted file.
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            logger.warning(
                "checkpoint %s is unreadable (%s)", manager.directory / str(step), reason
            )
            continue
        for newer in steps[: steps.index(step)]:
            manager.delete(newer)
        return from_state_dict(like, found.state), found.extra
    if steps:
        raise UserError(
            f"{manager.directory}: none of the checkpoints {steps} can be read; "
            "start anew with overwrite=true"
        )
    return None
