"""Gradients in another dtype than their weights'.

JAX gives a gradient the dtype of what it is taken by. Here it is taken by a `slot` beside each
weight, whose value nobody reads: the layers' loop then collects gradients in the slots' dtype,
one layer at a time, and neither the weights nor their gradients exist twice.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, DTypeLike, Float

from pmc_jax.model.specs import Params


@struct.dataclass
class Routed:
    """A weight whose gradient arrives at `slot`."""

    weight: Float[Array, "*shape"]
    slot: Float[Array, "*shape"]

    def open(self) -> Float[Array, "*shape"]:
        """The weight, to compute with."""
        return _route(self.weight, self.slot)


@jax.custom_vjp
def _route(weight: Array, slot: Array) -> Array:
    return weight


def _route_forward(weight: Array, slot: Array) -> tuple[Array, Array]:
    return weight, jnp.zeros((), slot.dtype)


def _route_backward(residual: Any, gradient: Array) -> tuple[None, Array]:
    return None, gradient.astype(residual.dtype)


_route.defvjp(_route_forward, _route_backward)


def gradient_slots(params: Params, dtype: DTypeLike) -> Params:
    """What to take the gradient by, so that it has this dtype."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), params)


def routed(params: Params, slots: Params) -> Params:
    """`params` for `forward` and `token_nll`, their gradients arriving at `slots`."""
    pairs = jax.tree.map(Routed, params, slots)
    return {**opened({**pairs, "layers": {}}), "layers": pairs["layers"]}


def opened(layer: Params) -> Params:
    """Weights to compute with."""
    return {name: leaf.open() if isinstance(leaf, Routed) else leaf for name, leaf in layer.items()}
