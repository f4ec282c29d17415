"""What an evaluation reads, and the checks before anything is measured."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from pmc_jax.data import Controls, Dataset, load_dataset
from pmc_jax.data.encode import (
    EVALUATION_ROWS,
    check_tokens,
    digest,
    encode,
    position_warnings,
    rows_fingerprint,
    special_token_warnings,
)
from pmc_jax.data.prompts import check_lengths
from pmc_jax.data.rows import EvaluationRow
from pmc_jax.evaluation.config import EvaluateConfig
from pmc_jax.evaluation.context import reworded_rows
from pmc_jax.evaluation.parts import SUITES
from pmc_jax.evaluation.quality import is_comparable
from pmc_jax.evaluation.tofu import RetainLog, check_retain_log, read_retain_log
from pmc_jax.language_model import LanguageModel, ModelSource, describe, mesh_of
from pmc_jax.terminal import short


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What an evaluation reads, except the models."""

    dataset: Dataset
    controls: Controls
    retain_log: RetainLog | None

    @property
    def hashes(self) -> dict[str, str]:
        """Hashes by name, which change if a file has changed."""
        found = {
            EVALUATION_ROWS: rows_fingerprint(self.dataset.evaluation),
            "controls": digest(dataclasses.asdict(self.controls)),
        }
        if self.retain_log is not None:
            found["retain logs"] = digest(dataclasses.asdict(self.retain_log))
        return found


def load_inputs(config: EvaluateConfig) -> Inputs:
    """Read the data and the retain model's log."""
    dataset = load_dataset(config.data, download_controls="tofu" in SUITES[config.suite])
    logs = config.retain_logs
    log = None if logs is None else read_retain_log(Path(logs).expanduser())
    return Inputs(dataset, dataset.controls, log)


def source_of(config: EvaluateConfig, path: str) -> ModelSource:
    """The model at `path`, with the dtype and the other settings of `config`."""
    return dataclasses.replace(config.model, path=path)


def check_model(config: EvaluateConfig, path: str, inputs: Inputs) -> LanguageModel:
    """The model, without its weights, after a check against the questions and the mesh."""
    mesh_of(source_of(config, path), config.mesh)
    model = describe(source_of(config, path), config.prompt)
    check_prompts(
        model, inputs.dataset, inputs.controls,
        suite=config.suite, max_length=config.max_length, prefix=config.prefix,
    )  # fmt: skip
    return model


def evaluation_warnings(
    dataset: Dataset,
    controls: Controls,
    models: Mapping[str, LanguageModel],
    retain_log: RetainLog | None,
    max_length: int,
) -> list[str]:
    """What is suspicious in an evaluation, one sentence each.

    Each model is prompted as it was trained. If the prompts differ, a warning says so.

    Args:
        models: all models by name, with or without their weights; the one under evaluation first.
        max_length: the most tokens of prompt and answer together.

    Raises:
        UserError: if the retain model's log has other forget questions.
    """
    first = next(iter(models.values()))
    evaluated = first.template
    found = [*dataset.warnings, *special_token_warnings(dataset, evaluated)]
    found += position_warnings(dataset, evaluated, max_length, first.positions)
    if len({model.template.text for model in models.values()}) > 1:
        each = "; ".join(f"{name}: {model.template.words}" for name, model in models.items())
        found.append(f"the models are asked with different prompts, each with its own: {each}")
    if retain_log is not None:
        forget = dict.fromkeys(filter(is_comparable, dataset.evaluation["forget"]))
        holdout = sum(bool(row.answer) for row in controls.holdout)
        found += check_retain_log(retain_log, list(forget), holdout, evaluated)
    return found


def check_prompts(
    model: LanguageModel,
    dataset: Dataset,
    controls: Controls,
    *,
    suite: str,
    max_length: int,
    prefix: str | None,
) -> None:
    """Check that every question leaves room for an answer and that the model has its tokens.

    Raises:
        UserError: naming the set and the row.
    """
    template, vocab_size = model.template, model.config.vocab_size
    encode(dataset, template, max_length, vocab_size)
    parts = SUITES[suite]
    asked: dict[str, Sequence[EvaluationRow]] = {}
    if "rewording" in parts:
        asked["forget, reworded"] = reworded_rows(dataset.evaluation)
    if "tofu" in parts:
        asked |= {"retain": controls.retain, "holdout": controls.holdout}

    def check(
        places: Sequence[str], rows: Sequence[EvaluationRow], forced: Sequence[int] = ()
    ) -> None:
        prompts = [[*template.encode_prompt(row.question, row.system), *forced] for row in rows]
        check_lengths(places, prompts, max_length)
        check_tokens({0, *(token for prompt in prompts for token in prompt)}, vocab_size)

    for name, rows in asked.items():
        check([f"{name}[{row.id}]" for row in rows], rows)
    if "prefilling" in parts and prefix:
        forget = dataset.evaluation["forget"]
        places = [
            f"{dataset.where('forget', row.id)} with prefix={short(prefix)}" for row in forget
        ]
        check(places, forget, template.encode_prefix(prefix))
