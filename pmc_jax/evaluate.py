"""Evaluate models: `python -m pmc_jax.evaluate model.path=DIR [compare=DIR] [suite=…]`.

`model.path` is any supported Hugging Face directory, `compare` the model before unlearning
(or a list: that one first, then others to hold against it). Every part of the suite leaves
a file of its own; the same command goes on where it was stopped.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from pmc_jax.cli.config import EvaluateConfig, settings_of
from pmc_jax.cli.entry_point import entry_point
from pmc_jax.data.files import read_json, write_json
from pmc_jax.errors import UserError
from pmc_jax.evaluation import Respondent
from pmc_jax.evaluation.aftermath import check_aftermath
from pmc_jax.evaluation.benchmark import EVAL_FILE, forget_truths, reference_scores
from pmc_jax.evaluation.comparison import summarise_parts
from pmc_jax.evaluation.examination import Examination, Relearn
from pmc_jax.evaluation.inputs import Inputs, check_questions, load_inputs, source_of
from pmc_jax.evaluation.likelihood import Pair, TokenScores
from pmc_jax.evaluation.parts import PARTS, SUITES, lacking, work
from pmc_jax.evaluation.tofu import holds_truths, with_truths
from pmc_jax.model import decoding_params, on_mesh, param_count
from pmc_jax.model.language_model import load_language_model, mesh_of, path_of
from pmc_jax.model.specs import Params
from pmc_jax.reporting import write_evaluation_report
from pmc_jax.reporting.side_by_side import certificate_lines, comparison_table, time_lines
from pmc_jax.reporting.training_curves import training_curves
from pmc_jax.runs.checkpoints import checksums, seal
from pmc_jax.runs.directory import SUMMARY, begin_run, holds_run, place_of
from pmc_jax.runs.parts import read_part
from pmc_jax.runs.summary import versions
from pmc_jax.runtime.compilation import compile_seconds
from pmc_jax.runtime.processes import from_first, is_first, join
from pmc_jax.runtime.progress import token_stage
from pmc_jax.training.relearning import relearn

References = tuple[Sequence[TokenScores], Sequence[TokenScores]]

NOT_SETTINGS = ("overwrite", "evaluations_dir", "mesh", "redact", "keep_truth")
"""Keys that may differ when an evaluation is continued."""


def model_paths(cfg: EvaluateConfig) -> dict[str, str]:
    """Path of every model by a short name, the one under examination first.

    The name is that of the directory, or of the run whose `model` directory it is.

    Raises:
        UserError: for a model to be compared with itself.
    """
    more = cfg.compare if isinstance(cfg.compare, list) else [cfg.compare]
    if not all(item is None or isinstance(item, str) for item in more):
        raise UserError(f"compare={cfg.compare}: expected a directory or a list of them")
    others = [item for item in more if item is not None]
    for path in others:
        if real_place(cfg, path) == real_place(cfg, cfg.model.path):
            raise UserError(
                f"compare={path} is the examined model itself (model.path={cfg.model.path}); "
                "give the model before unlearning, or other models"
            )
    paths: dict[str, str] = {}
    for path in [cfg.model.path, *others]:
        place = Path(path).expanduser().absolute() if Path(path).is_dir() else Path(path)
        name = place.parent.name if place.name == "model" and place.parent.name else place.name
        number = sum(other.partition("~")[0] == name for other in paths)
        paths[f"{name}~{number + 1}" if number else name] = path
    return paths


def real_place(cfg: EvaluateConfig, path: str) -> Path:
    """Where a model's files are, however its path is written; of a hub id only the same id."""
    return Path(path_of(source_of(cfg, path))).expanduser().resolve()


def load_subject(
    cfg: EvaluateConfig, path: str, mesh: Mesh | None
) -> tuple[Respondent, dict[str, Any]]:
    """A model that can be asked, and what is on record about it."""
    model = load_language_model(source_of(cfg, path), cfg.prompt, mesh)
    params = model.params
    facts = {
        "path": path,
        "parameters": param_count(model.config),
        "weights": seal(checksums(params)),
    }
    dtype = cfg.model.dtype
    params = decoding_params(params, model.config, dtype)
    return Respondent(params, model.config, model.template, cfg.max_length, dtype), facts


