"""Products with weights, which may have a low-rank part, and of low-precision arrays."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, DTypeLike


@struct.dataclass
class LowRank:
    """The weight W + scale · AB, kept as its parts (LoRA; Hu et al. 2021, arXiv 2106.09685).

    Attributes:
        weight: W, `[*stacked, *inputs, *outputs]`.
        a: A, `[*stacked, *inputs, rank]`.
        b: B, `[*stacked, rank, *outputs]`.
        scale: the factor of AB.
        merged: whether decoding computes with the sum, not with the parts.
    """

    weight: Any
    a: Any
    b: Any
    scale: float = struct.field(pytree_node=False)
    merged: bool = struct.field(pytree_node=False, default=True)

    @property
    def stacked(self) -> int:
        """The number of leading axes that A, B and W share: 1 for a stack of layers, else 0."""
        return self.a.ndim + self.b.ndim - self.weight.ndim - 2

    def sum(self, dtype: DTypeLike) -> Array:
        """W + scale · AB, computed in `dtype`."""
        a, b = self.a.astype(dtype), self.b.astype(dtype)
        rows = a.reshape(*a.shape[: self.stacked], -1, a.shape[-1])
        columns = b.reshape(*b.shape[: self.stacked + 1], -1)
        change = self.scale * (rows @ columns)
        return self.weight.astype(dtype) + change.reshape(self.weight.shape)


def is_low_rank(leaf: Any) -> bool:
    """Whether a leaf of the weights has a low-rank part."""
    return isinstance(leaf, LowRank)


def product(equation: str, x: Array, weight: Array | LowRank) -> Array:
    """The einsum of x and a weight in x's dtype; a low-rank weight is never summed up.

    `equation` must not use the letter r.
    """
    if not isinstance(weight, LowRank):
        return jnp.einsum(equation, x, weight.astype(x.dtype))
    inputs, rest = equation.split(",")
    axes, outputs = rest.split("->")
    kept = "".join(axis for axis in axes if axis in outputs)
    batch = "".join(axis for axis in outputs if axis not in axes)
    summed = "".join(axis for axis in axes if axis not in outputs)
    low = jnp.einsum(f"{inputs},{summed}r->{batch}r", x, weight.a.astype(x.dtype))
    change = jnp.einsum(
        f"{batch}r,r{kept}->{outputs}", weight.scale * low, weight.b.astype(x.dtype)
    )
    return jnp.einsum(equation, x, weight.weight.astype(x.dtype)) + change


def wide_einsum(equation: str, a: Array, b: Array) -> Array:
    """The einsum of two arrays of the same dtype, accumulated and returned in at least fp32.

    The matrix products of its gradient run in the operands' dtype: the cotangent is cast to it
    first. JAX by itself would cast the other operand to fp32 instead.
    """
    wide = jnp.promote_types(a.dtype, jnp.float32)
    if a.dtype == wide:
        return jnp.einsum(equation, a, b)
    return _wide_einsum(equation, a, b)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _wide_einsum(equation: str, a: Array, b: Array) -> Array:
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.einsum(equation, a, b, preferred_element_type=wide)


def _forward(equation: str, a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return _wide_einsum(equation, a, b), (a, b)


def _backward(equation: str, operands: tuple[Array, Array], cotangent: Array) -> tuple:
    _, pull_back = jax.vjp(partial(jnp.einsum, equation), *operands)
    return pull_back(cotangent.astype(operands[0].dtype))


_wide_einsum.defvjp(_forward, _backward)
