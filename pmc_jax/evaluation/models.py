"""The models of an evaluation: their names, their weights and the facts recorded about them."""

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from pmc_jax.data.files import read_json, write_json
from pmc_jax.data.prompts import prompt_facts
from pmc_jax.errors import UserError
from pmc_jax.evaluation.config import EvaluateConfig
from pmc_jax.evaluation.inputs import source_of
from pmc_jax.language_model import LanguageModel, load_language_model, path_of, precision
from pmc_jax.model import param_count
from pmc_jax.runs.checkpoints import checksums
from pmc_jax.runs.sealed import seal
from pmc_jax.runtime.processes import from_first


def model_paths(config: EvaluateConfig) -> dict[str, str]:
    """The path of every model by a short name; the model under evaluation comes first.

    The name is that of the directory, or of the run if it is the `model` directory of a run.

    Raises:
        UserError: if a model would be compared with itself.
    """
    given = config.compare if isinstance(config.compare, list) else [config.compare]
    if not all(item is None or isinstance(item, str) for item in given):
        raise UserError(f"compare={config.compare}: expected a directory or a list of them")
    others = [item for item in given if item is not None]
    for path in others:
        if real_path(config, path) == real_path(config, config.model.path):
            raise UserError(
                f"compare={path} is the model under evaluation itself "
                f"(model.path={config.model.path}); give the model before unlearning, or others"
            )
    paths: dict[str, str] = {}
    for path in [config.model.path, *others]:
        directory = Path(path).expanduser().absolute() if Path(path).is_dir() else Path(path)
        parent = directory.parent.name
        name = parent if directory.name == "model" and parent else directory.name
        number = sum(other.partition("~")[0] == name for other in paths)
        paths[f"{name}~{number + 1}" if number else name] = path
    return paths


def real_path(config: EvaluateConfig, path: str) -> Path:
    """A model's directory with links resolved; a hub id is returned unchanged."""
    return Path(path_of(source_of(config, path))).expanduser().resolve()


def load_for_evaluation(
    config: EvaluateConfig, path: str, mesh: Mesh | None
) -> tuple[LanguageModel, dict[str, Any]]:
    """The model at `path`, ready for decoding, and the facts about it."""
    model = load_language_model(source_of(config, path), config.prompt, mesh)
    facts = {**facts_of(model, path), "weights": seal(checksums(model.params))}
    return model.for_decoding(), facts


def facts_of(model: LanguageModel, path: str) -> dict[str, Any]:
    """What a summary says of a model: where it is, its size, its prompt and its precision."""
    return {
        "path": path,
        "parameters": param_count(model.config),
        **prompt_facts(model.template),
        "precision": precision(model.directory, model.dtype),
    }


def record_facts(record: Path, facts: dict[str, Any]) -> None:
    """Write a model's facts to the file `record`, or check weights and prompt against the file.

    Raises:
        UserError: if they differ from the record.
    """
    stored = from_first(lambda: read_json(record, missing_ok=True))
    if stored is None:
        write_json(record, facts)
    elif stored["weights"] != facts["weights"]:
        raise UserError(
            f"{facts['path']} holds other weights than {record.parent} began with; "
            "choose another name=… or give overwrite=true"
        )
    elif stored.get("prompt_text") != facts["prompt_text"]:
        raise UserError(
            f"{facts['path']} is asked with another prompt than {record.parent} began with; "
            "choose another name=… or give overwrite=true"
        )
