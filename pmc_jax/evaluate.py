"""Evaluate models: `python -m pmc_jax.evaluate model.path=DIR [compare=DIR] [suite=…]`.

`model.path` is any supported Hugging Face directory, `compare` the model before unlearning
(or a list: that one first, then others to hold against it). Every part of the suite leaves
a file of its own; the same command goes on where it was stopped.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax

from pmc_jax.config import EvaluateConfig, entry_point
from pmc_jax.data import Dataset, load_dataset
from pmc_jax.data.encode import encode
from pmc_jax.data.prompts import check_lengths
from pmc_jax.errors import UserError
from pmc_jax.evaluation import Respondent
from pmc_jax.evaluation.comparison import summarise_parts
from pmc_jax.evaluation.parts import PARTS, SUITES, Examination, lacking, work
from pmc_jax.files import read_json, write_json
from pmc_jax.model import decoding_params, param_count
from pmc_jax.nested import flatten
from pmc_jax.pretrained import describe, load_pretrained
from pmc_jax.progress import token_stage
from pmc_jax.reporting.side_by_side import certificate_lines, comparison_table
from pmc_jax.reporting.summary import versions
from pmc_jax.training.checkpoints import checksums, seal
from pmc_jax.training.run_directory import SUMMARY, begin_run, holds_run, place_of

NOT_SETTINGS = ("overwrite", "evaluations_dir")
"""Keys that may differ when an evaluation is continued."""


def model_paths(cfg: EvaluateConfig) -> dict[str, str]:
    """Path of every model by a short name, the one under examination first.

    The name is that of the directory, or of the run whose `model` directory it is.
    """
    more = cfg.compare if isinstance(cfg.compare, list) else [cfg.compare]
    if not all(item is None or isinstance(item, str) for item in more):
        raise UserError(f"compare={cfg.compare}: expected a directory or a list of them")
    paths: dict[str, str] = {}
    for path in [cfg.model.path, *(item for item in more if item is not None)]:
        place = Path(path).expanduser().absolute() if Path(path).is_dir() else Path(path)
        name = place.parent.name if place.name == "model" and place.parent.name else place.name
        number = sum(other.partition("~")[0] == name for other in paths)
        paths[f"{name}~{number + 1}" if number else name] = path
    return paths


def load_subject(cfg: EvaluateConfig, path: str) -> tuple[Respondent, dict[str, Any]]:
    """A model that can be asked, and what is on record about it."""
    model, params = load_pretrained(dataclasses.replace(cfg.model, path=path), cfg.prompt)
    facts = {
        "path": path,
        "parameters": param_count(model.cfg),
        "weights": seal(checksums(params)),
    }
    dtype = cfg.model.dtype
    params = decoding_params(params, model.cfg, dtype)
    return Respondent(params, model.cfg, model.template, cfg.max_length, dtype), facts


def check_questions(cfg: EvaluateConfig, path: str, dataset: Dataset) -> None:
    """Check that every question leaves room for an answer, and that the model has its tokens."""
    model = describe(dataclasses.replace(cfg.model, path=path), cfg.prompt)
    template = model.template
    encode(dataset, template, cfg.max_length, model.cfg.vocab_size)
    if "prefilling" in SUITES[cfg.suite] and cfg.prefix:
        rows, prefix = dataset.evaluation["forget"], template.encode_prefix(cfg.prefix)
        prompts = [template.encode_prompt(row.question, row.system) + prefix for row in rows]
        check_lengths("forget", [row.id for row in rows], prompts, cfg.max_length)


def measure(name: str, x: Examination, part: str, path: Path) -> None:
    """Measure one part and leave its file, or the reason why there is nothing to measure."""
    if (reason := lacking(x, part)) is not None:
        write_json(path, {"lacking": reason})
        return
    started = time.perf_counter()
    with token_stage(f"{name}: {part.replace('_', ' ')}", work(x, part)) as on_batch:
        result = PARTS[part](dataclasses.replace(x, on_batch=on_batch))
    write_json(path, {**result, "seconds": time.perf_counter() - started})


def examine(cfg: EvaluateConfig, name: str, path: str, dataset: Dataset, directory: Path) -> None:
    """Measure every part of the suite that has no file yet; load the model only if one has not."""
    missing = [part for part in SUITES[cfg.suite] if not (directory / f"{part}.json").is_file()]
    if not missing:
        return
    respondent, facts = load_subject(cfg, path)
    stored = read_json(directory / "model.json")
    if stored is not None and stored["weights"] != facts["weights"]:
        raise UserError(
            f"{path} holds other weights than {directory} began with; "
            "choose another name=… or give overwrite=true"
        )
    write_json(directory / "model.json", facts)
    x = Examination(
        respondent, dataset.evaluation, cfg.evaluation, cfg.prefix, cfg.confidence,
        jax.random.key(cfg.seed),
    )  # fmt: skip
    for part in missing:
        measure(name, x, part, directory / f"{part}.json")


def evaluate(cfg: EvaluateConfig) -> None:
    """One whole evaluation."""
    paths = model_paths(cfg)
    _, *others = paths.values()
    read = [("model.path", cfg.model.path), ("data.path", cfg.data.path)]
    read += [("compare", path) for path in others]
    directory = place_of(cfg.evaluations_dir, cfg.name, read)
    settings = {key: value for key, value in flatten(cfg).items() if key not in NOT_SETTINGS}
    goes_on = holds_run(directory, settings, overwrite=cfg.overwrite)
    if goes_on and (directory / SUMMARY).is_file():
        print(f"{directory} is a finished evaluation; overwrite=true measures it again")
        show(directory)
        return
    if cfg.model.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    dataset = load_dataset(cfg.data)
    sets = {name: list(map(dataclasses.astuple, rows)) for name, rows in dataset.evaluation.items()}
    hashes = {"evaluation rows": seal(sets)}
    for path in paths.values():
        check_questions(cfg, path, dataset)
    begin_run(directory, settings, hashes, overwrite=cfg.overwrite)
    for name, path in paths.items():
        examine(cfg, name, path, dataset, directory / "models" / name)
    summary = {
        "name": cfg.name,
        "suite": cfg.suite,
        **summarise_parts(directory / "models", list(paths), SUITES[cfg.suite]),
        "data": hashes,
        "versions": versions(),
        "settings": flatten(cfg),
    }
    write_json(directory / SUMMARY, summary)
    show(directory)


def show(directory: Path) -> None:
    """Print the table of all models, the certificates, and where the numbers are."""
    summary = read_json(directory / SUMMARY)
    print(f"\n{comparison_table(summary)}\n")
    for line in certificate_lines(summary):
        print(f"{line}\n")
    for part, reason in summary["lacking"].items():
        print(f"Not measured: {part.replace('_', ' ')} ({reason}).")
    print(f"Numbers: {directory / SUMMARY}")


main = entry_point(evaluate, "evaluate", EvaluateConfig)

if __name__ == "__main__":
    main()
