"""Where the time of a decode step goes: `python benchmarks/decode_time.py [--models 7M-4k …]`.

Decodes as the raw comparison of `sampling.py` does, under JAX's profiler. Each operation of the
compiled function is assigned to a kind by its description. Operations may run in parallel, so their
times can add up to more than the wall time. Writes `benchmarks/decode_time.json`.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import argparse
import collections
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from operations import CONTAINERS, KINDS, OTHER, events, kinds_of
from sampling import (
    MODELS,
    PROMPT_TOKENS,
    PROMPTS,
    SAMPLES,
    TEMPERATURE,
    TOKENS,
    TOP_K,
    TOP_P,
    shape_of,
)

from pmc_jax.data.files import to_json
from pmc_jax.decoding import Decoding, Sampling, generate, sampler
from pmc_jax.model import decoding_params, init_params, param_count


def profiled(name: str) -> dict[str, Any]:
    """Milliseconds of a decode step, and of each kind of operation in it."""
    cfg = shape_of(name)
    params = init_params(jax.random.key(0), cfg, jnp.float32)
    params = decoding_params(params, cfg, jnp.float32)
    prompts = np.random.default_rng(0).integers(2, cfg.vocab_size, (PROMPTS, PROMPT_TOKENS))
    texts, compiled_chunk = [], sampler.decode_chunk

    def decode(repetition: int) -> float:
        started = time.perf_counter()
        generate(
            params, prompts.tolist(), cfg=cfg, sampling=Sampling(TEMPERATURE, TOP_K, TOP_P),
            key=jax.random.key(repetition), limits=[TOKENS] * PROMPTS, samples=SAMPLES,
            decoding=Decoding(chunk=TOKENS),
        )  # fmt: skip
        return time.perf_counter() - started

    def reading(*args: Any, **options: Any) -> Any:
        texts.append(compiled_chunk.lower(*args, **options).compile().as_text())
        return compiled_chunk(*args, **options)

    sampler.decode_chunk = reading
    decode(0)
    sampler.decode_chunk = compiled_chunk
    decode(0)
    seconds = float(np.median([decode(repetition) for repetition in range(1, 6)]))
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory, create_perfetto_trace=True):
            decode(6)
        rows = events(Path(directory), "jit_decode_chunk")
    kinds, spent = kinds_of(texts[-1]), collections.Counter()
    for row in rows:
        operation = row["args"]["hlo_op"]
        if not operation.startswith(CONTAINERS):
            spent[kinds.get(operation, OTHER)] += row["dur"] / 1000 / (TOKENS - 1)
    return {
        "parameters": param_count(cfg),
        "milliseconds": seconds * 1000 / TOKENS,
        "operations": {kind: spent[kind] for kind in [*KINDS, OTHER]},
    }


def main() -> None:
    """Measure, print a table, and write the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="*", default=list(MODELS), choices=list(MODELS), help="default: all"
    )
    options = parser.parse_args()
    load, found = os.getloadavg()[0], {}
    for name in options.models:
        found[name] = row = profiled(name)
        total = sum(row["operations"].values())
        print(f"{name}: {row['milliseconds']:.1f} ms per token of {PROMPTS * SAMPLES} rows")
        for kind, spent in row["operations"].items():
            print(f"  {kind:<40}{spent:>8.2f} ms{spent / total:>6.0%}", flush=True)
    result = {"load_average": load, "rows": PROMPTS * SAMPLES, "models": found}
    (Path(__file__).parent / "decode_time.json").write_text(to_json(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
