"""Where weights, activations and caches live: logical axes to mesh axes, in one table.

The mesh has two axes. Along "data", batches are parted, and weights by their embedding axis
(FSDP); along "model", weights, heads and caches by heads, MLP width and vocabulary (tensor
parallelism). The mesh is the one of `jax.set_mesh`: it says where arrays are, and never changes
what is computed. Without one, nothing here does anything.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from pmc_jax.errors import UserError
from pmc_jax.model.config import ModelConfig
from pmc_jax.model.specs import Params, Spec, param_specs

MESH_AXES = ("data", "model")

RULES: dict[str, str | None] = {
    "batch": "data",
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


def partition_spec(
    shape: Sequence[int], axes: Sequence[str | None], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """How an array is parted; an axis that does not divide evenly is whole on every device."""

    def place(size: int, axis: str | None) -> str | None:
        name = RULES[axis] if axis else None
        return name if name and size % mesh.shape[name] == 0 else None

    return PartitionSpec(*(place(n, a) for n, a in zip(shape, axes, strict=True)))


def constrain(x: Array, *axes: str | None) -> Array:
    """`x` parted along its logical axes; None is an axis that is whole on every device."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(x.shape, axes, mesh))


def constrain_params(params: Params, cfg: ModelConfig) -> Params:
    """Parameters (or moments, or gradients) where `param_shardings` has them."""
    return jax.tree.map(lambda leaf, spec: constrain(leaf, *spec.axes), params, param_specs(cfg))


def gather(leaves: Params, specs: Params) -> Params:
    """Weights whole along "data", as a matrix product of parted batches needs them."""

    def one(leaf: Array, spec: Spec) -> Array:
        axes = spec.axes[len(spec.axes) - leaf.ndim :]  # within the scan: no layers
        return constrain(leaf, *(None if axis == "embed" else axis for axis in axes))

    return {name: one(leaf, specs[name]) for name, leaf in leaves.items()}


def param_shardings(cfg: ModelConfig, mesh: Mesh) -> Params:
    """The sharding of every parameter."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, partition_spec(spec.shape, spec.axes, mesh)),
        param_specs(cfg),
    )
