"""The content of `summary.json`."""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from pmc_jax import __version__
from pmc_jax.model import ModelConfig, param_count

STEP_PARTS = ("sample", "score", "train")
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
    """Seconds by part over all steps."""
    return {part: sum(row["seconds"][part] for row in steps) for part in STEP_PARTS}


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
        "tokens_sampled": sum(row["tokens_sampled"] for row in steps),
        "tokens_saved": sum(row["tokens_saved"] for row in steps),
    }
