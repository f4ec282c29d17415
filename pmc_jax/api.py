"""The Python API: what the names in `pmc_jax` do.

    import pmc_jax as pmc

    model = pmc.load_model("path/or/hub-id")
    data = pmc.Dataset.from_files(forget="forget.jsonl", retain="retain.jsonl")
    result = pmc.unlearn(model, data, method=pmc.PMC(samples=8), out="runs/mine")
    result.model.save("unlearned/")

The commands call the same functions.
"""

import dataclasses
import difflib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax

from pmc_jax.data import Dataset
from pmc_jax.data.dataset import expected_dataset
from pmc_jax.data.files import read_object, read_objects, write_json, write_json_lines
from pmc_jax.data.prompt_config import PromptConfig
from pmc_jax.data.prompts import prompt_facts
from pmc_jax.errors import UserError
from pmc_jax.evaluation import EvaluationConfig, answers_asked_for, quality, sample_rows
from pmc_jax.evaluation.verdicts import Asked, known_before, verdict
from pmc_jax.language_model import (
    Adapter,
    LanguageModel,
    ModelSource,
    expected_model,
    load_language_model,
    mesh_of,
    precision,
    resolved,
    stored_adapter,
)
from pmc_jax.model import on_mesh
from pmc_jax.model.specs import Params
from pmc_jax.model.trainable import LoRA
from pmc_jax.reporting import write_report
from pmc_jax.reporting.verdict import unknown_lines
from pmc_jax.runs.checkpoints import CheckpointConfig, checksums
from pmc_jax.runs.directory import (
    LOG,
    SUMMARY,
    check_directory,
    check_outside,
    holds_run,
    remove,
    running,
)
from pmc_jax.runs.metrics import LoggingConfig, check_logging
from pmc_jax.runs.sealed import file_hash, file_hashes, read_sealed, seal, write_sealed
from pmc_jax.runs.summary import check_summary, step_seconds, summarise
from pmc_jax.runtime.locks import check_free
from pmc_jax.runtime.processes import from_first, is_first
from pmc_jax.runtime.progress import activity, logged_to, stage, token_stage, warn
from pmc_jax.runtime.timing import timed
from pmc_jax.settings import SEED, check, check_number, flat, recorded
from pmc_jax.signatures import checked
from pmc_jax.training.loop import StepRecord
from pmc_jax.training.optimizer import Optimizer
from pmc_jax.training.run import Inputs, Trained, prepare_inputs, train_model
from pmc_jax.unlearning.method import Method, Task, methods
from pmc_jax.unlearning.pmc import PMC
from pmc_jax.unlearning.rehearsal import SENTENCE
from pmc_jax.unlearning.schedule import Training

EVALUATION_STREAM = 1
"""The stream of random numbers that evaluations sample with."""


@checked()
def load_model(
    path: str | Path = "bundled",
    *,
    dtype: str = "auto",
    remat: str = "none",
    mesh: str = "auto",
    prompt: PromptConfig | None = None,
    check_weights: bool = True,
    as_stored: bool = False,
) -> LanguageModel:
    """Load a causal language model.

    Args:
        path: a Hugging Face directory, a directory of `python -m convert from-hf`, a hub id, or
            "bundled" for the small model in the package.
        dtype: the dtype of matrix products: "float32", "bfloat16", or "float64", which needs
            `jax_enable_x64`. "auto" is the dtype in which the model was trained and evaluated if
            a run exported it, else float32. Weights are in float32 or more, unless `as_stored`.
        remat: what the backward pass recomputes to save memory: "none", "dots" or "full".
        mesh: "auto" for all devices, or "DATAxMODEL" (see the page on scaling).
        prompt: how questions become prompts. For keys that are None, the settings of the model's
            training are used, or else the defaults.
        check_weights: refuse a model with a weight that is NaN or infinite.
        as_stored: keep the weights in the dtypes of the files. In bfloat16, they take half the
            memory. Such a model can generate, be evaluated and be the base of an adapter, but its
            weights cannot be trained.

    Raises:
        UserError: naming what is missing, damaged or not supported, or the tensor with weights
            that are not finite.
    """
    source = ModelSource(path=str(path), dtype=dtype, remat=remat, check_weights=check_weights)
    check(source, "model.")
    check(prompt := prompt or PromptConfig(), "prompt.")
    source = resolved(source)
    if source.dtype == "float64" and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise UserError('dtype="float64" needs jax.config.update("jax_enable_x64", True) first')
    return load_language_model(source, prompt, mesh_of(source, mesh), as_stored=as_stored)


