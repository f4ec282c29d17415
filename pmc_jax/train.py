"""Unlearn, or fine-tune: `python -m pmc_jax.train [experiment=…] [method=…] [key=value …]`.

Loads the target model, evaluates it, trains it with PMC or another method, exports a
Hugging Face directory, evaluates again, and writes the report. The same command continues
a run that was stopped.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from convert.export import export_checkpoint
from convert.load import load_checkpoint
from pmc_jax.config import Config, entry_point, settings_of
from pmc_jax.data import Dataset, load_dataset
from pmc_jax.data.encode import EncodedData, encode, fingerprints
from pmc_jax.evaluation import (
    Respondent,
    quality,
    questions_asked,
    sample_rows,
)
from pmc_jax.files import read_json, write_json, write_json_lines
from pmc_jax.model import batch_shards, decoding_params, on_mesh, param_count
from pmc_jax.model.specs import Params
from pmc_jax.pretrained import Pretrained, load_pretrained, mesh_of, weights_dtype
from pmc_jax.processes import from_first, is_first, join
from pmc_jax.progress import stage, token_stage
from pmc_jax.reporting import format_examples, format_table, write_report
from pmc_jax.reporting.run_files import read_run
from pmc_jax.reporting.summary import step_seconds, summarise
from pmc_jax.training.alternatives import sample_alternatives
from pmc_jax.training.baseline import (
    BaselineRun,
    baseline_steps,
    needs_reference,
    reference_nll,
)
from pmc_jax.training.checkpoints import (
    RunState,
    checksums,
    open_checkpoints,
    restore_latest,
    seal,
)
from pmc_jax.training.loop import (
    PMCRun,
    UnlearningTask,
    greedy_originals,
    pmc_steps,
    updates_per_epoch,
)
from pmc_jax.training.metrics import open_metrics
from pmc_jax.training.objectives import Frozen, freeze, method_objective
from pmc_jax.training.optimizer import make_optimizer, make_schedule
from pmc_jax.training.packing import Pair
from pmc_jax.training.run import Record, unlearn
from pmc_jax.training.run_directory import SUMMARY, begin_run, holds_run, place_of
from pmc_jax.training.shapes import run_shapes
from pmc_jax.training.step import (
    abstract_state,
    init_state,
    make_objective_step,
    make_train_step,
)
from pmc_jax.training.targets import (
    MethodData,
    load_forget_pairs,
    method_data,
    target_fingerprints,
    with_alternatives,
)
from pmc_jax.unlearning import empty_memory
from pmc_jax.unlearning.config import AltPOConfig, PMCConfig, RMUConfig
from pmc_jax.unlearning.rmu import steered_layer, trained_weights

NOT_SETTINGS = (
    "overwrite", "runs_dir", "mesh", "logging.tensorboard", "logging.wandb", "logging.update_norm",
)  # fmt: skip
"""Keys that may differ when a run is continued."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run reads, but for the weights, as checked before anything is written.

    `targets` are what a method other than PMC trains on; a PMC run has none.
    """

    model: Pretrained
    dataset: Dataset
    encoded: EncodedData
    targets: MethodData | None
    mesh: Mesh | None


def load_inputs(cfg: Config) -> tuple[Inputs, Params]:
    """Load and check data, tokenizer and weights."""
    dataset = load_dataset(cfg.data)
    mesh = mesh_of(cfg.model, cfg.mesh)
    model, params = load_pretrained(cfg.model, cfg.prompt, mesh)
    if isinstance(cfg.method, RMUConfig):
        steered_layer(cfg.method, model.cfg)  # an error now rather than later
    template, vocab_size = model.template, model.cfg.vocab_size
    encoded = encode(dataset, template, cfg.training.max_length, vocab_size)
    targets = None
    if not isinstance(cfg.method, PMCConfig):
        targets = method_data(cfg.method, cfg.data, encoded, template, vocab_size, cfg.seed)
    return Inputs(model, dataset, encoded, targets, mesh), params


def fingerprints_of(inputs: Inputs, params: Params) -> dict[str, str]:
    """Hashes by name of everything that the run reads."""
    targets = target_fingerprints(inputs.targets) if inputs.targets else {}
    weights = {"model weights": seal(checksums(params))}
    return {**fingerprints(inputs.dataset, inputs.encoded), **targets, **weights}


def evaluate_stage(
    cfg: Config, inputs: Inputs, params: Params, path: Path, name: str
) -> dict[str, Any]:
    """Evaluate `params` and keep the result in `path`; read it where it exists."""
    stored = from_first(lambda: read_json(path))
    if stored is not None:
        return stored
    started = time.perf_counter()
    respondent = Respondent(
        decoding_params(params, inputs.model.cfg, cfg.model.dtype),
        inputs.model.cfg,
        inputs.model.template,
        cfg.training.max_length,
        cfg.model.dtype,
    )
    sets = inputs.dataset.evaluation
    with token_stage(name, questions_asked(sets, cfg.evaluation)) as on_batch:
        key = jax.random.fold_in(jax.random.key(cfg.seed), 1)
        result = quality(respondent, sets, cfg.evaluation, key, on_batch)
    result["seconds"] = time.perf_counter() - started
    write_json(path, result)
    return result


@contextmanager
def timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Add the time that the block takes to `seconds[part]`."""
    started = time.perf_counter()
    yield
    seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - started


