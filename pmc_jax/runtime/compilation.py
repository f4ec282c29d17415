"""How long compiling takes, what makes it shorter, and where compiled programs are kept."""

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
"""Programs that compile faster are not kept."""

LLVM_LEVEL = "--xla_backend_optimization_level"
"""XLA's flag for how much LLVM optimises: 0 to 3."""

COMPILING = "/jax/core/compile/"
"""How JAX's monitoring begins the names of tracing, lowering and compiling."""


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of intervals (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


@contextmanager
def compile_seconds() -> Iterator[Callable[[], float]]:
    """Gives how many seconds JAX has so far traced and compiled, or read what it had compiled.

    Traces lie within each other, so that durations alone would count some time twice.
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
    """A short name of this processor's kind: what was compiled for another may not run here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    kinds = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    digest = hashlib.sha256("\n".join(kinds or lines[:1]).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:8]}"


def cache_directory() -> Path:
    """`pmc_jax/` in the user's cache directory (XDG), and in it one for this kind of machine."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "pmc_jax" / instruction_sets()


def keep_compiled() -> None:
    """Have JAX keep what it compiles, unless its own settings already say where or whether.

    Those are `JAX_COMPILATION_CACHE_DIR`, `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS` and
    `JAX_ENABLE_COMPILATION_CACHE=false`.
    """
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache_directory()))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)


def finds_cpus_alone() -> bool:
    """Whether JAX will compile for CPUs only, as far as can be told before it looks for devices."""
    places = "TPU_LIBRARY_PATH", "PJRT_NAMES_AND_LIBRARY_PATHS"
    if importlib.util.find_spec("libtpu") or any(name in os.environ for name in places):
        return False  # what compiles for TPUs, in `pmc_jax.plan` also without one, reads the flags
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    if platforms:
        return platforms == "cpu"
    return not importlib.util.find_spec("jax_plugins") and not entry_points(group="jax_plugins")


def compile_sooner_on_cpus() -> None:
    """Have LLVM optimise less for CPUs, unless `XLA_FLAGS` say how much.

    Programs were seen to run as fast (`benchmarks/LOG.md`). To be called before JAX looks for
    devices, and reads the flags. `XLA_FLAGS` that name a file of flags stay as they are.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    names_a_file = flags and not flags.startswith("-")
    if finds_cpus_alone() and not names_a_file and LLVM_LEVEL not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {LLVM_LEVEL}=1".strip()
