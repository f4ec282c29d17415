"""Reads the files in the directory of an evaluation."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmc_jax.data.files import read_object, read_text
from pmc_jax.errors import UserError
from pmc_jax.reporting.run_files import changed_files, changed_warning
from pmc_jax.reporting.side_by_side import model_order
from pmc_jax.runs.parts import read_part

SUMMARY_KEYS = (
    "name", "suite", "verdict", "models", "before", "facts", "measures", "curves", "side_effects",
    "certificates", "lacking", "seconds", "tokens", "data", "versions", "settings",
)  # fmt: skip


@dataclass(frozen=True)
class EvaluationFiles:
    """A finished evaluation as plain data.

    Attributes:
        summary: the measures of all models, and what figures show.
        parts: by model, before unlearning first, and by part: the single answers. A part that
            could not be measured is absent.
        config: the resolved configuration as YAML text; empty if the file is absent.
        changed: files of the model under evaluation that are not those which were measured.
    """

    summary: dict[str, Any]
    parts: dict[str, dict[str, dict[str, Any]]]
    config: str
    changed: tuple[str, ...] = ()

    def with_changed(self, changed: Sequence[str]) -> "EvaluationFiles":
        """The same evaluation with a warning of files of the model that have `changed`."""
        if not changed:
            return self
        found = changed_warning(changed, self.summary["facts"][self.evaluated].get("weights"))
        summary = {**self.summary, "warnings": [*(self.summary.get("warnings") or []), found]}
        return dataclasses.replace(self, summary=summary, changed=tuple(changed))

    @property
    def models(self) -> list[str]:
        """All models, the one before unlearning first if there is one."""
        return model_order(self.summary)

    @property
    def before(self) -> str | None:
        """The model before unlearning; None if there is none."""
        return self.summary["before"]

    @property
    def evaluated(self) -> str:
        """The model under evaluation."""
        return self.summary["models"][0]

    def of_part(self, name: str) -> dict[str, dict[str, Any]]:
        """One part of every model that has it."""
        return {model: parts[name] for model, parts in self.parts.items() if name in parts}

    def curves(self, part: str) -> dict[str, dict[str, Any]]:
        """What figures show of one part, for every model that has it."""
        found = self.summary["curves"]
        return {model: found[model][part] for model in self.models if part in found[model]}


def is_evaluation(directory: Path) -> bool:
    """Whether the directory holds an evaluation rather than a run."""
    return "models" in read_object(directory / "summary.json", missing_ok=True, finite=True)


def changed_export(directory: Path) -> list[str]:
    """Files of the model under evaluation that are not those which were measured.

    Known only if a run has exported the model, which records the hashes of its files.
    """
    summary = read_evaluation(directory).summary
    facts = summary["facts"][summary["models"][0]]
    path = Path(str(facts.get("path")))
    recorded = path.parent / "summary.json"
    if path.name != "model" or not recorded.is_file():
        return []
    exported = (read_object(recorded).get("model") or {}).get("weights")
    return changed_files(path.parent) if exported == facts.get("weights") else []


def read_evaluation(directory: Path) -> EvaluationFiles:
    """Read summary.json, config.yaml and every model's parts.

    Raises:
        UserError: if the summary, which an evaluation writes last, is missing, or a file has
            another layout.
    """
    path = directory / "summary.json"
    summary = read_object(path, expected="the summary of a finished evaluation", finite=True)
    if missing := [key for key in SUMMARY_KEYS if key not in summary]:
        raise UserError(
            f"{path}: not the summary of an evaluation (no {', '.join(missing)}); one of an older "
            "version has to be measured again with overwrite=true"
        )
    parts = {
        model: {
            name: read_part(directory / "models" / model / f"{name}.json")
            for name in summary["tokens"][model]
        }
        for model in model_order(summary)
    }
    return EvaluationFiles(summary, parts, read_text(directory / "config.yaml", missing_ok=True))
