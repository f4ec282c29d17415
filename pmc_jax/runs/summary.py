"""The content of a run's `summary.json`."""

import dataclasses
import datetime
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from pmc_jax import __version__
from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, param_count

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")


NEEDED = ("before", "after")
"""Keys of the summary of every run."""

KINDS: Mapping[str, type] = {
    "name": str, "method": dict, "before": dict, "after": dict, "seconds": dict, "versions": dict,
    "model": dict, "settings": dict, "verdict": dict, "warnings": list, "steps": int,
}  # fmt: skip
"""The types of a summary's values."""


def check_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Check that a JSON object is the summary of a run.

    Raises:
        UserError: if it is not; `path` is its file.
    """
    wrong = [key for key in NEEDED if key not in summary]
    wrong += [
        key for key, kind in KINDS.items()
        if summary.get(key) is not None and not isinstance(summary[key], kind)
    ]  # fmt: skip
    if wrong:
        raise UserError(f"{path}: not the summary of a run ({', '.join(wrong)} missing or odd)")


def versions() -> dict[str, str]:
    """Versions of the packages, Python and the device."""
    return {
        "pmc_jax": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "device": jax.devices()[0].device_kind,
    }


def today() -> str:
    """The date in UTC, for example 2026-11-30: what a summary records when it is written."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def step_seconds(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of each part of a step, summed over all steps."""
    parts = dict.fromkeys(part for row in steps for part in row["seconds"] if part != "total")
    return {part: sum(row["seconds"].get(part, 0.0) for row in steps) for part in parts}


def summarise(
    name: str,
    settings: Mapping[str, Any],
    model: ModelConfig,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
    method: Mapping[str, str],
    *,
    untuned: str | None = None,
    weights: str | None = None,
    verdict: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The summary of a run.

    Args:
        name: the run's name.
        settings: the settings by dotted key.
        model: the model's configuration.
        before: the measures before training.
        after: the measures after training.
        steps: the lines of `metrics.jsonl`.
        seconds: the seconds of each part, in the order of the run; their sum becomes `total`.
        method: the method's `name`, and its `sentence` for the report.
        untuned: that the settings were chosen for another method, in words; None if not.
        weights: SHA-256 of the weights that were exported.
        verdict: whether the forget questions are forgotten; None if it is not known.
    """
    return {
        "name": name,
        "date": today(),
        "verdict": None if verdict is None else dict(verdict),
        "method": dict(method),
        "untuned": untuned,
        "before": dict(before),
        "after": dict(after),
        "seconds": {**seconds, "total": sum(seconds.values())},
        "versions": versions(),
        "model": {
            "path": settings["model.path"],
            "weights": weights,
            "parameters": param_count(model),
            **dataclasses.asdict(model),
        },
        "settings": dict(settings),
        "steps": len(steps),
        "tokens_sampled": sum(row.get("tokens_sampled", 0) for row in steps),
        "tokens_saved": sum(row.get("tokens_saved", 0) for row in steps),
    }
