"""From Hugging Face directories to parameters, tensor by tensor."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, DTypeLike

from convert.directory import read_config
from convert.families import IGNORED, Family, row_of
from convert.finite import all_finite, beyond_range, narrows, not_finite
from convert.native import (
    PARAMS,
    UNTOUCHED,
    check_params,
    is_native,
    read_leaf,
    read_native,
    restore_params,
)
from convert.rows import Row, Shape
from convert.tensors import DTYPES, StoredTensor, empty_aligned, list_file, list_tensors
from pmc_jax.data.files import read_object
from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, Spec, param_shardings, param_specs
from pmc_jax.model.specs import Params
from pmc_jax.terminal import short

DOWNLOADED = ("*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "vocab.txt")
"""Files to download from the hub: weights and tokenizer, no code."""

NOT_DOWNLOADED = ("*/*", "consolidated*")
"""Files with the same weights in other formats."""

Leaves = dict[tuple[str, ...], Any]
OnTensor = Callable[[int], object]
"""Called with the number of finished tensors, out of those in `tensor_names`."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A loaded model: configuration, parameters, source directory, and stop ids."""

    cfg: ModelConfig
    params: Params
    directory: Path
    eos_token_ids: tuple[int, ...]


def resolve(source: str | Path) -> Path:
    """The local directory of a checkpoint; a model on the hub is downloaded first.

    Raises:
        UserError: if there is no such directory, and no such model can be downloaded.
    """
    directory = Path(source).expanduser()
    if directory.is_dir():
        return directory
    name = str(source)
    if directory.exists():
        raise UserError(f"{source}: is a file; expected a Hugging Face model directory")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
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
            f"{source}: no such directory, and the hub gave no such model ({reason}); expected a "
            "Hugging Face model directory or a hub id"
        ) from error
    return Path(found)


def load_config(directory: str | Path) -> ModelConfig:
    """The model configuration of a Hugging Face directory."""
    return read_config(Path(directory))[2]


def eos_token_ids(directory: Path, vocab_size: int) -> tuple[int, ...]:
    """The ids that end a response, from the generation config or else the model config.

    Both are checked, since other programs read the one that is not used here.

    Raises:
        UserError: if they are not ids of the model's vocabulary.
    """
    found: list[tuple[int, ...]] = []
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        content = read_object(path, missing_ok=True)
        text = content.get("text_config")  # of a multimodal model
        for each in (content, text if isinstance(text, dict) else {}):
            own = each.get("eos_token_id")
            if own is None:
                continue
            ids = own if isinstance(own, list) else [own]
            if not all(type(token) is int and 0 <= token < vocab_size for token in ids):
                raise UserError(
                    f"{path}: eos_token_id is {short(own)}; expected an id below vocab_size, "
                    f"{vocab_size}, or a list of them"
                )
            found.append(tuple(ids))
    return found[0] if found else ()


def rows_of(
    family: Family, cfg: ModelConfig, tensors: Iterable[str] = ()
) -> list[tuple[Row, tuple[Spec, ...]]]:
    """The family's rows for `cfg`, each with the specs of its leaves.

    Args:
        tensors: the tensor names of a checkpoint. They decide how the rows' tensors are named.
            If they include a copy of the tied embedding, so do the rows.
    """
    tensors = set(tensors)
    table = family.table(tensors)
    specs = flatten_dict(param_specs(cfg))
    rows = [
        (row, tuple(specs[leaf] for leaf in row.leaves)) for row in table if row.leaves[0] in specs
    ]
    embed, head = row_of(table, "embed"), row_of(table, "lm_head")
    if cfg.tie_embeddings and embed and head and head.name in tensors:
        rows.append((dataclasses.replace(embed, name=head.name), (specs[("embed",)],)))
    return rows


def stored_shape(row: Row, specs: Sequence[Spec]) -> Shape:
    """The shape of a row's tensor, which is one layer's if the row is stacked."""
    return row.stored_shape([spec.shape[1:] if row.stacked else spec.shape for spec in specs])


def tensor_names(family: Family, cfg: ModelConfig, tensors: Iterable[str] = ()) -> list[str]:
    """The names of all tensors of `cfg`; `tensors` as in `rows_of`."""
    rows = rows_of(family, cfg, tensors)
    return [name for row, _ in rows for name in row.names(cfg.num_layers)]


