"""Unlearn, or fine-tune: `pmc train [experiment=…] [method=…] [key=value …]`.

Loads the target model, evaluates it, trains it with PMC or another method, exports a
Hugging Face directory, evaluates that, and writes the report. The same command continues
a run that was stopped.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

import jax
from hydra.core.hydra_config import HydraConfig

from pmc_jax.api import is_finished, run_unlearning
from pmc_jax.cli.commands import called
from pmc_jax.cli.config import Config, settings_of_another
from pmc_jax.cli.entry_point import entry_point
from pmc_jax.data import load_dataset
from pmc_jax.evaluation.verdicts import FORGOTTEN
from pmc_jax.language_model import load_language_model, mesh_of, resolved
from pmc_jax.reporting import format_examples, format_table, write_report
from pmc_jax.reporting.run_files import read_run
from pmc_jax.reporting.verdict import verdict_lines
from pmc_jax.runs.directory import LOG, directory_of
from pmc_jax.runtime.memory import allow_memory
from pmc_jax.runtime.processes import from_first, is_first, join
from pmc_jax.runtime.progress import activity, logged_to, say
from pmc_jax.runtime.timing import timed
from pmc_jax.settings import recorded

NOT_SETTINGS = (
    "overwrite", "runs_dir", "mesh", "memory", "model.check_weights", "logging.tensorboard",
    "logging.wandb", "logging.update_norm",
)  # fmt: skip
"""Keys that may differ when a run is continued."""

DATA_KEYS = (
    "data.path", "data.forget", "data.retain", "data.world_facts", "data.real_authors",
)  # fmt: skip
"""The settings that say which questions an evaluation asks."""


def train(config: Config) -> None:
    """One whole run, which all its processes call."""
    join(config.distributed)
    allow_memory(config.memory)
    config = dataclasses.replace(config, model=resolved(config.model))
    read = [("model.path", config.model.path), ("data.path", config.data.path)]
    read += [(f"method.{key}", getattr(config.method, key)) for key in config.method.reads]
    read += [("adapter.path", config.adapter.path if config.adapter else None)]
    directory = directory_of(config.runs_dir, config.name, read)
    settings = recorded(config, without=NOT_SETTINGS)
    if from_first(lambda: is_finished(directory, settings, overwrite=config.overwrite)):
        if is_first():
            print(f"{directory} is a finished run; overwrite=true runs it again")
            if (directory / "report").exists():
                write_report(directory)
            show(directory)
        return
    if config.model.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    untuned = settings_of_choices(config)
    if untuned:
        say(f"note: {untuned}")
    seconds: dict[str, float] = {}
    with timed(seconds, "load"), activity(f"loading {config.model.path}"):
        data = load_dataset(config.data)
        mesh = mesh_of(config.model, config.mesh)
        model = load_language_model(
            config.model, config.prompt, mesh, as_stored=config.adapter is not None
        )
    say(f"Prompt: {model.template}")
    run_unlearning(
        model, data, config.method, config.training, config.optimizer, adapter=config.adapter,
        seed=config.seed, evaluation=config.evaluation, directory=directory,
        overwrite=config.overwrite, checkpoints=config.checkpoints, logging=config.logging,
        donate=True, settings=settings, seconds=seconds, untuned=untuned,
    )  # fmt: skip
    if is_first():
        with logged_to(directory / LOG, goes_on=True):
            show(directory)


def settings_of_choices(config: Config) -> str | None:
    """`settings_of_another` of the command that runs; None outside a command."""
    if not HydraConfig.initialized():
        return None
    hydra = HydraConfig.get()
    sources = [Path(s.path) for s in hydra.runtime.config_sources if s.schema == "file"]
    return settings_of_another(config, hydra.runtime.choices, hydra.overrides.task, sources)


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


main = entry_point(train, "train", Config)

if __name__ == "__main__":
    main()
