"""Evaluate models: `python -m pmc_jax.evaluate model.path=DIR [compare=DIR] [suite=…]`.

`model.path` is any supported Hugging Face directory, `compare` the model before unlearning
(or a list: that one first, then others to hold against it). Every part of the suite leaves
a file of its own; the same command goes on where it was stopped.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from pmc_jax.compilation import compile_seconds
from pmc_jax.config import EvaluateConfig, entry_point, settings_of
from pmc_jax.data import Controls, Dataset, load_controls, load_dataset
from pmc_jax.data.encode import check_tokens, digest, encode
from pmc_jax.data.prompts import PromptTemplate, check_lengths
from pmc_jax.data.rows import EvaluationRow
from pmc_jax.errors import UserError
from pmc_jax.evaluation import Respondent
from pmc_jax.evaluation.aftermath import check_aftermath
from pmc_jax.evaluation.benchmark import EVAL_FILE, forget_truths, reference_scores
from pmc_jax.evaluation.comparison import summarise_parts
from pmc_jax.evaluation.examination import Examination, Relearn, reworded_rows
from pmc_jax.evaluation.likelihood import Pair, TokenScores
from pmc_jax.evaluation.parts import PARTS, SUITES, lacking, work
from pmc_jax.evaluation.tofu import RetainLog, holds_truths, read_retain_log, with_truths
from pmc_jax.files import read_json, write_json
from pmc_jax.model import decoding_params, on_mesh, param_count
from pmc_jax.model.specs import Params
from pmc_jax.pretrained import ModelSource, describe, load_pretrained, mesh_of, path_of
from pmc_jax.processes import from_first, is_first, join
from pmc_jax.progress import token_stage
from pmc_jax.reporting import write_evaluation_report
from pmc_jax.reporting.side_by_side import certificate_lines, comparison_table, time_lines
from pmc_jax.reporting.summary import versions
from pmc_jax.training.checkpoints import checksums, seal
from pmc_jax.training.relearning import relearn
from pmc_jax.training.run_directory import SUMMARY, begin_run, holds_run, place_of

References = tuple[Sequence[TokenScores], Sequence[TokenScores]]

NOT_SETTINGS = ("overwrite", "evaluations_dir", "mesh", "redact", "keep_truth")
"""Keys that may differ when an evaluation is continued."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What an evaluation reads, but for the models."""

    dataset: Dataset
    controls: Controls
    retain_log: RetainLog | None

    @property
    def hashes(self) -> dict[str, str]:
        """By name, to notice that a file has changed."""
        sets = self.dataset.evaluation
        found = {
            "evaluation rows": seal(
                {name: list(map(dataclasses.astuple, rows)) for name, rows in sets.items()}
            ),
            "controls": digest(dataclasses.asdict(self.controls)),
        }
        if self.retain_log is not None:
            found["retain logs"] = digest(dataclasses.asdict(self.retain_log))
        return found


def load_inputs(cfg: EvaluateConfig) -> Inputs:
    """Read the data and the retain model's log."""
    dataset = load_dataset(cfg.data)
    log = None if cfg.retain_logs is None else read_retain_log(Path(cfg.retain_logs).expanduser())
    controls = load_controls(cfg.data, dataset, download="tofu" in SUITES[cfg.suite])
    return Inputs(dataset, controls, log)


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


def source_of(cfg: EvaluateConfig, path: str) -> ModelSource:
    """The model at `path`, computed with as `cfg` says."""
    return dataclasses.replace(cfg.model, path=path)


def real_place(cfg: EvaluateConfig, path: str) -> Path:
    """Where a model's files are, however its path is written; of a hub id only the same id."""
    return Path(path_of(source_of(cfg, path))).expanduser().resolve()


def load_subject(
    cfg: EvaluateConfig, path: str, mesh: Mesh | None
) -> tuple[Respondent, dict[str, Any]]:
    """A model that can be asked, and what is on record about it."""
    model, params = load_pretrained(source_of(cfg, path), cfg.prompt, mesh)
    facts = {
        "path": path,
        "parameters": param_count(model.cfg),
        "weights": seal(checksums(params)),
    }
    dtype = cfg.model.dtype
    params = decoding_params(params, model.cfg, dtype)
    return Respondent(params, model.cfg, model.template, cfg.max_length, dtype), facts


def relearner(cfg: EvaluateConfig, path: str, mesh: Mesh | None) -> Relearn:
    """Fine-tunes the model at `path`, which is loaded anew each time."""

    def go(pairs: Sequence[Pair], steps: Sequence[int]) -> Iterator[tuple[int, Params]]:
        model, params = load_pretrained(source_of(cfg, path), cfg.prompt, mesh)
        dtype = cfg.model.dtype
        for done, tuned in relearn(
            params, pairs, steps, model=model.cfg, batch_size=cfg.aftermath.batch_size,
            learning_rate=cfg.aftermath.learning_rate, seed=cfg.seed, dtype=dtype,
            remat=cfg.model.remat,
        ):  # fmt: skip
            yield done, decoding_params(tuned, model.cfg, dtype)

    return go


