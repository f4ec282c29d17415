"""Where each weight lives: logical axes to mesh axes, in one table.

The mesh has two axes. Along "data", weights are parted by their embedding axis (FSDP);
along "model", by heads, MLP width and vocabulary (tensor parallelism).
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pmc_jax.errors import UserError
from pmc_jax.model.config import ModelConfig
from pmc_jax.model.specs import Params, Spec, param_specs

MESH_AXES = ("data", "model")

RULES: dict[str, str | None] = {
    "layers": None,
    "embed": "data",
    "vocab": "model",
    "heads": "model",
    "kv_heads": "model",
    "head_dim": None,
    "mlp": "model",
}
"""The mesh axis of each logical axis; None: not parted."""


def make_mesh(data: int, model: int) -> Mesh:
    """A mesh of the first `data` · `model` devices.

    Raises:
        UserError: if there are fewer.
    """
    devices = jax.devices()
    if data * model > len(devices):
        raise UserError(
            f"a mesh of {data}x{model} needs {data * model} devices; there are {len(devices)}"
        )
    return Mesh(np.array(devices[: data * model]).reshape(data, model), MESH_AXES)


def partition_spec(spec: Spec, mesh: Mesh) -> PartitionSpec:
    """How a leaf is parted; an axis that does not divide evenly is whole on every device."""

    def place(size: int, axis: str) -> str | None:
        name = RULES[axis]
        return name if name and size % mesh.shape[name] == 0 else None

    return PartitionSpec(*(place(n, a) for n, a in zip(spec.shape, spec.axes, strict=True)))


def param_shardings(cfg: ModelConfig, mesh: Mesh) -> Params:
    """The sharding of every parameter."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, partition_spec(spec, mesh)), param_specs(cfg)
    )
