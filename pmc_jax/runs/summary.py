"""The content of `summary.json`."""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from pmc_jax import __version__
from pmc_jax.model import ModelConfig, param_count

STEP_PARTS = ("sample", "score", "batch", "train")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {
        "pmc_jax": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "device": jax.devices()[0].device_kind,
    }


def step_seconds(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds by part over all steps; a part that no step has is left out."""
    parts = [part for part in STEP_PARTS if any(part in row["seconds"] for row in steps)]
    return {part: sum(row["seconds"].get(part, 0.0) for row in steps) for part in parts}


def summarise(
    name: str,
    settings: Mapping[str, Any],
    model: ModelConfig,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The summary of a run.

    Args:
        settings: by dotted key.
        before, after: the measures.
        steps: the lines of `metrics.jsonl`.
        seconds: by part, in the order of the run; their sum is added as `total`.
    """
    return {
        "name": name,
        "before": dict(before),
        "after": dict(after),
        "seconds": {**seconds, "total": sum(seconds.values())},
        "versions": versions(),
        "model": {
            "path": settings["model.path"],
            "parameters": param_count(model),
            **dataclasses.asdict(model),
        },
        "settings": dict(settings),
        "steps": len(steps),
        "tokens_sampled": sum(row.get("tokens_sampled", 0) for row in steps),
        "tokens_saved": sum(row.get("tokens_saved", 0) for row in steps),
    }
