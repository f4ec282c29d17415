"""Reads the files in the directory of a run."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmc_jax.data.files import read_object, read_objects, read_text
from pmc_jax.runs.sealed import file_hash
from pmc_jax.runs.summary import check_summary


@dataclass(frozen=True)
class RunFiles:
    """A finished run as plain data; non-finite numbers are None.

    Attributes:
        summary: measures before and after, seconds, versions, settings.
        metrics: one object per step, in the order of steps.
        samples: one object per evaluated question; empty if the file is absent.
        config: the resolved configuration as YAML text; empty if the file is absent.
        warnings: what is missing in the files, one sentence each.
        changed: files of the exported model that are not those which were measured.
    """

    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    config: str
    warnings: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def with_changed(self, changed: Sequence[str]) -> "RunFiles":
        """The same run with a warning of files of the model that have `changed`."""
        if not changed:
            return self
        found = changed_warning(changed, (self.summary.get("model") or {}).get("weights"))
        summary = {**self.summary, "warnings": [*(self.summary.get("warnings") or []), found]}
        return dataclasses.replace(
            self, summary=summary, warnings=(*self.warnings, found), changed=tuple(changed)
        )


def read_run(run_dir: Path) -> RunFiles:
    """Read summary.json, metrics.jsonl, samples.jsonl and config.yaml of `run_dir`.

    Raises:
        UserError: if the summary, which a run writes last, is missing, or a file has another
            layout.
    """
    summary = read_object(
        run_dir / "summary.json", expected="the summary of a finished run", finite=True
    )
    check_summary(run_dir / "summary.json", summary)
    path = run_dir / "metrics.jsonl"
    metrics = read_objects(path, missing_ok=True, finite=True)
    by_step = {row["step"]: row for row in metrics if isinstance(row.get("step"), int)}
    missing = []
    steps = summary.get("steps")
    if steps is not None and len(by_step) != steps:
        missing.append(
            f"{path} has {len(by_step)} of the {steps} steps of the run, so its curves are not "
            "complete"
        )
        summary["warnings"] = [*(summary.get("warnings") or []), *missing]
    return RunFiles(
        summary=summary,
        metrics=[by_step[step] for step in sorted(by_step)],
        samples=read_objects(run_dir / "samples.jsonl", missing_ok=True, finite=True),
        config=read_text(run_dir / "config.yaml", missing_ok=True),
        warnings=tuple(missing),
    )


def changed_files(run_dir: Path) -> list[str]:
    """Files of the exported model that are not those which the run measured.

    Files that were deleted are not missed.
    """
    summary = read_object(run_dir / "summary.json", expected="the summary of a finished run")
    check_summary(run_dir / "summary.json", summary)
    written = (summary.get("model") or {}).get("files") or {}
    paths = {run_dir / "model" / name: digest for name, digest in written.items()}
    return [
        str(path) for path, digest in paths.items() if path.is_file() and file_hash(path) != digest
    ]


def changed_warning(changed: Sequence[str], weights: Any) -> str:
    """What to say of files of a model that have changed since these weights were measured."""
    return (
        f"{', '.join(changed)}: not what was exported and measured. All that is said here is of "
        f"the weights with the SHA-256 {weights}"
    )


def older_version(summary: Mapping[str, Any]) -> str | None:
    """Why a run has no verdict, if it is because of the version that wrote it."""
    if "verdict" in summary:
        return None
    return "An older version of pmc_jax wrote this run and gave no verdict"


def number(value: Any) -> float | None:
    """`value` as a finite float, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
