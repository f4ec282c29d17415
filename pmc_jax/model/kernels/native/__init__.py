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
import subprocess
import tempfile
from collections.abc import Sequence
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


def compiler() -> list[str]:
    """The C++ compiler's command, from the environment variable CXX or the first one installed.

    Empty if there is none, or if CXX is empty.
    """
    named = os.environ.get("CXX")
    if named is not None:
        return shlex.split(named)
    return [found for found in map(shutil.which, COMPILERS) if found][:1]


def _flags(command: Sequence[str]) -> tuple[str, ...]:
    """The first flags of `FOR_THIS_PROCESSOR` that this compiler knows."""
    for native in FOR_THIS_PROCESSOR:
        call = [*command, *FLAGS, *native, "-x", "c++", "-E", os.devnull]
        if subprocess.run(call, capture_output=True).returncode == 0:
            return native
    return ()


def compiled(command: Sequence[str], directory: Path) -> Path:
    """The path of the compiled kernels in `directory`; compiles them if they are not there.

    Raises:
        OSError: if the compiler or the directory cannot be used.
        subprocess.CalledProcessError: if the compilation fails.
    """
    inputs = [SOURCE.read_text(), jaxlib.__version__, platform.libc_ver(), FOR_THIS_PROCESSOR]
    digest = hashlib.sha256(repr([*inputs, *command, *FLAGS]).encode()).hexdigest()
    path = directory / f"kernels-{digest[:16]}.so"
    if path.exists():
        return path
    directory.mkdir(parents=True, exist_ok=True)
    call = [*command, *FLAGS, *_flags(command), f"-I{jax.ffi.include_dir()}", str(SOURCE)]
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        made = Path(scratch) / path.name
        subprocess.run([*call, "-o", str(made)], check=True, capture_output=True, text=True)
        if not path.exists():  # another process may have compiled it, and may already use its file
            made.replace(path)
    return path


def load() -> tuple[str, ctypes.CDLL] | None:
    """Digest and library of the compiled kernels; None if there is no compiler."""
    command = compiler()
    if not command:
        return None
    path = compiled(command, cache_directory())
    try:
        library = ctypes.CDLL(str(path))
    except OSError:  # truncated, or from another system that shares the directory
        path.unlink()
        library = ctypes.CDLL(str(compiled(command, cache_directory())))
    return path.stem.removeprefix("kernels-"), library


@functools.cache
def register() -> str | None:
    """Register the kernels with XLA; returns the prefix of their names, None without kernels."""
    try:
        found = load()
    except (OSError, ValueError, RuntimeError, subprocess.CalledProcessError) as error:
        message = (getattr(error, "stderr", None) or "").strip() or str(error)
        lines = message.splitlines()
        line = next((line for line in lines if "error" in line), lines[0])
        logger.warning("no C++ kernels, decoding and training are slower: %s", line.strip())
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