Steps = Callable[
    [RunState, dict[str, Any], Callable[[str], None]], Iterator[tuple[RunState, Record]]
]
"""From the state to start at, the JSON kept beside it, and where to say what a person may want
to know first, to the steps that are left."""


def originals_of(cfg: Config, method: PMCConfig, inputs: Inputs, params: Params) -> dict[str, Any]:
    """y0 of every forget question, as it is kept beside the checkpoints."""
    originals = greedy_originals(
        params,
        inputs.encoded.forget,
        model=inputs.model.cfg,
        template=inputs.model.template,
        batch=cfg.training,
        max_new_tokens=method.max_new_tokens,
        dtype=cfg.model.dtype,
    )
    return {"originals": originals}


def references_of(cfg: Config, inputs: Inputs, data: MethodData, params: Params) -> dict[str, Any]:
    """N_ref of every answer and of what is preferred to it, as kept beside the checkpoints."""

    def reference(pairs: Sequence[Pair]) -> list[float]:
        if not needs_reference(cfg.method):
            return [0.0] * len(pairs)
        return reference_nll(
            params,
            pairs,
            model=inputs.model.cfg,
            template=inputs.model.template,
            batch=cfg.training,
            dtype=cfg.model.dtype,
            remat=cfg.model.remat,
        ).tolist()

    preferred = iter(reference([pair for own in data.preferred for pair in own]))
    return {
        "references": {
            "answers": reference(data.answers),
            "preferred": [list(islice(preferred, len(own))) for own in data.preferred],
        }
    }


def alternatives_of(
    cfg: Config, method: AltPOConfig, inputs: Inputs, params: Params
) -> dict[str, Any]:
    """The alternatives that AltPO samples before it begins, as they are kept."""
    alternatives = sample_alternatives(
        params,
        load_forget_pairs(cfg.data),
        inputs.encoded.forget,
        method=method,
        model=inputs.model.cfg,
        template=inputs.model.template,
        batch=cfg.training,
        key=jax.random.fold_in(jax.random.key(cfg.seed), 2),
        dtype=cfg.model.dtype,
    )
    return {"alternatives": alternatives}


def targets_with(inputs: Inputs, extra: dict[str, Any]) -> MethodData:
    """What a method other than PMC trains on, alternatives kept in `extra` included."""
    assert inputs.targets is not None
    if "alternatives" not in extra:
        return inputs.targets
    template, vocab_size = inputs.model.template, inputs.model.cfg.vocab_size
    return with_alternatives(inputs.targets, extra["alternatives"], template, vocab_size)


