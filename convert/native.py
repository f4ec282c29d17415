"""Our own checkpoints: parameters by Orbax, `model_config.json`, and a model's other files.

A native checkpoint is a Hugging Face directory whose weights lie in `params/`, ready to
restore. `model_config.json` keeps what they do not say: the configuration, and the dtype
that each tensor had. Of a multimodal model `untouched.safetensors` has the other weights.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from jaxtyping import DTypeLike

from convert.directory import copy_files, new_directory, read_object, write_object
from convert.tensors import StoredTensor, widest_first, write_file
from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, RopeConfig, param_shardings, param_specs
from pmc_jax.model.specs import Params

MODEL_CONFIG = "model_config.json"
PARAMS = "params"
UNTOUCHED = "untouched.safetensors"
FORMAT = 1


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
    """Write a native checkpoint, atomically, with the other files of the directory `source`.

    Args:
        tensor_dtypes: safetensors' dtype of each tensor, for the way back.
        dtype: the one that all of them have, if it is not that of `source`.
        untouched: tensors to keep as they are.

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
        with open_checkpointer(params) as checkpointer:
            checkpointer.save(directory / PARAMS, params)


def read_native(directory: Path) -> tuple[ModelConfig, dict[str, str]]:
    """Configuration and tensor dtypes of a native checkpoint.

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
        raise UserError(f"{path}: not as from-hf wrote it ({error!r})") from None


def hashable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration; JSON has lists where it has tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}


def open_checkpointer(params: Params) -> ocp.Checkpointer:
    """Orbax for such parameters (or their shapes), handling little more than a leaf at a time."""
    largest = max(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    limit: Any = (largest + 1) / 1e9  # any number will do, though an int is asked for
    return ocp.Checkpointer(
        ocp.StandardCheckpointHandler(save_concurrent_gb=limit, restore_concurrent_gb=limit)
    )


def restore_params(
    directory: Path, cfg: ModelConfig, dtype: DTypeLike | None, mesh: Mesh | None = None
) -> Params:
    """The parameters of a native checkpoint, in `dtype`, or as they were saved.

    Each device of `mesh` gets its shards only; without one all go to the first device.

    Raises:
        UserError: if they are missing, torn, or not those of `cfg`.
    """
    path = (directory / PARAMS).resolve()
    if not path.is_dir():
        raise UserError(f"{path}: no such directory; expected the parameters")
    if mesh is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda _: device, param_specs(cfg))
    else:
        shardings = param_shardings(cfg, mesh)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            stored = checkpointer.metadata(path).item_metadata.tree
        wanted = jax.tree.map(
            lambda spec, found, sharding: jax.ShapeDtypeStruct(
                spec.shape, found.dtype if dtype is None else dtype, sharding=sharding
            ),
            param_specs(cfg),
            stored,
            shardings,
        )
        with open_checkpointer(wanted) as checkpointer:
            return checkpointer.restore(path, wanted)
    except Exception as error:
        # Orbax raises whatever its storage layer meets in a torn or foreign checkpoint.
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: the parameters cannot be restored ({reason})") from error
