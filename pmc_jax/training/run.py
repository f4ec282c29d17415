"""A run: what a method receives, what it prepares, and its training from the first step on."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax

from pmc_jax.data import Dataset
from pmc_jax.data.checks import cut_answers
from pmc_jax.data.encode import (
    digest,
    encode,
    fingerprints,
    position_warnings,
    special_token_warnings,
)
from pmc_jax.data.files import to_json, write_json_lines
from pmc_jax.errors import UserError
from pmc_jax.language_model import LanguageModel
from pmc_jax.model import ModelConfig, param_count
from pmc_jax.model.memory import footprint
from pmc_jax.model.specs import Params
from pmc_jax.model.trainable import (
    LoRA,
    Trainable,
    dtypes_of,
    joined_weights,
    trainable,
    trained_specs,
)
from pmc_jax.runs.checkpoints import (
    CheckpointConfig,
    checksums,
    open_checkpoints,
    restore_latest,
)
from pmc_jax.runs.metrics import LoggingConfig, open_metrics
from pmc_jax.runs.sealed import file_hashes, seal
from pmc_jax.runtime.memory import free_memory
from pmc_jax.runtime.processes import from_all, from_first, is_first
from pmc_jax.runtime.progress import Stage, activity, warn
from pmc_jax.runtime.timing import timed
from pmc_jax.training.loop import METRICS, RunFiles, StepRecord, train
from pmc_jax.training.optimizer import Optimizer, make_optimizer, make_schedule
from pmc_jax.training.sizes import lengths_of, less_memory, shortage, sizes, step_bytes
from pmc_jax.training.step import (
    RunState,
    TrainState,
    abstract_state,
    init_state,
    make_train_step,
    place_state,
)
from pmc_jax.training.weights import ADAPTER_STREAM, is_cast, split_weights
from pmc_jax.unlearning.method import Example, Examples, Method, Run, Task, TaskWithAnswers
from pmc_jax.unlearning.rehearsal import rehearsal_pairs, with_rehearsal
from pmc_jax.unlearning.schedule import Training


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Everything that a run reads except the weights, checked before anything is written.

    Attributes:
        task: what the method receives.
        examples: what it trains on.
        questions: the forget questions as texts.
        hashes: of everything that the run reads, by name.
        warnings: what is suspicious in the data, one sentence each.
    """

    task: Task
    examples: Examples
    questions: tuple[str, ...]
    hashes: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def prepare_inputs(
    model: LanguageModel,
    dataset: Dataset,
    method: Method,
    training: Training,
    seed: int,
    adapter: LoRA | None = None,
) -> Inputs:
    """Encode and check what a method trains on. A PMC run gets no forget answer here.

    Raises:
        UserError: naming what is wrong with a row, a file or a setting.
    """
    method.check()
    part = trainable(model.config, training.only, adapter)
    if part is not None:
        part.mask(method.trained_weights(model.config))  # an error now rather than later
    encoded = encode(dataset, model.template, training.max_length, model.config.vocab_size)
    received: dict[str, Any] = {
        "model": model.with_params({}),
        "training": training,
        "seed": seed,
        "prompts": encoded.forget,
        "retain": [Example(*pair) for pair in encoded.retain],
        "refusals": dataset.refusals,
        "questions": dataset.forget,
        "part": part,
    }
    if method.sees_answers:
        task: Task = TaskWithAnswers(**received, forget=dataset.forget_pairs())
    else:
        task = Task(**received)
    examples = method.examples_of(task)
    if training.rehearsal and not method.retain_pairs:
        raise UserError(
            f"training.rehearsal={training.rehearsal}: method={method.name} has no retain loss "
            "with these settings; expected 0"
        )
    if method.retain_pairs and not examples.retain:
        raise ValueError(
            f"{method.name}: retain_pairs is {method.retain_pairs}, but examples_of gave no "
            "retain pairs"
        )
    hashes = {
        **fingerprints(dataset, encoded),
        "answers trained on": digest([example.answer for example in examples.forget]),
        "preferred answers": digest([[e.answer for e in own] for own in examples.preferred]),
        "model weights": seal(checksums(model.params)),
    }
    if part is not None and adapter is not None and adapter.path is not None:
        model.read_adapter(part)  # an error now rather than later
        hashes["adapter"] = seal(file_hashes(Path(adapter.path).expanduser()))
    warnings = (
        *dataset.warnings,
        *special_token_warnings(dataset, model.template),
        *position_warnings(dataset, model.template, training.max_length, model.positions),
        *warnings_of_cuts(dataset, task, examples),
    )
    return Inputs(task, examples, tuple(row.question for row in dataset.forget), hashes, warnings)