def check_tensors(
    tensors: Mapping[str, StoredTensor], family: Family, cfg: ModelConfig, directory: Path
) -> None:
    """Check a checkpoint's tensors before any is loaded.

    Raises:
        UserError: naming a tensor that is missing, unknown, or of the wrong shape or dtype.
    """
    expected: dict[str, Shape] = {}
    rows = rows_of(family, cfg, tensors)
    for row, specs in rows:
        expected |= dict.fromkeys(row.names(cfg.num_layers), stored_shape(row, specs))
    for name, shape in expected.items():
        if name not in tensors:
            raise UserError(f"{directory}: {family.architecture} tensor {name} is missing")
        found = tensors[name]
        if found.shape != shape:
            raise UserError(
                f"{found.path}: {family.architecture} tensor {name} has shape "
                f"{list(found.shape)}; expected {list(shape)} by config.json"
            )
    foreign = (*IGNORED, *family.untouched)
    extra = sorted(
        name
        for name in tensors
        if name not in expected and not name.startswith(foreign) and not name.endswith(foreign)
    )
    if extra:
        more = f", and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise UserError(
            f"{tensors[extra[0]].path}: tensor {extra[0]} is not part of {family.architecture} "
            f"with this config.json{more}"
        )
    for name, found in tensors.items():
        if found.dtype not in DTYPES and not name.endswith(IGNORED):
            raise UserError(
                f"{found.path}: {family.architecture} tensor {name} is {found.dtype}; expected one "
                f"of {', '.join(DTYPES)}"
            )
    by_leaf: dict[tuple[str, ...], str] = {}
    for row, _ in rows:
        original = by_leaf.setdefault(row.leaves[0], row.name)
        if original != row.name and not same_values(tensors[row.name], tensors[original]):
            raise UserError(
                f"{directory}: {row.name} differs from {original}, but config.json ties them"
            )