@dataclasses.dataclass(frozen=True)
class Unlearned:
    """What `unlearn` returns.

    Attributes:
        model: the unlearned model; with a run directory, the model exported there.
        steps: a record of each optimizer step.
        before, after: measures of both models by name, such as "unlearn_quality" and "utility",
            in the units of `evaluate`; None if they were not evaluated.
        directory: the run's directory; None for a run in memory.
        verdict: whether the forget questions are forgotten (`evaluation.verdicts.verdict`);
            None if the models were not evaluated, or if the method does not unlearn.
        adapter: the trained adapter, which `model` has merged; None if there is none.
    """

    model: LanguageModel
    steps: tuple[StepRecord, ...]
    before: Mapping[str, float | None] | None = None
    after: Mapping[str, float | None] | None = None
    directory: Path | None = None
    verdict: Mapping[str, Any] | None = dataclasses.field(default=None, repr=False)
    adapter: Adapter | None = dataclasses.field(default=None, repr=False)


def expected_method(value: Any) -> str:
    """What the error expects in place of `value`: the method of this name, or of this class."""
    kinds = methods()
    if isinstance(value, str):
        classes = {name.casefold(): name for name in kinds}
        near = difflib.get_close_matches(value.casefold(), classes, 1)
        if near:
            return f"a method, such as pmc.{kinds[classes[near[0]]].__name__}()"
        names = ", ".join(f"{kind.__name__}()" for kind in kinds.values())
        return f"a method, one of {names}"
    if isinstance(value, type) and issubclass(value, Method):
        return f"an object of it, {value.__name__}()"
    return "a method, such as pmc.PMC()"


@checked(model=expected_model, data=expected_dataset, method=expected_method)
def unlearn(
    model: LanguageModel,
    data: Dataset,
    method: Method | None = None,
    training: Training | None = None,
    optimizer: Optimizer | None = None,
    *,
    adapter: LoRA | None = None,
    seed: int = 0,
    evaluation: EvaluationConfig | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    checkpoints: CheckpointConfig | None = None,
    logging: LoggingConfig | None = None,
    on_step: Callable[[StepRecord], object] | None = None,
    donate: bool = False,
) -> Unlearned:
    """Make a model forget the forget questions of a data set, or fine-tune it.

    Args:
        model: the target model. It is not changed, unless `donate`.
        data: what to forget, and what to retain.
        method: a method with its settings; None: `PMC()`.
        training, optimizer: how long to train, and how.
        adapter: train a low-rank adapter in place of the weights; None: train the weights.
        seed: determines the order of the data, the draws of retain pairs, and the samples.
        evaluation: evaluate before and after, and, with `out`, write the report.
        out: the run's directory, for metrics, checkpoints, the exported model and the report. The
            same call resumes a run that was stopped, and returns the result of a run that is
            finished. None: the run stays in memory.
        overwrite: replace a run in `out` that has other settings.
        checkpoints, logging: settings for a run with a directory.
        on_step: called after every step with its record.
        donate: train in the memory of the model's weights; the model cannot be used afterwards.

    Raises:
        UserError: naming what is wrong with data, settings, or the directory; or if the loss or
            the weights are no longer finite.
        Stopped: after SIGTERM in a run with `out`, with the last step saved; the same call
            continues it.
    """
    method, training, optimizer = method or PMC(), training or Training(), optimizer or Optimizer()
    checkpoints = checkpoints or CheckpointConfig()
    logging = logging or LoggingConfig()
    groups: dict[str, Any] = {"method": method, "training": training, "optimizer": optimizer}
    if adapter is not None:
        groups["adapter"] = adapter
    others: dict[str, Any] = {"checkpoints": checkpoints, "logging": logging}
    check_number("seed", seed, SEED)
    for name, group in (
        groups | others | ({"evaluation": evaluation} if evaluation else {})
    ).items():
        check(group, f"{name}.")
    return run_unlearning(
        model, data, method, training, optimizer, adapter=adapter, seed=seed,
        evaluation=evaluation, directory=None if out is None else Path(out),
        overwrite=overwrite, checkpoints=checkpoints,
        logging=logging, on_step=on_step, donate=donate,
        settings=settings_of_call(model, groups, evaluation, seed),
    )  # fmt: skip