def warnings_of_cuts(dataset: Dataset, task: Task, examples: Examples) -> list[str]:
    """Warn of answers that training cuts, among those that the method trains on."""

    def key(example: Example) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return tuple(example.prompt), tuple(example.answer)

    trained = set(map(key, (*examples.forget, *examples.retain)))
    rows: dict[str, Sequence[Example]] = {"retain": task.retain}
    if isinstance(task, TaskWithAnswers):
        rows["forget"] = task.true_answers()
    found = []
    for name, own in rows.items():
        lengths = {
            row: len(example.prompt) + len(example.answer)
            for row, example in enumerate(own)
            if key(example) in trained
        }
        found += cut_answers(name, lengths, task.training.max_length, dataset.sources)
    return found


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training gives.

    Attributes:
        params: all weights, with the trained ones in place and an adapter merged.
        adapter: the adapter, laid out as `Trainable` says; None: none was trained.
        records: the steps of this process; a run that was continued had others before.
        lines: all lines of `metrics.jsonl`; of a run in memory, none.
        seconds: those outside the steps, by part.
    """

    params: Params
    records: list[StepRecord]
    lines: list[dict[str, Any]]
    seconds: dict[str, float]
    adapter: Params | None = None


NOTHING_TRAINED = (
    "warning: the learning rate of the only step is 0 (warm-up), so nothing is trained; "
    "expected more training.epochs or optimizer.warmup_epochs=0"
)


def prepare(method: Method, inputs: Inputs, params: Params) -> dict[str, Any]:
    """What is computed from the target model before the first step, as in a checkpoint.

    The method's values, the rehearsed pairs, and the seconds spent.

    Raises:
        UserError: if it is not finite.
    """
    task, seconds = inputs.task, {"checkpoint": 0.0}
    model, rehearsed = task.model, []
    with timed(seconds, "target_model"):
        if task.training.rehearsal:
            with activity("asking the target model for questions of its own"):
                rehearsed = rehearsal_pairs(task, params, inputs.examples.retain)
        # It asks the forget questions in their order.
        with model.naming(inputs.questions), activity("asking the target model"):
            found = method.prepare(task, inputs.examples, params)
    # As JSON here too, so that a continued run sees the same values.
    try:
        text = to_json(found, finite=True)
    except ValueError:
        raise UserError(
            f"{model.directory}: what {method.name} computes from the target model before the "
            "first step is not finite; its logits are NaN, infinite, or too large"
        ) from None
    return {"prepared": json.loads(text), "rehearsal": rehearsed, "seconds": seconds}


def multiplied(cfg: ModelConfig, part: Trainable | None) -> int:
    """The weights for the log's FLOPs, which are 6 for each weight and token.

    With an adapter the weights have no gradients, and it is 4 for each.
    """
    count = param_count(cfg)
    return count if part is None or part.adapter is None else round(count * 4 / 6)


def first_state(
    params: Params, optimizer: optax.GradientTransformation, specs: Params
) -> TrainState:
    """The state before the first step; the trained weights `params` are donated.

    One function is compiled for all of it. Eagerly, each shape would need one of its own.
    """

    @partial(jax.jit, donate_argnums=0)
    def start(params: Params) -> TrainState:
        return place_state(init_state(params, optimizer), specs, optimizer)

    return start(params)


def chosen_sizes(
    task: Task,
    method: Method,
    examples: Examples,
    state: TrainState,
    frozen: Any,
    *,
    update_norm: bool,
) -> dict[str, Any]:
    """How much is sampled and trained at a time, which a continued run keeps.

    Warns of a run that may not fit.

    Args:
        state, frozen: all arrays of the run, since what is free beside them counts.
    """
    jax.block_until_ready((state, frozen))  # before memory is measured
    model, training = task.model, task.training
    cast = is_cast(frozen, model.dtype)
    arguments: dict[str, Any] = {
        "lengths": lengths_of(task, method, examples),
        "model": footprint(model.config, model.dtype, task.part, cast=cast),
        "kinds": method.answers_per_question * (1 + bool(examples.preferred)),
        "remat": model.remat,
        "update_norm": update_norm,
        "weights_dtype": model.weights_dtype,
    }
    free = free_memory()
    found = sizes(training, method, free=free, **arguments)
    sized = dataclasses.replace(training, **found)

    def size(changes: Mapping[str, Any]) -> int:
        """The bytes of a step with changed settings."""
        dtype = changes.get("training.gradient_dtype", sized.gradient_dtype)
        return step_bytes(
            dataclasses.replace(sized, gradient_dtype=dtype), method,
            questions=changes.get("training.micro_batch", sized.part_size),
            **arguments | {
                "remat": changes.get("model.remat", model.remat),
                "update_norm": update_norm and "logging.update_norm" not in changes,
            },
        )  # fmt: skip

    on_cpu = arguments["model"].target.backend == "cpu"
    changes = less_memory(sized, model.remat, task.part, update_norm=update_norm and on_cpu)
    if is_first():
        warn(shortage(size, free, changes, "adapter=lora" if task.part is None else ""))
    least = from_all(lambda: tuple(found.values()))
    return dict(zip(found, least, strict=True))


def train_model(
    params: Params,
    method: Method,
    inputs: Inputs,
    optimizer: Optimizer,
    *,
    directory: Path | None,
    settings: Mapping[str, Any],
    checkpoints: CheckpointConfig,
    logging: LoggingConfig,
    progress: Callable[[str, int, int], Any],
    on_step: Callable[[StepRecord], object] | None = None,
    afterwards: float = 0.0,
    donate: bool = True,
) -> Trained:
    """Train from the newest checkpoint in `directory`, or from `params`.

    Args:
        donate: whether `params` may be deleted. Otherwise weights that are trained are copied.
        directory: of the run; None keeps everything in memory.
        settings: for the log's listeners.
        progress: a context manager of (name, total, done) that gives a `Stage`.
        on_step, afterwards: as of `loop.train`.

    Raises:
        UserError, Stopped: as `loop.train`.
    """
    task, model = inputs.task, inputs.task.model
    visited = inputs.examples.visited
    total = task.training.total_updates(visited)
    schedule = make_schedule(optimizer, total, task.training.epoch_length(visited))
    part, chosen_weights = task.part, method.trained_weights(model.config)
    specs = trained_specs(model.config, part)
    transformation = make_optimizer(
        optimizer, model.config, schedule,
        chosen_weights if part is None else part.mask(chosen_weights), part,
    )  # fmt: skip
    dtypes = dtypes_of(params)
    trained, constant = split_weights(model, params, part, task.key(ADAPTER_STREAM), donate=donate)
    frozen = {**method.frozen(task, {} if part and part.adapter else trained), **constant}
    initial = method.initial_state(task)

    with ExitStack() as stack:
        restored, manager = None, None
        if directory is not None:
            abstract = abstract_state(
                model.config, transformation, model.weights_dtype, model.mesh, part
            )
            like = RunState(abstract, initial)
            manager = stack.enter_context(
                open_checkpoints(directory / "checkpoints", checkpoints, like)
            )
            if from_first(manager.latest_step) is not None:
                for leaf in jax.tree.leaves(trained):
                    leaf.delete()  # frees memory for the restored weights
            with activity("reading the last checkpoint"):
                restored = restore_latest(manager, like)
        if restored is None:
            weights = joined_weights(part, trained, frozen)
            extra, logged = prepare(method, inputs, weights), []
            with activity("preparing the optimizer"):
                state = RunState(first_state(trained, transformation, specs), initial)
                extra["sizes"] = chosen_sizes(
                    task, method, with_rehearsal(task, inputs.examples, extra["rehearsal"]),
                    state.train, frozen, update_norm=logging.update_norm,
                )  # fmt: skip
        else:
            state, saved = restored
            extra = {key: value for key, value in saved.items() if key != METRICS}
            logged = saved[METRICS]
        training = dataclasses.replace(task.training, **extra["sizes"])
        sized = dataclasses.replace(task, training=training)
        rehearsed = extra.get("rehearsal", ())
        examples = with_rehearsal(sized, inputs.examples, rehearsed)
        run: Run[Method] = Run(
            method, sized, method.with_prepared(sized, examples, extra["prepared"]),
            extra["prepared"],
        )  # fmt: skip
        first, files = int(state.train.step), None
        if directory is not None and manager is not None:
            found = method.files(run, inputs.questions)
            if rehearsed:
                found["rehearsal.jsonl"] = [
                    {"question": question, "answer": answer} for question, answer in rehearsed
                ]
            for name, rows in found.items():
                write_json_lines(directory / name, rows)
            metrics = stack.enter_context(
                open_metrics(directory, logged, first, settings=settings, logging=logging)
            )
            files = RunFiles(manager, checkpoints.every, metrics, extra)
        shown: Stage = stack.enter_context(progress(method.name, run.total, first))
        for line in method.lines(run):
            shown.say(line)
        if run.total == 1 and schedule(0) == 0:
            shown.say(NOTHING_TRAINED)
        state, records = train(
            run,
            make_train_step(
                transformation, method, model.config, dtype=model.dtype, remat=model.remat,
                gradient_dtype=task.training.gradient_dtype, update_norm=logging.update_norm,
                part=part,
            ),
            frozen,
            state,
            schedule=schedule,
            parameters=multiplied(model.config, part),
            files=files,
            progress=shown,
            on_step=on_step,
            afterwards=afterwards,
        )  # fmt: skip
        lines = files.metrics.rows if files else []
        seconds = files.extra["seconds"] if files else extra["seconds"]
    weights = state.train.params
    if part is None:
        return Trained(weights, records, lines, seconds)
    whole = part.whole(weights, frozen["base"], dtypes, donate=donate)
    return Trained(whole, records, lines, seconds, weights if part.adapter else None)
