"""Our own checkpoints: parameters by Orbax, `model_config.json`, and a model's other files.

A native checkpoint is a Hugging Face directory whose weights lie in `params/`, ready to
restore. `model_config.json` keeps what they do not say: the configuration, and the dtype
that each tensor had.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jaxtyping import DTypeLike

from convert.directory import copy_files, new_directory, read_object, write_object
from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, RopeConfig, param_specs
from pmc_jax.model.specs import Params

MODEL_CONFIG = "model_config.json"
PARAMS = "params"
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
) -> None:
    """Write a native checkpoint, atomically, with the other files of the directory `source`.

    Args:
        tensor_dtypes: safetensors' dtype of each tensor, for the way back.
        dtype: the one that all of them have, if it is not that of `source`.

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
        with ocp.StandardCheckpointer() as checkpointer:
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
        local = model["local_rope"]
        model["rope"] = RopeConfig(**model["rope"])
        model["local_rope"] = None if local is None else RopeConfig(**local)
        model["windows"] = tuple(model["windows"])
        cfg = ModelConfig(**model)
        return cfg, {str(name): str(dtype) for name, dtype in content["tensors"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not as from-hf wrote it ({error!r})") from None


def restore_params(directory: Path, cfg: ModelConfig, dtype: DTypeLike | None) -> Params:
    """The parameters of a native checkpoint, in `dtype`, or as they were saved.

    Raises:
        UserError: if they are missing, torn, or not those of `cfg`.
    """
    path = (directory / PARAMS).resolve()
    if not path.is_dir():
        raise UserError(f"{path}: no such directory; expected the parameters")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            stored = checkpointer.metadata(path).item_metadata.tree
            wanted = jax.tree.map(
                lambda spec, found: jax.ShapeDtypeStruct(
                    spec.shape, found.dtype if dtype is None else dtype, sharding=device
                ),
                param_specs(cfg),
                stored,
            )
            return checkpointer.restore(path, wanted)
    except Exception as error:
        # Orbax raises whatever its storage layer meets in a torn or foreign checkpoint.
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: the parameters cannot be restored ({reason})") from error