def check_questions(cfg: EvaluateConfig, path: str, inputs: Inputs) -> None:
    """Check that every question leaves room for an answer, and that the model has its tokens.

    Also that there is the mesh that the model is to be on.
    """
    mesh_of(source_of(cfg, path), cfg.mesh)
    model = describe(source_of(cfg, path), cfg.prompt)
    template, vocab_size = model.template, model.cfg.vocab_size
    encode(inputs.dataset, template, cfg.max_length, vocab_size)
    sets = inputs.dataset.evaluation
    parts = SUITES[cfg.suite]
    asked: dict[str, Sequence[EvaluationRow]] = {}
    if "rewording" in parts:
        asked["forget, reworded"] = reworded_rows(sets)
    if "tofu" in parts:
        asked |= {"retain": inputs.controls.retain, "holdout": inputs.controls.holdout}
    for name, rows in asked.items():
        prompts = [template.encode_prompt(row.question, row.system) for row in rows]
        check_lengths(name, [row.id for row in rows], prompts, cfg.max_length)
        check_tokens({0, *(token for prompt in prompts for token in prompt)}, vocab_size)
    if "prefilling" in parts and cfg.prefix:
        check_prefix(cfg, template, inputs.dataset)


def check_prefix(cfg: EvaluateConfig, template: PromptTemplate, dataset: Dataset) -> None:
    """Check that the forced beginning leaves room for an answer."""
    rows, prefix = dataset.evaluation["forget"], template.encode_prefix(str(cfg.prefix))
    prompts = [template.encode_prompt(row.question, row.system) + prefix for row in rows]
    check_lengths("forget", [row.id for row in rows], prompts, cfg.max_length)


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


def references_of(cfg: EvaluateConfig, path: str, inputs: Inputs) -> References:
    """The reference model's scores for membership inference."""
    mesh = mesh_of(source_of(cfg, path), cfg.mesh)
    with on_mesh(mesh):
        respondent, _ = load_subject(cfg, path, mesh)
        return reference_scores(examination(cfg, inputs, respondent))


def missing_parts(cfg: EvaluateConfig, directory: Path) -> list[str]:
    """The parts of the suite that have no file yet in a model's `directory`."""
    parts = SUITES[cfg.suite]
    return from_first(
        lambda: [part for part in parts if not (directory / f"{part}.json").is_file()]
    )


def examine(
    cfg: EvaluateConfig,
    name: str,
    path: str,
    inputs: Inputs,
    directory: Path,
    references: References | None,
) -> None:
    """Measure every missing part; load the model only if there is one."""
    missing = missing_parts(cfg, directory)
    if not missing:
        return
    mesh = mesh_of(source_of(cfg, path), cfg.mesh)
    with on_mesh(mesh):
        respondent, facts = load_subject(cfg, path, mesh)
        stored = from_first(lambda: read_json(directory / "model.json"))
        if stored is not None and stored["weights"] != facts["weights"]:
            raise UserError(
                f"{path} holds other weights than {directory} began with; "
                "choose another name=… or give overwrite=true"
            )
        write_json(directory / "model.json", facts)
        x = dataclasses.replace(
            examination(cfg, inputs, respondent),
            references=references, relearn=relearner(cfg, path, mesh),
        )  # fmt: skip
        for part in missing:
            measure(name, x, part, directory / f"{part}.json")


def set_truths(directory: Path, *, keep: bool, inputs: Callable[[], Inputs]) -> None:
    """Put the right answers to forget questions into TOFU's logs, or take them out.

    Nothing is measured for it; the `inputs` are read only where answers are missing.
    """

    def to_change() -> list[str]:
        logs = sorted(directory.glob(f"models/*/{EVAL_FILE}"))
        return [str(path) for path in logs if holds_truths(read_json(path)) != keep]

    changing = from_first(to_change)
    truths = forget_truths(inputs().dataset.evaluation) if changing and keep else None
    if not is_first():
        return
    for path in map(Path, changing):
        write_json(path, with_truths(read_json(path), truths))
    if (summary := read_json(directory / SUMMARY)) is not None:
        summary["settings"]["keep_truth"] = keep
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

    def finished() -> bool:
        goes_on = holds_run(directory, settings, overwrite=cfg.overwrite)
        return goes_on and (directory / SUMMARY).is_file()

    def inputs_of_run() -> Inputs:
        """The inputs, if they are still those that the evaluation began with."""
        inputs = load_inputs(cfg)
        begin_run(directory, settings, inputs.hashes, overwrite=cfg.overwrite)
        return inputs

    if from_first(finished):
        if is_first():
            print(
                f"{directory} is a finished evaluation of what its files were then; "
                "overwrite=true measures it again"
            )
        set_truths(directory, keep=cfg.keep_truth, inputs=inputs_of_run)
        if is_first():
            show(directory, redact=cfg.redact)
        return
    if cfg.model.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    inputs = load_inputs(cfg)
    for path in [*paths.values(), *filter(None, [cfg.reference_model])]:
        check_questions(cfg, path, inputs)
    begin_run(directory, settings, inputs.hashes, overwrite=cfg.overwrite)
    places = {name: directory / "models" / name for name in paths}
    references = None
    if cfg.reference_model and any("tofu" in missing_parts(cfg, p) for p in places.values()):
        references = references_of(cfg, cfg.reference_model, inputs)
    for name, path in paths.items():
        examine(cfg, name, path, inputs, places[name], references)
    set_truths(directory, keep=cfg.keep_truth, inputs=lambda: inputs)
    if is_first():
        conclude(cfg, inputs, directory, list(paths))


def conclude(cfg: EvaluateConfig, inputs: Inputs, directory: Path, models: list[str]) -> None:
    """The summary and the report of an evaluation whose parts are there."""
    summary = {
        "name": cfg.name,
        "suite": cfg.suite,
        **summarise_parts(directory / "models", models, SUITES[cfg.suite]),
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
