"""The devices to plan for, by name: a TPU topology, or a number of GPUs."""

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
from pmc_jax.runtime.memory import memory_size

GIB = 2**30
TPUS = {"v4": 32 * GIB, "v5e": 16 * GIB, "v5p": 95 * GIB, "v6e": 32 * GIB}
"""Memory of a chip in bytes, by the kind in a topology's name."""

GB = 10**9
GPUS = {
    "a100-40": 40 * GB, "a100-80": 80 * GB, "h100": 80 * GB, "h200": 141 * GB, "b200": 180 * GB,
    "l40s": 48 * GB, "l4": 24 * GB, "rtx4090": 24 * GB,
}  # fmt: skip
"""Memory of a GPU in bytes, as its maker states it."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
        name: the setting.
        devices: JAX devices. On those of a TPU topology nothing can run.
        memory: of each device in bytes; None: unknown.
        exact: whether the devices' own compiler is used. For GPUs, XLA's CPU compiler stands in.
    """

    name: str
    devices: Sequence[jax.Device]
    memory: int | None
    exact: bool

    @property
    def backend(self) -> str:
        """JAX's name for the kind of device."""
        kind = self.name.partition(":")[0]
        return "tpu" if kind in TPUS else "gpu" if kind in GPUS else "cpu"

    def mesh(self, data: int, model: int) -> Mesh:
        """A mesh of all devices."""
        return Mesh(np.array(self.devices).reshape(data, model), MESH_AXES)


def find_topology(name: str, memory: str | None) -> Topology:
    """The devices that a name stands for. Call it before JAX first uses a device.

    Raises:
        UserError: for an unknown name, or a TPU topology without libtpu.
    """
    size = None if memory is None else memory_size(memory)
    # Otherwise an installed libtpu looks for TPUs and fails.
    jax.config.update("jax_platforms", "cpu")
    kind, _, rest = name.partition(":")
    if kind in TPUS and re.fullmatch(r"\d+(x\d+){1,2}", rest):
        return Topology(name, tpu_devices(name), size or TPUS[kind], exact=True)
    if (kind in GPUS or kind == "cpu") and re.fullmatch(r"[1-9]\d{0,4}", rest):
        devices = virtual_devices(int(rest))
        return Topology(name, devices, size or GPUS.get(kind), exact=kind == "cpu")
    raise UserError(
        f"topology={name}: expected a TPU topology (v5e:2x4, v6e:2x4, v5p:2x2x2, …), GPUs "
        f"({', '.join(f'{gpu}:8' for gpu in GPUS)}), or cpu:8 with memory=SIZE"
    )


def virtual_devices(count: int) -> Sequence[jax.Device]:
    """Devices of one CPU."""
    with suppress(RuntimeError):  # raised if JAX has started already
        jax.config.update("jax_num_cpu_devices", count)
    if len(jax.devices()) < count:
        raise UserError(f"JAX has started with {len(jax.devices())} of {count} devices")
    return jax.devices()[:count]


def tpu_devices(name: str) -> Sequence[jax.Device]:
    """The devices of a TPU topology, from libtpu's compile-only mode."""
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise UserError(
            f"topology={name}: libtpu is missing; install it with pip install -e '.[plan]'"
        ) from None
    from jax.experimental import topologies

    # Without these libtpu asks a metadata server that is not there.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "none")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        # A host has four chips by default, also in a topology of fewer.
        few = {"chips_per_host_bounds": [1, 1, 1]} if name.endswith(":1x1") else {}
        return topologies.get_topology_desc(name, "tpu", **few).devices
    except Exception as error:  # libtpu has no type of its own
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"topology={name}: libtpu knows no such topology ({reason})") from error
