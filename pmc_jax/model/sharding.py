"""How weights, activations and caches are sharded: one table from logical axes to mesh axes.

The mesh has two axes. Batches are sharded along "data", and so is the embedding axis of the
weights (FSDP). Heads, MLP width and vocabulary of weights, activations and caches are sharded
along "model" (tensor parallelism). The mesh is set by `jax.set_mesh`. It determines where arrays
are, never what is computed. Without a mesh, these functions change nothing.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, DTypeLike, Shaped

from pmc_jax.errors import UserError
from pmc_jax.model.config import ModelConfig
from pmc_jax.model.products import LowRank, Quantised
from pmc_jax.model.specs import Params, Spec, param_count, param_specs
from pmc_jax.runtime.processes import from_first, several

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
    "rank": None,
}
"""The mesh axis of each logical axis; None: not sharded."""


def make_mesh(data: int, model: int) -> Mesh:
    """A mesh of the first `data` · `model` devices.

    Raises:
        UserError: if there are fewer devices.
    """
    devices = jax.devices()
    if data * model > len(devices):
        raise UserError(
            f"a mesh of {data}x{model} needs {data * model} devices; there are {len(devices)}"
        )
    return Mesh(np.array(devices[: data * model]).reshape(data, model), MESH_AXES)


def mesh_layout(text: str) -> tuple[int, int]:
    """`4x2`: four devices along "data", two along "model".

    Raises:
        UserError: for any other text.
    """
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if found is None:
        raise UserError(f"mesh={text}: expected DATAxMODEL, for instance 4x2")
    return int(found[1]), int(found[2])


DECODING_SHARE = 0.25
"""The share of a device's memory that decoding weights may take in `auto_layout`."""


def auto_layout(
    devices: int, memory: int | None, cfg: ModelConfig, dtype: DTypeLike
) -> tuple[int, int]:
    """A layout of all devices, (data, model), with as few along "model" as memory allows.

    Training shards weights over all devices in any layout. Decoding weights are replicated along
    "data". `memory` is that of one device, in bytes; None: unknown, assumed to be enough.
    """
    size = param_count(cfg) * jnp.dtype(dtype).itemsize
    fitting = [
        model
        for model in range(1, devices + 1)
        if devices % model == 0
        and cfg.num_heads % model == 0
        and (memory is None or size / model <= DECODING_SHARE * memory)
    ]
    model = fitting[0] if fitting else devices
    return devices // model, model


def device_memory() -> int | None:
    """Memory of one of this process's devices, in bytes; None if unknown."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def choose_mesh(setting: str, cfg: ModelConfig, dtype: DTypeLike) -> Mesh | None:
    """The mesh for the setting "auto" or `DATAxMODEL`; None for a single device.

    Raises:
        UserError: if the setting is neither, if there are fewer devices, or if the mesh leaves out
            devices of one of several processes.
    """
    if setting == "auto":
        memory = from_first(device_memory)
        data, model = auto_layout(len(jax.devices()), memory, cfg, dtype)
    else:
        data, model = mesh_layout(setting)
        if several() and data * model != len(jax.devices()):
            raise UserError(
                f"mesh={setting}: expected all {len(jax.devices())} devices of the "
                f"{jax.process_count()} processes"
            )
    return None if data * model == 1 else make_mesh(data, model)


def has_mesh() -> bool:
    """Whether a mesh is set (`jax.set_mesh`), even one of a single device."""
    return not jax.sharding.get_abstract_mesh().empty


def on_mesh(mesh: Mesh | None) -> AbstractContextManager[object]:
    """A context in which `mesh` is set; None: no mesh."""
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def partition_spec(
    shape: Sequence[int], axes: Sequence[str | None], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """The sharding of an array. Dimensions that the mesh does not divide are replicated."""

    def mesh_axis(size: int, axis: str | None) -> str | None:
        name = RULES[axis] if axis else None
        return name if name and size % mesh.shape[name] == 0 else None

    return PartitionSpec(*(mesh_axis(n, a) for n, a in zip(shape, axes, strict=True)))


def elements_of_shard(x: Array, axes: Sequence[str | None]) -> int:
    """The elements of `x` on a device, if it is sharded along its logical axes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x.size
    return math.prod(NamedSharding(mesh, partition_spec(x.shape, axes, mesh)).shard_shape(x.shape))