def relearner(cfg: EvaluateConfig, path: str, mesh: Mesh | None) -> Relearn:
    """Fine-tunes the model at `path`, which is loaded anew each time."""

    def go(pairs: Sequence[Pair], steps: Sequence[int]) -> Iterator[tuple[int, Params]]:
        model = load_language_model(source_of(cfg, path), cfg.prompt, mesh)
        params = model.params
        dtype = cfg.model.dtype
        for done, tuned in relearn(
            params, pairs, steps, model=model.config, batch_size=cfg.aftermath.batch_size,
            learning_rate=cfg.aftermath.learning_rate, seed=cfg.seed, dtype=dtype,
            remat=cfg.model.remat,
        ):  # fmt: skip
            yield done, decoding_params(tuned, model.config, dtype)

    return go


def measure(name: str, x: Examination, part: str, path: Path) -> None:
    """Measure one part and leave its file, or the reason why there is nothing to measure.

    Of its `seconds`, JAX was `compiling` for some.
    """
    if (reason := lacking(x, part)) is not None:
        write_json(path, {"lacking": reason})
        return
    started, tokens = time.perf_counter(), 0
    title = f"{name}: {part.replace('_', ' ')}"
    with token_stage(title, work(x, part)) as on_batch, compile_seconds() as compiling:

        def counted(done: int, count: int) -> None:
            nonlocal tokens
            tokens += count
            on_batch(done, count)

        result = PARTS[part].measure(dataclasses.replace(x, on_batch=counted))
    for file, content in result.pop("files", {}).items():
        write_json(path.parent / file, content)
    spent = {"seconds": time.perf_counter() - started, "compiling": compiling()}
    write_json(path, {**result, **spent, "tokens": tokens})


def examination(cfg: EvaluateConfig, inputs: Inputs, respondent: Respondent) -> Examination:
    """What a model is asked, and how."""
    return Examination(
        respondent, inputs.dataset.evaluation, cfg.evaluation, cfg.prefix, cfg.confidence,
        jax.random.key(cfg.seed), controls=inputs.controls, retain_log=inputs.retain_log,
        aftermath=cfg.aftermath,
    )  # fmt: skip


def references_of(
    cfg: EvaluateConfig, path: str, inputs: Inputs, directory: Path, *, needed: bool
) -> References | None:
    """The reference model's scores for membership inference, where they are `needed`.

    Its weights must be those that the evaluation in `directory` began with.
    """
    mesh = mesh_of(source_of(cfg, path), cfg.mesh)
    with on_mesh(mesh):
        respondent, facts = load_subject(cfg, path, mesh)
        keep_facts(directory / "reference.json", facts)
        return reference_scores(examination(cfg, inputs, respondent)) if needed else None


def keep_facts(record: Path, facts: dict[str, Any]) -> None:
    """Put a model's facts on record, or check that its weights are those on record.

    Raises:
        UserError: if they are not.
    """
    stored = from_first(lambda: read_json(record, missing_ok=True))
    if stored is None:
        write_json(record, facts)
    elif stored["weights"] != facts["weights"]:
        raise UserError(
            f"{facts['path']} holds other weights than {record.parent} began with; "
            "choose another name=… or give overwrite=true"
        )


def missing_parts(cfg: EvaluateConfig, directory: Path) -> list[str]:
    """The parts of the suite that have no file yet in a model's `directory`.

    Raises:
        UserError: if a file is damaged, with what to do.
    """
    files = {part: directory / f"{part}.json" for part in SUITES[cfg.suite]}
    missing = [part for part, file in files.items() if not file.is_file()]
    for part in files.keys() - missing:
        read_part(files[part])
    return missing


def examine(
    cfg: EvaluateConfig,
    name: str,
    path: str,
    inputs: Inputs,
    directory: Path,
    references: References | None,
) -> None:
    """Measure every missing part of a model, whose weights must be those it began with."""
    missing = from_first(lambda: missing_parts(cfg, directory))
    mesh = mesh_of(source_of(cfg, path), cfg.mesh)
    with on_mesh(mesh):
        respondent, facts = load_subject(cfg, path, mesh)
        keep_facts(directory / "model.json", facts)
        x = dataclasses.replace(
            examination(cfg, inputs, respondent),
            references=references, relearn=relearner(cfg, path, mesh),
        )  # fmt: skip
        for part in missing:
            measure(name, x, part, directory / f"{part}.json")


