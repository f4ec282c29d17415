"""How the layers' weights lie: all in one stack, or as it is best to decode with them."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike

from pmc_jax.model.config import ModelConfig
from pmc_jax.model.sharding import constrain
from pmc_jax.model.specs import Params, Spec, param_specs

JOINABLE = (("q", "k", "v"), ("gate", "up"))
"""Weights that multiply the same input, and may lie side by side as one."""


def layer_stacks(params: Params) -> tuple[Params, ...]:
    """The layers' weights: one stack of all of them, or several that follow one another."""
    layers = params["layers"]
    return layers if isinstance(layers, tuple) else (layers,)


def map_stacks(change: Callable[[Params], Params], params: Params) -> Params:
    """`params` with every stack changed."""
    layers = params["layers"]
    changed = tuple(map(change, layers)) if isinstance(layers, tuple) else change(layers)
    return {**params, "layers": changed}


def joined_name(names: Sequence[str]) -> str:
    """What weights are called that lie side by side as one."""
    return "+".join(names)


def parts_of(name: str) -> list[str]:
    """The weights that lie side by side in one."""
    bias = "_bias" * name.endswith("_bias")
    return [part + bias for part in name.removesuffix("_bias").split("+")]


def joined(stack: Params) -> Params:
    """The stack with its `JOINABLE` weights, and their biases, side by side."""
    found = dict(stack)
    for names, (bias, axis) in itertools.product(JOINABLE, (("", 2), ("_bias", 1))):
        parts = [name + bias for name in names]
        if all(part in stack for part in parts):
            own = [found.pop(part) for part in parts]
            found[joined_name(names) + bias] = jnp.concatenate(own, axis=axis)
    return found


def decoding_params(
    params: Params, cfg: ModelConfig, dtype: DTypeLike, *, unrolled: bool | None = None
) -> Params:
    """Weights to decode with: in `dtype`, and whole along "data".

    Every decode step reads all of them, so they are gathered once and not at every step. If
    they are `unrolled`, each layer is a stack of its own, which is read where it is, and on a
    single device its weights are `joined`. None: on GPUs, and on CPUs without a mesh, where
    XLA copies what a scan takes from a stack at every step, suffix caches included. Unrolled
    weights are a second copy.
    """
    if unrolled is None:
        backend, no_mesh = jax.default_backend(), jax.sharding.get_abstract_mesh().empty
        unrolled = backend == "gpu" or (backend == "cpu" and no_mesh)
    return _decoding_params(params, cfg, dtype, unrolled)


@partial(jax.jit, static_argnames=("cfg", "dtype", "unrolled"))
def _decoding_params(params: Params, cfg: ModelConfig, dtype: DTypeLike, unrolled: bool) -> Params:
    def one(leaf: Array, spec: Spec) -> Array:
        axes = (None if axis == "embed" else axis for axis in spec.axes)
        return constrain(leaf.astype(dtype), *axes)

    specs = param_specs(cfg)
    if not unrolled:
        return jax.tree.map(one, params, specs)
    stacks = []
    for i in range(cfg.num_layers):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], params["layers"])
        layer = jax.tree.map(one, layer, specs["layers"])
        stacks.append(joined(layer) if jax.sharding.get_abstract_mesh().empty else layer)
    rest = {name: one(leaf, specs[name]) for name, leaf in params.items() if name != "layers"}
    return {**rest, "layers": tuple(stacks)}
