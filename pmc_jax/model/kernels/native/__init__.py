"""The kernels for CPUs in C++ (`kernels.cc`), which XLA calls.

They are compiled for this machine when they are first needed, and cached. Without a C++ compiler
they are not available.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import jax
import jaxlib
import numpy as np
from jaxtyping import Array

from pmc_jax.runtime.compilation import cache_directory

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cc")

FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-w", "--param=avoid-fma-max-bits=0")
"""The last flag makes GCC use fused multiply-adds in every loop. On processors where chains of
them are slow (AMD's Zen, some of Intel's) GCC would use none in some loops, and results would
depend on how many rows a loop computes at a time. Clang ignores the flag."""

FOR_THIS_PROCESSOR = (("-march=native",), ("-mcpu=native",), ())
"""Flags that allow all of this processor's instructions; the first ones that work are used."""

VECTOR = 8
"""`kLanes` of `kernels.cc`. Head sizes of the attention kernels are multiples of it."""

KERNELS = "write_and_attend", "top_k", "causal_attention", "causal_attention_backward"

COMPILERS = ("c++", "g++", "clang++")

COMPILE_SECONDS = 180
"""How long compiling may take; it takes about ten seconds of one core."""

SCRATCH = "compiling-"
"""Beginning of the names of directories in the cache in which kernels are compiled."""


def compiler() -> list[str]:
    """The C++ compiler's command, from the environment variable CXX or the first one installed.

    Empty if there is none, or if CXX is empty.
    """
    named = os.environ.get("CXX")
    if named is not None:
        return shlex.split(named)
    return [found for found in map(shutil.which, COMPILERS) if found][:1]


class Compiling:
    """Calls of a compiler, which must end within `COMPILE_SECONDS` together."""

    def __init__(self) -> None:
        self._until = time.monotonic() + COMPILE_SECONDS

    def __call__(self, *call: str) -> None:
        """Call it.

        Raises:
            OSError: if it cannot be called.
            subprocess.CalledProcessError: if it fails.
            subprocess.TimeoutExpired: if it takes too long.
        """
        # Its output goes to a file, since what it has started may keep a pipe open. A session of
        # its own, so that all of that can be ended.
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                call, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
            try:
                status = process.wait(max(self._until - time.monotonic(), 0))
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
            if status:
                output.seek(0)
                said = output.read().decode(errors="replace")
                raise subprocess.CalledProcessError(status, list(call), stderr=said)


def _flags(command: Sequence[str], compiling: Compiling) -> tuple[str, ...]:
    """The first flags of `FOR_THIS_PROCESSOR` that this compiler knows."""
    for native in FOR_THIS_PROCESSOR:
        with suppress(subprocess.CalledProcessError):
            compiling(*command, *FLAGS, *native, "-x", "c++", "-E", os.devnull)
            return native
    return ()


def build_digest(command: Sequence[str]) -> str:
    """A digest of everything that decides what the compiled kernels are."""
    inputs = [SOURCE.read_text(), jaxlib.__version__, platform.libc_ver(), FOR_THIS_PROCESSOR]
    return hashlib.sha256(repr([*inputs, *command, *FLAGS]).encode()).hexdigest()[:16]


