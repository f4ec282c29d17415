"""Evaluate models: `pmc evaluate model.path=DIR [compare=DIR] [suite=…]`.

`model.path` is any supported Hugging Face directory. `compare` is the model before unlearning,
or a list: first that model, then other models to compare with. Every part of the suite has a
file of its own. If the evaluation is stopped, the same command continues it.
"""

import dataclasses

import jax

from pmc_jax.cli.entry_point import entry_point
from pmc_jax.evaluation.config import EvaluateConfig
from pmc_jax.evaluation.directory import (
    measure_model,
    measure_references,
    missing_parts,
    set_truths,
    show,
    write_summary,
)
from pmc_jax.evaluation.inputs import (
    check_model,
    evaluation_warnings,
    load_inputs,
    source_of,
)
from pmc_jax.evaluation.models import model_paths
from pmc_jax.evaluation.parts import SUITES
from pmc_jax.evaluation.robustness import check_robustness
from pmc_jax.language_model import check_weights, resolved
from pmc_jax.runs.directory import LOG, SUMMARY, directory_of, holds_run, running
from pmc_jax.runtime.locks import check_free
from pmc_jax.runtime.memory import allow_memory
from pmc_jax.runtime.processes import from_first, is_first, join
from pmc_jax.runtime.progress import activity, logged_to, say, warn
from pmc_jax.settings import recorded

NOT_SETTINGS = (
    "overwrite", "evaluations_dir", "mesh", "memory", "redact", "keep_truth", "model.check_weights",
)  # fmt: skip
"""Keys that may differ when an evaluation is continued."""


def evaluate(config: EvaluateConfig) -> None:
    """Run one evaluation. All of its processes call this."""
    join(config.distributed)
    allow_memory(config.memory)
    # Models that are compared are computed in the same dtype.
    config = dataclasses.replace(config, model=resolved(config.model))
    check_robustness(config.robustness)
    paths = model_paths(config)
    read = [("model.path", config.model.path), ("data.path", config.data.path)]
    read += [("compare", path) for path in list(paths.values())[1:]]
    read += [("retain_logs", config.retain_logs), ("reference_model", config.reference_model)]
    directory = directory_of(config.evaluations_dir, config.name, read)
    settings = recorded(config, without=NOT_SETTINGS)
    directories = {name: directory / "models" / name for name in paths}

    def state() -> tuple[bool, bool]:
        """Whether the evaluation is finished, and whether TOFU's part is missing."""
        check_free(directory)
        if not holds_run(directory, settings, overwrite=config.overwrite):
            return False, "tofu" in SUITES[config.suite]
        missing = {part for own in directories.values() for part in missing_parts(config, own)}
        return not missing and (directory / SUMMARY).is_file(), "tofu" in missing

    finished, tofu_missing = from_first(state)
    if config.model.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    with activity("reading data"):
        inputs = load_inputs(config)
    models = {name: check_model(config, path, inputs) for name, path in paths.items()}
    if config.reference_model is not None:
        models["reference_model"] = check_model(config, config.reference_model, inputs)
    warnings = evaluation_warnings(
        inputs.dataset, inputs.controls, models, inputs.retain_log, config.max_length
    )
    with activity("checking weights"):
        for path in filter(None, [*paths.values(), config.reference_model]):
            check_weights(source_of(config, path))
    with (
        running(directory, settings, inputs.hashes, overwrite=config.overwrite),
        logged_to(directory / LOG),
    ):
        for name, model in models.items():
            say(f"Prompt of {name}: {model.template}")
        warn(warnings)
        references = measure_references(config, inputs, directory, needed=tofu_missing)
        for name, path in paths.items():
            measure_model(config, name, path, inputs, directories[name], references)
        set_truths(directory, inputs, config)
        if not is_first():
            return
        if finished:
            say(
                f"{directory} is a finished evaluation of these models and data; "
                "overwrite=true measures it again"
            )
        else:
            write_summary(config, inputs, directory, paths, warnings)
        show(directory, redact=config.redact)


main = entry_point(evaluate, "evaluate", EvaluateConfig)

if __name__ == "__main__":
    main()
