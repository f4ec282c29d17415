"""Reads the files in the directory of a run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmc_jax.data.files import read_object, read_objects, read_text


@dataclass(frozen=True)
class RunFiles:
    """A finished run as plain data; non-finite numbers are None.

    Attributes:
        summary: measures before and after, seconds, versions, settings.
        metrics: one object per step, in the order of steps.
        samples: one object per evaluated question; empty if the file is absent.
        config: the resolved configuration as YAML text; empty if the file is absent.
    """

    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    config: str


def read_run(run_dir: Path) -> RunFiles:
    """Read summary.json, metrics.jsonl, samples.jsonl and config.yaml of `run_dir`.

    Raises:
        UserError: if the summary, which a run writes last, is missing, or a file has another
            layout.
    """
    summary = read_object(
        run_dir / "summary.json", expected="the summary of a finished run", finite=True
    )
    metrics = read_objects(run_dir / "metrics.jsonl", missing_ok=True, finite=True)
    by_step = {row.get("step"): row for row in metrics}
    return RunFiles(
        summary=summary,
        metrics=[by_step[step] for step in sorted(by_step, key=lambda step: step or 0)],
        samples=read_objects(run_dir / "samples.jsonl", missing_ok=True, finite=True),
        config=read_text(run_dir / "config.yaml", missing_ok=True),
    )


def older_version(summary: Mapping[str, Any]) -> str | None:
    """Why a run has no verdict, if it is because of the version that wrote it."""
    if "verdict" in summary:
        return None
    return "An older version of pmc_jax wrote this run and gave no verdict."


def number(value: Any) -> float | None:
    """`value` as a finite float, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
