"""Runs of several processes, each with its own devices.

All processes run the same command on the same data and make the same decisions. Each process
feeds its own devices with their part of every batch; only process 0 writes files. Whatever one
process finds out alone (a file, a signal, the time) is shared through the functions here. If
one process fails, all stop.
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
from pmc_jax.settings import bounded


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """How the processes of a run find each other, as in `jax.distributed.initialize`.

    Attributes:
        auto: get what is not given from SLURM, Open MPI, the TPU pod or Kubernetes.
        coordinator_address: HOST:PORT of process 0.
        num_processes: number of processes.
        process_id: number of this process, from 0.
        heartbeat_timeout_seconds: silence after which a process counts as dead.
        initialization_timeout_seconds: how long to wait for all processes at the start.
    """

    auto: bool = False
    coordinator_address: str | None = None
    num_processes: int | None = bounded(None, least=1)
    process_id: int | None = bounded(None, least=0)
    heartbeat_timeout_seconds: int = bounded(60, least=5)
    initialization_timeout_seconds: int = bounded(300, least=1)


def several() -> bool:
    """Whether the run has more than one process."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is process 0, which writes files and prints."""
    return not several() or jax.process_index() == 0


def join(config: DistributedConfig) -> None:
    """Connect to the other processes; call it before any other use of JAX.

    Raises:
        UserError: if settings are missing, or the others do not connect in time.
    """
    given = (config.coordinator_address, config.num_processes, config.process_id)
    if jax.distributed.is_initialized() or (not config.auto and given == (None, None, None)):
        return
    if not config.auto and None in given:
        raise UserError(
            "distributed: expected coordinator_address=HOST:PORT, num_processes and process_id, "
            "or auto=true"
        )
    address = config.coordinator_address
    if address is not None and not re.fullmatch(r".+:\d+", address):
        raise UserError(f"distributed.coordinator_address={address}: expected HOST:PORT")
    restore = explain_aborts(
        "distributed: the processes did not find each other within "
        f"{config.initialization_timeout_seconds} s"
    )
    # JAX would always catch SIGTERM; `note_termination` does so while there is a step to save.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            *given,
            cluster_detection_method=None if config.auto else "deactivate",
            heartbeat_timeout_seconds=config.heartbeat_timeout_seconds,
            initialization_timeout=config.initialization_timeout_seconds,
            # The others wait at the end while process 0 writes the report.
            shutdown_timeout_seconds=3600,
        )
    except (ValueError, TypeError, RuntimeError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        hint = "; auto=true asks SLURM, Open MPI, TPU pods and Kubernetes" if config.auto else ""
        raise UserError(
            f"distributed: the processes did not find each other ({reason}){hint}"
        ) from error
    finally:
        restore()
    if several():
        _watch()


def from_first(find: Callable[[], Any]) -> Any:
    """What `find` returns on process 0, passed to all as JSON; the others do not call it."""
    if not several():
        return find()
    text = json.dumps(find()).encode() if is_first() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.uint32(len(text))))
    content = np.zeros(size, np.uint8)
    content[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes())


def from_all(find: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    """The least of what `find` returns on all processes; every one of them calls it."""
    if not several():
        return find()
    found = np.asarray(multihost_utils.process_allgather(np.array(find(), np.int64)))
    return min(tuple(map(int, own)) for own in found)


def agree(flag: bool, content: Callable[[], bytes] = bytes) -> bool:
    """Whether `flag` is set on any process. `content` must return the same on all of them.

    Raises:
        UserError: if it does not, so that the processes no longer compute the same.
    """
    if not several():
        return flag
    own = np.array([flag, zlib.crc32(content())], np.uint32)
    found = np.asarray(multihost_utils.process_allgather(own))
    if (found[:, 1] != own[1]).any():
        raise UserError(
            "the processes no longer compute the same; expected machines of one kind with the "
            "same code and data"
        )
    return bool(found[:, 0].any())


_ENDING, _HEARD, _DONE = "pmc_jax/ending", "pmc_jax/heard", "pmc_jax/done"
_LONG = 1000 * 86400 * 365
"""A year in milliseconds: longer than a run."""
_ending = threading.Lock()
_handlers: list[Any] = []  # keeps C callbacks alive


def _client() -> Any:
    """The coordination service's key-value store, for which JAX has no public name."""
    from jax._src import distributed

    return distributed.global_state.client


def _watch() -> None:
    """From here on, stop this process when another one stops."""
    listener = threading.Thread(target=_listen, daemon=True)
    listener.start()
    restore = explain_aborts(
        f"process {jax.process_index()} of {jax.process_count()} stops because another one died "
        "or cannot be reached; the same command continues from the last checkpoint"
    )

    @atexit.register  # runs before JAX's own handler, which disconnects
    def part() -> None:
        _client().wait_at_barrier(_DONE, _LONG)
        if jax.process_index() == 0:
            _client().key_value_set(_ENDING, json.dumps(None))
        listener.join()
        restore()


def _listen() -> None:
    """Wait until another process stops, and then stop, too."""
    try:
        told = json.loads(_client().blocking_key_value_get(_ENDING, _LONG))
    except jax.errors.JaxRuntimeError:
        return  # process 0 is gone; `explain_aborts` reports it
    if told is not None and told[0] != jax.process_index():
        process, message, status = told
        _ending.acquire()
        _leave(f"process {process} of {jax.process_count()} stopped: {message}", status)


def end_all(message: str, status: int, error: BaseException | None = None) -> NoReturn:
    """Stop this process with a `message` to the user, and all others with it.

    It does not wait for collective operations, as an orderly exit would. An unexpected `error`
    is printed with its traceback.
    """
    if isinstance(error, jax.errors.JaxRuntimeError):
        # A collective fails if another process has stopped; its own message says more.
        time.sleep(3)
        message += " (has another process died?)"
    _ending.acquire()  # never released
    if error is not None:
        traceback.print_exception(error)
    with suppress(jax.errors.JaxRuntimeError):  # another one came first, or process 0 is gone
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
        time.sleep(1)  # the others must exit before the service, which runs in this process
    os._exit(status)


def explain_aborts(message: str) -> Callable[[], None]:
    """Print `message` as the last line if JAX's coordination service aborts this process.

    The service calls abort() from its own thread when a process does not connect or stays silent
    for too long. Python's signal handlers would run too late, so this one is a C function. The
    returned function restores the former handler.
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
