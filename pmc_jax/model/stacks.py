"""How the weights of the layers are stored: in one stack, or in the layout that decodes fastest."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike

from pmc_jax.model.config import ModelConfig
from pmc_jax.model.kernels.dispatch import current_target, unrolls_layers
from pmc_jax.model.products import LowRank, is_low_rank
from pmc_jax.model.sharding import (
    Weight,
    batch_shards,
    constrain,
    gathered,
    has_mesh,
    with_axes,
)
from pmc_jax.model.specs import Params, Spec, param_specs

JOINABLE = (("q", "k", "v"), ("gate", "up"))
"""Weights that multiply the same input, and can be joined along their output axis."""


def layer_stacks(params: Params) -> tuple[Params, ...]:
    """The weights of the layers: one stack of all, or several stacks in order."""
    layers = params["layers"]
    return layers if isinstance(layers, tuple) else (layers,)


def map_stacks(change: Callable[[Params], Params], params: Params) -> Params:
    """`params` with `change` applied to every stack."""
    layers = params["layers"]
    changed = tuple(map(change, layers)) if isinstance(layers, tuple) else change(layers)
    return {**params, "layers": changed}


def joined_name(names: Sequence[str]) -> str:
    """The name of joined weights."""
    return "+".join(names)


def parts_of(name: str) -> list[str]:
    """The names of the weights that are joined under this name."""
    bias = "_bias" * name.endswith("_bias")
    return [part + bias for part in name.removesuffix("_bias").split("+")]


def joined(stack: Params) -> Params:
    """The stack with its `JOINABLE` weights and their biases joined."""
    found = dict(stack)
    for names, (bias, axis) in itertools.product(JOINABLE, (("", 2), ("_bias", 1))):
        parts = [name + bias for name in names]
        if all(part in stack for part in parts):
            own = [found.pop(part) for part in parts]
            found[joined_name(names) + bias] = jnp.concatenate(own, axis=axis)
    return found


def decoding_params(
    params: Params,
    cfg: ModelConfig,
    dtype: DTypeLike,
    *,
    unrolled: bool | None = None,
    copied: bool = True,
) -> Params:
    """Weights to decode with: in `dtype`, and replicated along "data".

    Every decode step reads all weights, so they are gathered once and not at every step. If they
    are `unrolled`, each layer is a stack of its own, and without a mesh its weights are `joined`.
    Unrolled weights are a second copy. None: `unrolls_layers` decides.

    Low-rank weights are summed up in the dtype of A, unless they are not to be `merged`. Then, or
    if not `copied`, the layers are not unrolled, and on one device weights that are in `dtype`
    already, or quantised, are not copied.
    """
    low_rank = jax.tree.leaves(params, is_leaf=is_low_rank)
    if not copied or any(is_low_rank(leaf) and not leaf.merged for leaf in low_rank):
        return _shared(params, cfg, dtype)
    if unrolled is None:
        unrolled = unrolls_layers(current_target(dtype))
    return _decoding_params(params, cfg, dtype, unrolled)


def decoding_axes(spec: Spec) -> tuple[str | None, ...]:
    """The logical axes of a weight that is replicated along "data"."""
    return gathered(spec.axes)


def _shared(params: Params, cfg: ModelConfig, dtype: DTypeLike) -> Params:
    def own(leaf: Array, *axes: str | None) -> Array:
        if leaf.dtype == jnp.dtype(dtype) and batch_shards() == 1:
            return leaf
        return _cast(leaf, axes, dtype)

    def kept(leaf: Array, *axes: str | None) -> Array:
        return leaf if batch_shards() == 1 else _cast(leaf, axes, leaf.dtype)

    def stack_of(layers: Params) -> Params:
        return {
            name: with_axes(own, leaf, decoding_axes(specs["layers"][name]), kept)
            for name, leaf in layers.items()
        }

    specs = param_specs(cfg)
    rest = {
        name: own(leaf, *decoding_axes(specs[name]))
        for name, leaf in params.items()
        if name != "layers"
    }
    return {**rest, **map_stacks(stack_of, {"layers": params["layers"]})}


@partial(jax.jit, static_argnames=("axes", "dtype"))
def _cast(leaf: Array, axes: tuple[str | None, ...], dtype: DTypeLike) -> Array:
    return constrain(leaf.astype(dtype), *axes)


@partial(jax.jit, static_argnames=("cfg", "dtype", "unrolled"))
def _decoding_params(params: Params, cfg: ModelConfig, dtype: DTypeLike, unrolled: bool) -> Params:
    def one(leaf: Weight, spec: Spec) -> Array:
        whole = leaf.sum(leaf.a.dtype) if isinstance(leaf, LowRank) else leaf
        return constrain(whole.astype(dtype), *decoding_axes(spec))

    def stack_of(layers: Params) -> Params:
        return {name: one(leaf, specs["layers"][name]) for name, leaf in layers.items()}

    specs = param_specs(cfg)
    rest = {name: one(leaf, specs[name]) for name, leaf in params.items() if name != "layers"}
    if not unrolled:
        return {**rest, **map_stacks(stack_of, {"layers": params["layers"]})}
    stacks = []
    for stack in layer_stacks(params):
        for i in range(len(jax.tree.leaves(stack)[0])):
            layer = stack_of(jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], stack))
            stacks.append(layer if has_mesh() else joined(layer))
    return {**rest, "layers": tuple(stacks)}


def stacked(params: Params, cfg: ModelConfig) -> Params:
    """Weights for decoding in one stack again, as `param_specs` declares them: a second copy.

    Weights that are in one stack already are returned as they are.
    """
    if not isinstance(params["layers"], tuple):
        return params
    return {**params, "layers": _stacked(params["layers"], cfg)}


@partial(jax.jit, static_argnames="cfg")
def _stacked(stacks: tuple[Params, ...], cfg: ModelConfig) -> Params:
    specs = param_specs(cfg)["layers"]

    def separated(stack: Params) -> Params:
        found: Params = {}
        for name, leaf in stack.items():
            parts = parts_of(name)
            axis = 1 if name.endswith("_bias") else 2
            sizes = [specs[part].shape[axis] for part in parts] if len(parts) > 1 else []
            ends = list(itertools.accumulate(sizes))[:-1]
            split = jnp.split(leaf, ends, axis=axis) if ends else [leaf]
            found |= dict(zip(parts, split, strict=True))
        return found

    layers = [separated(stack) for stack in stacks]
    return {
        name: constrain(jnp.concatenate([layer[name] for layer in layers]), *decoding_axes(spec))
        for name, spec in specs.items()
    }
