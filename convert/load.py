"""Hugging Face directories to parameters, tensor by tensor."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike

from convert.directory import read_config, read_object
from convert.families import Family, Row
from convert.native import is_native, read_native, restore_params
from convert.tensors import DTYPES, StoredTensor, list_tensors
from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, Spec, param_specs
from pmc_jax.model.specs import Params

DOWNLOADED = ("*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "vocab.txt")
"""What is fetched from the hub: weights without code, and the tokenizer."""

NOT_DOWNLOADED = ("*/*", "consolidated*")
"""The same weights in other formats, below or beside the wanted ones."""

Leaves = dict[tuple[str, ...], Any]
OnTensor = Callable[[int], object]
"""Called with the number of tensors done, of all in `tensor_names`."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A loaded model: configuration, parameters, where it came from, and its stop ids."""

    cfg: ModelConfig
    params: Params
    directory: Path
    eos_token_ids: tuple[int, ...]


def resolve(source: str | Path) -> Path:
    """The local directory of a checkpoint; a hub id is downloaded.

    Raises:
        UserError: if there is neither such a directory nor such a repository within reach.
    """
    directory = Path(source).expanduser()
    if directory.is_dir():
        return directory
    name = str(source)
    if directory.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"{source}: no such directory; expected a Hugging Face model directory")
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            name, allow_patterns=list(DOWNLOADED), ignore_patterns=list(NOT_DOWNLOADED)
        )
    except Exception as error:
        # The hub client raises many kinds: no network, no such repository, no access.
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{source}: neither a local directory nor a model that the hub would give ({reason})"
        ) from error
    return Path(found)


def load_config(directory: str | Path) -> ModelConfig:
    """The decoder configuration of a Hugging Face directory."""
    return read_config(Path(directory))[2]


def eos_token_ids(directory: Path) -> tuple[int, ...]:
    """The ids that end a response, by the generation config or else the model config."""
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        found = read_object(path).get("eos_token_id") if path.is_file() else None
        if found is None:
            continue
        ids = found if isinstance(found, list) else [found]
        if not all(type(token) is int and token >= 0 for token in ids):
            raise UserError(f"{path}: eos_token_id is {found!r}; expected an id or a list of ids")
        return tuple(ids)
    return ()


def flatten_leaves(tree: Params, path: tuple[str, ...] = ()) -> Leaves:
    """Leaves of nested dicts by path."""
    found: Leaves = {}
    for key, value in tree.items():
        found |= (
            flatten_leaves(value, (*path, key))
            if isinstance(value, dict)
            else {(*path, key): value}
        )
    return found


def nest_leaves(leaves: Leaves) -> Params:
    """Nested dicts from leaves by path."""
    tree: Params = {}
    for (*groups, key), value in leaves.items():
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
        place[key] = value
    return tree


def rows_of(family: Family, cfg: ModelConfig, tensors: Mapping[str, Any]) -> list[tuple[Row, Spec]]:
    """The family's rows for `cfg`, each with its leaf's spec.

    If `tensors` has a copy of the tied embedding, so have the rows.
    """
    specs = flatten_leaves(param_specs(cfg))
    rows = [(row, specs[row.leaf]) for row in family.rows if row.leaf in specs]
    copy, original = family.tied
    if cfg.tie_embeddings and copy in tensors:
        rows += [
            (dataclasses.replace(row, name=copy), spec)
            for row, spec in rows
            if row.name == original
        ]
    return rows


def tensor_names(
    family: Family, cfg: ModelConfig, tensors: Mapping[str, Any] | None = None
) -> list[str]:
    """Every tensor of `cfg`; with a copy of the tied embedding if `tensors` has one."""
    rows = rows_of(family, cfg, tensors or {})
    return [name for row, _ in rows for name in row.names(cfg.num_layers)]


