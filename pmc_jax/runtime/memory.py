"""How much memory the devices have left, and what to do when they have none.

A CPU device takes the memory of its host. What a process may take there is the least of what the
machine has available, what its control groups leave (containers, SLURM, systemd), what its resource
limits leave (`ulimit -v`, `ulimit -d`), and what a person allows (`memory=6GB`).
"""

import ctypes
import os
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import jax

from pmc_jax.errors import UserError, short_of_memory
from pmc_jax.runtime.processes import several
from pmc_jax.runtime.progress import warn

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

VARIABLE = "PMC_JAX_MEMORY"
"""The environment variable that stands for the setting `memory` where a command does not give it,
and in the Python API."""

UNITS = {"GB": 10**9, "GIB": 2**30, "MB": 10**6, "MIB": 2**20}

_allowed: int | None = None


def memory_size(text: str, key: str = "memory") -> int:
    """`80GB` or `16GiB` in bytes.

    Raises:
        UserError: for any other text.
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,20})?)\s*([a-zA-Z]+)", text)
    if found is None or found[2].upper() not in UNITS:
        raise UserError(f"{key}={text}: expected a size like 80GB or 16GiB")
    return round(float(found[1]) * UNITS[found[2].upper()])


def allow_memory(text: str | None) -> None:
    """Limit what this process takes of each device, or of the host for CPU devices.

    None: what `PMC_JAX_MEMORY` says, or else all.

    Raises:
        UserError: if the text is not a size.
    """
    global _allowed
    _allowed = None if text is None else memory_size(text)


def allowed_memory() -> int | None:
    """The limit that `allow_memory` or `PMC_JAX_MEMORY` sets, in bytes; None: no limit."""
    if _allowed is not None:
        return _allowed
    text = os.environ.get(VARIABLE)
    return memory_size(text, VARIABLE) if text else None


def free_memory() -> int | None:
    """Bytes that are left on each of this process's devices, on the one with the least.

    CPU devices share what the host has left. None: unknown.
    """
    devices, allowed = jax.local_devices(), allowed_memory()
    if devices[0].platform == "cpu":
        host = host_memory(allowed)
        return None if host is None else host // len(devices)
    found = []
    for device in devices:
        stats = device.memory_stats() or {}
        limits = [size for size in (stats.get("bytes_limit"), allowed) if size is not None]
        if limits:
            found.append(max(min(limits) - stats.get("bytes_in_use", 0), 0))
    return min(found, default=None)


def host_memory(allowed: int | None = None, root: Path = Path("/")) -> int | None:
    """Bytes that this process can still take on its host; None: unknown.

    Args:
        allowed: how much it may take in all.
        root: the directory in which /proc and /sys are.
    """
    return_freed()
    used = _kilobytes(root / "proc/self/status")
    found = list(_left_by_control_groups(root))
    if available := _kilobytes(root / "proc/meminfo").get("MemAvailable"):
        found.append(available)
    elif hasattr(os, "sysconf"):  # macOS has no /proc
        with suppress(ValueError, OSError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    if resource is not None:
        for name, size in (("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")):
            limit, _ = resource.getrlimit(getattr(resource, name))
            if limit != resource.RLIM_INFINITY and size in used:
                found.append(limit - used[size])
    if allowed is not None:
        found.append(allowed - used.get("VmRSS", 0))
    return max(min(found), 0) if found else None


def return_freed() -> None:
    """Let the C library return freed memory to the system, so that it counts as free.

    The C library keeps what it was given in smaller pieces, such as weights to decode with, for
    later pieces of that size; the arrays of an optimizer step are larger.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _kilobytes(path: Path) -> dict[str, int]:
    """The sizes in a file of /proc whose lines are `Name: 123 kB`, in bytes."""
    with suppress(OSError):
        lines = re.findall(r"^(\w+):\s+(\d+) kB$", path.read_text(), re.M)
        return {name: 1024 * int(size) for name, size in lines}
    return {}


def _left_by_control_groups(root: Path) -> Iterator[int]:
    """What each control group of this process, of version 1 or 2, still leaves, in bytes.

    Pages of files that have not been read lately can be dropped, so they do not count as used.
    """
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers == "":
                base, limit, usage, cached = "", "memory.max", "memory.current", "inactive_file"
            elif "memory" in controllers.split(","):
                base, limit = "memory", "memory.limit_in_bytes"
                usage, cached = "memory.usage_in_bytes", "total_inactive_file"
            else:
                continue
            top = root / "sys/fs/cgroup" / base
            inner = top / name.strip("/")
            for group in (inner, *inner.parents):
                if not group.is_relative_to(top):
                    break
                with suppress(OSError, ValueError):  # `max`, or a group that is not visible here
                    most = int((group / limit).read_text())
                    stat = dict(line.split() for line in (group / "memory.stat").open())
                    taken = int((group / usage).read_text()) - int(stat.get(cached, 0))
                    yield most - taken


Item = TypeVar("Item")
Found = TypeVar("Found")
Size = tuple[int, ...]
"""How much is done at a time; the first number is that of items."""

_smaller: dict[Hashable, Size] = {}
"""The size that fitted after memory ran out, by task and the size that was wanted."""


def in_batches(
    items: Sequence[Item],
    work: Callable[[Sequence[Item], Size], Found],
    size: Size,
    smaller: Callable[[Size], Size | None],
    words: Callable[[Size], str],
    *,
    task: Hashable,
    what: str,
) -> Iterator[tuple[Sequence[Item], Found]]:
    """Batches of `items`, each with the result of `work(batch, size)`.

    If memory runs out, the batch is done again in the next smaller size, and this process does the
    same `task` in that size from then on. It says so once. The sizes of several processes must
    agree, so these stop instead.

    Args:
        smaller: the next smaller size; None: there is none.
        words, what: the size and the task, for messages.

    Raises:
        UserError: if memory runs out and there is no smaller size.
    """
    key, first = (task, size), 0
    size = tried = _smaller.get(key, size)
    while first < len(items):
        batch, then = items[first : first + size[0]], None
        try:
            found = work(batch, size)
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not ran_out(error):
                raise
            then = None if several() else smaller(size)
            if then is None:
                raise UserError(
                    f"out of memory: {what} {words(size)} does not fit ({reason(error)})"
                ) from None
        # Outside the handler, whose traceback holds the arrays of the failed attempt.
        if then is not None:
            size = then
            continue
        if size != tried:
            warn(
                [
                    f"out of memory with {words(tried)}: {what} {words(size)} instead; results "
                    "stay the same except for rounding"
                ]
            )
            tried = _smaller[key] = size
        yield batch, found
        first += len(batch)


def reason(error: BaseException) -> str:
    """What an error says of memory, on one line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def ran_out(error: BaseException) -> bool:
    """Whether Python or JAX says with an error that there is too little memory."""
    kinds = MemoryError, jax.errors.JaxRuntimeError
    return isinstance(error, kinds) and short_of_memory(error)
