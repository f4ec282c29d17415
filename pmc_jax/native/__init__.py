"""Kernels for CPUs in C++ (`kernels.cc`), compiled for this machine when they are first needed.

XLA calls them from its programs. Without a C++ compiler, on several devices and in other dtypes
than float32, XLA's own operations are used.
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
import jax.numpy as jnp
import jaxlib
import numpy as np
from jaxtyping import Array, DTypeLike

from pmc_jax.runtime.compilation import cache_directory

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cc")

FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-w", "--param=avoid-fma-max-bits=0")
"""The last has GCC fuse products with the sums they go into in every loop alike. Tuned for
processors on which chains of that are slow (AMD's Zen, some of Intel's) it leaves loops out, and
results would depend on how many rows a loop takes at a time. Clang ignores it."""

FOR_THIS_PROCESSOR = (("-march=native",), ("-mcpu=native",), ())
"""How compilers are told to use all that the processor has; the first that they understand."""

VECTOR = 8
"""`kLanes` of `kernels.cc`: attention has whole vectors only."""

KERNELS = "write_and_attend", "top_k", "causal_attention", "causal_attention_backward"

COMPILERS = ("c++", "g++", "clang++")


def compiler() -> list[str]:
    """The C++ compiler's command: that of the variable CXX, or one of the usual ones.

    Empty if there is none, or if CXX is.
    """
    named = os.environ.get("CXX")
    if named is not None:
        return shlex.split(named)
    return [found for found in map(shutil.which, COMPILERS) if found][:1]


def _flags(command: Sequence[str]) -> tuple[str, ...]:
    """How this compiler is told to use all that the processor has, as far as it can be."""
    for native in FOR_THIS_PROCESSOR:
        call = [*command, *FLAGS, *native, "-x", "c++", "-E", os.devnull]
        if subprocess.run(call, capture_output=True).returncode == 0:
            return native
    return ()


def compiled(command: Sequence[str], directory: Path) -> Path:
    """The compiled kernels, which are kept in `directory`.

    Raises:
        OSError: if the compiler or the directory cannot be used.
        subprocess.CalledProcessError: if it does not compile them.
    """
    told = [SOURCE.read_text(), jaxlib.__version__, platform.libc_ver(), FOR_THIS_PROCESSOR]
    digest = hashlib.sha256(repr([*told, *command, *FLAGS]).encode()).hexdigest()
    path = directory / f"kernels-{digest[:16]}.so"
    if path.exists():
        return path
    directory.mkdir(parents=True, exist_ok=True)
    call = [*command, *FLAGS, *_flags(command), f"-I{jax.ffi.include_dir()}", str(SOURCE)]
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        made = Path(scratch) / path.name
        subprocess.run([*call, "-o", str(made)], check=True, capture_output=True, text=True)
        if not path.exists():  # else another process was faster, and may use its file already
            made.replace(path)
    return path


def _loaded() -> tuple[str, ctypes.CDLL] | None:
    """Digest and library of the compiled kernels; None if no compiler is named."""
    command = compiler()
    if not command:
        return None
    path = compiled(command, cache_directory())
    try:
        library = ctypes.CDLL(str(path))
    except OSError:  # cut short, or of another system that shares the directory
        path.unlink()
        library = ctypes.CDLL(str(compiled(command, cache_directory())))
    return path.stem.removeprefix("kernels-"), library


@functools.cache
def _registered() -> str | None:
    """What the names of the kernels begin with that XLA knows; None where there are none."""
    try:
        found = _loaded()
    except (OSError, ValueError, RuntimeError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or "").strip() or str(error)
        lines = said.splitlines()
        line = next((line for line in lines if "error" in line), lines[0])
        logger.warning("have no kernels, decoding and training will be slower: %s", line.strip())
        return None
    if found is None:
        if "CXX" not in os.environ:
            usual = ", ".join(COMPILERS)
            logger.warning(
                "found no C++ compiler (%s): decoding and training will be slower", usual
            )
        return None
    digest, library = found
    # Programs that JAX keeps name the kernels they call: other kernels, another name.
    prefix = f"pmc_jax_{digest}_"
    for name in KERNELS:
        handler = jax.ffi.pycapsule(getattr(library, f"pmc_jax_{name}"))
        jax.ffi.register_ffi_target(prefix + name, handler, platform="cpu")
    return prefix


def has_native(dtype: DTypeLike) -> bool:
    """Whether there are kernels for arrays of this dtype where programs run that name no device."""
    return (
        jax.default_backend() == "cpu"
        and jax.sharding.get_abstract_mesh().empty
        and jnp.dtype(dtype) == jnp.float32
        and _registered() is not None
    )


def native_call(
    name: str,
    results: Sequence[jax.ShapeDtypeStruct],
    *operands: Array,
    in_place: dict[int, int] | None = None,
    **attributes: float,
) -> Sequence[Array]:
    """What the kernel computes from its operands and attributes, where `has_native` says so.

    `in_place` has the operands whose memory a result takes. JAX knows no gradient of it.
    """
    call = jax.ffi.ffi_call(
        f"{_registered()}{name}", results, vmap_method="sequential", input_output_aliases=in_place
    )
    return call(*operands, **{key: np.float32(value) for key, value in attributes.items()})
