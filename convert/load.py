"""Hugging Face directories to parameters, tensor by tensor."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import DTypeLike
from safetensors import SafetensorError, safe_open

from convert.families import Family, Row, family_of, present_rows
from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, Spec, param_specs
from pmc_jax.model.specs import Params

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

DOWNLOADED = ("*.json", "*.safetensors", "tokenizer*", "*.model", "*.jinja", "*.txt")
"""What is fetched from the hub: weights without code, and the tokenizer."""

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}


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
        return Path(snapshot_download(name, allow_patterns=list(DOWNLOADED)))
    except Exception as error:
        # The hub client raises many kinds: no network, no such repository, no access.
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{source}: neither a local directory nor a model that the hub would give ({reason})"
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: if the file is missing or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a Hugging Face directory") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def load_config(directory: str | Path) -> ModelConfig:
    """The decoder configuration of a Hugging Face directory."""
    config = read_object(Path(directory) / "config.json")
    return family_of(config).from_hf(config)


def eos_token_ids(directory: Path) -> tuple[int, ...]:
    """The ids that end a response, by the generation config or else the model config."""
    for name in ("generation_config.json", "config.json"):
        if not (directory / name).is_file():
            continue
        found = read_object(directory / name).get("eos_token_id")
        if found is not None:
            return tuple(found) if isinstance(found, list) else (int(found),)
    return ()


class TensorFiles:
    """The tensors of a directory's safetensors files, read one at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files: dict[str, Path] = {}
        if (directory / INDEX).is_file():
            weight_map = read_object(directory / INDEX).get("weight_map")
            if not isinstance(weight_map, dict):
                raise UserError(f"{directory / INDEX}: expected an object weight_map")
            paths = {name: self._inside(name) for name in set(weight_map.values())}
        else:
            paths = {path.name: path for path in sorted(directory.glob("*.safetensors"))}
            if (directory / SINGLE).is_file():
                paths = {SINGLE: directory / SINGLE}
        if not paths:
            raise UserError(f"{directory}: no *.safetensors files; expected the model's weights")
        for path in paths.values():
            with self._open(path) as tensors:
                self.files |= dict.fromkeys(tensors.keys(), path)

    def _inside(self, name: Any) -> Path:
        path = self.directory / str(name)
        if Path(str(name)).name != name:
            raise UserError(f"{self.directory / INDEX}: {name!r} leaves the directory")
        return path

    @contextmanager
    def _open(self, path: Path) -> Iterator[Any]:
        try:
            with safe_open(path, framework="numpy") as tensors:
                yield tensors
        except FileNotFoundError:
            raise UserError(f"{path}: no such file, but {INDEX} names it") from None
        except SafetensorError as error:
            raise UserError(f"{path}: not a whole safetensors file ({error})") from None

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the dtype it has in the file."""
        with self._open(self.files[name]) as tensors:
            return tensors.get_tensor(name)

    def meta(self, name: str) -> tuple[tuple[int, ...], str]:
        """A tensor's shape and safetensors dtype."""
        with self._open(self.files[name]) as tensors:
            part = tensors.get_slice(name)
            return tuple(part.get_shape()), part.get_dtype()


def flatten_leaves(tree: Params, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Leaves of nested dicts by path."""
    found: dict[tuple[str, ...], Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= flatten_leaves(value, (*path, key))
        else:
            found[*path, key] = value
    return found


def nest_leaves(leaves: dict[tuple[str, ...], Any]) -> Params:
    """Nested dicts from leaves by path."""
    tree: Params = {}
    for (*groups, key), value in leaves.items():
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
        place[key] = value
    return tree


def tensor_names(row: Row, cfg: ModelConfig) -> list[str]:
    """The tensors of a row, one per layer if it is stacked."""
    if not row.stacked:
        return [row.name]
    return [row.name.format(layer) for layer in range(cfg.num_layers)]


def check_tensors(files: TensorFiles, family: Family, cfg: ModelConfig) -> None:
    """Refuse missing, misshapen and unmapped tensors before anything is loaded."""
    specs = flatten_leaves(param_specs(cfg))
    expected = set()
    for row in present_rows(family, specs):
        spec = specs[row.leaf]
        shape = row.stored_shape(spec.shape[1:] if row.stacked else spec.shape)
        for name in tensor_names(row, cfg):
            expected.add(name)
            if name not in files.files:
                raise UserError(f"{files.directory}: tensor {name} is missing")
            found, dtype = files.meta(name)
            if found != shape:
                raise UserError(
                    f"{files.directory}: tensor {name} has shape {list(found)}; by "
                    f"config.json it should be {list(shape)}"
                )
            if dtype not in DTYPES:
                raise UserError(
                    f"{files.directory}: tensor {name} is {dtype}; expected one of "
                    f"{', '.join(DTYPES)}"
                )
    extra = sorted(
        name for name in files.files if name not in expected and not name.endswith(family.ignored)
    )
    if cfg.tie_embeddings and "lm_head.weight" in extra:
        extra.remove("lm_head.weight")
        if not np.array_equal(
            files.read("lm_head.weight"), files.read("model.embed_tokens.weight")
        ):
            raise UserError(
                f"{files.directory}: lm_head.weight differs from the embedding, but "
                "config.json ties them"
            )
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise UserError(
            f"{files.directory}: tensor {extra[0]}{more} has no place in {family.architecture}"
        )


def load_leaf(files: TensorFiles, row: Row, spec: Spec, cfg: ModelConfig, dtype: Any) -> np.ndarray:
    """One leaf, its layers stacked, with one stored tensor in memory besides it."""
    leaf = np.empty(spec.shape, dtype)
    if not row.stacked:
        leaf[...] = row.to_leaf(files.read(row.name), spec.shape)
        return leaf
    for layer, name in enumerate(tensor_names(row, cfg)):
        leaf[layer] = row.to_leaf(files.read(name), spec.shape[1:])
    return leaf


def load_checkpoint(source: str | Path, *, dtype: DTypeLike = "float32") -> Checkpoint:
    """Load a Hugging Face directory or hub id; parameters in `dtype`.

    Raises:
        UserError: naming the file, key or tensor that is missing, misshapen, unmapped or
            unsupported.
    """
    directory = resolve(source)
    config = read_object(directory / "config.json")
    try:
        family = family_of(config)
        cfg = family.from_hf(config)
    except UserError as error:
        raise UserError(f"{directory}/{error}") from None
    files = TensorFiles(directory)
    check_tensors(files, family, cfg)
    specs = flatten_leaves(param_specs(cfg))
    leaves = {
        row.leaf: jnp.asarray(load_leaf(files, row, specs[row.leaf], cfg, jnp.dtype(dtype)))
        for row in present_rows(family, specs)
    }
    return Checkpoint(cfg, nest_leaves(leaves), directory, eos_token_ids(directory))
