"""Unlearn, or fine-tune: `pmc train [experiment=…] [method=…] [key=value …]`.

Loads the target model, evaluates it, trains it with PMC or another method, exports a
Hugging Face directory, evaluates that, and writes the report. The same command continues
a run that was stopped.
"""

import dataclasses

import jax

from pmc_jax.api import is_finished, run_unlearning
from pmc_jax.cli.config import Config, untuned_note
from pmc_jax.cli.entry_point import entry_point
from pmc_jax.cli.finished import show, show_again
from pmc_jax.data import load_dataset
from pmc_jax.language_model import load_language_model, mesh_of, resolved
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
            show_again(directory)
        return
    if config.model.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    if untuned := untuned_note(config):
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


main = entry_point(train, "train", Config)

if __name__ == "__main__":
    main()
