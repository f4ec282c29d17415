"""Locks on files that end with the process that holds them, however it ends.

They are those of `flock`. On NFS, they hold between machines. Where a file system has no locks,
nothing is locked.
"""

import datetime
import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pmc_jax.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""The file in a directory that is locked. It names the process that holds the lock."""

TRIES, PAUSE = 5, 0.1
"""`check_free` in another process holds a lock for a moment, so a busy one is tried again."""


def acquire(descriptor: int) -> bool | None:
    """Lock an open file. False if another process holds it; None if there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES) else None
    return True


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory, which is made if absent.

    Raises:
        UserError: if another process holds it; the message says which one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / LOCK
    descriptor = take(path)
    try:
        yield
    finally:
        with suppress(OSError):
            if is_at(descriptor, path):
                path.unlink()
        os.close(descriptor)


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Lock a directory itself, so that others see that it is not abandoned."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        acquire(descriptor)
        yield
    finally:
        os.close(descriptor)


def is_abandoned(directory: Path) -> bool | None:
    """Whether no process holds a directory any more; None if there are no locks."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        return acquire(descriptor)
    finally:
        os.close(descriptor)


def take(path: Path) -> int:
    """Lock the file `path`, and write into it who does. Returns its descriptor.

    Raises:
        UserError: as `locked`.
    """
    for _ in range(TRIES):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        taken = acquire(descriptor)
        if taken is not False and is_at(descriptor, path):
            since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            holder = f"process {os.getpid()} on {socket.gethostname()} since {since}"
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, holder.encode(), 0)
            return descriptor
        holder = holder_of(os.pread(descriptor, 1000, 0))
        os.close(descriptor)
        time.sleep(PAUSE)
    raise in_use(path, holder)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at `path`: whoever held the lock may remove it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def check_free(directory: Path) -> None:
    """Check that no other process holds the lock of a directory.

    Raises:
        UserError: if one does; the message says which one.
    """
    path = directory / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:  # there is none, or it cannot be written, and so not be locked here
        return
    try:
        for _ in range(TRIES):
            if acquire(descriptor) is not False:
                return
            time.sleep(PAUSE)
        raise in_use(path, holder_of(os.pread(descriptor, 1000, 0)))
    finally:
        os.close(descriptor)


def holder_of(content: bytes) -> str:
    """Who holds a lock, as its file says in words."""
    return " ".join(content.decode(errors="replace").split()) or "another process"


def in_use(path: Path, holder: str) -> UserError:
    """The error for a lock that another process holds."""
    return UserError(
        f"{path.parent} is in use by {holder}; wait until it ends, stop it, or choose another name"
    )
