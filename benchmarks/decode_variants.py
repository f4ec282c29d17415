"""Other ways to write the decode loop: `python benchmarks/decode_variants.py [MODEL …]`.

Each variant decodes the same rows of the same random model in one compiled function. Beside its
time is the share of tokens that are the same as the library's. Other random keys give other
samples, and rounding can change a sample, after which its row differs.

MODEL is a shape of `sampling.py` (1M-4k, …; float32) or of `configs/model` (llama3_2_3b, …;
bfloat16). Without MODEL, two small shapes are measured on a CPU and two published ones elsewhere.
Writes `benchmarks/decode_variants.json`, and keeps the numbers of other devices in it.
"""

import argparse
import importlib
import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pmc_jax.data.files import to_json
from pmc_jax.decoding import Sampling
from pmc_jax.decoding.choice import choose
from pmc_jax.model import (
    ModelConfig,
    PrefixCache,
    decode_step,
    decoding_params,
    init_params,
    init_suffix,
    prefill,
    squeeze_single,
    unsqueeze_single,
)
from pmc_jax.model.attention import decode_attention, write_and_attend
from pmc_jax.model.kernels.dispatch import (
    current_target,
    decode_kernel,
    top_k_kernel,
)
from pmc_jax.model.specs import Params

# Imported with importlib because each package has a function of the same name.
forward = importlib.import_module("pmc_jax.model.forward")
draw = importlib.import_module("pmc_jax.decoding.draw")

PROMPT, SAMPLES, TOKENS = 24, 10, 32
SAMPLING = Sampling(0.9, 50, 0.95)
FILE = Path(__file__).parent / "decode_variants.json"

CUDNN = "prompts copied, cuDNN"
"""The only variant that may fail: the library has this kernel for some shapes only."""


def shape_of(name: str) -> tuple[ModelConfig, Any]:
    """A model's shape and the dtype it is decoded in."""
    if not name[0].isdigit():
        from gpu import model

        return model(name), jnp.bfloat16
    import sampling

    return sampling.shape_of(name), jnp.float32


# --- attention, instead of the default -------------------------------------------


def multiplied(  # type: ignore[no-untyped-def]
    q, prefix_k, prefix_v, mask, suffix_k, suffix_v, step, window=None, *, scale, softcap
):
    """The products with the suffix as multiplications and sums, which XLA can fuse with the
    softmax."""
    batch, samples, heads, dim = q.shape
    q = q.reshape(batch, samples, prefix_k.shape[1], -1, dim) * scale
    prefix = jnp.einsum("bnhgd,bhsd->bnhgs", q, prefix_k).astype(jnp.float32)
    suffix = (q[..., None, :] * suffix_k[:, :, :, None]).sum(-1).astype(jnp.float32)
    prefix = jnp.where(mask[:, None, None, None], prefix, -jnp.inf)
    suffix = jnp.where(jnp.arange(suffix_k.shape[3]) <= step, suffix, -jnp.inf)
    weights = jax.nn.softmax(jnp.concatenate([prefix, suffix], -1), -1).astype(q.dtype)
    own = weights[..., prefix.shape[-1] :]
    mixed = jnp.einsum("bnhgs,bhsd->bnhgd", weights[..., : prefix.shape[-1]], prefix_v)
    mixed += (own[..., None] * suffix_v[:, :, :, None]).sum(-2)
    return mixed.reshape(batch, samples, heads, dim)


def attending(attention: Callable[..., Array]) -> Callable[..., Any]:
    """A replacement for the function that chooses a decode step's attention."""
    return lambda *_: partial(write_and_attend, attention=attention)


