"""Unlearn, or fine-tune: `pmc train [experiment=…] [method=…] [key=value …]`.

Loads the target model, evaluates it, trains it with PMC or another method, exports a
Hugging Face directory, evaluates that, and writes the report. The same command continues
a run that was stopped.
"""

import dataclasses
from pathlib import Path

import jax
from hydra.core.hydra_config import HydraConfig

from pmc_jax.api import is_finished, run_unlearning
from pmc_jax.cli.config import Config, settings_of_another
from pmc_jax.cli.entry_point import entry_point
from pmc_jax.data import load_dataset
from pmc_jax.language_model import load_language_model, mesh_of, resolved
from pmc_jax.reporting import format_examples, format_table, write_report
from pmc_jax.reporting.run_files import read_run
from pmc_jax.reporting.verdict import verdict_lines
from pmc_jax.runs.directory import directory_of
from pmc_jax.runtime.memory import allow_memory
from pmc_jax.runtime.processes import from_first, is_first, join
from pmc_jax.runtime.timing import timed
from pmc_jax.settings import recorded

NOT_SETTINGS = (
    "overwrite", "runs_dir", "mesh", "memory", "model.check_weights", "logging.tensorboard",
    "logging.wandb", "logging.update_norm",
)  # fmt: skip
"""Keys that may differ when a run is continued."""


def train(config: Config) -> None:
    """One whole run, which all its processes call."""
    join(config.distributed)
    allow_memory(config.memory)
    config = dataclasses.replace(config, model=resolved(config.model))
    read = [("model.path", config.model.path), ("data.path", config.data.path)]
    read += [(f"method.{key}", getattr(config.method, key)) for key in config.method.reads]
    directory = directory_of(config.runs_dir, config.name, read)
    settings = recorded(config, without=NOT_SETTINGS)
    if from_first(lambda: is_finished(directory, settings, overwrite=config.overwrite)):
        if is_first():
            print(f"{directory} is a finished run; overwrite=true runs it again")
            write_report(directory)
            show(directory)
        return
    if config.model.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    untuned = settings_of_choices(config)
    if untuned and is_first():
        print(f"note: {untuned}")
    seconds: dict[str, float] = {}
    with timed(seconds, "load"):
        data = load_dataset(config.data)
        model = load_language_model(config.model, config.prompt, mesh_of(config.model, config.mesh))
    if is_first():
        print(f"Prompt: {model.template}", flush=True)
    run_unlearning(
        model, data, config.method, config.training, config.optimizer, seed=config.seed,
        evaluation=config.evaluation, directory=directory, overwrite=config.overwrite,
        checkpoints=config.checkpoints, logging=config.logging, donate=True, settings=settings,
        seconds=seconds, untuned=untuned,
    )  # fmt: skip
    if is_first():
        show(directory)


def settings_of_choices(config: Config) -> str | None:
    """`settings_of_another` of the command that runs; None outside a command."""
    if not HydraConfig.initialized():
        return None
    hydra = HydraConfig.get()
    sources = [Path(s.path) for s in hydra.runtime.config_sources if s.schema == "file"]
    return settings_of_another(config, hydra.runtime.choices, hydra.overrides.task, sources)


def show(directory: Path) -> None:
    """Print the verdict, the table of before and after, three examples, and where everything is."""
    run = read_run(directory)
    if verdict := run.summary.get("verdict"):
        print(f"\n{verdict_lines(verdict)}")
    print(f"\n{format_table(run.summary)}\n")
    if examples := format_examples(run.samples, 3):
        print(f"{examples}\n")
    found = (run.summary.get("model") or {}).get("precision")
    model = f"{directory / 'model'}" + (f" ({found})" if found else "")
    print(f"Model:  {model}\nReport: {directory / 'report' / 'index.html'}")


main = entry_point(train, "train", Config)

if __name__ == "__main__":
    main()
