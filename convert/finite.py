"""NaN and infinities in weights, which are found while the tensors pass."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pmc_jax.errors import UserError

PIECE = 1 << 16
"""The number of values to look at together, so few that they stay in the cache."""

UNSIGNED: dict[int, Any] = {2: np.uint16, 4: np.uint32, 8: np.uint64}
"""Integers by their size in bytes."""


def all_finite(values: np.ndarray) -> bool:
    """Whether no value of a float array is NaN or infinite.

    Without its sign, a float that is neither has a smaller bit pattern than infinity.
    """
    bits = UNSIGNED[values.dtype.itemsize]
    flat = np.ascontiguousarray(values).reshape(-1).view(bits)
    infinity = np.array(np.inf, values.dtype).view(bits)
    magnitude = bits(np.iinfo(bits).max >> 1)
    room = np.empty(min(PIECE, flat.size), bits)
    for first in range(0, flat.size, PIECE):
        piece = flat[first : first + PIECE]
        if np.bitwise_and(piece, magnitude, out=room[: piece.size]).max() >= infinity:
            return False
    return True


def narrows(source: np.dtype, target: np.dtype) -> bool:
    """Whether `source` has finite values that are infinite in `target`."""
    with np.errstate(over="ignore"):
        largest = np.array(np.inf, source)
        largest = np.nextafter(largest, np.zeros((), source))
        return bool(np.isinf(largest.astype(target)))


def share(values: Sequence[np.ndarray]) -> str:
    """How many of the values are not finite: "3 of 65,536 values"."""
    found = sum(int((~np.isfinite(part)).sum()) for part in values)
    return f"{found:,} of {sum(part.size for part in values):,} values"


def not_finite(where: Path | str, tensor: str, values: Sequence[np.ndarray]) -> UserError:
    """The error for a tensor, given in parts, with NaN or infinite values.

    Args:
        where: the file that holds it.
    """
    return UserError(
        f"{where}: tensor {tensor} has {share(values)} that are not finite (NaN or infinite); "
        "expected finite weights; model.check_weights=false (convert: --no-check-weights) loads "
        "it all the same"
    )


def beyond_range(where: Path | str | None, tensor: str, cast: Sequence[np.ndarray]) -> UserError:
    """The error for a tensor, given in parts, with finite values that a `cast` made infinite."""
    place = "" if where is None else f"{where}: "
    name = cast[0].dtype.name
    return UserError(f"{place}tensor {tensor} has {share(cast)} beyond the range of {name}")
