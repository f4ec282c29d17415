"""What `pmc train` says of a finished run, and which commands come next."""

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from pmc_jax.cli.commands import called
from pmc_jax.evaluation.verdicts import FORGOTTEN
from pmc_jax.reporting import format_examples, format_table, write_report
from pmc_jax.reporting.run_files import read_run
from pmc_jax.reporting.verdict import verdict_lines
from pmc_jax.runtime.progress import say

DATA_KEYS = (
    "data.path", "data.forget", "data.retain", "data.world_facts", "data.real_authors",
)  # fmt: skip
"""The settings that say which questions an evaluation asks."""


def show_again(directory: Path) -> None:
    """Say that a run is finished already, write its report again, and show it."""
    print(f"{directory} is a finished run; overwrite=true runs it again")
    if (directory / "report").exists():
        write_report(directory)
    show(directory)


def show(directory: Path) -> None:
    """Say the verdict, the table of before and after, three examples, and what comes next."""
    run = read_run(directory)
    for warning in run.warnings:
        say(f"warning: {warning}")
    if verdict := run.summary.get("verdict"):
        say(f"\n{verdict_lines(verdict)}")
    say(f"\n{format_table(run.summary)}\n")
    if examples := format_examples(run.samples, 3):
        say(f"{examples}\n")
    found = (run.summary.get("model") or {}).get("precision")
    say(f"Model:  {directory / 'model'}" + (f" ({found})" if found else ""))
    page = directory / "report" / "index.html"
    if page.is_file():
        say(f"Report: {page}")
    say("\n".join(next_steps(directory, run.summary)))


def is_of_data(key: str, value: Any) -> bool:
    """Whether a setting says which questions an evaluation asks, and is not the usual one."""
    section, _, column = key.rpartition(".")
    named = section == "data.fields" and value != column
    return named or (key in DATA_KEYS and value is not None)


def next_steps(directory: Path, summary: Mapping[str, Any]) -> list[str]:
    """What one does with a finished run, as commands, a line each."""
    settings, model = summary["settings"], quote(str(directory / "model"))
    data = [
        f"{key}={quote(str(value))}" for key, value in settings.items() if is_of_data(key, value)
    ]
    if settings.get("data.format") == "files":
        data.insert(0, "data=files")
    elif settings.get("data.path") == "bundled":
        data = []
    compared = f"compare={quote(str(settings['model.path']))}"
    lines = [
        "",
        "Next:",
        f'  {called("ask")} model.path={model} question="…"',
        "  " + " ".join([called("evaluate"), "suite=full", f"model.path={model}", compared, *data]),
    ]
    statement = directory / "report" / "statement.html"
    forgotten = (summary.get("verdict") or {}).get("verdict") == FORGOTTEN
    if forgotten and statement.is_file():
        lines.append(f"  hand on {statement} and {directory / 'model'}; keep the rest to yourself")
    return lines
