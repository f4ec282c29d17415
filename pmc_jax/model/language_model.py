"""A model to work with: weights, tokenizer and prompt template, loaded and checked together."""

import dataclasses
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from convert.families import family_of
from convert.load import eos_token_ids, load_checkpoint, load_config, resolve
from pmc_jax.assets import WORLD_MODEL
from pmc_jax.data.prompts import PromptConfig, PromptTemplate, load_tokenizer, make_template
from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, choose_mesh
from pmc_jax.model.specs import Params


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Which weights and how to compute with them.

    Attributes:
        path: a Hugging Face directory, a native one, a hub id, or "bundled".
        dtype: what the matrix products are computed in.
        remat: what the backward pass computes anew instead of keeping it.
        architecture: the `config.json` of a known model, for what is planned or measured
            without its weights. A run goes by the directory's own.
    """

    path: str = "bundled"
    dtype: str = "float32"
    remat: str = "none"
    architecture: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model without its weights, and how it is asked; `directory` is where its files are."""

    cfg: ModelConfig
    template: PromptTemplate
    directory: Path


def weights_dtype(source: ModelSource) -> str:
    """The dtype that weights are kept in: at least float32."""
    return "float64" if source.dtype == "float64" else "float32"


def planned_config(source: ModelSource) -> ModelConfig:
    """The model's shape, without a file of it where its architecture is given.

    Raises:
        UserError: if neither a path nor an architecture is given.
    """
    if source.path:
        return load_config(resolve(path_of(source)))
    if source.architecture is None:
        raise UserError("model.path is missing, and the model's configuration has no architecture")
    return family_of(source.architecture).from_hf(source.architecture)


def mesh_of(source: ModelSource, setting: str) -> Mesh | None:
    """The mesh for a model by a setting (`choose_mesh`)."""
    return choose_mesh(setting, load_config(resolve(path_of(source))), source.dtype)


def describe(source: ModelSource, prompt: PromptConfig) -> Pretrained:
    """A model without reading its weights.

    Raises:
        UserError: as `load_pretrained`, but for what is wrong with the weights.
    """
    directory = resolve(path_of(source))
    return _with_template(load_config(directory), directory, eos_token_ids(directory), prompt)


def load_pretrained(
    source: ModelSource, prompt: PromptConfig, mesh: Mesh | None = None
) -> tuple[Pretrained, Params]:
    """Load a model and its weights; the caller alone holds these and can let them go.

    Raises:
        UserError: for what is missing or unsupported, or a tokenizer of another model.
    """
    found = load_checkpoint(path_of(source), dtype=weights_dtype(source), mesh=mesh)
    model = _with_template(found.cfg, found.directory, found.eos_token_ids, prompt)
    return model, found.params


def path_of(source: ModelSource) -> str | Path:
    """Where the model is; the bundled one is in the package."""
    return WORLD_MODEL if source.path == "bundled" else source.path


def _with_template(
    cfg: ModelConfig, directory: Path, eos_token_ids: tuple[int, ...], prompt: PromptConfig
) -> Pretrained:
    """Tokenizer and prompt template of a model, checked against its vocabulary."""
    template = make_template(load_tokenizer(directory), prompt, eos_token_ids)
    if template.end_id >= cfg.vocab_size:
        raise UserError(
            f"{directory}: the tokenizer ends a response with token id {template.end_id}, but "
            f"the model's vocabulary has {cfg.vocab_size} tokens"
        )
    return Pretrained(cfg, template, directory)