def check_tensors(
    tensors: Mapping[str, StoredTensor], family: Family, cfg: ModelConfig, directory: Path
) -> None:
    """Refuse missing, misshapen and unmapped tensors before anything is loaded."""
    expected: dict[str, tuple[int, ...]] = {}
    for row, spec in rows_of(family, cfg, tensors):
        shape = row.stored_shape(spec.shape[1:] if row.stacked else spec.shape)
        expected |= dict.fromkeys(row.names(cfg.num_layers), shape)
    for name, shape in expected.items():
        if name not in tensors:
            raise UserError(f"{directory}: tensor {name} is missing")
        found = tensors[name]
        if found.shape != shape:
            raise UserError(
                f"{directory}: tensor {name} has shape {list(found.shape)}; by config.json it "
                f"should be {list(shape)}"
            )
        if found.dtype not in DTYPES:
            raise UserError(
                f"{directory}: tensor {name} is {found.dtype}; expected one of {', '.join(DTYPES)}"
            )
    extra = sorted(
        name for name in tensors if name not in expected and not name.endswith(family.ignored)
    )
    if extra:
        more = f" (nor have {len(extra) - 1} more)" if len(extra) > 1 else ""
        raise UserError(
            f"{directory}: tensor {extra[0]} has no place in {family.architecture} with this "
            f"config.json{more}"
        )
    copy, original = family.tied
    tied = cfg.tie_embeddings and copy in expected
    if tied and not np.array_equal(tensors[copy].read(), tensors[original].read()):
        raise UserError(f"{directory}: {copy} differs from {original}, but config.json ties them")


def find_tensors(directory: Path, family: Family, cfg: ModelConfig) -> dict[str, StoredTensor]:
    """The checked tensors of a Hugging Face directory, without those that are no weights."""
    tensors = list_tensors(directory)
    check_tensors(tensors, family, cfg, directory)
    return {name: t for name, t in tensors.items() if not name.endswith(family.ignored)}


def empty_aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that JAX on a CPU takes over as it is: it copies those not at 64 bytes."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    return raw[begin : begin + size].view(dtype).reshape(shape)


def load_leaf(
    tensors: Sequence[StoredTensor], row: Row, spec: Spec, dtype: DTypeLike | None
) -> Array:
    """One leaf from its tensors (one per layer, if it is stacked), read one after the other."""
    if dtype is None:
        # Any two float dtypes are exact in the one that NumPy promotes them to.
        dtype = np.result_type(*(DTYPES[tensor.dtype] for tensor in tensors))
    leaf = empty_aligned(spec.shape, jnp.dtype(dtype))
    for layer, tensor in enumerate(tensors):
        place = leaf[layer] if row.stacked else leaf
        place[...] = row.to_leaf(tensor.read(), place.shape)
    return jax.device_put(leaf)


def load_params(
    tensors: Mapping[str, StoredTensor],
    family: Family,
    cfg: ModelConfig,
    dtype: DTypeLike | None,
    on_tensor: OnTensor,
) -> Params:
    """Checked tensors to parameters; besides them, one tensor at a time is in memory.

    Where the parameters live on an accelerator, one leaf is in host memory besides.
    """
    leaves: Leaves = {}
    done = 0
    for row, spec in rows_of(family, cfg, {}):
        names = row.names(cfg.num_layers)
        leaves[row.leaf] = load_leaf([tensors[name] for name in names], row, spec, dtype)
        done += len(names)
        on_tensor(done)
    return nest_leaves(leaves)


def load_checkpoint(
    source: str | Path,
    *,
    dtype: DTypeLike | None = "float32",
    on_tensor: OnTensor = lambda done: None,
) -> Checkpoint:
    """Load a Hugging Face directory, a hub id, or a native checkpoint.

    Args:
        dtype: of the parameters; None: the dtype that each has in the files.

    Raises:
        UserError: naming the file, key or tensor that is missing, misshapen, unmapped or
            unsupported.
    """
    directory = resolve(source)
    _, family, cfg = read_config(directory)
    stop_ids = eos_token_ids(directory)
    if is_native(directory):
        cfg, _ = read_native(directory)
        params = restore_params(directory, cfg, dtype)
    else:
        tensors = find_tensors(directory, family, cfg)
        params = load_params(tensors, family, cfg, dtype, on_tensor)
    return Checkpoint(cfg, params, directory, stop_ids)
