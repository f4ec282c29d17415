"""Matrix products of low-precision arrays with results in at least fp32."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array


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
