"""Model directories: `config.json`, the files beside the weights, and atomic creation."""

import glob
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import DTypeLike

from convert.families import Family, family_of
from pmc_jax.data.files import read_object, to_json, writing
from pmc_jax.data.prompt_config import PROMPT_FILE
from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig
from pmc_jax.runtime.locks import held, is_abandoned
from pmc_jax.terminal import short

logger = logging.getLogger(__name__)

SIDE_FILES = (
    "tokenizer*.json",
    "*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    PROMPT_FILE,
)
"""Files copied with the weights: tokenizer, chat templates, and settings of generation, images
and prompts."""


def read_config(directory: Path) -> tuple[dict[str, Any], Family, ModelConfig]:
    """A directory's `config.json`, the family it names, and the model configuration.

    Raises:
        UserError: if the file cannot be read, or the model is not supported.
    """
    path = directory / "config.json"
    config = read_object(path, expected="the configuration of a Hugging Face model")
    try:
        family = family_of(config)
        return config, family, family.from_hf(config)
    except UserError as error:
        raise UserError(f"{directory}/{error}") from None


def position_limit(directory: Path) -> int | None:
    """The longest sequence that a model is made for, in tokens; None if it does not say."""
    config = read_object(directory / "config.json", missing_ok=True)
    text = config.get("text_config")  # of a multimodal model
    for each in (text if isinstance(text, dict) else {}, config):
        found = each.get("max_position_embeddings")
        if isinstance(found, int) and found > 0:
            return found
    return None


COMPUTE_DTYPE = "pmc_compute_dtype"
"""The key of `config.json` with the dtype that a model was trained and measured in, if it is not
float32. Other programs ignore it."""


def compute_dtype(directory: Path) -> str:
    """What matrix products of a model are computed in by default: what it was measured in.

    Raises:
        UserError: if `config.json` names no such dtype.
    """
    path = directory / "config.json"
    found = read_object(path, missing_ok=True).get(COMPUTE_DTYPE, "float32")
    if found not in ("float32", "bfloat16", "float64"):
        raise UserError(
            f"{path}: {COMPUTE_DTYPE} is {short(found)}; expected float32, bfloat16 or float64"
        )
    return str(found)


def copy_files(
    source: Path,
    destination: Path,
    dtype: DTypeLike | None = None,
    computed_in: str | None = None,
) -> None:
    """Copy `config.json` and the side files.

    Args:
        dtype: the dtype of the weights for `config.json`; None: as in `source`.
        computed_in: the `compute_dtype` for `config.json`; None: as in `source`.
    """
    config = read_object(source / "config.json")
    changed = dict(config)
    if dtype is not None:
        keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
        changed |= dict.fromkeys(keys, jnp.dtype(dtype).name)
    if computed_in is not None:
        changed.pop(COMPUTE_DTYPE, None)
        changed |= {} if computed_in == "float32" else {COMPUTE_DTYPE: computed_in}
    if changed == config:
        shutil.copyfile(source / "config.json", destination / "config.json")
    else:
        write_object(destination / "config.json", changed)
    for pattern in SIDE_FILES:
        for path in sorted(source.glob(pattern)):
            target = destination / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)


def write_object(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object, indented."""
    path.write_text(to_json(value, indent=2) + "\n", encoding="utf-8")


@contextmanager
def new_directory(destination: Path) -> Iterator[Path]:
    """A new directory, which appears as `destination` only if the block succeeds.

    What a process that was killed has left half written is removed.

    Raises:
        UserError: if `destination` exists, or cannot be written.
    """
    destination = Path(os.path.abspath(destination))
    if os.path.lexists(destination):
        raise UserError(f"{destination} exists already; nothing was written")
    partial = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.partial")
    with writing(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(destination)
        partial.mkdir()
        try:
            with held(partial):
                yield partial
                partial.rename(destination)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def remove_abandoned(destination: Path) -> None:
    """Remove what a killed process has left of `destination`, or name it if that is not known."""
    for old in destination.parent.glob(f".{glob.escape(destination.name)}.*.partial"):
        abandoned = is_abandoned(old)
        if abandoned:
            shutil.rmtree(old)
        elif abandoned is None:
            logger.warning("%s is left of a process that was killed, if none is writing it", old)