def same_values(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors have the same values, NaN included."""
    values = one.read(), other.read()
    return np.array_equal(*values) or np.array_equal(*values, equal_nan=True)


def find_tensors(directory: Path, family: Family, cfg: ModelConfig) -> dict[str, StoredTensor]:
    """The language model's tensors in a Hugging Face directory.

    Raises:
        UserError: as `check_tensors`.
    """
    tensors = list_tensors(directory)
    check_tensors(tensors, family, cfg, directory)
    return {name: tensors[name] for name in tensor_names(family, cfg, tensors)}


def untouched_tensors(directory: Path, family: Family) -> list[StoredTensor]:
    """The tensors of a Hugging Face directory or native checkpoint that are only copied."""
    if is_native(directory):
        path = directory / UNTOUCHED
        return list(list_file(path)) if path.is_file() else []
    if not family.untouched:
        return []
    return [t for t in list_tensors(directory).values() if t.name.startswith(family.untouched)]


def place(leaf: np.ndarray, sharding: NamedSharding | None) -> Array:
    """A host array on its devices; each device gets only its shard."""
    if sharding is None:
        return jax.device_put(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])


def load_leaves(
    tensors: Sequence[StoredTensor],
    row: Row,
    specs: Sequence[Spec],
    dtype: DTypeLike | None,
    shardings: Sequence[NamedSharding | None],
    *,
    check_weights: bool,
) -> list[Array]:
    """A row's leaves from its tensors, one for each layer if the row is stacked.

    Raises:
        UserError: if `check_weights`, and a value is not finite in the file or in `dtype`.
    """
    if dtype is None:
        # NumPy promotes two float dtypes to one that represents both exactly.
        dtype = np.result_type(*(DTYPES[tensor.dtype] for tensor in tensors))
    leaves = [empty_aligned(spec.shape, jnp.dtype(dtype)) for spec in specs]
    for layer, tensor in enumerate(tensors):
        values = tensor.read()
        if check_weights:
            check_values(tensor, values)
        own = [leaf[layer] if row.stacked else leaf for leaf in leaves]
        with np.errstate(over="ignore"):
            row.fill(own, values)
        if check_weights and narrows(values.dtype, own[0].dtype):
            check_cast(tensor, own)
    return [place(leaf, sharding) for leaf, sharding in zip(leaves, shardings, strict=True)]


def check_values(tensor: StoredTensor, values: np.ndarray) -> None:
    """Check the `values` of a tensor.

    Raises:
        UserError: if one is NaN or infinite.
    """
    if not all_finite(values):
        raise not_finite(tensor.path, tensor.name, [values])


def check_cast(tensor: StoredTensor, parts: Sequence[np.ndarray]) -> None:
    """Check the finite values of a tensor after a cast, which may come in parts.

    Raises:
        UserError: if one has become infinite.
    """
    if not all(map(all_finite, parts)):
        raise beyond_range(tensor.path, tensor.name, parts)


def load_params(
    tensors: Mapping[str, StoredTensor],
    family: Family,
    cfg: ModelConfig,
    dtype: DTypeLike | None,
    mesh: Mesh | None,
    on_tensor: OnTensor,
    *,
    check_weights: bool,
) -> Params:
    """Load the parameters from checked tensors.

    Only one tensor is in memory besides the parameters. If these are on an accelerator or
    sharded, host memory also contains the leaves of one row.
    """
    shardings = {} if mesh is None else flatten_dict(param_shardings(cfg, mesh))
    leaves: Leaves = {}
    done = 0
    for row, specs in rows_of(family, cfg, tensors):
        names = row.names(cfg.num_layers)
        if row.leaves[0] not in leaves:
            where = [shardings.get(leaf) for leaf in row.leaves]
            found = load_leaves(
                [tensors[name] for name in names], row, specs, dtype, where,
                check_weights=check_weights,
            )  # fmt: skip
            leaves |= zip(row.leaves, found, strict=True)
        done += len(names)
        on_tensor(done)
    return unflatten_dict(leaves)


def load_checkpoint(
    source: str | Path,
    *,
    dtype: DTypeLike | None = "float32",
    mesh: Mesh | None = None,
    on_tensor: OnTensor = lambda done: None,
    check_weights: bool = True,
) -> Checkpoint:
    """Load a Hugging Face directory, a hub id, or a native checkpoint.

    Args:
        dtype: the parameters' dtype; None: the dtype of each tensor in the files.
        mesh: shard the parameters over its devices by `param_shardings`; None: use the first
            device.
        check_weights: refuse tensors with NaN or infinite values, those that are only copied
            included.

    Raises:
        UserError: naming the file, key or tensor that is missing, malformed or unsupported, or
            that has values which are not finite.
    """
    directory = resolve(source)
    _, family, cfg = read_config(directory)
    stop_ids = eos_token_ids(directory, cfg.vocab_size)
    if check_weights:
        check_untouched(directory, family)
    if is_native(directory):
        cfg, dtypes = read_native(directory)
        check = partial(check_leaf, directory, rows_of(family, cfg, dtypes))
        params = restore_params(directory, cfg, dtype, mesh, check if check_weights else None)
    else:
        tensors = find_tensors(directory, family, cfg)
        params = load_params(
            tensors, family, cfg, dtype, mesh, on_tensor, check_weights=check_weights
        )
    return Checkpoint(cfg, params, directory, stop_ids)


def check_checkpoint(source: str | Path, dtype: DTypeLike = "float32") -> None:
    """Check the weights of a checkpoint as `load_checkpoint` does, and keep none of them.

    Raises:
        UserError: as `load_checkpoint`.
    """
    directory = resolve(source)
    _, family, cfg = read_config(directory)
    check_untouched(directory, family)
    if is_native(directory):
        cfg, dtypes = read_native(directory)
        check = partial(check_leaf, directory, rows_of(family, cfg, dtypes))
        check_params(directory, cfg, dtype, check)
        return
    for tensor in find_tensors(directory, family, cfg).values():
        values = tensor.read()
        check_values(tensor, values)
        if narrows(values.dtype, jnp.dtype(dtype)):
            with np.errstate(over="ignore"):
                check_cast(tensor, [values.astype(dtype)])


def check_untouched(directory: Path, family: Family) -> None:
    """Check the tensors that are only copied.

    Raises:
        UserError: naming one with a value that is NaN or infinite.
    """
    for tensor in untouched_tensors(directory, family):
        check_values(tensor, tensor.read())


def check_leaf(
    directory: Path,
    rows: Sequence[tuple[Row, tuple[Spec, ...]]],
    leaf: tuple[str, ...],
    first: int,
    stored: np.ndarray,
    cast: np.ndarray,
) -> None:
    """Check a piece of a leaf of the native checkpoint `directory`.

    Args:
        rows: the family's table.
        leaf: the path of the leaf; stacked leaves have one entry a layer.
        first: the index of the piece along the leaf's first axis.
        stored, cast: the piece as it is stored, and in the dtype of the parameters.

    Raises:
        UserError: naming the tensor, if a value of either is not finite.
    """
    narrow = narrows(stored.dtype, cast.dtype)
    if all_finite(stored) and (not narrow or all_finite(cast)):
        return
    row = next(row for row, _ in rows if leaf in row.leaves)
    axes = tuple(range(1, stored.ndim))
    bad = np.flatnonzero(~np.isfinite(stored).all(axes) | ~np.isfinite(cast).all(axes))
    layer = first + int(bad[0])
    tensor = row.name.format(layer)
    index = (slice(layer, layer + 1),) if row.stacked else ()
    values = [read_leaf(directory, own, index) for own in row.leaves]
    if all(map(all_finite, values)):
        with np.errstate(over="ignore"):
            raise beyond_range(directory / PARAMS, tensor, [v.astype(cast.dtype) for v in values])
    raise not_finite(directory / PARAMS, tensor, values)
