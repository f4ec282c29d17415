"""What an evaluation reads, and that it can be asked, before anything is measured."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pmc_jax.cli.config import EvaluateConfig
from pmc_jax.data import Controls, Dataset, load_dataset
from pmc_jax.data.encode import check_tokens, digest, encode
from pmc_jax.data.prompts import PromptTemplate, check_lengths
from pmc_jax.data.rows import EvaluationRow
from pmc_jax.evaluation.examination import reworded_rows
from pmc_jax.evaluation.parts import SUITES
from pmc_jax.evaluation.tofu import RetainLog, read_retain_log
from pmc_jax.model.language_model import ModelSource, describe, mesh_of
from pmc_jax.runs.checkpoints import seal


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What an evaluation reads, but for the models."""

    dataset: Dataset
    controls: Controls
    retain_log: RetainLog | None

    @property
    def hashes(self) -> dict[str, str]:
        """By name, to notice that a file has changed."""
        sets = self.dataset.evaluation
        found = {
            "evaluation rows": seal(
                {name: list(map(dataclasses.astuple, rows)) for name, rows in sets.items()}
            ),
            "controls": digest(dataclasses.asdict(self.controls)),
        }
        if self.retain_log is not None:
            found["retain logs"] = digest(dataclasses.asdict(self.retain_log))
        return found


def load_inputs(cfg: EvaluateConfig) -> Inputs:
    """Read the data and the retain model's log."""
    dataset = load_dataset(cfg.data, download_controls="tofu" in SUITES[cfg.suite])
    log = None if cfg.retain_logs is None else read_retain_log(Path(cfg.retain_logs).expanduser())
    return Inputs(dataset, dataset.controls, log)


def source_of(cfg: EvaluateConfig, path: str) -> ModelSource:
    """The model at `path`, computed with as `cfg` says."""
    return dataclasses.replace(cfg.model, path=path)


def check_questions(cfg: EvaluateConfig, path: str, inputs: Inputs) -> None:
    """Check that every question leaves room for an answer, and that the model has its tokens.

    Also that there is the mesh that the model is to be on.
    """
    mesh_of(source_of(cfg, path), cfg.mesh)
    model = describe(source_of(cfg, path), cfg.prompt)
    template, vocab_size = model.template, model.config.vocab_size
    encode(inputs.dataset, template, cfg.max_length, vocab_size)
    sets = inputs.dataset.evaluation
    parts = SUITES[cfg.suite]
    asked: dict[str, Sequence[EvaluationRow]] = {}
    if "rewording" in parts:
        asked["forget, reworded"] = reworded_rows(sets)
    if "tofu" in parts:
        asked |= {"retain": inputs.controls.retain, "holdout": inputs.controls.holdout}
    for name, rows in asked.items():
        prompts = [template.encode_prompt(row.question, row.system) for row in rows]
        check_lengths(name, [row.id for row in rows], prompts, cfg.max_length)
        check_tokens({0, *(token for prompt in prompts for token in prompt)}, vocab_size)
    if "prefilling" in parts and cfg.prefix:
        check_prefix(cfg, template, inputs.dataset)


def check_prefix(cfg: EvaluateConfig, template: PromptTemplate, dataset: Dataset) -> None:
    """Check that the forced beginning leaves room for an answer."""
    rows, prefix = dataset.evaluation["forget"], template.encode_prefix(str(cfg.prefix))
    prompts = [template.encode_prompt(row.question, row.system) + prefix for row in rows]
    check_lengths("forget", [row.id for row in rows], prompts, cfg.max_length)
