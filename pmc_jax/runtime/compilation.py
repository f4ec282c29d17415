"""Compilation: how long it takes, how to make it faster, and the cache of compiled functions."""

import hashlib
import importlib.util
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path

import jax

MIN_SECONDS = 0.1
"""Functions that compile faster are not cached."""

LLVM_LEVEL = "--xla_backend_optimization_level"
"""XLA's flag for LLVM's optimisation level, 0 to 3."""

COMPILING = "/jax/core/compile/"
"""Prefix of the monitoring events of tracing, lowering and compiling."""

COMPILATION_BEGINS = "/jax/compilation_cache/compile_requests_use_cache"
COMPILATION_ENDS = "/jax/core/compile/backend_compile_duration"


class Compilation:
    """When the current compilation has begun, by `time.monotonic`; None if nothing is compiled."""

    since: float | None = None
    watched = False


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of intervals (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def seconds_compiling() -> float | None:
    """How long the current compilation has taken; None if nothing is being compiled.

    It can be told from the first call on, and with JAX's compilation cache on.
    """
    if not Compilation.watched:
        Compilation.watched = True
        jax.monitoring.register_event_listener(_on_event)
        jax.monitoring.register_event_duration_secs_listener(_on_duration)
    since = Compilation.since
    return None if since is None else time.monotonic() - since


def _on_event(event: str, **kwargs: str | int) -> None:
    if event == COMPILATION_BEGINS:
        Compilation.since = time.monotonic()


def _on_duration(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event == COMPILATION_ENDS:
        Compilation.since = None


@contextmanager
def compile_seconds() -> Iterator[Callable[[], float]]:
    """Measure how many seconds JAX spends tracing, compiling and reading its cache.

    The yielded function returns the seconds so far. Traces are nested, so a sum of durations
    would count some time twice.
    """
    spans: list[tuple[float, float]] = []

    def on_event(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.startswith(COMPILING):
            now = time.perf_counter()
            spans.append((now - duration_secs, now))

    jax.monitoring.register_event_duration_secs_listener(on_event)
    try:
        yield lambda: covered(spans)
    finally:
        jax.monitoring.unregister_event_duration_listener(on_event)


def instruction_sets() -> str:
    """A short name for this kind of processor: code compiled for another may not run here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    kinds = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    digest = hashlib.sha256("\n".join(kinds or lines[:1]).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:8]}"


def cache_directory() -> Path:
    """The cache for this kind of machine, in `pmc_jax/` of the user's cache directory (XDG)."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "pmc_jax" / instruction_sets()


def keep_compiled() -> None:
    """Turn on JAX's compilation cache, unless its environment variables already configure it.

    Those are `JAX_COMPILATION_CACHE_DIR`, `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS` and
    `JAX_ENABLE_COMPILATION_CACHE=false`.
    """
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache_directory()))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)


def finds_cpus_alone() -> bool:
    """Whether JAX will find CPUs only, as far as one can tell before it looks for devices."""
    places = "TPU_LIBRARY_PATH", "PJRT_NAMES_AND_LIBRARY_PATHS"
    if importlib.util.find_spec("libtpu") or any(name in os.environ for name in places):
        return False  # the TPU compiler reads the same flags, in `pmc plan` even without a TPU
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    if platforms:
        return platforms == "cpu"
    return not importlib.util.find_spec("jax_plugins") and not entry_points(group="jax_plugins")


def compile_sooner_on_cpus() -> None:
    """Lower LLVM's optimisation level on CPUs, unless `XLA_FLAGS` set it.

    In measurements the compiled functions ran as fast (`benchmarks/LOG.md`). Call this before
    JAX looks for devices, which is when it reads the flags. If `XLA_FLAGS` names a file of flags,
    it stays as it is.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    names_a_file = flags and not flags.startswith("-")
    if finds_cpus_alone() and not names_a_file and LLVM_LEVEL not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {LLVM_LEVEL}=1".strip()