def run_unlearning(
    model: LanguageModel,
    data: Dataset,
    method: Method,
    training: Training,
    optimizer: Optimizer,
    *,
    adapter: LoRA | None = None,
    seed: int,
    evaluation: EvaluationConfig | None,
    directory: Path | None,
    overwrite: bool,
    checkpoints: CheckpointConfig,
    logging: LoggingConfig,
    settings: Mapping[str, Any],
    on_step: Callable[[StepRecord], object] | None = None,
    donate: bool = False,
    seconds: Mapping[str, float] | None = None,
    untuned: str | None = None,
) -> Unlearned:
    """Unlearn with settings that are checked already; `unlearn` and the train command call it.

    Args:
        settings: what the run's `config.yaml` records, by dotted key.
        seconds: time spent before this call, by part, for the run's summary.
        untuned: for the summary and the report: that the settings were chosen for another method.

    The other arguments and the errors are those of `unlearn`, with `directory` for `out`.
    """
    if directory is not None:
        if is_first():
            check_logging(logging)
        read = [
            ("model.path", str(model.directory)),
            ("adapter.path", adapter.path if adapter else None),
        ]
        check_directory(directory)
        check_outside(directory, read + [(f"method.{k}", getattr(method, k)) for k in method.reads])
    if isinstance(model.params["layers"], tuple):
        raise UserError("the weights are laid out for decoding; expected those of load_model")
    if adapter is None and model.is_narrow:
        raise UserError(
            f"the weights are in fewer bits than {model.weights_dtype}, which training needs; "
            "expected those of load_model without as_stored, or an adapter"
        )
    if directory is not None and from_first(
        lambda: is_finished(directory, settings, overwrite=overwrite)
    ):
        return finished(directory, model, adapter)
    with activity("checking the data"):
        inputs = prepare_inputs(model, data, method, training, seed, adapter)
    with ExitStack() as stack:
        if directory is not None:
            stack.enter_context(running(directory, settings, inputs.hashes, overwrite=overwrite))
            stack.enter_context(logged_to(directory / LOG))
        warn(inputs.warnings)
        spent = dict(seconds or {})

        def evaluated(
            model: LanguageModel, name: str, weights: str | None
        ) -> dict[str, Any] | None:
            if evaluation is None or not getattr(evaluation, name):
                return None
            path = None if directory is None else directory / "evaluation" / f"{name}.json"
            found = evaluate_stage(
                model, data, evaluation, path, name, weights,
                max_length=training.max_length, seed=seed,
                copied=adapter is None or adapter.merge,
            )  # fmt: skip
            spent[f"evaluate_{name}"] = found["seconds"]
            return found

        with on_mesh(model.mesh):
            before = evaluated(model, "before", inputs.hashes["model weights"])
            if before is not None and method.unlearns:
                warn(unknown_lines(known_before(asked_of(before))))
            again = before["seconds"] if before and evaluation and evaluation.after else 0.0
            trained = train_model(
                model.params, method, inputs, optimizer, directory=directory, settings=settings,
                checkpoints=checkpoints, logging=logging, progress=stage, on_step=on_step,
                afterwards=again, donate=donate,
            )  # fmt: skip
            spent |= training_seconds(trained)
            with timed(spent, "export"), activity("exporting the model"):
                result = delivered(model.with_params(trained.params), directory)
                found = kept_adapter(inputs.task, trained.adapter, directory)
            weights = None if directory is None else seal(checksums(result.params))
            after = evaluated(result, "after", weights)
        judged = run_verdict(before, after, settings) if after and method.unlearns else None
        unlearned = Unlearned(
            result,
            tuple(map(StepRecord.from_json, trained.lines) if trained.lines else trained.records),
            before and before["measures"],
            after and after["measures"],
            directory,
            judged,
            found,
        )
        if directory is not None and is_first():
            if after:
                rows = sample_rows(before["answers"] if before else None, after["answers"])
                write_json_lines(directory / "samples.jsonl", rows)
            write_summary(
                directory, unlearned, method, settings, inputs, trained.lines, spent,
                untuned=untuned, weights=weights,
            )  # fmt: skip
            if after:
                with activity("writing the report"):
                    write_report(directory)
    return unlearned