def copied(implementation: str) -> Callable[..., Array]:
    """JAX's attention over a copy of the prompt for every sample, as in most decoders."""

    def attention(  # type: ignore[no-untyped-def]
        q, prefix_k, prefix_v, mask, suffix_k, suffix_v, step, window=None, *, scale, softcap
    ):
        rows = q.shape[0] * q.shape[1]

        def whole(prefix: Array, suffix: Array) -> Array:
            shape = (*q.shape[:2], *prefix.shape[1:])
            both = jnp.concatenate([jnp.broadcast_to(prefix[:, None], shape), suffix], axis=3)
            return jnp.swapaxes(both.reshape(rows, *both.shape[2:]), 1, 2)

        written = jnp.broadcast_to(jnp.arange(suffix_k.shape[3]) <= step, (rows, suffix_k.shape[3]))
        seen = jnp.concatenate([jnp.repeat(mask, q.shape[1], axis=0), written], axis=1)
        mixed = jax.nn.dot_product_attention(
            q.reshape(rows, 1, *q.shape[2:]), whole(prefix_k, suffix_k), whole(prefix_v, suffix_v),
            mask=seen[:, None, None], scale=scale, implementation=implementation,
        )  # fmt: skip
        return mixed.reshape(q.shape)

    return attention


# --- the whole ------------------------------------------------------------------------------


def variants(device: str, vocab: int, dtype: Any) -> dict[str, dict[str, Any]]:
    """By name: how `decoded` differs from the library's loop, and what is patched to trace it."""
    target = current_target(dtype)
    kernel = decode_kernel(target, head_dim=64, kv_heads=8)
    attention = {"multiplied and summed": multiplied, "prompts copied": copied("xla")}
    if kernel != "xla":
        attention["by XLA"] = decode_attention
    if device == "gpu":
        attention[CUDNN] = copied("cudnn")
    without: list[tuple] = [(draw, "top_k_kernel", lambda _: "xla")]
    top_k: dict[str, list[tuple]] = {
        "all rows at once": [*without, (draw, "TOP_K_PARTS", 1)],
        "bisection": [(draw, "SMALL_TOP_K", 0)],
    }
    if top_k_kernel(target) == "native":
        top_k["by XLA"] = without
    if vocab < draw.LARGE_VOCABULARY:
        top_k["by blocks"] = [*without, (draw, "LARGE_VOCABULARY", 0)]
    else:
        top_k["at once"] = [*without, (draw, "LARGE_VOCABULARY", vocab + 1)]
    settings: dict[str, list[tuple]] = {}
    if kernel == "triton":
        gpu_decode = importlib.import_module("pmc_jax.model.kernels.gpu_decode")
        settings = {
            "kernel: twice the keys at a time": [
                (gpu_decode, "KEYS", 2 * gpu_decode.KEYS),
                (gpu_decode, "BLOCK", 2 * gpu_decode.BLOCK),
            ],
            "kernel: a program for each sample": [(gpu_decode, "samples_together", lambda *_: 1)],
        }
    patched = {
        **settings,
        **{
            f"attention: {name}": [(forward, "write_and_attend_for", attending(work))]
            for name, work in attention.items()
        },
        **{f"top-k: {name}": patches for name, patches in top_k.items()},
    }
    unrolled = device in ("gpu", "cpu")  # as in the library
    other = "layers in a scan" if unrolled else "layers unrolled"
    return {
        "as it is": {},
        other: {"unrolled": not unrolled},
        "a fixed number of steps": {"fixed": True},
        "keys: rbg": {"keys": "rbg"},
        "keys: unsafe_rbg": {"keys": "unsafe_rbg"},
        **{name: {"patches": patches} for name, patches in patched.items()},
    }


def decoded(
    params: Params, logits: Array, prefix: PrefixCache, keys: Array, cfg: ModelConfig,
    *, fixed: bool = False,
) -> Array:  # fmt: skip
    """Tokens [prompts, samples, TOKENS]."""
    caches = init_suffix(prefix, SAMPLES, TOKENS)
    chosen, _ = choose(logits, keys, jnp.int32(0), SAMPLING)
    tokens = jnp.zeros((*keys.shape, TOKENS), jnp.int32).at[..., 0].set(chosen)

    def advance(state: tuple) -> tuple:
        last, number, caches, tokens = state
        whole = unsqueeze_single(caches)
        found, caches = decode_step(params, last, number, prefix, whole, cfg)
        chosen, _ = choose(found, keys, number + 1, SAMPLING)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, chosen[..., None], number + 1, 2)
        return chosen, number + 1, squeeze_single(caches), tokens

    state = (chosen, jnp.int32(0), squeeze_single(caches), tokens)
    if fixed:
        state = jax.lax.fori_loop(0, TOKENS - 1, lambda _, state: advance(state), state)
    else:
        state = jax.lax.while_loop(lambda state: state[1] < TOKENS - 1, advance, state)
    return state[3]


