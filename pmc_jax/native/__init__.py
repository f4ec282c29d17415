"""Kernels for CPUs in C++ (`kernels.cc`), compiled for this machine when they are first needed.

XLA calls them from its programs. Without a C++ compiler, on several devices and in other dtypes
than float32, XLA's own operations are used.
"""

import ctypes
import functools
import hashlib
import logging
import os
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

from pmc_jax.compilation import cache_directory

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cc")

FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-w")

FOR_THIS_PROCESSOR = (("-march=native",), ("-mcpu=native",), ())
"""How compilers are told to use all that the processor has; the first that they understand."""

COMPILERS = ("c++", "g++", "clang++")


def compiler() -> list[str]:
    """The C++ compiler's command: that of the variable CXX, or one of the usual ones.

    Empty if there is none, or if CXX is.
    """
    named = os.environ.get("CXX")
    if named is not None:
        return shlex.split(named)
    return [found for found in map(shutil.which, COMPILERS) if found][:1]


def compiled(command: Sequence[str], directory: Path) -> Path:
    """The compiled kernels, which are kept in `directory`.

    Raises:
        OSError: if the compiler or the directory cannot be used.
        subprocess.CalledProcessError: if it does not compile them.
    """
    told = [SOURCE.read_text(), jaxlib.__version__, *command, *FLAGS]
    path = directory / f"kernels-{hashlib.sha256(repr(told).encode()).hexdigest()[:16]}.so"
    if path.exists():
        return path
    directory.mkdir(parents=True, exist_ok=True)
    call = [*command, *FLAGS, f"-I{jax.ffi.include_dir()}", str(SOURCE)]
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        made = Path(scratch) / path.name
        for number, native in enumerate(FOR_THIS_PROCESSOR, 1):
            last = number == len(FOR_THIS_PROCESSOR)
            done = subprocess.run(
                [*call, *native, "-o", str(made)], check=last, capture_output=True, text=True
            )
            if done.returncode == 0:
                break
        made.replace(path)
    return path


@functools.cache
def _registered() -> str | None:
    """What the names of the kernels begin with that XLA knows; None where there are none."""
    command = compiler()
    if not command:
        if "CXX" not in os.environ:
            usual = ", ".join(COMPILERS)
            logger.warning("found no C++ compiler (%s): decoding will be slower", usual)
        return None
    try:
        path = compiled(command, cache_directory())
        library = ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        logger.warning("could not compile kernels, decoding will be slower: %s", said[0])
        return None
    # Programs that JAX keeps name the kernels they call: other kernels, another name.
    prefix = f"pmc_jax_{path.stem.removeprefix('kernels-')}_"
    for name in ("write_and_attend", "top_k"):
        handler = jax.ffi.pycapsule(getattr(library, f"pmc_jax_{name}"))
        jax.ffi.register_ffi_target(prefix + name, handler, platform="cpu")
    return prefix


def has_native(dtype: DTypeLike) -> bool:
    """Whether there are kernels for arrays of this dtype where the program will run."""
    return (
        jax.default_backend() == "cpu"
        and jax.sharding.get_abstract_mesh().empty
        and dtype == jnp.float32
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

    `in_place` has the operands whose memory a result takes.
    """
    call = jax.ffi.ffi_call(f"{_registered()}{name}", results, input_output_aliases=in_place)
    return call(*operands, **{key: np.float32(value) for key, value in attributes.items()})
