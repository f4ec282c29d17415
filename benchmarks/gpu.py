"""Decoding and training of the paper's models on one accelerator: `python benchmarks/gpu.py`.

Random weights in the published shapes.

Decoding: the time of a step at 64, 320 and 1,280 rows, rounded up to whole prompts of n = 20; the
bound Σ max(bytes / bandwidth, FLOPs / peak) over weights, cache and filter; and the time of each
kind of operation, from JAX's profiler. (`decode_variants.py` measures other ways to write the
step.)

Training: the time of an optimizer step at the published batch sizes, in the published micro-batches
and in a single one; its model FLOPs utilisation; and the peak memory.

From both follows the time of the published run. Bandwidth and peak are measured in the same
process, with large copies and bfloat16 products. `--tiny` runs everything on a small model, as a
check that it works. `--kept --peak 770` measures nothing; it prints the results of earlier calls
with shares of another peak.
"""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")

import argparse
import collections
import dataclasses
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import yaml
from operations import CONTAINERS, KINDS, OTHER, events, kind_of, kinds_of

from convert.families import family_of
from pmc_jax.cli.config import config_directory
from pmc_jax.data.files import to_json
from pmc_jax.data.packing import divided
from pmc_jax.decoding import Sampling
from pmc_jax.decoding.sampler import begin_decoding, decode_chunk, prefill_prompts
from pmc_jax.model import ModelConfig, decoding_params, init_params, param_count
from pmc_jax.model.specs import Params
from pmc_jax.runtime.compilation import keep_compiled
from pmc_jax.training.batch import pack_batch
from pmc_jax.training.optimizer import Optimizer, make_optimizer
from pmc_jax.training.step import init_state, make_train_step
from pmc_jax.unlearning.method import Example
from pmc_jax.unlearning.pmc import PMC

MODELS = ("llama3_2_3b", "llama3_2_1b", "phi_1_5", "llama3_1_8b")
TRAINED = ("llama3_2_3b", "llama3_2_1b", "phi_1_5", "tiny")
"""Models whose weights, moments and gradients in float32 may fit on one device."""
BATCHES = {"phi_1_5": (16, 4), "tiny": (2, 2)}
"""Questions per micro-batch, and number of micro-batches; (8, 2) for other models."""

ROWS, SAMPLES, PROMPT = (64, 320, 1280), 20, 96
PUBLISHED_ROWS = 320
"""The rows of a step in the published runs: 16 questions times 20 samples, or 64 times 5."""
ROOM, FIRST, CHUNK = 128, 64, 32
"""Decode steps that the cache has room for, the first measured step, and how many are measured."""
MAX_LENGTH, TOKENS = 200, 110
"""Tokens of a question with its answer on TOFU: the most, and the typical number."""
ANSWER_TOKENS, VISITS = 60, {"phi_1_5": 40 * 400}
"""The approximate number of decode steps until all answers of a step have ended, and the visits of
questions in a published run: 30 epochs of 400 for models that are not named here."""
SAMPLING = Sampling(0.9, 50, 0.95)
TURNS = 20
"""Repetitions of the measured product or copy in one call; products also with a fifth of these."""
TINY = ModelConfig(
    vocab_size=1024, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=16,
)  # fmt: skip


def model(name: str) -> ModelConfig:
    """The published shape."""
    path = Path(config_directory()) / "model" / f"{name}.yaml"
    architecture = yaml.safe_load(path.read_text())["architecture"]
    return family_of(architecture).from_hf(architecture)


def seconds(work: Callable[[], Any], repetitions: int = 5) -> float:
    """Median wall time of a call until its results are ready, without compilation."""
    jax.block_until_ready(work())
    found = []
    for _ in range(repetitions):
        started = time.perf_counter()
        jax.block_until_ready(work())
        found.append(time.perf_counter() - started)
    return float(np.median(found))


