"""What adapters cost and what they do: the tables of `docs/lora.md`.

    python benchmarks/adapters.py plans --work DIR        # memory of large models on small devices
    python benchmarks/adapters.py error MODEL             # what int8 changes in a model's logits
    python benchmarks/adapters.py forgetting --work DIR   # do they forget? on the bundled model

`plans` and `forgetting` call `pmc`. What is finished in DIR is not run again, so the same command
continues after an interruption. A plan takes about a minute; those of TPUs need the extra `plan`.
`forgetting` trains all weights and adapters of three ranks with PMC: with seed 0 at three learning
rates each, then with two more seeds at the best one, in which the smaller of unlearn quality and
utility (as a share of that before) is largest; then it attacks each of these models. It takes an
hour on two cores.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parents[1]


def call(name: str, settings: Mapping[str, Any], file: Path, log: Path) -> None:
    """Run a command that writes `file`, unless it is there; its CPU seconds go beside the log."""
    if file.is_file():
        return
    print(f"{log.stem} …", file=sys.stderr, flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = [f"{key}={value}" for key, value in settings.items()]
    environment = {"JAX_PLATFORMS": "cpu", **os.environ}
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", f"pmc_jax.{name}", *arguments], cwd=ROOT, env=environment,
            stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{log.stem} failed: {log}")
    log.with_suffix(".seconds").write_text(f"{used.ru_utime + used.ru_stime:.1f}\n", "utf-8")


def show(rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first row is its head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))


# --- memory ----------------------------------------------------------------------------------

MODELS = {"tofu_llama3_1_8b_lora": "Llama-3.1-8B", "tofu_gemma3_12b_lora": "Gemma-3-12b"}
BASES = {"auto": "bfloat16", "int8": "int8"}
DEVICES = {"h100:1": "GPU", "v5e:1x1": "TPU v5e", "v5e:2x2": "four TPU v5e"}
SIZES = {"training.decode_batch": 80, "training.micro_batch": 2}
"""As small as is sensible, and the same on all devices: four questions, two questions."""
GPUS = (24, 40, 80)
PHASES = {"train": "train step", "sample": "sampling", "answer": "evaluation"}


def peak(found: Mapping[str, Any], phase: str) -> float:
    """The most memory of a phase on a device in GB; infinite if the compiler refused it."""
    own = [each for each in found["functions"] if each["name"].startswith(phase)]
    refused = any(each["refused"] for each in own)
    return float("inf") if refused else max(each["peak"] for each in own) / 1e9


def where_it_fits(found: Mapping[str, Any], peaks: Sequence[float]) -> str:
    """The devices whose memory is enough for all phases, and for all but evaluation.

    Even without evaluation a device holds the model's own weights, when they are loaded.
    """
    sizes = GPUS if found["topology"].startswith("h100") else (found["memory"] / 1e9,)
    own = max(each["bytes"].get("params", 0) for each in found["functions"]) / 1e9
    whole = [size for size in sizes if max(peaks) <= size]
    part = [size for size in sizes if max(*peaks[:2], own) <= size]
    if len(sizes) == 1:
        return "yes" if whole else "without evaluation" if part else "no"
    found_in = f"from {whole[0]} GB" if whole else "no"
    return found_in + (f"; from {part[0]} GB without evaluation" if part[:1] != whole[:1] else "")


def plans(work: Path) -> None:
    """Plan what is missing, then print the table."""
    heads = [f"{name}, GB" for name in PHASES.values()]
    rows = [["model", "base", "device", *heads, "fits"]]
    for (experiment, model), (base, dtype), (topology, device) in itertools.product(
        MODELS.items(), BASES.items(), DEVICES.items()
    ):
        out = work / f"{experiment}-{base}-{topology.replace(':', '-')}.json"
        settings = {
            "experiment": experiment, "adapter.base_dtype": base, "topology": topology,
            **SIZES, "tries": 0, "out": out,
        }  # fmt: skip
        call("plan", settings, out, out.with_suffix(".log"))
        found = json.loads(out.read_text("utf-8"))
        peaks = [peak(found, phase) for phase in PHASES]
        cells = ["refused" if most == float("inf") else f"{most:.1f}" for most in peaks]
        rows.append([model, dtype, device, *cells, where_it_fits(found, peaks)])
    show(rows)


# --- int8 ------------------------------------------------------------------------------------

QUESTIONS = 40


def error(path: str) -> None:
    """Compare next-token logits with those of float32 on the bundled questions and answers."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import pmc_jax as pmc
    from pmc_jax.assets import WORLD_DATA
    from pmc_jax.model import forward, logits
    from pmc_jax.model.trainable import trainable

    model = pmc.load_model(path, dtype="float32")
    lines = (WORLD_DATA / "retain90.json").read_text("utf-8").splitlines()[:QUESTIONS]
    texts = []
    for row in map(json.loads, lines):
        prompt = model.template.encode_prompt(row["question"])
        texts.append([*prompt, *model.template.encode_answer(row["answer"])])
    width = max(map(len, texts))
    tokens = np.array([[*text, *[0] * (width - len(text))] for text in texts])
    mask = jnp.asarray([[i < len(text) for i in range(width)] for text in texts])
    positions = jnp.broadcast_to(jnp.arange(width), mask.shape)
    part = trainable(model.config, adapter=pmc.LoRA(base_dtype="int8"))
    assert part is not None
    _, integers = part.split(model.params, "float32", donate=False)
    halves = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), model.params)

    def scores(params: Any, dtype: str) -> Any:
        @jax.jit
        def of(params: Any, tokens: Any, mask: Any, positions: Any) -> Any:
            x = forward(params, tokens, positions, mask, model.config, dtype=dtype)
            return jax.nn.log_softmax(logits(params, x, model.config))

        batches = (slice(first, first + 10) for first in range(0, len(texts), 10))
        found = [np.asarray(of(params, tokens[b], mask[b], positions[b])) for b in batches]
        return np.concatenate(found)[np.asarray(mask)]

    exact = scores(model.params, "float32")
    spread = np.sqrt(np.mean(np.square(exact - exact.mean(-1, keepdims=True))))
    rows = [["weights", "products", "relative error", "KL divergence", "same most likely token"]]
    for weights, params, dtype in (
        ("bfloat16", halves, "float32"), ("bfloat16", halves, "bfloat16"),
        ("int8", integers, "float32"), ("int8", integers, "bfloat16"),
    ):  # fmt: skip
        own = scores(params, dtype)
        change = own - exact
        change = change - change.mean(-1, keepdims=True)
        relative = np.sqrt(np.mean(np.square(change))) / spread
        divergence = np.mean(np.sum(np.exp(exact) * (exact - own), -1))
        same = np.mean(own.argmax(-1) == exact.argmax(-1))
        rows.append([weights, dtype, f"{100 * relative:.2f}%", f"{divergence:.5f}",
                     f"{100 * same:.1f}%"])  # fmt: skip
    show(rows)


