"""What the exact savings of sampling save: `python benchmarks/savings.py [--tofu DIR MODEL]`.

Runs PMC on the bundled data or, with `--tofu`, on questions of TOFU with a model that knows their
answers by heart (`benchmarks/README.md` shows how to make one). All runs use the same random keys.
Measured are:

- the tokens decoded with each saving alone, with all, and with none. In float64 all runs end in the
  same weights (`tests/test_savings.py`); here, in float32, the remembered responses are compared
  too;
- how many remembered responses differ because of rounding, in float32 and in bfloat16, if all
  questions are sampled once from the same weights;
- the host's share of a step: scoring, decoding to text, building batches;
- the attack of 100 samples, with the greedy answers as drafts and without.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import argparse
import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

from pmc_jax.data import DataConfig, load_dataset
from pmc_jax.data.files import to_json
from pmc_jax.data.prompt_config import PromptConfig
from pmc_jax.decoding import Sampling, generate
from pmc_jax.language_model import ModelSource, load_language_model
from pmc_jax.model import decoding_params
from pmc_jax.model.specs import Params
from pmc_jax.runtime.progress import decoded
from pmc_jax.training.batch import step_batch
from pmc_jax.training.loop import steps
from pmc_jax.training.optimizer import Optimizer, make_optimizer, make_schedule
from pmc_jax.training.run import prepare_inputs
from pmc_jax.training.step import RunState, TrainStep, init_state, make_train_step
from pmc_jax.unlearning.method import Run
from pmc_jax.unlearning.pmc import PMC, ResponseMemory
from pmc_jax.unlearning.pmc.sampling import sample_limit, sample_responses
from pmc_jax.unlearning.pmc.step import remember_best, score_samples
from pmc_jax.unlearning.savings.pruning import pruning
from pmc_jax.unlearning.schedule import Training

NOTHING = {
    "prune": False, "wave": 0, "compact": False, "grow_cache": False, "chunk": 1000,
    "drafts": False,
}  # fmt: skip
SAVINGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "waves of 5": {"wave": 5},
    "branch and bound": {"prune": True, "chunk": 8},
    "both": {"prune": True, "chunk": 8, "wave": 5},
    "both, in smaller shapes": {
        "prune": True, "chunk": 8, "wave": 5, "compact": True, "grow_cache": True,
    },
    "drafts": {"drafts": True},
    "the defaults": {
        "prune": True, "chunk": 8, "compact": True, "grow_cache": True,
    },
    "the defaults and drafts": {
        "prune": True, "chunk": 8, "compact": True, "grow_cache": True, "drafts": True,
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Setting:
    """A run to measure: model, data, and the settings of PMC."""

    model: ModelSource
    data: DataConfig
    pmc: PMC
    training: Training
    learning_rate: float
    questions: int


def demo() -> Setting:
    """`configs/experiment/demo.yaml`, with the published number of samples."""
    pmc = PMC(
        samples=20, temperature=1.0, max_new_tokens=40, min_len=4, retain_weight=1.0,
        retain_per_forget=2,
    )  # fmt: skip
    data = DataConfig(path="bundled", forget="forget10", retain="retain90", retain_rows=None)
    training = Training(epochs=14, batch_size=16, max_length=96, decode_batch=512)
    return Setting(ModelSource(), data, pmc, training, 3e-4, 32)


def tofu(directory: str, model: str, questions: int, epochs: int) -> Setting:
    """The published settings of Llama-3.2-3B except for the learning rate, on some questions."""
    pmc = PMC(samples=20, temperature=0.9, top_k=50, top_p=0.95, min_len=0, retain_weight=1.25)
    data = DataConfig(path=directory, forget="forget10", retain="retain90", retain_rows=None)
    training = Training(
        epochs=epochs, batch_size=8, accumulation=2, max_length=200, decode_batch=320
    )
    return Setting(ModelSource(path=model), data, pmc, training, 3e-4, questions)


def prepare(setting: Setting) -> tuple[Run[PMC], Params, TrainStep]:
    """The run before its first step, the target model's weights, and the optimizer step."""
    model = load_language_model(setting.model, PromptConfig())
    dataset = load_dataset(setting.data)
    dataset = dataclasses.replace(dataset, forget=dataset.forget[: setting.questions])
    pmc, training = setting.pmc, setting.training
    inputs = prepare_inputs(model, dataset, pmc, training, seed=0)
    prepared = pmc.prepare(inputs.task, inputs.examples, model.params)
    run = Run(pmc, inputs.task, inputs.examples, prepared)
    cfg = Optimizer(learning_rate=setting.learning_rate)
    per_epoch = training.epoch_length(inputs.examples.visited)
    optimizer = make_optimizer(cfg, model.config, make_schedule(cfg, run.total, per_epoch))
    return run, model.params, make_train_step(optimizer, pmc, model.config, remat="dots")


