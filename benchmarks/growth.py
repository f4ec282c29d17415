"""How the cost of sampling grows: `python benchmarks/growth.py`.

On a random model of 7 million parameters, one of these changes while the others are fixed: samples
per prompt, prompts, tokens of a response, tokens of a prompt. Prefill is timed on its own: each
prompt is prefilled once, for any n. Dotted lines show proportional growth. Writes
`benchmarks/growth.json` and `benchmarks/growth.png`.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from pmc_jax.data.files import to_json
from pmc_jax.decoding import Decoding, Sampling, generate
from pmc_jax.decoding.sampler import prefill_prompts
from pmc_jax.model import ModelConfig, decoding_params, init_params
from pmc_jax.model.specs import Params

CFG = ModelConfig(
    vocab_size=4096, hidden_size=256, intermediate_size=1024, num_layers=6, num_heads=8,
    num_kv_heads=8, head_dim=32, tie_embeddings=True,
)  # fmt: skip
SAMPLING = Sampling(0.9, 50, 0.95)


@dataclasses.dataclass(frozen=True)
class Work:
    """What is sampled. Every response has its full number of tokens."""

    samples: int = 8
    prompts: int = 16
    response: int = 32
    prompt: int = 64


BASE = Work()
VALUES = {
    "samples": [1, 2, 4, 8, 16, 32],
    "prompts": [4, 8, 16, 32, 64],
    "response": [8, 16, 32, 64, 128],
    "prompt": [16, 32, 64, 128, 256],
}
TITLES = {
    "samples": "samples per prompt, n", "prompts": "forget questions",
    "response": "tokens of a response", "prompt": "tokens of a prompt",
}  # fmt: skip


def measure(params: Params, work: Work, repetitions: int) -> dict[str, float]:
    """Median seconds of prefill alone and of everything, without compilation."""
    tokens = np.random.default_rng(0).integers(2, CFG.vocab_size, (work.prompts, work.prompt))

    def prefill() -> Any:
        whole = jnp.ones(tokens.shape, bool)
        return prefill_prompts(params, jnp.asarray(tokens, jnp.int32), whole, CFG, dtype="float32")

    def everything() -> Any:
        return generate(
            params, tokens.tolist(), cfg=CFG, sampling=SAMPLING, key=jax.random.key(0),
            limits=[work.response] * work.prompts, samples=work.samples,
            decode_batch=BASE.prompts * work.samples, decoding=Decoding(chunk=work.response),
        )  # fmt: skip

    found = {}
    for name, run in {"prefill": prefill, "all": everything}.items():
        jax.block_until_ready(run())
        spent = []
        for _ in range(repetitions):
            started = time.perf_counter()
            jax.block_until_ready(run())
            spent.append(time.perf_counter() - started)
        found[name] = float(np.median(spent))
    return found


def exponent(values: list[int], seconds: list[float]) -> float:
    """The slope on logarithmic scales over the upper half; 1 is proportional growth."""
    first = len(values) // 2
    x, y = np.log(values[first:]), np.log(seconds[first:])
    return float(np.polyfit(x, y, 1)[0])


def draw(curves: dict[str, Any], path: Path) -> None:
    """Draw a panel for each quantity, on logarithmic scales."""
    figure, axes = plt.subplots(1, len(curves), figsize=(3.4 * len(curves), 3.2), sharey=True)
    styles = {
        "all": ("o", "#1b6ca8", "prefill and decoding"),
        "prefill": ("s", "#c8553d", "prefill"),
    }
    for axis, (name, curve) in zip(axes, curves.items(), strict=True):
        values = curve["values"]
        for part, (marker, colour, label) in styles.items():
            seconds = curve[part]
            axis.plot(values, seconds, marker=marker, color=colour, label=label)
            ideal = [seconds[-1] * value / values[-1] for value in values]
            axis.plot(values, ideal, ":", color=colour, linewidth=1)
        axis.set(xscale="log", yscale="log", xlabel=TITLES[name], xticks=values)
        axis.set_xticklabels(map(str, values))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds")
    axes[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repetitions", type=int, default=5, help="measurements of each point; %(default)s"
    )
    options = parser.parse_args()
    params = decoding_params(init_params(jax.random.key(0), CFG), CFG, jnp.float32)
    load = os.getloadavg()[0]
    curves: dict[str, Any] = {}
    for name, values in VALUES.items():
        works = [dataclasses.replace(BASE, **{name: value}) for value in values]
        rows = [measure(params, work, options.repetitions) for work in works]
        curve: dict[str, Any] = {"values": values}
        for part in ("prefill", "all"):
            curve[part] = [row[part] for row in rows]
            curve[f"exponent_{part}"] = exponent(values, curve[part])
        curves[name] = curve
        print(
            f"{TITLES[name]:<26} grows as x^{curve['exponent_all']:.2f}, "
            f"prefill as x^{curve['exponent_prefill']:.2f}   "
            + "  ".join(f"{v}: {s:.3f} s" for v, s in zip(values, curve["all"], strict=True)),
            flush=True,
        )
    here = Path(__file__).parent
    result = {"load_average": load, "base": dataclasses.asdict(BASE), "curves": curves}
    (here / "growth.json").write_text(to_json(result, indent=2) + "\n")
    draw(curves, here / "growth.png")


if __name__ == "__main__":
    main()
