"""Unlearn with PMC: `python -m pmc_jax.train [experiment=…] [key=value …]`.

Loads the target model, evaluates it, unlearns, exports a Hugging Face directory,
evaluates again, and writes the report. The same command continues a run that was
stopped.
"""

import dataclasses
import importlib.metadata
import math
import platform
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from convert.export import export_checkpoint
from convert.load import Checkpoint, load_checkpoint
from pmc_jax import __version__
from pmc_jax.config import Config, asset, entry_point
from pmc_jax.data import Dataset, load_dataset
from pmc_jax.data.prompts import PromptTemplate, check_lengths, load_tokenizer, make_template
from pmc_jax.decoding import Sampling, generate
from pmc_jax.errors import UserError
from pmc_jax.evaluation import Evaluation, Respondent, evaluate, measures
from pmc_jax.model import cast_params, param_count
from pmc_jax.model.specs import Params
from pmc_jax.progress import stage
from pmc_jax.reporting import format_examples, format_table, write_report
from pmc_jax.reporting.run_files import read_run
from pmc_jax.training.checkpoints import RunState, open_checkpoints, restore_latest, save
from pmc_jax.training.loop import (
    PMCRun,
    UnlearningTask,
    pmc_steps,
    response_limit,
    updates_per_epoch,
)
from pmc_jax.training.metrics import open_metrics
from pmc_jax.training.optimizer import make_optimizer, make_schedule
from pmc_jax.training.run_directory import (
    flatten,
    open_run,
    read_json,
    write_json,
    write_json_lines,
)
from pmc_jax.training.step import init_state, make_train_step
from pmc_jax.unlearning import empty_memory


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Model and data as loaded and checked, before anything is written."""

    checkpoint: Checkpoint
    template: PromptTemplate
    dataset: Dataset
    forget: list[list[int]]
    retain: list[tuple[list[int], list[int]]]


def weights_dtype(cfg: Config) -> str:
    """The dtype of the trained weights: at least float32."""
    return "float64" if cfg.model.dtype == "float64" else "float32"


def run_directory(cfg: Config) -> Path:
    """Where the run's files go; never a place that holds its own inputs."""
    if Path(cfg.name).name != cfg.name or cfg.name in ("", ".", ".."):
        raise UserError(f"name={cfg.name}: expected a plain directory name")
    directory = Path(cfg.runs_dir) / cfg.name
    for key, value in (("model.path", cfg.model.path), ("data.path", cfg.data.path)):
        if value and Path(value).expanduser().resolve().is_relative_to(directory.resolve()):
            raise UserError(f"{key}={value} lies in {directory}; choose another name=…")
    return directory


def load_inputs(cfg: Config) -> Inputs:
    """Load model, tokenizer and data, and check that every prompt fits."""
    source = asset("world/model") if cfg.model.path == "bundled" else cfg.model.path
    dataset = load_dataset(cfg.data)
    checkpoint = load_checkpoint(source, dtype=weights_dtype(cfg))
    tokenizer = load_tokenizer(checkpoint.directory)
    template = make_template(tokenizer, cfg.prompt, checkpoint.eos_token_ids)
    limit = cfg.training.max_length
    forget = [template.encode_prompt(row.question, row.system) for row in dataset.forget]
    check_lengths("forget", [row.id for row in dataset.forget], forget, limit)
    retain = [
        (template.encode_prompt(row.question, row.system), template.encode_answer(row.answer))
        for row in dataset.retain
    ]
    check_lengths("retain", [row.id for row in dataset.retain], [p for p, _ in retain], limit)
    for name, rows in dataset.evaluation.items():
        prompts = [template.encode_prompt(row.question, row.system) for row in rows]
        check_lengths(name, [row.id for row in rows], prompts, limit)
    largest = max(max(prompt + answer) for prompt, answer in [*retain, *((p, [0]) for p in forget)])
    if largest >= checkpoint.cfg.vocab_size:
        raise UserError(
            f"{checkpoint.directory}: the tokenizer gives token id {largest}, but the model's "
            f"vocabulary has {checkpoint.cfg.vocab_size} tokens"
        )
    return Inputs(checkpoint, template, dataset, forget, retain)


