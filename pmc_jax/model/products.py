"""Products with weights and of low-precision arrays; weights may be quantised, or low-rank sums."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, DTypeLike


@struct.dataclass
class Quantised:
    """A weight in 8 bits: values · scales, with one scale for each output channel.

    Attributes:
        values: integers from -127 to 127, `[*stacked, *inputs, *outputs]`, int8.
        scales: `[*stacked, *ones, *outputs]`: each axis of inputs has the length 1.
    """

    values: Any
    scales: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.values.shape

    @property
    def ndim(self) -> int:
        """The number of its axes."""
        return self.values.ndim

    @property
    def dtype(self) -> Any:
        """The dtype of the values."""
        return self.values.dtype

    def astype(self, dtype: DTypeLike) -> Array:
        """The weight, dequantised."""
        wide = jnp.promote_types(dtype, self.scales.dtype)
        return (self.values.astype(wide) * self.scales).astype(dtype)


def is_quantised(leaf: Any) -> bool:
    """Whether a leaf of the weights is quantised."""
    return isinstance(leaf, Quantised)


def quantised(weight: Array, inputs: tuple[int, ...]) -> Quantised:
    """Symmetric absmax quantisation: w becomes s · round(w/s) with s = max|w| / 127.

    The maximum is that of an output channel, over the axes `inputs`. Halves are rounded to even.
    """
    wide = weight.astype(jnp.promote_types(weight.dtype, jnp.float32))
    scales = jnp.max(jnp.abs(wide), axis=inputs, keepdims=True) / 127
    values = jnp.round(wide / jnp.where(scales > 0, scales, 1))
    return Quantised(values.astype(jnp.int8), scales)


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


def product(equation: str, x: Array, weight: Array | Quantised | LowRank) -> Array:
    """The einsum of x and a weight in x's dtype.

    A low-rank weight is never summed up. Of a quantised one, the values are multiplied, and the
    result by the scales. `equation` must not use the letter r, and its result must end in the
    weight's outputs, in their order.
    """
    if isinstance(weight, Quantised):
        return _scaled_product(equation, x, weight.values, weight.scales)
    if not isinstance(weight, LowRank):
        return jnp.einsum(equation, x, weight.astype(x.dtype))
    inputs, axes, outputs = re.split(",|->", equation)
    kept = "".join(axis for axis in axes if axis in outputs)
    batch = "".join(axis for axis in outputs if axis not in axes)
    summed = "".join(axis for axis in axes if axis not in outputs)
    low = jnp.einsum(f"{inputs},{summed}r->{batch}r", x, weight.a.astype(x.dtype))
    change = jnp.einsum(
        f"{batch}r,r{kept}->{outputs}", weight.scale * low, weight.b.astype(x.dtype)
    )
    return product(equation, x, weight.weight) + change


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scaled_product(equation: str, x: Array, values: Array, scales: Array) -> Array:
    _, axes, outputs = re.split(",|->", equation)
    summed = tuple(i for i, axis in enumerate(axes) if axis not in outputs)
    y = jnp.einsum(equation, x, values.astype(x.dtype))
    return (y * jnp.squeeze(scales, summed)).astype(x.dtype)


def _scaled_forward(
    equation: str, x: Array, values: Array, scales: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _scaled_product(equation, x, values, scales), (values, scales)


def _scaled_backward(
    equation: str, weight: tuple[Array, Array], cotangent: Array
) -> tuple[Array, None, None]:
    """The gradient of x alone. It keeps the integers for it; JAX by itself would keep them cast."""
    values, scales = weight
    inputs, axes, outputs = re.split(",|->", equation)
    summed = tuple(i for i, axis in enumerate(axes) if axis not in outputs)
    scaled = (cotangent * jnp.squeeze(scales, summed)).astype(cotangent.dtype)
    return (
        jnp.einsum(f"{outputs},{axes}->{inputs}", scaled, values.astype(scaled.dtype)),
        None,
        None,
    )


_scaled_product.defvjp(_scaled_forward, _scaled_backward)


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