def batch_shards() -> int:
    """The number of shards of a batch on the current mesh; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[RULES["batch"]]


def to_devices(x: Shaped[np.ndarray, "..."], *axes: str | None) -> Array:
    """A host array on the mesh, sharded along its logical axes; without axes, replicated.

    Every process holds all of `x` and sends each of its devices that device's shard. On a CPU the
    result may share the memory of `x`: do not write to `x` afterwards.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.device_put(x)  # `jnp.asarray` would compile for each shape
    x = np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))
    sharding = NamedSharding(mesh, partition_spec(x.shape, axes or [None] * x.ndim, mesh))
    return jax.make_array_from_callback(x.shape, sharding, lambda shard: x[shard])


@jax.jit
def _replicated(tree: Any) -> Any:
    return jax.tree.map(lambda x: constrain(x, *[None] * x.ndim), tree)


def to_host(tree: Any) -> Any:
    """Arrays as NumPy arrays; every process gets all of each."""
    return jax.device_get(_replicated(tree) if several() else tree)


def constrain(x: Array, *axes: str | None) -> Array:
    """`x` sharded along its logical axes; an axis of None is replicated."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(x.shape, axes, mesh))


def per_shard(
    function: Callable[..., Any], axes: Sequence[Any], results: Any
) -> Callable[..., Any]:
    """`function`, called on every device with that device's shards of the arguments.

    Use it for a function whose results for a shard depend on that shard alone, and that XLA cannot
    divide by itself. Nothing is gathered. Arguments of None stay None. Call it with a mesh.

    Args:
        axes: the logical axes of each argument.
        results: for each result, the index of the argument whose sharding it has; those before it
            are not None.
    """

    def call(*args: Any, **options: Any) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        present = [arg is not None for arg in args]
        specs = [
            jax.tree.map(lambda x, own: partition_spec(x.shape, own, mesh), arg, own)
            for arg, own in zip(args, axes, strict=False)
            if arg is not None
        ]

        def local(*shards: Any) -> Any:
            own = iter(shards)
            return function(*(next(own) if there else None for there in present), **options)

        return jax.shard_map(
            local,
            in_specs=tuple(specs),
            out_specs=jax.tree.map(lambda index: specs[index], results),
            check_vma=False,  # JAX cannot check a kernel
        )(*itertools.compress(args, present))

    return call


def constrain_params(params: Params, specs: Params) -> Params:
    """Parameters, moments or gradients with these `specs`, sharded as `shardings_of` says."""
    return jax.tree.map(lambda leaf, spec: constrain(leaf, *spec.axes), params, specs)


def gathered(axes: Sequence[str | None]) -> tuple[str | None, ...]:
    """The logical axes of a weight that is replicated along "data"."""
    return tuple(None if axis == "embed" else axis for axis in axes)


Weight = Array | Quantised | LowRank
"""A weight as products take it."""


def with_axes(
    change: Callable[..., Array],
    weight: Weight,
    axes: Sequence[str | None],
    change_quantised: Callable[..., Array] | None = None,
) -> Weight:
    """`change(array, *axes)` of a weight, or of each part of it, with its axes.

    `change_quantised` is for the parts of quantised weights; None: `change`.
    """
    if isinstance(weight, Quantised):
        own = change_quantised or change
        return Quantised(own(weight.values, *axes), own(weight.scales, *axes))
    if not isinstance(weight, LowRank):
        return change(weight, *axes)
    inputs = weight.a.ndim - 1
    return dataclasses.replace(
        weight,
        weight=with_axes(change, weight.weight, axes, change_quantised),
        a=change(weight.a, *axes[:inputs], "rank"),
        b=change(weight.b, *axes[: weight.stacked], "rank", *axes[inputs:]),
    )


def gather(leaves: Params, specs: Params) -> Params:
    """Weights replicated along "data", as the matrix products of sharded batches need them."""
    if not has_mesh():
        return leaves

    def one(leaf: Weight, spec: Spec) -> Weight:
        ndim = leaf.weight.ndim if isinstance(leaf, LowRank) else leaf.ndim
        axes = spec.axes[len(spec.axes) - ndim :]  # within the scan there is no layer axis
        return with_axes(constrain, leaf, gathered(axes))

    return {name: one(leaf, specs[name]) for name, leaf in leaves.items()}


def shardings_of(specs: Params, mesh: Mesh) -> Params:
    """The sharding of every parameter of a table."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, partition_spec(spec.shape, spec.axes, mesh)), specs
    )


def param_shardings(cfg: ModelConfig, mesh: Mesh) -> Params:
    """The sharding of every parameter of a model."""
    return shardings_of(param_specs(cfg), mesh)