def content_digest(path: Path) -> str:
    """A digest of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def kept(directory: Path, build: str) -> Path | None:
    """The compiled kernels of a build in `directory`, whose content is that of their name.

    A file that is truncated or damaged otherwise is removed: loading it could end the process.
    """
    for path in sorted(directory.glob(f"kernels-{build}-*.so")):
        if path.stem.endswith(f"-{content_digest(path)}"):
            return path
        path.unlink(missing_ok=True)
    return None


def compiled(command: Sequence[str], directory: Path) -> Path:
    """The path of the compiled kernels in `directory`; compiles them if they are not there.

    The file is named by its build and its content, `kernels-BUILD-CONTENT.so`, and appears whole,
    so that processes that compile at the same time do not disturb each other.

    Raises:
        OSError: if the compiler or the directory cannot be used.
        subprocess.CalledProcessError: if the compilation fails.
        subprocess.TimeoutExpired: if it takes too long.
    """
    build = build_digest(command)
    if (path := kept(directory, build)) is not None:
        return path
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob(f"{SCRATCH}*"):
        if time.time() - old.stat().st_mtime > 2 * COMPILE_SECONDS:  # of a process that was killed
            shutil.rmtree(old, ignore_errors=True)
    compiling = Compiling()
    include = f"-I{jax.ffi.include_dir()}"
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=directory) as scratch:
        made = Path(scratch) / "kernels.so"
        flags = _flags(command, compiling)
        compiling(*command, *FLAGS, *flags, include, str(SOURCE), "-o", str(made))
        return made.rename(directory / f"kernels-{build}-{content_digest(made)}.so")


def load() -> tuple[str, ctypes.CDLL] | None:
    """Build digest and library of the compiled kernels; None if there is no compiler.

    Raises:
        OSError: as `compiled`, or if what was compiled is not a library of the kernels.
    """
    command = compiler()
    if not command:
        return None
    path = compiled(command, cache_directory())
    try:
        return build_digest(command), open_library(path)
    except OSError:  # from another system that shares the directory
        path.unlink(missing_ok=True)
    return build_digest(command), open_library(compiled(command, cache_directory()))


def open_library(path: Path) -> ctypes.CDLL:
    """A library of the kernels.

    Raises:
        OSError: if it is not one.
    """
    library = ctypes.CDLL(str(path))
    if missing := [name for name in KERNELS if not hasattr(library, f"pmc_jax_{name}")]:
        raise OSError(f"{path} has no {', '.join(missing)}")
    return library


def reason_of(error: Exception) -> str:
    """Why there are no kernels, in one line."""
    if isinstance(error, subprocess.TimeoutExpired):
        return (
            f"the compiler {shlex.join(compiler())} did not end within {COMPILE_SECONDS} s; "
            "CXX= (empty) goes without"
        )
    message = (getattr(error, "stderr", None) or "").strip() or str(error) or type(error).__name__
    lines = message.splitlines()
    return next((line for line in lines if "error" in line), lines[0]).strip()


@functools.cache
def register() -> str | None:
    """Register the kernels with XLA; returns the prefix of their names, None without kernels."""
    try:
        found = load()
    except (OSError, ValueError, RuntimeError, subprocess.SubprocessError) as error:
        logger.warning("no C++ kernels, decoding and training are slower: %s", reason_of(error))
        return None
    if found is None:
        if "CXX" not in os.environ:
            usual = ", ".join(COMPILERS)
            logger.warning("found no C++ compiler (%s): decoding and training are slower", usual)
        return None
    digest, library = found
    # Functions in JAX's compilation cache call kernels by name, so other kernels need other names.
    prefix = f"pmc_jax_{digest}_"
    for name in KERNELS:
        handler = jax.ffi.pycapsule(getattr(library, f"pmc_jax_{name}"))
        jax.ffi.register_ffi_target(prefix + name, handler, platform="cpu")
    return prefix


def available() -> bool:
    """Whether the kernels can be called. The first call compiles or loads them."""
    return register() is not None


def native_call(
    name: str,
    results: Sequence[jax.ShapeDtypeStruct],
    *operands: Array,
    in_place: dict[int, int] | None = None,
    **attributes: float,
) -> Sequence[Array]:
    """Call a kernel; returns its results. Only where the kernels are `available`.

    `in_place` maps the index of an operand to the index of the result that takes its memory. JAX
    has no gradient for the call.
    """
    call = jax.ffi.ffi_call(
        f"{register()}{name}", results, vmap_method="sequential", input_output_aliases=in_place
    )
    return call(*operands, **{key: np.float32(value) for key, value in attributes.items()})