def training_seconds(trained: Trained) -> dict[str, float]:
    """The seconds of each part of training, in the order of the run."""
    fixed = dict(trained.seconds)
    checkpoint = fixed.pop("checkpoint")
    return {**fixed, **step_seconds(trained.lines), "checkpoint": checkpoint}


def delivered(trained: LanguageModel, directory: Path | None) -> LanguageModel:
    """The model as it is when somebody loads it; with a run directory, it is exported there.

    The weights are cast to the dtypes of the model's files, which also name the compute dtype.
    With a directory, the trained weights are deleted, and the files are loaded. If the directory
    already has a model, a stopped run has left it, and it may be damaged. It is written again from
    the trained weights, whose checkpoint was verified.
    """
    if directory is None:
        return trained.as_saved()
    from_first(partial(remove, directory / "model"))
    trained.save(directory / "model")
    for leaf in jax.tree.leaves(trained.params):
        leaf.delete()
    return exported_model(trained, directory)


def kept_adapter(task: Task, adapter: Params | None, directory: Path | None) -> Adapter | None:
    """The adapter that was trained; with a run directory, it is written there."""
    if adapter is None or task.part is None:
        return None
    found = Adapter(adapter, task.part, task.model.directory)
    if directory is not None:
        from_first(partial(remove, directory / "adapter"))
        found.save(directory / "adapter")
    return found


def asked_of(found: Mapping[str, Any]) -> Asked:
    """What a model answered in the evaluation of a run."""
    return Asked(found["answers"], {"sampling": found["sampled"]} if found["sampled"] else {})


