"""Decoding and training of the paper's models on one accelerator: `python benchmarks/gpu.py`.

Random weights in the published shapes. For decoding: the time of a step at 64, 320 and 1,280 rows,
rounded up to whole prompts of n = 20, beside the bound Σ max(bytes / bandwidth, FLOPs / peak) over
weights, cache and filter; what the parts take when they run alone; and variants. For training: the
optimizer step at the published batch sizes, its model FLOPs utilisation and peak memory.
From both, the time of the published run. Bandwidth and peak are those of a large copy and a large
bfloat16 product, measured in the same process. `--tiny` runs all of it on a small
model, to see that it works.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import yaml

from convert.families import family_of
from pmc_jax.config import config_directory
from pmc_jax.decoding.sampler import Sampling, _begin, _decode_chunk, _prefill, choose
from pmc_jax.model import ModelConfig, init_params, param_count
from pmc_jax.model.specs import Params
from pmc_jax.training.optimizer import OptimizerConfig, make_optimizer
from pmc_jax.training.step import init_state, make_train_step
from pmc_jax.unlearning import LossRows

MODELS = ("llama3_2_1b", "phi_1_5", "llama3_2_3b", "llama3_1_8b")
TRAINED = ("llama3_2_1b", "phi_1_5", "llama3_2_3b")
BATCHES = {"phi_1_5": (16, 4)}
"""Questions in a micro-batch, and micro-batches; of the others (8, 2)."""

ROWS, SAMPLES, PROMPT, ROOM, CHUNK = (64, 320, 1280), 20, 96, 128, 32
WIDTH, TOKENS = 200, 110
"""Tokens of a packed row, and of a question with its answer on TOFU, about."""
ANSWER_TOKENS, STEPS = 60, 750
"""Decode steps until the answers of a step have ended, about; and steps of the published run."""
SAMPLING = Sampling(0.9, 50, 0.95, stop_ids=(0,))
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
    """Median wall time of a call and its results, compilation not counted."""
    jax.block_until_ready(work())
    found = []
    for _ in range(repetitions):
        started = time.perf_counter()
        jax.block_until_ready(work())
        found.append(time.perf_counter() - started)
    return float(np.median(found))


def ceilings(size: int) -> dict[str, float]:
    """FLOP/s of a bfloat16 product of `size`² matrices, and bytes/s of a large copy."""
    a = jnp.ones((size, size), jnp.bfloat16)
    product = jax.jit(lambda x: x @ x)
    source = jnp.ones((size, 16 * size), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return {
        "flops": 2 * size**3 / seconds(lambda: product(a)),
        "bytes": 2 * source.nbytes / seconds(lambda: copy(source)),
    }


def step_bound(cfg: ModelConfig, rows: int, found: dict[str, float]) -> dict[str, float]:
    """Least seconds of one decode step by part, in bfloat16, with the cache half full."""
    embed = cfg.vocab_size * cfg.hidden_size
    weights = param_count(cfg) - (0 if cfg.tie_embeddings else embed)
    prompts, written = -(-rows // SAMPLES), ROOM // 2
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


def decode(cfg: ModelConfig, params: Params, rows: int, found: dict[str, float]) -> dict[str, Any]:
    """Seconds of a decode step as it runs, of its parts alone, and of variants."""
    prompts, dtype = -(-rows // SAMPLES), "bfloat16"
    tokens = jnp.ones((prompts, PROMPT), jnp.int32)
    rng = jax.random.key(0)
    prefill = seconds(lambda: _prefill(params, tokens, tokens > 0, cfg, dtype=dtype))
    logits, prefix = _prefill(params, tokens, tokens > 0, cfg, dtype=dtype)
    order = jnp.arange(prompts * SAMPLES).reshape(prompts, SAMPLES)

    def chunks(sampling: Sampling, length: int, key: jax.Array = rng) -> float:
        """Seconds a step, in chunks of `length` from the middle of the cache on."""
        keys = jax.random.split(key, (prompts, SAMPLES))
        # Limits that are never reached, so that no row ends.
        limit = jnp.full(prompts, 10 * ROOM)
        own, state = _begin(
            logits, prefix, keys, limit, jnp.arange(prompts), order, length=ROOM, cfg=cfg,
            sampling=dataclasses.replace(sampling, stop_ids=()), dtype=dtype,
        )  # fmt: skip
        sampling = dataclasses.replace(sampling, stop_ids=())

        def run() -> Any:
            nonlocal state
            state = dataclasses.replace(state, step=jnp.int32(ROOM // 2))
            for end in range(ROOM // 2 + length, ROOM // 2 + CHUNK + 1, length):
                state = _decode_chunk(
                    params, own, state, jnp.int32(end), cfg=cfg, sampling=sampling
                )
                jax.block_until_ready(state.done)
            return state.tokens

        return seconds(run) / CHUNK

    whole = chunks(SAMPLING, CHUNK)
    bound = step_bound(cfg, prompts * SAMPLES, found)
    scores = jnp.zeros((prompts, SAMPLES, cfg.vocab_size), jnp.float32)
    keys = jax.random.split(rng, (prompts, SAMPLES))
    pick = jax.jit(choose, static_argnames="sampling")
    parts = {
        "filter": seconds(lambda: pick(scores, keys, jnp.int32(0), sampling=SAMPLING)),
        "host": chunks(SAMPLING, 8) - whole,
    }
    parts["model"] = whole - parts["filter"]
    variants = {
        "as it is": whole,
        "no filter": chunks(Sampling(0.9), CHUNK),
        "top-p alone": chunks(Sampling(0.9, 0, 0.95), CHUNK),
        "greedy": chunks(Sampling(0.0), CHUNK),
        "rbg keys": chunks(SAMPLING, CHUNK, jax.random.key(0, impl="rbg")),
    }
    return {
        "rows": prompts * SAMPLES,
        "prefill_seconds": prefill,
        "step_seconds": whole,
        "tokens_per_second": prompts * SAMPLES / whole,
        "share_of_bound": sum(bound.values()) / whole,
        "bound": bound,
        "parts": parts,
        "variants": variants,
    }


def train(
    cfg: ModelConfig, questions: int, parts: int, remat: str, found: dict[str, float]
) -> dict[str, Any]:
    """Seconds of an optimizer step with as many retain pairs, in packed rows."""
    optimizer = make_optimizer(OptimizerConfig(), cfg, optax.constant_schedule(1e-5))
    state = init_state(init_params(jax.random.key(0), cfg, jnp.float32), optimizer)
    per_row = WIDTH // TOKENS
    rows = -(-2 * questions // per_row)
    segments = np.zeros((parts, rows, WIDTH), np.int32)
    for place in range(per_row):
        segments[:, :, place * TOKENS : (place + 1) * TOKENS] = place + 1
    real = int((segments > 0).sum())
    batch = LossRows(
        jnp.ones(segments.shape, jnp.int32), jnp.asarray(segments), jnp.asarray(segments > 0),
        retain=jnp.asarray(np.broadcast_to(np.arange(rows)[:, None] % 2 > 0, segments.shape)),
    )  # fmt: skip
    step = make_train_step(optimizer, cfg, 1.25, dtype="bfloat16", remat=remat)

    def run() -> Any:
        nonlocal state
        state, losses, _ = step(state, batch)
        return losses.loss

    spent = seconds(run)
    attention = 12 * cfg.num_layers * cfg.num_heads * cfg.head_dim * TOKENS / 2
    flops = (6 * param_count(cfg) + attention) * real
    statistics = jax.devices()[0].memory_stats() or {}
    return {
        "step_seconds": spent,
        "tokens_per_second": real / spent,
        "utilisation": flops / spent / found["flops"],
        "peak_gigabytes": statistics.get("peak_bytes_in_use", 0) / 1e9,
    }


def show_decode(name: str, row: dict[str, Any]) -> None:
    """A line for the step, one for its parts, one for the variants."""
    milli = lambda found: "  ".join(f"{k} {v * 1e3:.2f}" for k, v in found.items())  # noqa: E731
    print(
        f"{name:<13}{row['rows']:>6}{row['step_seconds'] * 1e3:>9.2f} ms"
        f"{row['tokens_per_second']:>11,.0f} tok/s{row['share_of_bound']:>7.0%} of the bound\n"
        f"{'':<19}bound: {milli(row['bound'])}\n{'':<19}alone: {milli(row['parts'])}\n"
        f"{'':<19}{milli(row['variants'])}",
        flush=True,
    )


def main() -> None:
    """Measure, print, and write `benchmarks/gpu.json`, or nothing with `--tiny`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--rows", nargs="*", type=int, default=list(ROWS))
    parser.add_argument("--remat", nargs="*", default=["none", "dots", "full"])
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    device = jax.devices()[0].device_kind
    found = ceilings(1024 if options.tiny else 8192)
    print(
        f"{device}: products {found['flops'] / 1e12:.2f} TFLOP/s, "
        f"copies {found['bytes'] / 1e9:.0f} GB/s\n"
    )
    result: dict[str, Any] = {"device": device, "ceilings": found, "decode": {}, "train": {}}
    names = ["tiny"] if options.tiny else options.models
    for name in names:
        cfg = TINY if options.tiny else model(name)
        params = init_params(jax.random.key(0), cfg, jnp.bfloat16)
        rows = [40] if options.tiny else options.rows
        result["decode"][name] = [decode(cfg, params, count, found) for count in rows]
        for row in result["decode"][name]:
            show_decode(name, row)
        del params
    print()
    for name in names if options.tiny else [name for name in names if name in TRAINED]:
        cfg, own = TINY if options.tiny else model(name), result["train"].setdefault(name, {})
        questions, parts = (2, 2) if options.tiny else BATCHES.get(name, (8, 2))
        for remat in options.remat:
            try:
                own[remat] = row = train(cfg, questions, parts, remat, found)
            except jax.errors.JaxRuntimeError as error:
                own[remat] = {"refused": str(error).splitlines()[0]}
                print(f"{name:<13}{remat:<6}{own[remat]['refused'][:70]}", flush=True)
                continue
            print(
                f"{name:<13}{remat:<6}{row['step_seconds'] * 1e3:>9.1f} ms"
                f"{row['tokens_per_second']:>11,.0f} tok/s{row['utilisation']:>7.0%} utilisation"
                f"{row['peak_gigabytes']:>7.1f} GB at most so far",
                flush=True,
            )
        steps = [row["step_seconds"] for row in own.values() if "step_seconds" in row]
        sampled = next((row for row in result["decode"][name] if row["rows"] >= 320), None)
        if steps and sampled:
            one = sampled["prefill_seconds"] + ANSWER_TOKENS * sampled["step_seconds"] + min(steps)
            print(
                f"{name}: {STEPS} steps of prefill, {ANSWER_TOKENS} decode steps of 320 rows and "
                f"an update: {STEPS * one / 60:.1f} minutes, without scoring"
            )
    if not options.tiny:
        path = Path(__file__).parent / "gpu.json"
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