def ceilings(size: int) -> dict[str, float]:
    """FLOP/s of bfloat16 products of square matrices, and bytes/s of copies of `size`²·256 bytes.

    The products are the best of two sizes and two lengths of series: GPUs lower their clocks in
    long series of large products, which are then slower than the products of a step.
    """

    def flops(size: int, turns: int) -> float:
        @jax.jit
        def products(a: jax.Array) -> jax.Array:
            return jax.lax.fori_loop(0, turns, lambda _, x: x @ a, a)

        a = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16) / size**0.5
        return turns * 2 * size**3 / seconds(lambda: products(a))

    source = jnp.ones((size, 64 * size), jnp.float32)
    copies = jax.jit(lambda x: jax.lax.fori_loop(0, TURNS, lambda _, x: x + 1, x))
    series = itertools.product((size, size // 2), (TURNS, TURNS // 5))
    return {
        "flops": max(itertools.starmap(flops, series)),
        "bytes": TURNS * 2 * source.nbytes / seconds(lambda: copies(source)),
    }


def step_bound(cfg: ModelConfig, rows: int, found: dict[str, float]) -> dict[str, float]:
    """Least seconds of each part of a bfloat16 decode step, in the middle of the measured steps."""
    embed = cfg.vocab_size * cfg.hidden_size
    weights = param_count(cfg) - (0 if cfg.tie_embeddings else embed)
    prompts, written = -(-rows // SAMPLES), FIRST + CHUNK // 2
    per_key = 2 * cfg.num_layers * cfg.num_kv_heads * cfg.head_dim * 2
    keys = PROMPT + written
    attention = 4 * cfg.num_layers * cfg.num_heads * cfg.head_dim * rows * keys

    def least(size: float, flops: float) -> float:
        return max(size / found["bytes"], flops / found["flops"])

    return {
        "weights": least(2 * weights, 2 * weights * rows),
        "cache": least(per_key * (prompts * PROMPT + rows * written), attention),
        "filter": least(2 * 4 * rows * cfg.vocab_size, 0),
    }


@dataclasses.dataclass
class Steps:
    """Decode steps from the middle of the cache on, with rows that never end."""

    cfg: ModelConfig
    params: Params
    rows: int

    def __post_init__(self) -> None:
        prompts = -(-self.rows // SAMPLES)
        logits, self.own = self.prefill()
        self.state = begin_decoding(
            logits, self.own, jax.random.split(jax.random.key(0), (prompts, SAMPLES)),
            jnp.full(prompts, 10 * ROOM), jnp.arange(prompts),
            jnp.arange(prompts * SAMPLES).reshape(prompts, SAMPLES),
            length=ROOM, sampling=SAMPLING,
        )  # fmt: skip
        self.settings = {"cfg": self.cfg, "sampling": SAMPLING}

    def prefill(self) -> Any:
        """Logits and caches of the prompts."""
        tokens = jnp.ones((-(-self.rows // SAMPLES), PROMPT), jnp.int32)
        return prefill_prompts(self.params, tokens, tokens > 0, self.cfg, dtype="bfloat16")

    def run(self, length: int = CHUNK) -> Any:
        """Take `CHUNK` steps; the host checks after every `length` of them."""
        self.state = dataclasses.replace(self.state, step=jnp.int32(FIRST))
        for end in range(FIRST + length, FIRST + CHUNK + 1, length):
            limits = jnp.int32(end), jnp.int32(0)
            self.state = decode_chunk(self.params, self.own, self.state, *limits, **self.settings)
            jax.block_until_ready(self.state.done)
        return self.state.tokens

    def seconds(self, length: int = CHUNK) -> float:
        """Seconds of one step."""
        return seconds(lambda: self.run(length)) / CHUNK

    def by_kind(self) -> dict[str, float]:
        """Seconds of a step by kind of operation; operations may run in parallel."""
        arguments = (self.params, self.own, self.state, jnp.int32(0), jnp.int32(0))
        text = decode_chunk.lower(*arguments, **self.settings).compile().as_text()
        # The names of a GPU's kernels are those of the operations without dots.
        kinds = {name.replace(".", "_"): kind for name, kind in kinds_of(text).items()}
        with tempfile.TemporaryDirectory() as directory:
            with jax.profiler.trace(directory, create_perfetto_trace=True):
                jax.block_until_ready(self.run())
            rows = events(Path(directory), "jit_decode_chunk")
        spent: dict[str, float] = collections.Counter()
        for row in rows:
            operation = row["args"]["hlo_op"]
            if operation.startswith("command_buffer"):
                operation = row["name"]
            if not operation.startswith(CONTAINERS):
                kind = kinds.get(operation.replace(".", "_")) or kind_of(operation)
                spent[kind] += row["dur"] / 1e6 / CHUNK
        return {kind: spent[kind] for kind in [*KINDS, OTHER]}


def decode(cfg: ModelConfig, params: Params, rows: int, found: dict[str, float]) -> dict[str, Any]:
    """Seconds of a decode step, and how they are spent."""
    steps = Steps(cfg, params, rows)
    whole, count = steps.seconds(), -(-rows // SAMPLES) * SAMPLES
    bound = step_bound(cfg, count, found)
    return {
        "rows": count,
        "prefill_seconds": seconds(steps.prefill),
        "step_seconds": whole,
        "host_seconds": steps.seconds(8) - whole,
        "tokens_per_second": count / whole,
        "share_of_bound": sum(bound.values()) / whole,
        "bound": bound,
        "by_kind": steps.by_kind(),
    }


def train(
    cfg: ModelConfig, questions: int, parts: int, remat: str, found: dict[str, float]
) -> dict[str, Any]:
    """Seconds of an optimizer step with as many retain pairs as questions, packed as in a run."""
    optimizer = make_optimizer(Optimizer(), cfg, optax.constant_schedule(1e-5))
    state = init_state(init_params(jax.random.key(0), cfg, jnp.float32), optimizer)
    drawn = np.random.default_rng(0).normal(TOKENS, TOKENS / 5, 2 * questions * parts)
    lengths = np.clip(drawn, TOKENS / 2, MAX_LENGTH).astype(int).tolist()
    pairs = [Example([1] * (length // 2), [1] * (length - length // 2)) for length in lengths]
    divisions = divided(pairs, parts, 2 * questions)
    batch, real = pack_batch(
        {
            "forget": [pair for own in divisions for pair in own[:questions]],
            "retain": [pair for own in divisions for pair in own[questions:]],
        },
        (questions, 0, questions), accumulation=parts, max_length=MAX_LENGTH, dtype="float32",
    )  # fmt: skip
    step = make_train_step(optimizer, PMC(), cfg, dtype="bfloat16", remat=remat)

    def run() -> Any:
        nonlocal state
        state, losses, _ = step(state, batch, 1.25, {})
        return losses.loss

    spent = seconds(run)
    attention = 12 * cfg.num_layers * cfg.num_heads * cfg.head_dim * TOKENS / 2
    flops = (6 * param_count(cfg) + attention) * real
    statistics = jax.devices()[0].memory_stats() or {}
    return {
        "rows": list(batch.tokens.shape),
        "share_padding": 1 - real / batch.tokens.size,
        "step_seconds": spent,
        "tokens_per_second": real / spent,
        "utilisation": flops / spent / found["flops"],
        "peak_gigabytes": statistics.get("peak_bytes_in_use", 0) / 1e9,
    }


def milliseconds(found: dict[str, float]) -> str:
    """Formats as `name 1.23, name 4.56`."""
    return ", ".join(f"{name} {spent * 1e3:.2f}" for name, spent in found.items())


def show_decode(name: str, row: dict[str, Any]) -> None:
    """Print the step, its bound, and its time by kind of operation."""
    print(
        f"{name:<13}{row['rows']:>6}{row['step_seconds'] * 1e3:>9.2f} ms"
        f"{row['tokens_per_second']:>11,.0f} tok/s{row['share_of_bound']:>7.0%} of the bound\n"
        f"{'':<19}bound: {milliseconds(row['bound'])}\n"
        f"{'':<19}spent: {milliseconds(row['by_kind'])}\n"
        f"{'':<19}checks every 8 steps {row['host_seconds'] * 1e3:.2f}; "
        f"prefill {row['prefill_seconds'] * 1e3:.2f}",
        flush=True,
    )


def show_train(name: str, label: str, row: dict[str, Any]) -> None:
    """Print one line for an optimizer step."""
    if "refused" in row:
        print(f"{name:<13}{label:<12}{row['refused'][:70]}", flush=True)
        return
    print(
        f"{name:<13}{label:<12}{row['step_seconds'] * 1e3:>9.1f} ms"
        f"{row['tokens_per_second']:>11,.0f} tok/s{row['utilisation']:>7.0%} utilisation"
        f"{row['peak_gigabytes']:>7.1f} GB peak so far",
        flush=True,
    )


def measure(
    name: str, options: argparse.Namespace, found: dict[str, float], own: dict[str, Any],
    keep: Callable[[], None],
) -> None:  # fmt: skip
    """Measure one model into `own`, which is written after every part."""
    cfg, parts = TINY if name == "tiny" else model(name), options.parts
    weights = init_params(jax.random.key(0), cfg, jnp.bfloat16)
    if "decode" in parts:
        params = decoding_params(weights, cfg, "bfloat16")
        for rows in [40] if name == "tiny" else options.rows:
            row = decode(cfg, params, rows, found)
            own.setdefault("decode", {})[str(row["rows"])] = {**row, "ceilings": found}
            show_decode(name, row)
            keep()
        del params
    del weights
    questions, accumulation = BATCHES.get(name, (8, 2))
    if "train" in parts and name in TRAINED:
        for count in dict.fromkeys((1, accumulation)):
            for remat in options.remat:
                label = f"{count}x{questions * accumulation // count} {remat}"
                try:
                    row = train(cfg, questions * accumulation // count, count, remat, found)
                except jax.errors.JaxRuntimeError as error:
                    row = {"refused": str(error).splitlines()[0]}
                own.setdefault("train", {})[label] = {**row, "ceilings": found}
                show_train(name, label, row)
                keep()
    show_run(name, own, VISITS.get(name, 30 * 400) // (questions * accumulation))


def show_run(name: str, own: dict[str, Any], count: int) -> None:
    """Print the time of the published run, if both halves of a step were measured."""
    steps = [r["step_seconds"] for r in own.get("train", {}).values() if "step_seconds" in r]
    sampled = own.get("decode", {}).get(str(PUBLISHED_ROWS))
    if steps and sampled:
        one = sampled["prefill_seconds"] + ANSWER_TOKENS * sampled["step_seconds"] + min(steps)
        print(
            f"{name}: {count} steps of prefill, {ANSWER_TOKENS} decode steps of {sampled['rows']} "
            f"rows and an update: {count * one / 60:.1f} minutes, without scoring\n"
        )


def show_kept(kept: dict[str, Any], peak: float | None) -> None:
    """Print earlier results with shares of `peak` FLOP/s, or of the peaks measured with them."""
    for device, models in kept.items():
        print(f"{device}, jax {models['jax']}\n")
        for name in filter(models.__contains__, MODELS):
            for row in models[name].get("decode", {}).values():
                found = row["ceilings"] | ({"flops": peak} if peak else {})
                bound = step_bound(model(name), row["rows"], found)
                share = sum(bound.values()) / row["step_seconds"]
                show_decode(name, {**row, "bound": bound, "share_of_bound": share})
            for label, row in models[name].get("train", {}).items():
                own = row["ceilings"]["flops"]
                used = row.get("utilisation", 0) * own / (peak or own)
                show_train(name, label, {**row, "utilisation": used})


def main() -> None:
    """Measure, print, and write `benchmarks/gpu.json` (nothing with `--tiny`).

    Results of earlier calls on the same kind of device stay unless they are measured again.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="*", default=list(MODELS), choices=MODELS, help="default: all"
    )
    parser.add_argument(
        "--parts", nargs="*", default=["decode", "train"], help="what to measure; default: both"
    )
    parser.add_argument(
        "--rows", nargs="*", type=int, default=list(ROWS), help="responses decoded at once"
    )
    parser.add_argument(
        "--remat", nargs="*", default=["dots", "none", "full"], help="of optimizer steps"
    )
    parser.add_argument("--tiny", action="store_true", help="check that everything runs")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "gpu.json", help="file of the numbers"
    )
    parser.add_argument("--kept", action="store_true", help="print the results of earlier calls")
    parser.add_argument(
        "--peak", type=float, help="with --kept: compute shares of this peak, in TFLOP/s"
    )
    options = parser.parse_args()
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.kept:
        show_kept(kept, options.peak and options.peak * 1e12)
        return
    keep_compiled()
    found = ceilings(1024 if options.tiny else 8192)
    device, version = jax.devices()[0].device_kind, jax.__version__
    print(
        f"{device}, jax {version}: products {found['flops'] / 1e12:.2f} TFLOP/s, "
        f"copies {found['bytes'] / 1e9:.0f} GB/s\n"
    )
    result = {**kept, device: {**kept.get(device, {}), "jax": version}}

    def keep() -> None:
        if not options.tiny:
            options.out.write_text(to_json(result, indent=2) + "\n")

    for name in ["tiny"] if options.tiny else options.models:
        measure(name, options, found, result[device].setdefault(name, {}), keep)


if __name__ == "__main__":
    main()