def run_verdict(
    before: Mapping[str, Any] | None, after: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The verdict on a run; `before` is None if the model before was not evaluated."""
    utility = before["measures"]["utility"] if before else None, after["measures"]["utility"]
    old = asked_of(before) if before else None
    return verdict(asked_of(after), old, settings=settings, utility=utility)


def evaluate_stage(
    model: LanguageModel,
    data: Dataset,
    evaluation: EvaluationConfig,
    path: Path | None,
    name: str,
    weights: str | None,
    *,
    max_length: int,
    seed: int,
    copied: bool,
) -> dict[str, Any]:
    """Measure a model before or after training; with a `path`, store the result there.

    If the file already has a complete result for the same `weights`, it is returned.
    """
    if path is not None:
        stored = from_first(lambda: read_sealed(path, "it is measured again"))
        if stored is not None and stored.get("weights") == weights:
            return stored
    started = time.perf_counter()
    with token_stage(f"evaluating {name}", answers_asked_for(data.evaluation, evaluation)) as done:
        found = quality(
            model.for_decoding(copied=copied), data.evaluation, evaluation,
            jax.random.fold_in(jax.random.key(seed), EVALUATION_STREAM),
            max_length=max_length, on_batch=done,
        )  # fmt: skip
    found |= {"weights": weights, "seconds": time.perf_counter() - started}
    if path is not None and is_first():
        write_sealed(path, found)
    return found


def write_summary(
    directory: Path,
    unlearned: Unlearned,
    method: Method,
    settings: Mapping[str, Any],
    inputs: Inputs,
    steps: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
    *,
    untuned: str | None,
    weights: str | None,
) -> None:
    """Write `summary.json`; the arguments are explained at `runs.summary.summarise`."""
    model, rehearsed = unlearned.model, inputs.task.training.rehearsal > 0
    sentence = f"{method.sentence} {SENTENCE}" if rehearsed else method.sentence
    summary = summarise(
        directory.name, settings, model.config, unlearned.before or {}, unlearned.after or {},
        steps, seconds, {"name": method.name, "sentence": sentence},
        untuned=untuned, weights=weights, verdict=unlearned.verdict,
    )  # fmt: skip
    summary |= {
        "prompt": prompt_facts(inputs.task.model.template),
        "warnings": list(inputs.warnings),
    }
    beside = "; trained beside weights in int8" * (settings.get("adapter.base_dtype") == "int8")
    summary["model"]["precision"] = precision(directory / "model", model.dtype) + beside
    summary["model"]["files"] = file_hashes(directory / "model")
    write_json(directory / SUMMARY, summary)


def settings_of_call(
    model: LanguageModel,
    groups: Mapping[str, Any],
    evaluation: EvaluationConfig | None,
    seed: int,
) -> dict[str, Any]:
    """The settings of a call of `unlearn` by dotted key, as its run records them."""
    source = {"path": str(model.directory), "dtype": model.dtype, "remat": model.remat}
    named = {"prompt": model.template.config, **groups}
    if evaluation is not None:
        named["evaluation"] = evaluation
    nested = {"seed": seed, "model": source, **{k: recorded(v) for k, v in named.items()}}
    return flat(nested)


def is_finished(directory: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> bool:
    """Whether `directory` holds a finished run with these settings.

    Raises:
        UserError: if it holds a run with other settings, or something that is not a run; if
            another process uses it; or if its files are not those that the run has written.
    """
    check_free(directory)
    if not holds_run(directory, settings, overwrite=overwrite):
        return False
    if not (directory / SUMMARY).is_file():
        return False
    finished_summary(directory)
    return True


def finished_summary(directory: Path) -> dict[str, Any]:
    """The summary of a finished run, after a check that its metrics and its model are unchanged.

    Deleted files of the model are not an error.

    Raises:
        UserError: naming the file that has changed.
    """
    again = (
        f"; delete {directory / SUMMARY} to write it again from the last checkpoint, or give "
        "overwrite=true"
    )
    try:
        summary = read_object(directory / SUMMARY, expected="the summary of a finished run")
        check_summary(directory / SUMMARY, summary)
        steps, lines = summary["steps"], read_objects(directory / "metrics.jsonl", missing_ok=True)
        files = summary["model"]["files"].items()
        if len(lines) != steps:
            raise UserError(f"{directory / 'metrics.jsonl'} has {len(lines)} of {steps} steps")
        for name, digest in files:
            path = directory / "model" / name
            if path.is_file() and file_hash(path) != digest:
                raise UserError(f"{path} is not what the run exported")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{directory / SUMMARY}: not the summary of a run ({error} missing or odd){again}"
        ) from None
    except UserError as error:
        raise UserError(f"{error}{again}") from None
    return summary


def finished(directory: Path, model: LanguageModel, adapter: LoRA | None) -> Unlearned:
    """The result of a finished run; `model` is its target model."""
    summary = from_first(lambda: finished_summary(directory))
    return Unlearned(
        exported_model(model, directory),
        tuple(map(StepRecord.from_json, read_objects(directory / "metrics.jsonl"))),
        summary["before"] or None,
        summary["after"] or None,
        directory,
        summary.get("verdict"),
        stored_adapter(directory / "adapter", model, adapter) if adapter else None,
    )


def exported_model(model: LanguageModel, directory: Path) -> LanguageModel:
    """The model that a run has exported, loaded as `model` was."""
    source = ModelSource(str(directory / "model"), model.dtype, model.remat)
    return load_language_model(source, model.template.config, model.mesh, as_stored=model.is_narrow)
