"""Gradients in a dtype of their own.

JAX gives a gradient the dtype of the variable that it is taken with respect to. Here this variable
is a `slot` beside each weight, whose value is never read. The scan over layers then collects
gradients in the dtype of the slots, one layer at a time, and there is no second copy of the weights
or of their gradients.
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
        """The weight to compute with."""
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
    """Variables to differentiate with respect to, for gradients in this dtype."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), params)


def routed(params: Params, slots: Params) -> Params:
    """`params` for `forward` and `token_nll`; their gradients arrive at `slots`."""
    pairs = jax.tree.map(Routed, params, slots)
    return {**opened({**pairs, "layers": {}}), "layers": pairs.get("layers", {})}


def opened(weights: Params) -> Params:
    """The weights to compute with."""

    def is_routed(leaf: Any) -> bool:
        return isinstance(leaf, Routed)

    return jax.tree.map(
        lambda leaf: leaf.open() if is_routed(leaf) else leaf, weights, is_leaf=is_routed
    )
