"""Several processes, each with devices of its own, that take part in one run.

All of them run the same program on the same data and take the same decisions; of every batch, a
process gives its devices their rows alone. Process 0 alone writes files. What a process finds
out for itself (a file, a signal, the time) is agreed upon here, and one that ends ends all.
"""

import atexit
import ctypes
import dataclasses
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from pmc_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """How the processes of a run find each other: what `jax.distributed.initialize` is told.

    Attributes:
        auto: ask SLURM, Open MPI, the TPU pod or Kubernetes for what is not given.
        coordinator_address: HOST:PORT at which process 0 will listen.
        num_processes, process_id: how many there are, and which this one is, from 0.
        heartbeat_timeout_seconds: how long a process may be silent before the others take it
            for dead and end.
        initialization_timeout_seconds: how long to wait for all to come.
    """

    auto: bool = False
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    heartbeat_timeout_seconds: int = 60
    initialization_timeout_seconds: int = 300


def several() -> bool:
    """Whether the run has more processes than this one."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is process 0, which writes the files and talks to the user."""
    return not several() or jax.process_index() == 0


def join(cfg: DistributedConfig) -> None:
    """Find the other processes; before JAX is used for anything else.

    Raises:
        UserError: if the settings are not enough, or the others do not come.
    """
    given = (cfg.coordinator_address, cfg.num_processes, cfg.process_id)
    if jax.distributed.is_initialized() or (not cfg.auto and given == (None, None, None)):
        return
    if not cfg.auto and None in given:
        raise UserError(
            "distributed: expected coordinator_address=HOST:PORT, num_processes and process_id, "
            "or auto=true"
        )
    address = cfg.coordinator_address
    if address is not None and not re.fullmatch(r".+:\d+", address):
        raise UserError(f"distributed.coordinator_address={address}: expected HOST:PORT")
    restore = explain_aborts(
        "distributed: the processes did not find each other within "
        f"{cfg.initialization_timeout_seconds} s"
    )
    # JAX would catch SIGTERM at all times; `note_termination` does, while there is a step to save.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            *given,
            cluster_detection_method=None if cfg.auto else "deactivate",
            heartbeat_timeout_seconds=cfg.heartbeat_timeout_seconds,
            initialization_timeout=cfg.initialization_timeout_seconds,
            # Process 0 may be at the report while the others wait for it.
            shutdown_timeout_seconds=3600,
        )
    except (ValueError, TypeError, RuntimeError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        hint = "; auto=true asks SLURM, Open MPI, TPU pods and Kubernetes" if cfg.auto else ""
        raise UserError(
            f"distributed: the processes did not find each other ({reason}){hint}"
        ) from error
    finally:
        restore()
    if several():
        _watch()


def from_first(find: Callable[[], Any]) -> Any:
    """What `find` gives on process 0, as JSON has it; the others only wait for it."""
    if not several():
        return find()
    text = json.dumps(find()).encode() if is_first() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.uint32(len(text))))
    content = np.zeros(size, np.uint8)
    content[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes())


def agree(flag: bool, content: Callable[[], bytes] = bytes) -> bool:
    """Whether `flag` is set on any process; what `content` gives must be the same on all.

    Raises:
        UserError: if it is not, and the processes no longer compute the same.
    """
    if not several():
        return flag
    own = np.array([flag, zlib.crc32(content())], np.uint32)
    found = np.asarray(multihost_utils.process_allgather(own))
    if (found[:, 1] != own[1]).any():
        raise UserError(
            "the processes no longer compute the same; expected machines of one kind with the "
            "same program and data"
        )
    return bool(found[:, 0].any())


_ENDING, _HEARD, _DONE = "pmc_jax/ending", "pmc_jax/heard", "pmc_jax/done"
_LONG = 1000 * 86400 * 365
"""A year in milliseconds: longer than a run."""
_ending = threading.Lock()
_handlers: list[Any] = []  # a C function that Python forgets is gone


def _client() -> Any:
    """The coordination service's key-value store, for which JAX has no public name."""
    from jax._src import distributed

    return distributed.global_state.client


def _watch() -> None:
    """From here on this process ends when another one does."""
    listener = threading.Thread(target=_listen, daemon=True)
    listener.start()
    restore = explain_aborts(
        f"process {jax.process_index()} of {jax.process_count()} ends because another one died "
        "or cannot be reached; the same command goes on from the last checkpoint"
    )

    @atexit.register  # and so before JAX's own, which disconnects
    def part() -> None:
        _client().wait_at_barrier(_DONE, _LONG)
        if jax.process_index() == 0:
            _client().key_value_set(_ENDING, json.dumps(None))
        listener.join()
        restore()


def _listen() -> None:
    """End when another process says that it ends."""
    try:
        told = json.loads(_client().blocking_key_value_get(_ENDING, _LONG))
    except jax.errors.JaxRuntimeError:
        return  # process 0 is gone, of which `explain_aborts` tells
    if told is not None and told[0] != jax.process_index():
        process, message, status = told
        _ending.acquire()
        _leave(f"process {process} of {jax.process_count()} stopped: {message}", status)


def end_all(message: str, status: int, error: BaseException | None = None) -> NoReturn:
    """End this process with its `message` to the user, and the others with it.

    It waits for nothing that needs all of them, as an orderly end would. An `error` that nobody
    expected is printed with its traceback.
    """
    if isinstance(error, jax.errors.JaxRuntimeError):
        # A collective fails where another process has ended, whose own words would be better.
        time.sleep(3)
        message += " (has another process died?)"
    _ending.acquire()  # for good
    if error is not None:
        traceback.print_exception(error)
    with suppress(jax.errors.JaxRuntimeError):  # another one was first, or process 0 is gone
        told = [jax.process_index(), message, status]
        _client().key_value_set(_ENDING, json.dumps(told))
    _leave(f"process {jax.process_index()} of {jax.process_count()}: {message}", status)


def _leave(message: str, status: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    with suppress(jax.errors.JaxRuntimeError):
        _client().wait_at_barrier(_HEARD, 10_000)
    if jax.process_index() == 0:
        time.sleep(1)  # the others must have gone before the service that is in this process
    os._exit(status)


def explain_aborts(message: str) -> Callable[[], None]:
    """Have `message` be the last line when JAX's coordination service ends this process.

    It calls abort(), from a thread of its own, when a process does not come or has been silent
    for too long; Python's own handlers of signals come too late for that. The function that is
    returned undoes it.
    """
    line = f"error: {message}\n".encode()

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def on_abort(_: int) -> None:
        os.write(2, line)
        os._exit(1)

    _handlers.append(on_abort)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    former = libc.signal(signal.SIGABRT, ctypes.cast(on_abort, ctypes.c_void_p))
    return lambda: libc.signal(signal.SIGABRT, former)
