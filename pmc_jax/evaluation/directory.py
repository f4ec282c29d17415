"""The directory of an evaluation: its parts, its summary and its report."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from pmc_jax.data.files import read_json, read_object, write_json
from pmc_jax.evaluation.benchmark import EVAL_FILE, forget_truths, reference_scores
from pmc_jax.evaluation.config import EvaluateConfig
from pmc_jax.evaluation.context import EvaluationContext
from pmc_jax.evaluation.inputs import Inputs, source_of
from pmc_jax.evaluation.likelihood import TokenScores
from pmc_jax.evaluation.measure import measure_part
from pmc_jax.evaluation.models import load_for_evaluation, record_facts
from pmc_jax.evaluation.parts import SUITES
from pmc_jax.evaluation.relearning import relearner
from pmc_jax.evaluation.summary import summarise_directory
from pmc_jax.evaluation.tofu import holds_truths, with_truths
from pmc_jax.language_model import LanguageModel, load_language_model, mesh_of
from pmc_jax.model import on_mesh
from pmc_jax.reporting import shown_summary, write_evaluation_report
from pmc_jax.reporting.side_by_side import certificate_lines, comparison_table, time_table
from pmc_jax.reporting.training_curves import training_curves
from pmc_jax.reporting.verdict import verdict_lines
from pmc_jax.runs.directory import SUMMARY
from pmc_jax.runs.parts import read_part
from pmc_jax.runs.summary import today, versions
from pmc_jax.runtime.processes import from_first, is_first
from pmc_jax.runtime.progress import activity, say
from pmc_jax.settings import recorded

References = tuple[Sequence[TokenScores], Sequence[TokenScores]]


def missing_parts(config: EvaluateConfig, directory: Path) -> list[str]:
    """The parts of the suite that have no file yet in a model's `directory`.

    Raises:
        UserError: if a file is damaged, with what to do.
    """
    files = {part: directory / f"{part}.json" for part in SUITES[config.suite]}
    missing = [part for part, file in files.items() if not file.is_file()]
    for part in files.keys() - missing:
        read_part(files[part])
    return missing


def context_of(config: EvaluateConfig, inputs: Inputs, model: LanguageModel) -> EvaluationContext:
    """The evaluation of one model as `config` describes it."""
    return EvaluationContext(
        model, inputs.dataset.evaluation, config.evaluation, config.max_length, config.prefix,
        config.confidence, jax.random.key(config.seed), controls=inputs.controls,
        retain_log=inputs.retain_log, robustness=config.robustness,
    )  # fmt: skip


def measure_references(
    config: EvaluateConfig, inputs: Inputs, directory: Path, *, needed: bool
) -> References | None:
    """The reference model's scores for membership inference; None if they are not `needed`.

    Its weights are recorded in `directory`, or checked against the record.
    """
    if config.reference_model is None:
        return None
    mesh = mesh_of(source_of(config, config.reference_model), config.mesh)
    with on_mesh(mesh):
        model, facts = load_for_evaluation(config, config.reference_model, mesh)
        record_facts(directory / "reference.json", facts)
        return reference_scores(context_of(config, inputs, model)) if needed else None


def measure_model(
    config: EvaluateConfig,
    name: str,
    path: str,
    inputs: Inputs,
    directory: Path,
    references: References | None,
) -> None:
    """Measure every missing part of one model and write its file to `directory`.

    The model's weights are recorded there, or checked against the record.
    """
    missing = from_first(lambda: missing_parts(config, directory))
    source = source_of(config, path)
    mesh = mesh_of(source, config.mesh)
    with on_mesh(mesh):
        with activity(f"loading {path}"):
            model, facts = load_for_evaluation(config, path, mesh)
        record_facts(directory / "model.json", facts)
        load = partial(load_language_model, source, config.prompt, mesh)
        context = dataclasses.replace(
            context_of(config, inputs, model),
            references=references,
            relearn=relearner(load, config.robustness, config.seed, config.adapter),
        )  # fmt: skip
        for part in missing:
            result = measure_part(context, part, name)
            for file, content in result.pop("files", {}).items():
                write_json(directory / file, content)
            write_json(directory / f"{part}.json", result)


def set_truths(directory: Path, inputs: Inputs, config: EvaluateConfig) -> None:
    """Add the right answers to forget questions to TOFU's logs, or remove them.

    Nothing is measured again. The summary of a finished evaluation stores `keep_truth` and
    `redact`, so that the report can be written again with the same settings.
    """
    keep = config.keep_truth
    if not is_first():
        return
    truths = forget_truths(inputs.dataset.evaluation) if keep else None
    for path in sorted(directory.glob(f"models/*/{EVAL_FILE}")):
        if holds_truths(log := read_json(path)) != keep:
            write_json(path, with_truths(log, truths))
    summary = read_json(directory / SUMMARY, missing_ok=True)
    requested = {"keep_truth": keep, "redact": config.redact}
    if summary is not None and not requested.items() <= summary["settings"].items():
        summary["settings"] |= requested
        write_json(directory / SUMMARY, summary)


def write_summary(
    config: EvaluateConfig,
    inputs: Inputs,
    directory: Path,
    paths: Mapping[str, str],
    warnings: Sequence[str],
) -> None:
    """Write the summary of an evaluation whose parts are complete.

    It includes the training curves of models that a run has written, and what the run says
    about its settings.

    Args:
        paths: the models' paths by name.
        warnings: what is suspicious in data and prompts, one sentence each.
    """
    found = summarise_directory(directory / "models", list(paths), SUITES[config.suite])
    for name, path in paths.items():
        if curves := training_curves(Path(path).expanduser()):
            found["curves"][name]["training"] = curves
        if untuned := run_of(Path(path).expanduser()).get("untuned"):
            found["facts"][name]["untuned"] = untuned
    summary = {
        "name": config.name,
        "date": today(),
        "suite": config.suite,
        **found,
        "data": inputs.hashes,
        "versions": versions(),
        "settings": recorded(config),
        "warnings": list(warnings),
    }
    write_json(directory / SUMMARY, summary)


def run_of(model: Path) -> dict[str, Any]:
    """The summary of the run that wrote the directory `model`; empty if no run did."""
    if model.name != "model":
        return {}
    return read_object(model.parent / SUMMARY, missing_ok=True, finite=True)


def show(directory: Path, *, redact: bool) -> None:
    """Write the report; print the verdict, tables, certificates and paths.

    Args:
        redact: whether to hide what is to be forgotten (`redaction`).
    """
    with activity("writing the report"):
        page = write_evaluation_report(directory, redact=redact)
    summary = shown_summary(directory, redact=redact)
    if verdict := summary["verdict"]:
        say(f"\n{verdict_lines(verdict)}")
    say(f"\n{comparison_table(summary)}\n")
    for line in certificate_lines(summary):
        say(f"{line}\n")
    for what, reason in summary["lacking"].items():
        say(f"Not measured: {what.replace('_', ' ')} ({reason}).")
    say(f"\n{time_table(summary)}\n")
    for model, facts in summary["facts"].items():
        if found := facts.get("precision"):
            say(f"{model}: {found}")
    say(f"Numbers: {directory / SUMMARY}\nReport: {page}")
