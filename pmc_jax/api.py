"""The Python API: what the names in `pmc_jax` do.

    import pmc_jax as pmc

    model = pmc.load_model("path/or/hub-id")
    data = pmc.Dataset.from_files(forget="forget.jsonl", retain="retain.jsonl")
    result = pmc.unlearn(model, data, method=pmc.PMC(samples=8), out="runs/mine")
    result.model.save("unlearned/")

The commands call the same functions.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pmc_jax.data import Dataset
from pmc_jax.data.files import read_json, read_objects, write_json, write_json_lines
from pmc_jax.data.prompt_config import PromptConfig
from pmc_jax.data.prompts import prompt_facts
from pmc_jax.errors import UserError
from pmc_jax.evaluation import EvaluationConfig, quality, questions_asked, sample_rows
from pmc_jax.evaluation.verdicts import Asked, known_before, verdict
from pmc_jax.language_model import (
    LanguageModel,
    ModelSource,
    load_language_model,
    mesh_of,
    precision,
    resolved,
)
from pmc_jax.model import on_mesh
from pmc_jax.reporting import write_report
from pmc_jax.reporting.verdict import unknown_lines
from pmc_jax.runs.checkpoints import CheckpointConfig, checksums, seal
from pmc_jax.runs.directory import SUMMARY, begin_run, check_outside, holds_run
from pmc_jax.runs.metrics import LoggingConfig, check_logging
from pmc_jax.runs.summary import step_seconds, summarise
from pmc_jax.runtime.processes import from_first, is_first
from pmc_jax.runtime.progress import stage, token_stage, warn
from pmc_jax.runtime.timing import timed
from pmc_jax.settings import check, flat, recorded
from pmc_jax.training.loop import StepRecord
from pmc_jax.training.optimizer import Optimizer
from pmc_jax.training.run import Inputs, Trained, prepare_inputs, train_model
from pmc_jax.unlearning.method import Method
from pmc_jax.unlearning.pmc import PMC
from pmc_jax.unlearning.schedule import Training

EVALUATION_STREAM = 1
"""The stream of random numbers that evaluations sample with."""


def load_model(
    path: str | Path = "bundled",
    *,
    dtype: str = "auto",
    remat: str = "none",
    mesh: str = "auto",
    prompt: PromptConfig | None = None,
    check_weights: bool = True,
) -> LanguageModel:
    """Load a causal language model.

    Args:
        path: a Hugging Face directory, a directory of `python -m convert from-hf`, a hub id, or
            "bundled" for the small model in the package.
        dtype: what matrix products are computed in: "float32", "bfloat16", or "float64", which
            needs `jax_enable_x64`. "auto" is what the model was trained and measured in if a run
            exported it, else float32. Weights are kept in float32 at least.
        remat: what the backward pass recomputes to save memory: "none", "dots" or "full".
        mesh: "auto" for all devices, or "DATAxMODEL" (see the page on scaling).
        prompt: how questions become prompts. Keys that are None are as the model was trained, or
            else the defaults.
        check_weights: refuse a model with a weight that is NaN or infinite.

    Raises:
        UserError: naming what is missing, damaged or not supported, or the tensor with weights
            that are not finite.
    """
    source = ModelSource(path=str(path), dtype=dtype, remat=remat, check_weights=check_weights)
    check(source, "model.")
    source = resolved(source)
    if source.dtype == "float64" and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise UserError('dtype="float64" needs jax.config.update("jax_enable_x64", True) first')
    return load_language_model(source, prompt or PromptConfig(), mesh_of(source, mesh))


@dataclasses.dataclass(frozen=True)
class Unlearned:
    """What `unlearn` returns.

    Attributes:
        model: the unlearned model; with a run directory, as it was exported there.
        steps: what each optimizer step did.
        before, after: measures of both models by name, such as "unlearn_quality" and "utility",
            in the units of `evaluate`; None if they were not evaluated.
        directory: the run's directory; None for a run in memory.
        verdict: whether the forget questions are forgotten (`evaluation.verdicts.verdict`);
            None if the models were not evaluated, or if the method does not unlearn.
    """

    model: LanguageModel
    steps: tuple[StepRecord, ...]
    before: Mapping[str, float | None] | None = None
    after: Mapping[str, float | None] | None = None
    directory: Path | None = None
    verdict: Mapping[str, Any] | None = dataclasses.field(default=None, repr=False)


def unlearn(
    model: LanguageModel,
    data: Dataset,
    method: Method | None = None,
    training: Training | None = None,
    optimizer: Optimizer | None = None,
    *,
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
        model: the target model. It stays as it is, unless `donate`.
        data: what to forget, and what to keep.
        method: a method with its settings; None: `PMC()`.
        training, optimizer: how long to train, and how.
        seed: data order, retain draws and samples depend on it.
        evaluation: evaluate before and after, and, with `out`, write the report.
        out: the run's directory: metrics, checkpoints, the exported model, the report. The same
            call continues a run that was stopped, and returns one that is finished. None: the
            run stays in memory.
        overwrite: replace a run in `out` that has other settings.
        checkpoints, logging: for a run with a directory.
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
    groups = {"method": method, "training": training, "optimizer": optimizer}
    checked: dict[str, Any] = {**groups, "checkpoints": checkpoints}
    for name, group in (checked | ({"evaluation": evaluation} if evaluation else {})).items():
        check(group, f"{name}.")
    return run_unlearning(
        model, data, method, training, optimizer, seed=seed, evaluation=evaluation,
        directory=None if out is None else Path(out), overwrite=overwrite, checkpoints=checkpoints,
        logging=logging or LoggingConfig(), on_step=on_step, donate=donate,
        settings=settings_of_call(model, groups, evaluation, seed),
    )  # fmt: skip


def run_unlearning(
    model: LanguageModel,
    data: Dataset,
    method: Method,
    training: Training,
    optimizer: Optimizer,
    *,
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
        read = [("model.path", str(model.directory))]
        check_outside(directory, read + [(f"method.{k}", getattr(method, k)) for k in method.reads])
    if isinstance(model.params["layers"], tuple):
        raise UserError("the weights are laid out for decoding; expected those of load_model")
    if directory is not None and from_first(
        lambda: is_finished(directory, settings, overwrite=overwrite)
    ):
        return finished(directory, model)
    inputs = prepare_inputs(model, data, method, training, seed)
    if directory is not None:
        begin_run(directory, settings, inputs.hashes, overwrite=overwrite)
    warn(inputs.warnings)
    spent = dict(seconds or {})

    def evaluated(model: LanguageModel, name: str) -> dict[str, Any] | None:
        if evaluation is None:
            return None
        path = None if directory is None else directory / "evaluation" / f"{name}.json"
        found = evaluate_stage(
            model, data, evaluation, path, name, max_length=training.max_length, seed=seed
        )
        spent[f"evaluate_{name}"] = found["seconds"]
        return found

    with on_mesh(model.mesh):
        before = evaluated(model, "before")
        if before is not None and method.unlearns:
            warn(unknown_lines(known_before(asked_of(before))))
        trained = train_model(
            model.params if donate else jax.tree.map(jnp.copy, model.params),
            method, inputs, optimizer, directory=directory, settings=settings,
            checkpoints=checkpoints, logging=logging, progress=stage, on_step=on_step,
        )  # fmt: skip
        spent |= training_seconds(trained)
        with timed(spent, "export"):
            result = delivered(model.with_params(trained.params), directory)
        after = evaluated(result, "after")
        weights = None if directory is None else seal(checksums(result.params))
    judged = run_verdict(before, after, settings) if before and after and method.unlearns else None
    unlearned = Unlearned(
        result,
        tuple(map(StepRecord.from_json, trained.lines) if trained.lines else trained.records),
        before and before["measures"],
        after and after["measures"],
        directory,
        judged,
    )
    if directory is not None and is_first():
        if before and after:
            rows = sample_rows(before["answers"], after["answers"])
            write_json_lines(directory / "samples.jsonl", rows)
        write_summary(
            directory, unlearned, method, settings, inputs, trained.lines, spent,
            untuned=untuned, weights=weights,
        )  # fmt: skip
        if before and after:
            write_report(directory)
    return unlearned


def training_seconds(trained: Trained) -> dict[str, float]:
    """The seconds of each part of training, in the order of the run."""
    fixed = dict(trained.seconds)
    checkpoint = fixed.pop("checkpoint")
    return {**fixed, **step_seconds(trained.lines), "checkpoint": checkpoint}


def delivered(trained: LanguageModel, directory: Path | None) -> LanguageModel:
    """The model as whoever loads it finds it; with a run directory, exported there.

    It is rounded to the dtypes of its files, which also name the dtype it is computed in. With a
    directory, the trained weights are deleted and the files loaded.
    """
    if directory is None:
        return trained.as_saved()
    if not from_first((directory / "model").exists):
        trained.save(directory / "model")
    for leaf in jax.tree.leaves(trained.params):
        leaf.delete()
    return exported_model(trained, directory)


def asked_of(found: Mapping[str, Any]) -> Asked:
    """What a model answered in the evaluation of a run."""
    return Asked(found["answers"], {"sampling": found["sampled"]} if found["sampled"] else {})


def run_verdict(
    before: Mapping[str, Any], after: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The verdict on a run."""
    utility = before["measures"]["utility"], after["measures"]["utility"]
    return verdict(asked_of(after), asked_of(before), settings=settings, utility=utility)


