"""Unlearn, or fine-tune: `python -m pmc_jax.train [experiment=…] [method=…] [key=value …]`.

Loads the target model, evaluates it, trains it with PMC or another method, exports a
Hugging Face directory, evaluates again, and writes the report. The same command continues
a run that was stopped.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import jax

from convert.export import export_checkpoint
from convert.load import load_checkpoint
from pmc_jax.cli.config import Config, settings_of
from pmc_jax.cli.entry_point import entry_point
from pmc_jax.evaluation import quality, questions_asked, sample_rows
from pmc_jax.method_steps import alternative_rows, fixed_before, steps_of_baseline, steps_of_pmc
from pmc_jax.model import on_mesh, param_count
from pmc_jax.model.language_model import weights_dtype
from pmc_jax.model.specs import Params
from pmc_jax.reporting import format_examples, format_table, write_report
from pmc_jax.reporting.run_files import read_run
from pmc_jax.runs.checkpoints import RunState, open_checkpoints, restore_latest
from pmc_jax.runs.directory import SUMMARY, begin_run, holds_run, place_of
from pmc_jax.runs.files import read_json, write_json, write_json_lines
from pmc_jax.runs.metrics import open_metrics
from pmc_jax.runs.summary import step_seconds, summarise
from pmc_jax.runtime.processes import from_first, is_first, join
from pmc_jax.runtime.progress import stage, token_stage
from pmc_jax.runtime.timing import timed
from pmc_jax.training.batch import updates_per_epoch
from pmc_jax.training.objectives import freeze
from pmc_jax.training.optimizer import make_optimizer, make_schedule
from pmc_jax.training.run import unlearn
from pmc_jax.training.step import TrainState, abstract_state, init_state, place_state
from pmc_jax.training_inputs import Inputs, fingerprints_of, load_inputs
from pmc_jax.unlearning import empty_memory
from pmc_jax.unlearning.config import AltPOConfig, PMCConfig, RMUConfig
from pmc_jax.unlearning.rmu import trained_weights

NOT_SETTINGS = (
    "overwrite", "runs_dir", "mesh", "logging.tensorboard", "logging.wandb", "logging.update_norm",
)  # fmt: skip
"""Keys that may differ when a run is continued."""


def evaluate_stage(
    cfg: Config, inputs: Inputs, params: Params, path: Path, name: str
) -> dict[str, Any]:
    """Evaluate `params` and keep the result in `path`; read it where it exists."""
    stored = from_first(lambda: read_json(path))
    if stored is not None:
        return stored
    started = time.perf_counter()
    model = inputs.model.with_params(params).for_decoding()
    sets = inputs.dataset.evaluation
    with token_stage(name, questions_asked(sets, cfg.evaluation)) as on_batch:
        key = jax.random.fold_in(jax.random.key(cfg.seed), 1)
        result = quality(
            model, sets, cfg.evaluation, key,
            max_length=cfg.training.max_length, on_batch=on_batch,
        )  # fmt: skip
    result["seconds"] = time.perf_counter() - started
    write_json(path, result)
    return result


def train_stage(
    cfg: Config, inputs: Inputs, params: Params, directory: Path
) -> tuple[Params, list[dict[str, Any]], dict[str, float]]:
    """Train from the newest checkpoint, or from `params`, which it donates, to the last step.

    Returns the trained weights, the lines of `metrics.jsonl`, and the seconds of what is
    no step.
    """
    model, forget, targets = inputs.model, inputs.encoded.forget, inputs.targets
    per_epoch = updates_per_epoch(targets.visited if targets else len(forget), cfg.training)
    total = per_epoch * cfg.training.epochs
    schedule = make_schedule(cfg.optimizer, total, per_epoch)
    method = cfg.method
    trained = trained_weights(method, model.config) if isinstance(method, RMUConfig) else None
    optimizer = make_optimizer(cfg.optimizer, model.config, schedule, trained)
    dtype = weights_dtype(cfg.model.dtype)
    if isinstance(cfg.method, PMCConfig):
        memory = empty_memory(len(forget), cfg.training.max_length)
        steps = steps_of_pmc(cfg, cfg.method, inputs, optimizer)
    else:
        memory = empty_memory(1, 1)  # a method without samples has nothing to remember
        frozen = freeze(cfg.method, params, model.config, cfg.model.dtype, cfg.seed)
        steps = steps_of_baseline(cfg, inputs, optimizer, frozen)

    @partial(jax.jit, donate_argnums=0)
    def start(params: Params) -> TrainState:
        """The first state, by one program: eagerly, every shape of a moment would be one."""
        return place_state(init_state(params, optimizer), model.config, optimizer)

    with open_checkpoints(directory / "checkpoints", cfg.checkpoints) as manager:
        like = RunState(abstract_state(model.config, optimizer, dtype, inputs.mesh), memory)
        if from_first(manager.latest_step) is not None:
            for leaf in jax.tree.leaves(params):
                leaf.delete()  # the restored weights take this room
        restored = restore_latest(manager, like)
        if restored is None:
            extra = fixed_before(cfg, inputs, params)
            state = RunState(start(params), memory)
        else:
            state, extra = restored
        if "alternatives" in extra:
            write_json_lines(directory / "alternatives.jsonl", alternative_rows(inputs, extra))
        first = int(state.train.step)
        with (
            open_metrics(
                directory,
                first,
                settings=settings_of(cfg),
                tensorboard=cfg.logging.tensorboard,
                wandb=cfg.logging.wandb,
            ) as metrics,
            stage(cfg.method.name, total, first) as progress,
        ):
            state, extra = unlearn(
                steps(state, extra, progress.say), state, extra, total=total,
                every=cfg.checkpoints.every, schedule=schedule,
                parameters=param_count(model.config), manager=manager, metrics=metrics,
                progress=progress,
            )  # fmt: skip
    return state.train.params, metrics.rows, extra["seconds"]


def train(cfg: Config) -> None:
    """One whole run, which all processes of it call."""
    join(cfg.distributed)
    read = [("model.path", cfg.model.path), ("data.path", cfg.data.path)]
    if isinstance(cfg.method, AltPOConfig):
        read.append(("method.alternatives", cfg.method.alternatives))
    directory = place_of(cfg.runs_dir, cfg.name, read)
    settings = {key: value for key, value in settings_of(cfg).items() if key not in NOT_SETTINGS}

    def finished() -> bool:
        goes_on = holds_run(directory, settings, overwrite=cfg.overwrite)
        return goes_on and (directory / SUMMARY).is_file()

    if from_first(finished):
        if is_first():
            print(f"{directory} is a finished run; overwrite=true runs it again")
            show(directory)
        return
    if cfg.model.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    seconds: dict[str, float] = {}
    with timed(seconds, "load"):
        inputs, params = load_inputs(cfg)
    begin_run(directory, settings, fingerprints_of(inputs, params), overwrite=cfg.overwrite)
    with on_mesh(inputs.mesh):
        write_run(cfg, inputs, params, directory, seconds)
    if is_first():
        show(directory)


def write_run(
    cfg: Config, inputs: Inputs, params: Params, directory: Path, seconds: dict[str, float]
) -> None:
    """Evaluate, train, which donates `params`, export, and evaluate again.

    `seconds` are those of what came before.
    """
    before = evaluate_stage(
        cfg, inputs, params, directory / "evaluation/before.json", "evaluating before"
    )
    trained, steps, train_seconds = train_stage(cfg, inputs, params, directory)
    with timed(seconds, "export"):
        if not from_first((directory / "model").exists):
            export_checkpoint(
                trained, inputs.model.config, inputs.model.directory, directory / "model"
            )
        del trained
        # What is measured is what was exported, after rounding to the stored dtypes.
        dtype = weights_dtype(cfg.model.dtype)
        exported = load_checkpoint(directory / "model", dtype=dtype, mesh=inputs.mesh).params
    after = evaluate_stage(
        cfg, inputs, exported, directory / "evaluation/after.json", "evaluating after"
    )
    if not is_first():
        return
    checkpoint_seconds = train_seconds.pop("checkpoint")
    parts = {
        "load": seconds["load"],
        "evaluate_before": before["seconds"],
        **train_seconds,
        **step_seconds(steps),
        "checkpoint": checkpoint_seconds,
        "export": seconds["export"],
        "evaluate_after": after["seconds"],
    }
    write_json_lines(directory / "samples.jsonl", sample_rows(before["answers"], after["answers"]))
    summary = summarise(
        cfg.name,
        settings_of(cfg),
        inputs.model.config,
        before["measures"],
        after["measures"],
        steps,
        parts,
        {"name": cfg.method.name},
    )
    write_json(directory / SUMMARY, summary)


def show(directory: Path) -> None:
    """Write the report; print the before/after table, three examples, and where all is."""
    report = write_report(directory)
    run = read_run(directory)
    print(f"\n{format_table(run.summary)}\n")
    if examples := format_examples(run.samples, 3):
        print(f"{examples}\n")
    print(f"Model:  {directory / 'model'}\nReport: {report}")


main = entry_point(train, "train", Config)

if __name__ == "__main__":
    main()