def alternative_rows(inputs: Inputs, extra: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The sampled alternatives as `method.alternatives` reads them."""
    for row, own in zip(inputs.dataset.forget, extra["alternatives"], strict=True):
        yield {"question": row.question, "alternatives": own}


def fixed_before(cfg: Config, inputs: Inputs, params: Params) -> dict[str, Any]:
    """What the target model alone decides, with the seconds that finding it took."""
    seconds, found = {"checkpoint": 0.0}, {}
    if isinstance(cfg.method, PMCConfig):
        with timed(seconds, "originals"):
            found = originals_of(cfg, cfg.method, inputs, params)
    else:
        if isinstance(cfg.method, AltPOConfig) and cfg.method.alternatives is None:
            with timed(seconds, "alternatives"):
                found = alternatives_of(cfg, cfg.method, inputs, params)
        with timed(seconds, "references"):
            found |= references_of(cfg, inputs, targets_with(inputs, found), params)
    return {**found, "seconds": seconds}


def pmc_run(
    cfg: Config, method: PMCConfig, inputs: Inputs, optimizer: optax.GradientTransformation
) -> Steps:
    """The steps of PMC."""
    model, encoded = inputs.model, inputs.encoded
    train_step = make_train_step(
        optimizer,
        model.cfg,
        method.retain_weight,
        dtype=cfg.model.dtype,
        remat=cfg.model.remat,
        gradient_dtype=cfg.training.gradient_dtype,
        update_norm=cfg.logging.update_norm,
    )

    def steps(
        state: RunState, extra: dict[str, Any], say: Callable[[str], None]
    ) -> Iterator[tuple[RunState, Record]]:
        run = PMCRun(
            task=UnlearningTask(encoded.forget, extra["originals"], encoded.retain),
            model=model.cfg,
            template=model.template,
            pmc=method,
            batch=cfg.training,
            key=jax.random.fold_in(jax.random.key(cfg.seed), 0),
            seed=cfg.seed,
            train_step=train_step,
            dtype=cfg.model.dtype,
        )
        for line in run_shapes(run, batch_shards()).lines():
            say(line)
        return pmc_steps(run, state)

    return steps


def baseline_run(
    cfg: Config, inputs: Inputs, optimizer: optax.GradientTransformation, frozen: Frozen
) -> Steps:
    """The steps of any other method."""
    objective = method_objective(cfg.method, inputs.model.cfg, cfg.model.dtype, cfg.model.remat)

    def steps(
        state: RunState, extra: dict[str, Any], say: Callable[[str], None]
    ) -> Iterator[tuple[RunState, Record]]:
        wide, references = weights_dtype(cfg.model), extra["references"]
        run = BaselineRun(
            method=cfg.method,
            data=targets_with(inputs, extra),
            template=inputs.model.template,
            batch=cfg.training,
            seed=cfg.seed,
            train_step=make_objective_step(
                optimizer,
                objective,
                inputs.model.cfg,
                cfg.training.gradient_dtype,
                cfg.logging.update_norm,
            ),
            answer_reference=np.asarray(references["answers"], wide),
            preferred_reference=[np.asarray(own, wide) for own in references["preferred"]],
            frozen=frozen,
        )
        return baseline_steps(run, state)

    return steps


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
    trained = trained_weights(method, model.cfg) if isinstance(method, RMUConfig) else None
    optimizer = make_optimizer(cfg.optimizer, model.cfg, schedule, trained)
    dtype = weights_dtype(cfg.model)
    if isinstance(cfg.method, PMCConfig):
        memory = empty_memory(len(forget), cfg.training.max_length)
        steps = pmc_run(cfg, cfg.method, inputs, optimizer)
    else:
        memory = empty_memory(1, 1)  # a method without samples has nothing to remember
        frozen = freeze(cfg.method, params, model.cfg, cfg.model.dtype, cfg.seed)
        steps = baseline_run(cfg, inputs, optimizer, frozen)
    with open_checkpoints(directory / "checkpoints", cfg.checkpoints) as manager:
        like = RunState(abstract_state(model.cfg, optimizer, dtype, inputs.mesh), memory)
        if from_first(manager.latest_step) is not None:
            for leaf in jax.tree.leaves(params):
                leaf.delete()  # the restored weights take this room
        restored = restore_latest(manager, like)
        if restored is None:
            extra = fixed_before(cfg, inputs, params)
            state = RunState(init_state(params, optimizer), memory)
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
                parameters=param_count(model.cfg), manager=manager, metrics=metrics,
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
                trained, inputs.model.cfg, inputs.model.directory, directory / "model"
            )
        del trained
        # What is measured is what was exported, after rounding to the stored dtypes.
        dtype = weights_dtype(cfg.model)
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
        inputs.model.cfg,
        before["measures"],
        after["measures"],
        steps,
        parts,
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
