"""The rows of a family's table: how a Hugging Face tensor maps to parameter leaves, and back."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

Shape = tuple[int, ...]
Path = tuple[str, ...]

STRIP = 128
"""The number of matrix rows to transpose at a time."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor and the parameter leaves with its values.

    Attributes:
        name: the tensor's name; `{}` is replaced by the layer's number.
        leaves: paths of the leaves in the parameters; below "layers" all layers are stacked.
            The tensor of several leaves concatenates their `[out, in]` matrices.
        inputs: for a linear layer, how many leading axes of a leaf are inputs. The tensor is
            the leaf's `[out, in]` matrix. 0: not a linear layer.
        flat: whether the tensor is the leaf's values as one vector.
    """

    name: str
    leaves: tuple[Path, ...]
    inputs: int = 0
    flat: bool = False

    @property
    def stacked(self) -> bool:
        """Whether there is one such tensor per layer."""
        return "{}" in self.name

    def names(self, layers: int) -> list[str]:
        """The names of the row's tensors, in the order of the layers."""
        return [self.name.format(i) for i in range(layers)] if self.stacked else [self.name]

    def _matrix(self, shape: Shape) -> Shape:
        if self.inputs:
            return math.prod(shape[self.inputs :]), math.prod(shape[: self.inputs])
        return (math.prod(shape),) if self.flat else shape

    def stored_shape(self, shapes: Sequence[Shape]) -> Shape:
        """The tensor's shape from the shapes of the leaves, or of one layer of them."""
        parts = [self._matrix(shape) for shape in shapes]
        return (sum(part[0] for part in parts), *parts[0][1:])

    def fill(self, leaves: Sequence[np.ndarray], stored: np.ndarray) -> None:
        """Write the tensor into the contiguous leaves, or one layer of them."""
        ends = np.cumsum([self._matrix(leaf.shape)[0] for leaf in leaves])
        for leaf, part in zip(leaves, np.split(stored, ends[:-1]), strict=True):
            if not self.inputs:
                leaf[...] = part.reshape(leaf.shape)
                continue
            matrix = leaf.reshape(part.shape[::-1])
            # Strips stay in the cache, which halves the time of one transposed copy.
            for first in range(0, len(part), STRIP):
                matrix[:, first : first + STRIP] = part[first : first + STRIP].T

    def to_stored(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """The tensor of the leaves, or of one layer of them; a view if there is only one leaf."""
        parts = [
            leaf.reshape(self._matrix(leaf.shape)[::-1]).T
            if self.inputs
            else leaf.reshape(self._matrix(leaf.shape))
            for leaf in leaves
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


LAYER = "model.layers.{}."


def whole(name: str, leaf: str, inputs: int = 0) -> Row:
    """A tensor outside the layers."""
    return Row(name, ((leaf,),), inputs=inputs)


def in_layer(name: str, *leaves: str, inputs: int = 0, flat: bool = False) -> Row:
    """A tensor of every layer."""
    return Row(LAYER + name, tuple(("layers", leaf) for leaf in leaves), inputs, flat)


def linear_rows(projections: Mapping[str, str]) -> tuple[Row, ...]:
    """Projections and their biases; `projections` has each leaf's module within a layer."""
    rows = []
    for leaf, module in projections.items():
        inputs = 2 if leaf == "o" else 1
        rows.append(in_layer(f"{module}.weight", leaf, inputs=inputs))
        rows.append(in_layer(f"{module}.bias", f"{leaf}_bias", flat=True))
    return tuple(rows)


def norm_rows(norms: Mapping[str, str]) -> tuple[Row, ...]:
    """Norm weights and biases; `norms` has each leaf's module within a layer."""
    rows = []
    for leaf, module in norms.items():
        rows.append(in_layer(f"{module}.weight", leaf))
        rows.append(in_layer(f"{module}.bias", f"{leaf}_bias"))
    return tuple(rows)


def renamed(rows: Sequence[Row], prefixes: Mapping[str, str]) -> tuple[Row, ...]:
    """The same rows with other prefixes of the names; the first prefix that matches counts."""

    def name(old: str) -> str:
        for prefix, new in prefixes.items():
            if old.startswith(prefix):
                return new + old.removeprefix(prefix)
        return old

    return tuple(dataclasses.replace(row, name=name(row.name)) for row in rows)
