"""The devices to plan for, by name: a TPU topology, or so many GPUs of a kind."""

import dataclasses
import os
import re
from collections.abc import Sequence
from contextlib import suppress

import jax
import numpy as np
from jax.sharding import Mesh

from pmc_jax.errors import UserError
from pmc_jax.model import MESH_AXES

GIB = 2**30
TPUS = {"v4": 32 * GIB, "v5e": 16 * GIB, "v5p": 95 * GIB, "v6e": 32 * GIB}
"""Memory of a chip in bytes, by the beginning of a topology's name."""

GB = 10**9
GPUS = {
    "a100-40": 40 * GB, "a100-80": 80 * GB, "h100": 80 * GB, "h200": 141 * GB, "b200": 180 * GB,
    "l40s": 48 * GB, "l4": 24 * GB, "rtx4090": 24 * GB,
}  # fmt: skip
"""Memory in bytes, as their makers give it."""

UNITS = {"GB": GB, "GIB": GIB, "MB": 10**6, "MIB": 2**20}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
        name: as it was asked for.
        devices: of JAX; those of a TPU topology can only be compiled for.
        memory: of each, in bytes; None: not known.
        exact: whether the compiler is that of the devices. For GPUs it is not: then XLA's CPU
            compiler stands in for theirs.
    """

    name: str
    devices: Sequence[jax.Device]
    memory: int | None
    exact: bool

    def mesh(self, data: int, model: int) -> Mesh:
        """All devices, laid out."""
        return Mesh(np.array(self.devices).reshape(data, model), MESH_AXES)


def memory_size(text: str) -> int:
    """`80GB` or `16GiB` in bytes.

    Raises:
        UserError: for any other text.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]+)", text)
    if found is None or found[2].upper() not in UNITS:
        raise UserError(f"memory={text}: expected a size like 80GB or 16GiB")
    return round(float(found[1]) * UNITS[found[2].upper()])


def find_topology(name: str, memory: str | None) -> Topology:
    """The devices that a name stands for. Has to come before JAX's first use of a device.

    Raises:
        UserError: for a name of nothing known, or a TPU topology without libtpu.
    """
    size = None if memory is None else memory_size(memory)
    # Else an installed libtpu would look for TPUs, and find none.
    jax.config.update("jax_platforms", "cpu")
    kind, _, rest = name.partition(":")
    if kind in TPUS and re.fullmatch(r"\d+(x\d+){1,2}", rest):
        return Topology(name, _tpu_devices(name), size or TPUS[kind], exact=True)
    if (kind in GPUS or kind == "cpu") and re.fullmatch(r"[1-9]\d{0,4}", rest):
        devices = _virtual_devices(int(rest))
        return Topology(name, devices, size or GPUS.get(kind), exact=kind == "cpu")
    raise UserError(
        f"topology={name}: expected a TPU topology (v5e:2x4, v6e:2x4, v5p:2x2x2, …), GPUs "
        f"({', '.join(f'{gpu}:8' for gpu in GPUS)}), or cpu:8 with memory=SIZE"
    )


def _virtual_devices(count: int) -> Sequence[jax.Device]:
    """So many devices of one CPU."""
    with suppress(RuntimeError):  # JAX has begun, and has the devices that it has
        jax.config.update("jax_num_cpu_devices", count)
    if len(jax.devices()) < count:
        raise UserError(f"JAX has begun with {len(jax.devices())} devices; {count} are needed")
    return jax.devices()[:count]


def _tpu_devices(name: str) -> Sequence[jax.Device]:
    """The devices of a TPU topology, by libtpu's mode that compiles only."""
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise UserError(
            f"topology={name}: libtpu is missing; install it by pip install -e '.[plan]'"
        ) from None
    from jax.experimental import topologies

    # It has no machine to ask about.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "none")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        return topologies.get_topology_desc(name, "tpu").devices
    except Exception as error:  # whatever libtpu finds wrong with the name
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"topology={name}: libtpu knows no such topology ({reason})") from error