def changed(run: Run[PMC], dtype: str = "float32", **training: Any) -> Run[PMC]:
    """The same run with other training settings, computed in `dtype`."""
    task = dataclasses.replace(
        run.task,
        model=dataclasses.replace(run.task.model, dtype=dtype),
        training=dataclasses.replace(run.task.training, **training),
    )
    return dataclasses.replace(run, task=task)


@contextlib.contextmanager
def host_seconds() -> Iterator[list[float]]:
    """Seconds that scoring, pruning and building batches take on the host."""
    spent: list[float] = []

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return work(*arguments, **options)
            finally:
                spent.append(time.perf_counter() - started)

        return call

    def timed_pruning(*arguments: Any) -> Any:
        prune = pruning(*arguments)
        return prune and timed(prune)

    with (
        patch("pmc_jax.unlearning.savings.arguments.pruning", timed_pruning),
        patch("pmc_jax.unlearning.pmc.step.score_samples", timed(score_samples)),
        patch("pmc_jax.unlearning.pmc.step.remember_best", timed(remember_best)),
        patch("pmc_jax.training.loop.step_batch", timed(step_batch)),
    ):
        yield spent


@contextlib.contextmanager
def processor_seconds() -> Iterator[list[float]]:
    """Seconds of all cores together that sampling takes, whatever else the machine does."""
    spent: list[float] = []

    def timed(*arguments: Any) -> Any:
        started = time.process_time()
        found = sample_responses(*arguments)
        spent.append(time.process_time() - started)
        return found

    with patch("pmc_jax.unlearning.pmc.step.sample_responses", timed):
        yield spent


@contextlib.contextmanager
def decoded_tokens() -> Iterator[list[int]]:
    """The tokens that decode steps make, without those that responses have from a draft."""
    counts: list[int] = []

    def noting(tokens: int, answers: int) -> None:
        counts.append(tokens)
        decoded(tokens, answers)

    with patch("pmc_jax.decoding.sampler.decoded", noting):
        yield counts


def whole_run(
    run: Run[PMC], params: Params, train_step: TrainStep, changes: dict[str, Any]
) -> dict[str, Any]:
    """A run with some savings: tokens, remembered responses, and times."""
    run = changed(run, **{**NOTHING, **changes})
    optimizer = make_optimizer(Optimizer(), run.task.model.config, lambda _: 0.0)
    state = RunState(
        init_state(jax.tree.map(jnp.copy, params), optimizer), run.method.initial_state(run.task)
    )
    records = []
    with host_seconds() as host, decoded_tokens() as counts, processor_seconds() as processor:
        for state, record in steps(run, train_step, {}, state):  # noqa: B007, B020
            records.append(record)
    return {
        "tokens": sum(counts),
        "responses_tokens": sum(record.measures["tokens_sampled"] for record in records),
        "sampling_seconds": sum(record.seconds["sample"] for record in records),
        "sampling_processor_seconds": sum(processor),
        "estimated_saved": sum(record.measures["tokens_saved"] for record in records),
        "first_epoch": sum(r.measures["tokens_sampled"] for r in records if r.epoch == 0),
        "score": float(np.mean(state.method.score)),
        "seconds": sum(record.seconds["total"] for record in records),
        "host_seconds": sum(host),
        "memory": state.method,
    }


def same_responses(a: ResponseMemory, b: ResponseMemory) -> int:
    """The number of questions whose remembered responses are equal."""
    return int(((a.tokens == b.tokens).all(axis=1) & (a.length == b.length)).sum())


def differences(run: Run[PMC], params: Params, dtype: str) -> tuple[int, int]:
    """How many remembered responses differ after one sampling with and without savings, and of how
    many."""
    questions = list(range(len(run.task.prompts)))
    memories = []
    for changes in ({}, {**SAVINGS["both, in smaller shapes"], "drafts": True}):
        now = changed(run, dtype, **{**NOTHING, **changes})
        memory, size = now.method.initial_state(now.task), now.task.training.questions_per_step
        for first in range(0, len(questions), size):
            asked = questions[first : first + size]
            samples = sample_responses(now, memory, params, 0, asked)
            scores = score_samples(now, asked, samples)
            memory = remember_best(now, memory, 0, asked, samples, scores)
        memories.append(memory)
    return len(questions) - same_responses(*memories), len(questions)


