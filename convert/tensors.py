"""Safetensors files, read and written one tensor at a time."""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from convert.directory import write_object
from pmc_jax.data.files import kind_of, read_object, to_json
from pmc_jax.errors import UserError
from pmc_jax.terminal import short

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
"""Names of files that need Python's pickle."""

HEADER_LENGTH = 8
"""Bytes of the number at the beginning of a file, which is its header's length."""

FILE_BYTES = 5 * 10**9
"""The largest number of tensor bytes to write into one file."""

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
}
"""The dtypes that weights may have, by their safetensors name."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file, or one to write; `dtype` is the safetensors name."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """The size of its values in bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclasses.dataclass(frozen=True)
class StoredTensor(Tensor):
    """A tensor in the file `path`, where its values begin at byte `offset`."""

    path: Path
    offset: int

    def read(self) -> np.ndarray:
        """The values in the dtype of the file, which is memory-mapped, not copied."""
        dtype = DTYPES[self.dtype]
        return np.memmap(self.path, dtype, "r", self.offset, self.shape).view(np.ndarray)


AnyTensor = TypeVar("AnyTensor", bound=Tensor)


def empty_aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array aligned to 64 bytes, which JAX on a CPU can use without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    return raw[begin : begin + size].view(dtype).reshape(shape)


def check_file(path: Path) -> None:
    """Check that a safetensors file is complete and its header valid.

    Raises:
        UserError: if it is missing or damaged.
    """
    try:
        with safe_open(path, framework="numpy"):
            pass
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a file of the checkpoint") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except SafetensorError as error:
        raise UserError(f"{path}: not a complete safetensors file ({error})") from None


def indexed_files(directory: Path) -> dict[str, str]:
    """The file name of each tensor, from the index of a directory.

    Raises:
        UserError: if the index is malformed, or names a file outside the directory.
    """
    index = directory / INDEX
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError(f"{index}: weight_map is {kind_of(weight_map)}; expected an object")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise UserError(
                f"{index}: {short(tensor)} is in {short(repr(name))}; expected a .safetensors file"
            )
        # A backslash separates folders on Windows.
        if Path(name).name != name or "\\" in name:
            raise UserError(
                f"{index}: {short(tensor)} is in {short(repr(name))}; expected a file in "
                "this directory"
            )
    return weight_map


def list_file(path: Path) -> Iterator[StoredTensor]:
    """Yield the tensors of a file; their values are not read."""
    check_file(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(HEADER_LENGTH), "little")
        header = json.loads(file.read(length))
    for name, tensor in header.items():
        if name != "__metadata__":
            begin = HEADER_LENGTH + length + tensor["data_offsets"][0]
            yield StoredTensor(name, tuple(tensor["shape"]), tensor["dtype"], path, begin)


def list_tensors(directory: Path) -> dict[str, StoredTensor]:
    """All tensors of a directory by name.

    They are those of `model.safetensors`, else of the files in the index, else of every
    safetensors file.

    Raises:
        UserError: if there are none, the index is wrong, or two files contain the same tensor.
    """
    index: dict[str, str] = {}
    if (directory / SINGLE).is_file():
        names = [SINGLE]
    elif (directory / INDEX).is_file():
        index = indexed_files(directory)
        names = sorted(set(index.values()))
    else:
        names = sorted(path.name for path in directory.glob("*.safetensors"))
    if not names:
        pickled = sorted(p.name for kind in PICKLED for p in directory.glob(kind))
        if pickled:
            raise UserError(
                f"{directory}: the weights are pickled ({pickled[0]}) and not loaded, since a "
                "pickle can run any code; expected *.safetensors: load the model with transformers "
                "and save it again with save_pretrained"
            )
        raise UserError(f"{directory}: no *.safetensors files; expected the model's weights")
    found: dict[str, StoredTensor] = {}
    for name in names:
        for tensor in list_file(directory / name):
            if tensor.name in found:
                raise UserError(
                    f"{directory}: tensor {tensor.name} is in {found[tensor.name].path.name} "
                    f"and {name}"
                )
            found[tensor.name] = tensor
    for wanted, name in index.items():
        if wanted not in found or found[wanted].path.name != name:
            raise UserError(f"{directory}: tensor {wanted} is not in {name}, unlike in {INDEX}")
    return found


def widest_first(tensors: Iterable[AnyTensor]) -> list[AnyTensor]:
    """Sorted by decreasing size of the dtype, so that every tensor of a file is aligned."""
    return sorted(tensors, key=lambda tensor: -DTYPES[tensor.dtype].itemsize)


def group_files(tensors: Iterable[Tensor], file_bytes: int) -> list[list[Tensor]]:
    """Group consecutive tensors into files of at most `file_bytes`, or of one tensor."""
    groups: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        if not groups or tensor.nbytes > room:
            groups.append([])
            room = file_bytes
        groups[-1].append(tensor)
        room -= tensor.nbytes
    return groups


def write_file(path: Path, tensors: Sequence[Tensor], values: Iterable[np.ndarray]) -> None:
    """Write one file while iterating over `values`; only one of them is in memory at a time.

    A file is the length of the header (8 bytes, little-endian), a JSON header with every
    tensor's offsets, and the values (github.com/huggingface/safetensors#format).
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = to_json(header, ascii=True).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(HEADER_LENGTH, "little") + text)
        for tensor, value in zip(tensors, values, strict=True):
            if value.shape != tensor.shape or value.dtype != DTYPES[tensor.dtype]:
                raise ValueError(f"expected {tensor}, found {value.shape} {value.dtype}")
            # Unlike `tofile`, it says why a value cannot be written.
            file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)


def write_tensors(
    directory: Path,
    tensors: Sequence[Tensor],
    values: Iterator[np.ndarray],
    file_bytes: int = FILE_BYTES,
) -> None:
    """Write `values`, in the order of `tensors`, to one file, or to several with an index."""
    groups = group_files(tensors, file_bytes)
    if len(groups) == 1:
        write_file(directory / SINGLE, tensors, values)
        return
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        write_file(directory / name, group, (next(values) for _ in group))
        weight_map |= {tensor.name: name for tensor in group}
    total = sum(tensor.nbytes for tensor in tensors)
    write_object(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