# --- forgetting ------------------------------------------------------------------------------

RATES = {"all weights": ("1e-4", "3e-4", "1e-3"), **dict.fromkeys(
    ("rank 8", "rank 32", "rank 128"), ("1e-3", "3e-3", "1e-2")
)}  # fmt: skip
SEEDS = (0, 1, 2)
BUNDLED = "bundled"
"""The target model."""
MEASURES = {
    "unlearn_quality": (1, "unlearn quality"), "utility": (1, "utility"),
    "sampling_secret_worst": (100, "secrets in 100 samples"),
    "prefilling_secret_worst": (100, "the same after a forced beginning"),
    "relearning_forget_secret_worst": (100, "the same after relearning 8 rows"),
}  # fmt: skip
"""What the table has of an evaluation, with the factor to percent."""


class Forgetting:
    """The runs and evaluations below a directory."""

    def __init__(self, work: Path) -> None:
        self.work = work

    def run(self, kind: str, rate: str, seed: int) -> Mapping[str, Any]:
        """The summary of a run with these settings, which is trained if it is not there."""
        name = f"{kind.replace(' ', '-')}-lr{rate}-seed{seed}"
        directory = self.work / "runs" / name
        settings: dict[str, Any] = {
            "experiment": "demo", "runs_dir": self.work / "runs", "name": name, "seed": seed,
            "optimizer.learning_rate": rate,
        }  # fmt: skip
        if kind.startswith("rank"):
            settings |= {"adapter": "lora", "adapter.rank": kind.removeprefix("rank ")}
        log = self.work / "logs" / f"{name}.log"
        call("train", settings, directory / "summary.json", log)
        found = json.loads((directory / "summary.json").read_text("utf-8"))
        return {**found, "cpu": float(log.with_suffix(".seconds").read_text("utf-8"))}

    def measures(self, run: str) -> Mapping[str, float]:
        """What attacks on the model of a run found, or on the target model."""
        directory = self.work / "evaluations" / run
        model = run if run == BUNDLED else self.work / "runs" / run / "model"
        settings = {
            "model.path": model, "suite": "attacks", "name": run,
            "evaluations_dir": self.work / "evaluations", "evaluation.max_new_tokens": 40,
            "robustness.steps": "[32]", "robustness.bits": "[8]",
        }  # fmt: skip
        log = self.work / "logs" / f"{run}-evaluation.log"
        call("evaluate", settings, directory / "summary.json", log)
        found = json.loads((directory / "summary.json").read_text("utf-8"))
        return found["measures"][found["models"][0]]

    def best(self, kind: str) -> str:
        """The learning rate of the best run with the first seed."""

        def balance(rate: str) -> float:
            found = self.run(kind, rate, SEEDS[0])
            kept = 100 * found["after"]["utility"] / found["before"]["utility"]
            return min(found["after"]["unlearn_quality"], kept)

        return max(RATES[kind], key=balance)

    def rows(self) -> Iterator[list[str]]:
        """The rows of the table."""
        rates = {kind: self.best(kind) for kind in RATES}
        runs = {kind: [self.run(kind, rates[kind], seed) for seed in SEEDS] for kind in RATES}
        before = self.measures(BUNDLED)
        yield ["nothing", "", *(f"{f * before[key]:.1f}" for key, (f, _) in MEASURES.items()), ""]
        for same_seed in zip(*runs.values(), strict=True):
            for run in same_seed:
                self.measures(run["name"])
        for kind, rate in rates.items():
            found = [self.measures(run["name"]) for run in runs[kind]]
            cells = [spread([f * own[key] for own in found]) for key, (f, _) in MEASURES.items()]
            yield [kind, rate, *cells, f"{mean(run['cpu'] for run in runs[kind]):.0f}"]


def spread(values: Sequence[float]) -> str:
    """The mean of the values, and their range."""
    return f"{mean(values):.1f} ({min(values):.1f}–{max(values):.1f})"


def forgetting(work: Path) -> None:
    """Run what is missing, then print the table: means over seeds, and the range of values."""
    heads = ["trained", "learning rate", *(label for _, label in MEASURES.values()), "CPU seconds"]
    show([heads, *Forgetting(work).rows()])


def main() -> None:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    for name in ("plans", "forgetting"):
        parts.add_parser(name).add_argument("--work", type=Path, required=True, metavar="DIR")
    parts.add_parser("error").add_argument("model", metavar="MODEL")
    options = parser.parse_args()
    if options.part == "error":
        error(options.model)
    else:
        options.work.mkdir(parents=True, exist_ok=True)
        (plans if options.part == "plans" else forgetting)(options.work.resolve())


if __name__ == "__main__":
    main()