def attack(run: Run[PMC], params: Params, once: bool, samples: int = 100) -> dict[str, Any]:
    """The attack of many samples on the target model, with the greedy answers as drafts or none."""
    model = run.task.model
    weights = decoding_params(params, model.config, model.dtype)
    prompts = run.task.prompts
    rows: dict[str, Any] = {}
    for name, drafts in (("without", None), ("with", "greedy")):
        for _ in range(1 if once else 2):  # the first time compiles everything
            started, processor = time.perf_counter(), time.process_time()
            with decoded_tokens() as counts:
                found = generate(
                    weights, prompts, cfg=model.config, key=jax.random.key(0), samples=samples,
                    sampling=Sampling(1.0, stop_ids=model.template.stop_ids),
                    limits=[sample_limit(run, i) for i in range(len(prompts))],
                    drafts=drafts, decode_batch=512,
                )  # fmt: skip
            seconds = time.perf_counter() - started
            processor = time.process_time() - processor
        tokens = sum(len(response) for own in found for response in own)
        rows[name] = {
            "tokens": sum(counts), "responses_tokens": tokens, "seconds": seconds,
            "processor_seconds": processor,
        }  # fmt: skip
        print(
            f"attack {name} drafts: {sum(counts):,} tokens decoded of {tokens:,}, {seconds:.1f} s, "
            f"{processor:.1f} s of processors"
        )
    return rows


def measure(name: str, setting: Setting, savings: Sequence[str], once: bool) -> dict[str, Any]:
    """Measure one setting and print each result; `once`: also the time of compilation."""
    run, params, train_step = prepare(setting)
    print(f"\n{name}: {len(run.task.prompts)} questions, n = {setting.pmc.samples}")
    print(
        f"{'saving':<28}{'tokens':>10}{'of all':>8}{'same':>8}{'score':>7}{'host':>7}"
        f"{'sampling':>10}{'processors':>12}"
    )
    rows: dict[str, Any] = {}
    first: ResponseMemory | None = None
    for saving in savings:
        changes = SAVINGS[saving]
        if not once:
            whole_run(run, params, train_step, changes)  # compiles everything
        row = whole_run(run, params, train_step, changes)
        memory = row.pop("memory")
        first = first or memory
        row["same_responses"] = same_responses(memory, first)
        rows[saving] = row
        share = row["tokens"] / rows[savings[0]]["tokens"]
        host = row["host_seconds"] / row["seconds"]
        print(
            f"{saving:<28}{row['tokens']:>10,}{share:>8.0%}"
            f"{row['same_responses']:>5}/{len(run.task.prompts)}{row['score']:>7.2f}{host:>7.1%}"
            f"{row['sampling_seconds']:>8.1f} s{row['sampling_processor_seconds']:>10.1f} s",
            flush=True,
        )
    found = {dtype: differences(run, params, dtype) for dtype in ("float32", "bfloat16")}
    for dtype, (differing, count) in found.items():
        print(f"{dtype}: {differing} of {count} remembered responses differ because of rounding")
    return {
        "questions": len(run.task.prompts),
        "savings": rows,
        "differing": found,
        "attack": attack(run, params, once),
    }


def main() -> None:
    """Measure, print, and write `benchmarks/savings.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tofu", nargs=2, metavar=("DIR", "MODEL"), help="also measure on TOFU's questions in DIR"
    )
    parser.add_argument("--questions", type=int, default=96, help="TOFU questions; %(default)s")
    parser.add_argument("--epochs", type=int, default=4, help="epochs on TOFU; %(default)s")
    parser.add_argument(
        "--savings", nargs="*", default=list(SAVINGS), choices=list(SAVINGS), metavar="NAME",
        help="which to measure, as shares of the first; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--once", action="store_true", help="measure first runs, which compile their functions"
    )
    parser.add_argument("--name", default="tofu", help="of TOFU's part; %(default)s")
    options = parser.parse_args()
    file = Path(__file__).parent / "savings.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    name = options.name if options.tofu else "demo"
    setting = tofu(*options.tofu, options.questions, options.epochs) if options.tofu else demo()
    found = measure(name, setting, options.savings, options.once)
    # Rows that are not measured now stay.
    found["savings"] = {**result.get(name, {}).get("savings", {}), **found["savings"]}
    result[name] = {**found, "load_average": os.getloadavg()[0]}
    file.write_text(to_json(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