def set_truths(directory: Path, inputs: Inputs, cfg: EvaluateConfig) -> None:
    """Put the right answers to forget questions into TOFU's logs, or take them out.

    Nothing is measured for it. The summary of a finished evaluation keeps what was asked for,
    of the page's redaction, too, for when the page is written again.
    """
    keep = cfg.keep_truth
    if not is_first():
        return
    truths = forget_truths(inputs.dataset.evaluation) if keep else None
    for path in sorted(directory.glob(f"models/*/{EVAL_FILE}")):
        if holds_truths(log := read_json(path)) != keep:
            write_json(path, with_truths(log, truths))
    summary = read_json(directory / SUMMARY, missing_ok=True)
    asked = {"keep_truth": keep, "redact": cfg.redact}
    if summary is not None and not asked.items() <= summary["settings"].items():
        summary["settings"] |= asked
        write_json(directory / SUMMARY, summary)


def evaluate(cfg: EvaluateConfig) -> None:
    """One whole evaluation, which all processes of it call."""
    join(cfg.distributed)
    check_aftermath(cfg.aftermath)
    paths = model_paths(cfg)
    _, *others = paths.values()
    read = [("model.path", cfg.model.path), ("data.path", cfg.data.path)]
    read += [("compare", path) for path in others]
    read += [("retain_logs", cfg.retain_logs), ("reference_model", cfg.reference_model)]
    directory = place_of(cfg.evaluations_dir, cfg.name, read)
    settings = {key: value for key, value in settings_of(cfg).items() if key not in NOT_SETTINGS}
    places = {name: directory / "models" / name for name in paths}

    def state() -> tuple[bool, bool]:
        """Whether all is measured and summarised, and whether TOFU's part is not."""
        if not holds_run(directory, settings, overwrite=cfg.overwrite):
            return False, "tofu" in SUITES[cfg.suite]
        missing = [part for place in places.values() for part in missing_parts(cfg, place)]
        return not missing and (directory / SUMMARY).is_file(), "tofu" in missing

    finished, tofu_missing = from_first(state)
    if cfg.model.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    inputs = load_inputs(cfg)
    for path in [*paths.values(), *filter(None, [cfg.reference_model])]:
        check_questions(cfg, path, inputs)
    begin_run(directory, settings, inputs.hashes, overwrite=cfg.overwrite)
    references = None
    if cfg.reference_model:
        references = references_of(
            cfg, cfg.reference_model, inputs, directory, needed=tofu_missing
        )  # fmt: skip
    for name, path in paths.items():
        examine(cfg, name, path, inputs, places[name], references)
    set_truths(directory, inputs, cfg)
    if not is_first():
        return
    if finished:
        print(
            f"{directory} is a finished evaluation of these models and data; "
            "overwrite=true measures it again"
        )
        show(directory, redact=cfg.redact)
    else:
        conclude(cfg, inputs, directory, paths)


def conclude(
    cfg: EvaluateConfig, inputs: Inputs, directory: Path, paths: Mapping[str, str]
) -> None:
    """The summary and the report of an evaluation whose parts are there.

    `paths` are the models' by name. Of those that are runs', the training curves are kept, too.
    """
    found = summarise_parts(directory / "models", list(paths), SUITES[cfg.suite])
    for name, path in paths.items():
        if curves := training_curves(Path(path).expanduser()):
            found["curves"][name]["training"] = curves
    summary = {
        "name": cfg.name,
        "suite": cfg.suite,
        **found,
        "data": inputs.hashes,
        "versions": versions(),
        "settings": settings_of(cfg),
    }
    write_json(directory / SUMMARY, summary)
    show(directory, redact=cfg.redact)


def show(directory: Path, *, redact: bool) -> None:
    """Write the report; print the table of all models, the certificates, and where all is."""
    page = write_evaluation_report(directory, redact=redact)
    summary = read_json(directory / SUMMARY)
    print(f"\n{comparison_table(summary)}\n")
    for line in certificate_lines(summary):
        print(f"{line}\n")
    for what, reason in summary["lacking"].items():
        print(f"Not measured: {what.replace('_', ' ')} ({reason}).")
    for line in time_lines(summary):
        print(line)
    print(f"Numbers: {directory / SUMMARY}\nReport: {page}")


main = entry_point(evaluate, "evaluate", EvaluateConfig)

if __name__ == "__main__":
    main()