def evaluate_stage(
    cfg: Config, inputs: Inputs, params: Params, path: Path, name: str
) -> dict[str, Any]:
    """Evaluate `params` and keep the result in `path`; read it where it exists."""
    stored = read_json(path)
    if stored is not None:
        return stored
    started = time.perf_counter()
    respondent = Respondent(
        cast_params(params, cfg.model.dtype),
        inputs.checkpoint.cfg,
        inputs.template,
        cfg.training.max_length,
        cfg.model.dtype,
    )
    sets = inputs.dataset.evaluation
    attacked = len(sets.get("forget", ())) if cfg.evaluation.attack_samples else 0
    with stage(name, sum(len(set(rows)) for rows in sets.values()) + attacked) as progress:
        tokens = 0

        def on_batch(prompts: int, decoded: int) -> None:
            nonlocal tokens
            tokens += decoded
            speed = tokens / (time.perf_counter() - started)
            progress.update(progress.done + prompts, f"{speed:,.0f} tokens/s")

        key = jax.random.fold_in(jax.random.key(cfg.seed), 1)
        found = evaluate(respondent, sets, cfg.evaluation, key, on_batch)
    result = {
        "measures": measures(found),
        "answers": answer_rows(found),
        "seconds": time.perf_counter() - started,
    }
    write_json(path, result)
    return result


def answer_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Greedy answers, once per evaluated question, without the ground truth."""
    unique = {(a.set, a.id): a for rows in evaluation.greedy.values() for a in rows}
    return [
        {"set": a.set, "id": a.id, "question": a.question, "text": a.text, "rouge": a.rouge}
        for a in unique.values()
    ]


def greedy_originals(cfg: Config, inputs: Inputs) -> list[str]:
    """y0: the target model's own greedy answer to every forget question."""
    responses = generate(
        cast_params(inputs.checkpoint.params, cfg.model.dtype),
        inputs.forget,
        cfg=inputs.checkpoint.cfg,
        sampling=Sampling(temperature=0.0, stop_ids=inputs.template.stop_ids),
        key=jax.random.key(cfg.seed),
        limits=[
            response_limit(prompt, cfg.training.max_length, cfg.method.max_new_tokens)
            for prompt in inputs.forget
        ],
        rows=cfg.training.rows,
        dtype=cfg.model.dtype,
    )
    return [inputs.template.decode(row[0]) for row in responses]


@jax.jit
def all_finite(params: Params) -> jax.Array:
    """Whether no weight is NaN or infinite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()


def unlearn_stage(
    cfg: Config, inputs: Inputs, directory: Path
) -> tuple[Params, list[dict[str, Any]]]:
    """Run PMC from the newest checkpoint, or from the target model, to the last step."""
    model = inputs.checkpoint.cfg
    per_epoch = updates_per_epoch(len(inputs.forget), cfg.training)
    total = per_epoch * cfg.training.epochs
    schedule = make_schedule(cfg.optimizer, total, per_epoch)
    optimizer = make_optimizer(cfg.optimizer, model, schedule)
    params = jax.tree.map(jnp.copy, inputs.checkpoint.params)
    memory = empty_memory(len(inputs.forget), cfg.training.max_length)
    state = RunState(init_state(params, optimizer), memory)
    manager = open_checkpoints(directory / "checkpoints", cfg.checkpoints)
    restored = restore_latest(manager, state)
    originals = greedy_originals(cfg, inputs) if restored is None else restored[1]["originals"]
    if restored is not None:
        state = restored[0]
    run = PMCRun(
        task=UnlearningTask(inputs.forget, originals, inputs.retain),
        model=model,
        template=inputs.template,
        pmc=cfg.method,
        batch=cfg.training,
        key=jax.random.fold_in(jax.random.key(cfg.seed), 0),
        seed=cfg.seed,
        train_step=make_train_step(
            optimizer, model, cfg.method.retain_weight,
            dtype=cfg.model.dtype, remat=cfg.model.remat,
        ),
        dtype=cfg.model.dtype,
    )  # fmt: skip
    first = int(state.train.step)
    with (
        closing(manager),
        open_metrics(
            directory,
            first,
            settings=flatten(cfg),
            tensorboard=cfg.logging.tensorboard,
            wandb=cfg.logging.wandb,
        ) as metrics,
        stage("unlearning", total, first) as progress,
    ):
        if first:
            progress.say(f"continuing after step {first} of {total}")
        elif total:
            progress.say("compiling the sampler and the train step during the first step …")
        for current, record in pmc_steps(run, state):
            state = current
            done = record.step + 1
            due = done % cfg.checkpoints.every == 0 or done == total
            if not math.isfinite(record.loss) or (due and not all_finite(state.train.params)):
                manager.wait_until_finished()
                raise UserError(
                    f"loss is {record.loss} and the weights are no longer finite at step "
                    f"{record.step} (forget questions {record.questions}); last good checkpoint: "
                    f"{manager.latest_step()} in {directory / 'checkpoints'}; try a lower "
                    "optimizer.learning_rate"
                )
            metrics.append({"learning_rate": float(schedule(record.step)), **record.as_json()})
            if due:
                save(manager, done, state, {"originals": originals})
            if record.step == first:
                seconds = record.seconds["total"]
                progress.say(f"first step: {seconds:.1f} s, most of it compilation")
            progress.update(done, record.line())
    return state.train.params, metrics.rows


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")
    return {
        "pmc_jax": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "device": jax.devices()[0].device_kind,
    }


def sample_rows(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Every evaluated question with both answers."""
    return [
        {
            "set": old["set"],
            "id": old["id"],
            "question": old["question"],
            "before": old["text"],
            "after": new["text"],
            "rouge_before": old["rouge"],
            "rouge_after": new["rouge"],
        }
        for old, new in zip(before["answers"], after["answers"], strict=True)
    ]


