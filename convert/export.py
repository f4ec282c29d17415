"""Parameters to Hugging Face directories."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import DTypeLike
from safetensors.numpy import save_file

from convert.families import Family, family_of, present_rows
from convert.load import (
    DTYPES,
    INDEX,
    SINGLE,
    TensorFiles,
    flatten_leaves,
    read_object,
    tensor_names,
)
from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig
from pmc_jax.model.specs import Params

FILE_BYTES = 5 * 10**9
"""Most bytes of tensors in one file."""

SIDE_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "generation_config.json",
)
"""What goes along with the weights: tokenizer, chat template, generation config."""


@contextmanager
def new_directory(destination: Path) -> Iterator[Path]:
    """A directory that appears as `destination` when the block has ended well.

    Raises:
        UserError: if `destination` exists.
    """
    if destination.exists():
        raise UserError(f"{destination} exists already; nothing was written")
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(
        tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".partial", dir=destination.parent)
    )
    try:
        yield partial
        partial.chmod(0o755)
        partial.rename(destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def stored_tensors(
    params: Params, cfg: ModelConfig, family: Family, dtypes: Mapping[str, Any] | DTypeLike
) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor by its Hugging Face name; `dtypes` is one for all or one per name."""
    leaves = flatten_leaves(params)
    for row in present_rows(family, leaves):
        leaf = leaves[row.leaf]
        for index, name in enumerate(tensor_names(row, cfg)):
            value = np.asarray(leaf[index] if row.stacked else leaf)
            dtype = dtypes[name] if isinstance(dtypes, Mapping) else dtypes
            yield name, row.to_stored(value).astype(np.dtype(dtype))


def write_tensors(
    directory: Path, tensors: Iterator[tuple[str, np.ndarray]], file_bytes: int = FILE_BYTES
) -> None:
    """Write safetensors files of at most `file_bytes`, with an index if there are several."""
    parts: list[list[str]] = []
    batch: dict[str, np.ndarray] = {}
    total = 0

    def flush() -> None:
        if batch:
            save_file(batch, directory / f"part-{len(parts)}", metadata={"format": "pt"})
            parts.append(list(batch))
            batch.clear()

    for name, tensor in tensors:
        if batch and sum(x.nbytes for x in batch.values()) + tensor.nbytes > file_bytes:
            flush()
        batch[name] = tensor
        total += tensor.nbytes
    flush()
    if len(parts) == 1:
        (directory / "part-0").rename(directory / SINGLE)
        return
    weight_map = {}
    for number, names in enumerate(parts):
        file = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        (directory / f"part-{number}").rename(directory / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def export_checkpoint(
    params: Params,
    cfg: ModelConfig,
    source: Path,
    destination: Path,
    dtype: DTypeLike | None = None,
    file_bytes: int = FILE_BYTES,
) -> None:
    """Write `params` as a Hugging Face directory like `source`, atomically.

    Configuration, tokenizer, chat template and generation config come from `source`.
    `dtype` None keeps the dtype that each tensor has there, so that a round trip is exact.

    Raises:
        UserError: if `destination` exists.
    """
    config = read_object(source / "config.json")
    family = family_of(config)
    files = TensorFiles(source)
    with new_directory(destination) as directory:
        for pattern in SIDE_FILES:
            for path in sorted(source.glob(pattern)):
                if path.is_file():
                    shutil.copyfile(path, directory / path.name)
        if dtype is not None:
            key = "dtype" if "dtype" in config else "torch_dtype"
            config = {**config, key: np.dtype(dtype).name}
        (directory / "config.json").write_text(
            json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        kept = {name: DTYPES[files.meta(name)[1]] for name in files.files}
        wanted = kept if dtype is None else np.dtype(dtype)
        write_tensors(directory, stored_tensors(params, cfg, family, wanted), file_bytes)


def write_checkpoint(
    params: Params,
    cfg: ModelConfig,
    destination: Path,
    *,
    architecture: str = "LlamaForCausalLM",
    config: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    dtype: DTypeLike = "float32",
) -> None:
    """Write a Hugging Face directory that has no source, for a model trained here.

    `config` adds keys to `config.json` (bos_token_id, …).

    Raises:
        UserError: if `destination` exists.
    """
    family = family_of({"architectures": [architecture]})
    content = {**family.to_hf(cfg), "dtype": np.dtype(dtype).name, **(config or {})}
    with new_directory(destination) as directory:
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
        (directory / "config.json").write_text(
            json.dumps(content, indent=2) + "\n", encoding="utf-8"
        )
        write_tensors(directory, stored_tensors(params, cfg, family, dtype))