def evaluate_stage(
    model: LanguageModel,
    data: Dataset,
    evaluation: EvaluationConfig,
    path: Path | None,
    name: str,
    *,
    max_length: int,
    seed: int,
) -> dict[str, Any]:
    """Measure a model before or after training; with a `path`, keep the result there.

    A result that is there already is returned.
    """
    stored = None if path is None else from_first(lambda: read_json(path, missing_ok=True))
    if stored is not None:
        return stored
    started = time.perf_counter()
    with token_stage(f"evaluating {name}", questions_asked(data.evaluation, evaluation)) as done:
        found = quality(
            model.for_decoding(), data.evaluation, evaluation,
            jax.random.fold_in(jax.random.key(seed), EVALUATION_STREAM),
            max_length=max_length, on_batch=done,
        )  # fmt: skip
    found["seconds"] = time.perf_counter() - started
    if path is not None:
        write_json(path, found)
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
    model = unlearned.model
    summary = summarise(
        directory.name, settings, model.config, unlearned.before or {}, unlearned.after or {},
        steps, seconds, {"name": method.name, "sentence": method.sentence},
        untuned=untuned, weights=weights, verdict=unlearned.verdict,
    )  # fmt: skip
    summary |= {
        "prompt": prompt_facts(inputs.task.model.template),
        "warnings": list(inputs.warnings),
    }
    summary["model"]["precision"] = precision(directory / "model", model.dtype)
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
    """Whether `directory` contains a finished run with these settings.

    Raises:
        UserError: if it contains a run with other settings, or something that is not a run.
    """
    return holds_run(directory, settings, overwrite=overwrite) and (directory / SUMMARY).is_file()


def finished(directory: Path, model: LanguageModel) -> Unlearned:
    """The result of a finished run; `model` is its target model."""
    summary = read_json(directory / SUMMARY)
    return Unlearned(
        exported_model(model, directory),
        tuple(map(StepRecord.from_json, read_objects(directory / "metrics.jsonl"))),
        summary["before"] or None,
        summary["after"] or None,
        directory,
        summary.get("verdict"),
    )


def exported_model(model: LanguageModel, directory: Path) -> LanguageModel:
    """The model that a run has exported, with weights in the dtypes of its files."""
    source = ModelSource(str(directory / "model"), model.dtype, model.remat)
    return load_language_model(source, model.template.config, model.mesh)
