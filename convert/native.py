"""Native checkpoints: parameters saved by Orbax, beside a model's other files.

A native checkpoint is a Hugging Face directory whose weights are in `params/`, ready to
restore. `model_config.json` has the model configuration and the original dtype of each
tensor. `untouched.safetensors` has the other weights of a multimodal model.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, Sharding, SingleDeviceSharding
from jax.tree_util import KeyPath
from jaxtyping import Array, DTypeLike

from convert.directory import copy_files, new_directory, write_object
from convert.tensors import StoredTensor, empty_aligned, widest_first, write_file
from pmc_jax.data.files import read_object
from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, RopeConfig, Spec, param_shardings, param_specs
from pmc_jax.model.specs import Params

MODEL_CONFIG = "model_config.json"
PARAMS = "params"
UNTOUCHED = "untouched.safetensors"
FORMAT = 1
PIECE_BYTES = 1 << 26
"""The approximate number of bytes of a leaf to write, and read, at a time."""


def is_native(directory: Path) -> bool:
    """Whether a directory is a native checkpoint."""
    return (directory / MODEL_CONFIG).is_file()


def save_native(
    params: Params,
    cfg: ModelConfig,
    source: Path,
    destination: Path,
    tensor_dtypes: Mapping[str, str],
    dtype: DTypeLike | None = None,
    *,
    untouched: Sequence[StoredTensor] = (),
) -> None:
    """Write a native checkpoint atomically, with the other files of the directory `source`.

    Args:
        tensor_dtypes: the safetensors dtype of each tensor, for the conversion back.
        dtype: the dtype of all tensors, if it is not that of `source`.
        untouched: tensors to copy unchanged.

    Raises:
        UserError: if `destination` exists.
    """
    with new_directory(destination) as directory:
        copy_files(source, directory, dtype)
        content = {
            "format": FORMAT,
            "model": dataclasses.asdict(cfg),
            "tensors": dict(tensor_dtypes),
        }
        write_object(directory / MODEL_CONFIG, content)
        if untouched:
            copies = widest_first(untouched)
            write_file(directory / UNTOUCHED, copies, (tensor.read() for tensor in copies))
        save_params(params, cfg, directory / PARAMS)


def read_native(directory: Path) -> tuple[ModelConfig, dict[str, str]]:
    """The model configuration and tensor dtypes of a native checkpoint.

    Raises:
        UserError: if `model_config.json` is not as `save_native` writes it.
    """
    path = directory / MODEL_CONFIG
    content = read_object(path)
    if content.get("format") != FORMAT:
        raise UserError(f"{path}: format {content.get('format')!r}; expected {FORMAT}")
    try:
        model = dict(content["model"])
        for key in ("rope", "local_rope"):
            if model[key] is not None:
                model[key] = RopeConfig(**hashable(model[key]))
        cfg = ModelConfig(**hashable(model))
        return cfg, {str(name): str(dtype) for name, dtype in content["tensors"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: malformed ({error!r}); expected what from-hf writes") from None


def hashable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with tuples in place of the lists of JSON."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}


def save_params(params: Params, cfg: ModelConfig, directory: Path) -> None:
    """Write the parameters with Orbax, using memory for little more than one more leaf.

    They are written layer by layer, and uncompressed, since compression needs as much memory
    again.
    """
    leaves = jax.tree.leaves(params)
    largest = max(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    limit: Any = (largest + 1) / 1e9  # any number is accepted, though the annotation is int
    handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=limit, use_compression=False)

    def pieces(spec: Spec) -> ocp.SaveArgs:
        by_layer = (0,) if spec.axes[0] == "layers" else ()
        return ocp.SaveArgs(chunk_byte_size=PIECE_BYTES, shard_axes=by_layer)

    with ocp.Checkpointer(handler) as checkpointer:
        arguments = ocp.args.PyTreeSave(params, jax.tree.map(pieces, param_specs(cfg)))
        checkpointer.save(directory, args=arguments)


def open_leaf(path: Path, name: str) -> ts.TensorStore:
    """Open a leaf that Orbax wrote, by its dotted name, without reading its values."""
    kvstore = {"driver": "ocdbt", "base": f"file://{path}", "path": f"{name}/"}
    return ts.open({"driver": "zarr", "kvstore": kvstore}, open=True, read=True).result()


def read_leaf(directory: Path, leaf: Sequence[str], index: tuple[slice, ...] = ()) -> np.ndarray:
    """The part `index` of a leaf of the native checkpoint `directory`, as it is stored."""
    store = open_leaf((directory / PARAMS).resolve(), ".".join(leaf))
    return np.asarray(store[index or ...].read().result())


Check = Callable[[tuple[str, ...], int, np.ndarray, np.ndarray], None]
"""Called with a leaf's path, and with each piece of it: its index along the first axis, as it is
stored, and in the dtype of the parameters."""


def read_slice(
    store: ts.TensorStore,
    index: tuple[slice, ...] | None,
    dtype: np.dtype,
    check: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
) -> np.ndarray:
    """Read the part `index` of a stored leaf, in the pieces along its first axis as written."""
    part = store[index or ...][ts.d[:].translate_to[0]]
    found = empty_aligned(part.shape, dtype)
    pieces = store.chunk_layout.read_chunk.shape
    step = pieces[0] if pieces and pieces[0] else len(found)
    before = index[0].start or 0 if index else 0
    for first in range(0, len(found), step):
        piece = part[first : first + step].read().result()
        with np.errstate(over="ignore"):
            found[first : first + step] = piece
        if check is not None:
            check(before + first, piece, found[first : first + step])
    return found


@contextmanager
def restoring(directory: Path) -> Iterator[Path]:
    """The directory of a native checkpoint's parameters, for a block that reads them.

    Raises:
        UserError: if they are missing, damaged, or not those of `cfg`.
    """
    path = (directory / PARAMS).resolve()
    if not path.is_dir():
        raise UserError(f"{path}: no such directory; expected the parameters of the checkpoint")
    try:
        yield path
    except UserError:
        raise
    except Exception as error:
        # TensorStore raises many kinds of errors for a damaged checkpoint.
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: the parameters cannot be restored ({reason})") from error


def restore_params(
    directory: Path,
    cfg: ModelConfig,
    dtype: DTypeLike | None,
    mesh: Mesh | None = None,
    check: Check | None = None,
) -> Params:
    """The parameters of a native checkpoint.

    Args:
        dtype: the parameters' dtype; None: the dtype in which each was saved.
        mesh: each of its devices gets only its shards; None: the first device gets everything.
        check: called with all that is read.

    Raises:
        UserError: if they are missing, damaged, or not those of `cfg`; and what `check` raises.
    """
    if mesh is None:
        device: Sharding = SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda _: device, param_specs(cfg))
    else:
        shardings = param_shardings(cfg, mesh)

    with restoring(directory) as path:

        def restore(keys: KeyPath, spec: Spec, sharding: Sharding) -> Array:
            leaf = tuple(str(key.key) for key in keys)
            name = ".".join(leaf)
            store = open_leaf(path, name)
            if store.shape != spec.shape:
                raise ValueError(f"{name} has shape {store.shape}; expected {spec.shape}")
            kind = store.dtype.numpy_dtype if dtype is None else jnp.dtype(dtype)
            return jax.make_array_from_callback(
                spec.shape, sharding,
                lambda index: read_slice(store, index, kind, check and partial(check, leaf)),
            )  # fmt: skip

        return jax.tree_util.tree_map_with_path(restore, param_specs(cfg), shardings)


def check_params(directory: Path, cfg: ModelConfig, dtype: DTypeLike, check: Check) -> None:
    """Read the parameters of a native checkpoint piece by piece for `check`, and keep none.

    Raises:
        UserError: as `restore_params`.
    """
    with restoring(directory) as path:
        for leaf in flatten_dict(param_specs(cfg)):
            store = open_leaf(path, ".".join(leaf))
            read_slice(store, None, jnp.dtype(dtype), partial(check, leaf))
