"""Reads the files in the directory of a run."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmc_jax.errors import UserError


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
    path = run_dir / "summary.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: a report needs the directory of a finished run")
    summary = parse_object(path.read_text(encoding="utf-8"), str(path))
    by_step = {row.get("step"): row for row in read_lines(run_dir / "metrics.jsonl")}
    config = run_dir / "config.yaml"
    return RunFiles(
        summary=summary,
        metrics=[by_step[step] for step in sorted(by_step, key=lambda step: step or 0)],
        samples=read_lines(run_dir / "samples.jsonl"),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, or nothing if there is no such file."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [
        parse_object(line, f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def parse_object(text: str, where: str) -> dict[str, Any]:
    """Parse one JSON object. `where` names it in the error."""
    try:
        value = json.loads(text, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg}, column {error.colno})") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def number(value: Any) -> float | None:
    """`value` as a finite float, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