def compared(name: str, rows: int, repetitions: int) -> dict[str, dict[str, Any]]:
    """Milliseconds per token of all rows, and the share of tokens that are the library's."""
    cfg, dtype = shape_of(name)
    weights = init_params(jax.random.key(0), cfg, dtype)
    prompts = -(-rows // SAMPLES)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(2, cfg.vocab_size, (prompts, PROMPT)))
    filled = jax.jit(prefill, static_argnames=("cfg", "dtype"))
    layouts: dict[bool | None, tuple] = {}
    works: dict[str, Callable[[], Array]] = {}
    found: dict[str, dict[str, Any]] = {}
    for label, changes in variants(jax.default_backend(), cfg.vocab_size, dtype).items():
        key = jax.random.key(1, impl=changes.get("keys"))
        unrolled = changes.get("unrolled")
        if unrolled not in layouts:
            params = decoding_params(weights, cfg, dtype, unrolled=unrolled)
            layouts[unrolled] = (params, *filled(params, tokens, tokens > 0, cfg, dtype=dtype))
        arguments = (*layouts[unrolled], jax.random.split(key, (prompts, SAMPLES)))
        with ExitStack() as patches:
            for patch in changes.get("patches", ()):
                patches.enter_context(mock.patch.object(*patch))
            fixed = changes.get("fixed", False)
            function = jax.jit(lambda *a, fixed=fixed: decoded(*a, cfg, fixed=fixed))
            try:
                started = time.perf_counter()
                compiled = function.lower(*arguments).compile()
                compiling = time.perf_counter() - started
                result = np.asarray(compiled(*arguments))
            except Exception as error:
                if not label.endswith(CUDNN):
                    raise
                found[label] = {"refused": str(error).splitlines()[0]}
                continue
        works[label] = lambda compiled=compiled, a=arguments: compiled(*a).block_until_ready()
        found[label] = {"tokens": result, "compile_seconds": compiling, "milliseconds": []}
    for _ in range(repetitions):
        for label, work in works.items():
            started = time.perf_counter()
            work()
            spent = time.perf_counter() - started
            found[label]["milliseconds"].append(spent / (TOKENS - 1) * 1000)
    expected = found["as it is"]["tokens"]
    for row in found.values():
        if "tokens" in row:
            row["same_tokens"] = float((row.pop("tokens") == expected).mean())
    return found


def main() -> None:
    """Measure, print a table for each model and number of rows, and write the numbers."""
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ["1M-4k", "7M-4k"] if on_cpu else ["llama3_2_1b", "llama3_2_3b"]
    parser.add_argument("models", nargs="*", metavar="MODEL", default=default, help="a shape")
    rows = [160] if on_cpu else [64, 320, 1280]
    parser.add_argument(
        "--rows", nargs="*", type=int, default=rows, help="responses decoded at once; %(default)s"
    )
    parser.add_argument(
        "--repetitions", type=int, default=7, help="measurements of each variant; %(default)s"
    )
    options = parser.parse_args()
    device = jax.devices()[0].device_kind
    result: dict[str, Any] = {"load_average": os.getloadavg()[0], "models": {}}
    for name in options.models:
        for rows in options.rows:
            found = compared(name, rows, options.repetitions)
            base = np.median(found["as it is"]["milliseconds"])
            label = f"{name}, {-(-rows // SAMPLES) * SAMPLES} rows"
            print(f"\n{label} on {device}: milliseconds per token of all rows")
            result["models"][label] = found
            for way, row in found.items():
                if "refused" in row:
                    print(f"  {way:<38}{row['refused'][:60]}", flush=True)
                    continue
                spent = np.array(row["milliseconds"])
                median = np.median(spent)
                print(
                    f"  {way:<38}{median:>8.2f} ({spent.min():.2f} to {spent.max():.2f})"
                    f"{base / median:>7.2f}x  same tokens {row['same_tokens']:.0%}, "
                    f"compiled in {row['compile_seconds']:.1f} s",
                    flush=True,
                )
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    FILE.write_text(to_json({**kept, device: result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