def summarise(
    cfg: Config,
    inputs: Inputs,
    before: dict[str, Any],
    after: dict[str, Any],
    steps: list[dict[str, Any]],
) -> dict[str, Any]:
    """The content of `summary.json`."""
    parts = {
        part: sum(row["seconds"][part] for row in steps) for part in ("sample", "score", "train")
    }
    model = inputs.checkpoint.cfg
    return {
        "name": cfg.name,
        "before": before["measures"],
        "after": after["measures"],
        "seconds": {
            "evaluate_before": before["seconds"],
            **parts,
            "evaluate_after": after["seconds"],
            "total": before["seconds"] + sum(parts.values()) + after["seconds"],
        },
        "versions": versions(),
        "model": {
            "path": cfg.model.path,
            "parameters": param_count(model),
            **dataclasses.asdict(model),
        },
        "settings": flatten(cfg),
        "steps": len(steps),
        "tokens_sampled": sum(row["tokens_sampled"] for row in steps),
    }


def train(cfg: Config) -> None:
    """One whole run."""
    if cfg.model.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    directory = run_directory(cfg)
    kept = ("overwrite", "runs_dir", "logging.tensorboard", "logging.wandb")
    settings = {key: value for key, value in flatten(cfg).items() if key not in kept}
    inputs = load_inputs(cfg)
    open_run(directory, settings, overwrite=cfg.overwrite)
    summary_path = directory / "summary.json"
    if not summary_path.is_file():
        before = evaluate_stage(
            cfg, inputs, inputs.checkpoint.params, directory / "evaluation/before.json",
            "evaluating before",
        )  # fmt: skip
        params, steps = unlearn_stage(cfg, inputs, directory)
        if not (directory / "model").exists():
            export_checkpoint(
                params, inputs.checkpoint.cfg, inputs.checkpoint.directory, directory / "model"
            )
        # What is measured is what was exported, after rounding to the stored dtypes.
        exported = load_checkpoint(directory / "model", dtype=weights_dtype(cfg)).params
        after = evaluate_stage(
            cfg, inputs, exported, directory / "evaluation/after.json", "evaluating after"
        )
        write_json_lines(directory / "samples.jsonl", sample_rows(before, after))
        write_json(summary_path, summarise(cfg, inputs, before, after, steps))
    else:
        print(f"{directory} is a finished run; overwrite=true runs it again")
    report = write_report(directory)
    show(directory, report)


def show(directory: Path, report: Path) -> None:
    """Print the before/after table, three examples, and where the report is."""
    run = read_run(directory)
    print(f"\n{format_table(run.summary)}\n")
    if examples := format_examples(run.samples, 3):
        print(f"{examples}\n")
    print(f"Model:  {directory / 'model'}\nReport: {report}")


main = entry_point(train, "train", Config)

if __name__ == "__main__":
    main()
