"""Memory under limits: `python benchmarks/memory.py MODEL TOFU`.

MODEL is a small model, such as SmolLM2-135M-Instruct (`smollm2.py`); TOFU is a directory with
TOFU's files. For each limit a new process asks, samples and trains the model. A control group keeps
its resident memory below the limit; where none can be made, `ulimit -d` keeps its private memory
below. The process finds the limit by itself. The table has the peak of its resident memory and its
speed.

Then evaluation and attacks of 400 questions x 100 samples are compiled for larger models on a
device of `--device`, without weights, in the sizes that "auto" chooses there.
"""

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pmc_jax.data.files import to_json, write_json

HERE = Path(__file__).parent
GB = 10**9
LIMITS = (4, 6, 8)
LARGE = ("llama3_2_3b", "gemma3_12b")
PROMPT, ROOM, ATTACK = 64, 128, 100


def work(model_path: str, tofu: str, questions: int) -> dict[str, Any]:
    """What one process measures: seconds and tokens of each part, and its peak."""
    import jax

    import pmc_jax as pmc
    from pmc_jax.data import DataConfig
    from pmc_jax.data.load import load_dataset
    from pmc_jax.runtime.memory import free_memory

    data = load_dataset(DataConfig(path=tofu, forget="forget10", retain="retain90"))
    model = pmc.load_model(model_path)
    asked = [row.question for row in data.evaluation["retain"][:questions]]
    found: dict[str, Any] = {"free_after_loading": free_memory()}

    def answered(name: str, samples: int, count: int) -> None:
        decoding, started = model.for_decoding(), time.perf_counter()
        texts = decoding.generate(
            asked[:count], samples=samples, temperature=float(samples > 1), max_new_tokens=ROOM
        )
        seconds = time.perf_counter() - started
        tokens = sum(len(model.template.tokenizer.encode(text)) for own in texts for text in own)
        found[name] = {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds}

    answered("answers", 1, questions)
    answered("samples", 16, max(questions // 16, 1))
    result = pmc.unlearn(
        model, data, pmc.GD(), pmc.Training(epochs=1, batch_size=16, max_length=200), donate=True,
    )  # fmt: skip
    last = result.steps[-1]
    found["training"] = {
        "steps": len(result.steps),
        "tokens_per_second": last.tokens_trained / last.seconds["train"],
    }
    jax.block_until_ready(result.model.params)
    status = Path("/proc/self/status").read_text().splitlines()
    found["peak"] = next(1024 * int(line.split()[1]) for line in status if "VmHWM" in line)
    return found


@contextlib.contextmanager
def control_group(limit: int) -> Iterator[Path | None]:
    """A control group whose processes may take `limit` bytes; None where none can be made."""
    kinds = (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max"))
    for root, most in kinds:
        group = Path(root) / f"pmc_jax-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / most).exists():
                (group / most).write_text(str(limit))
                yield group
                return
        finally:
            group.rmdir()
    yield None


def limited(limit: int, arguments: Sequence[str]) -> dict[str, Any]:
    """The measurements of a process that may take `limit` GB."""
    with control_group(limit * GB) as group:

        def restrict() -> None:
            if group is None:
                resource.setrlimit(resource.RLIMIT_DATA, (limit * GB, limit * GB))
            else:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        command = [sys.executable, __file__, "--child", *arguments]
        done = subprocess.run(command, preexec_fn=restrict, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.splitlines()
    found = {
        "limit": limit * GB,
        "by": "ulimit -d" if group is None else "control group",
        "status": done.returncode,
        "said": [line for line in lines if line.startswith("warning: out of memory")],
    }
    return found | (json.loads(lines[-1]) if done.returncode == 0 else {})


def compiled(name: str, device: str) -> list[dict[str, Any]]:
    """What "auto" chooses for a model on a device, and what the compiler says it takes."""
    import yaml

    from convert.families import family_of
    from pmc_jax.decoding import Sampling
    from pmc_jax.model.kernels.dispatch import MIN_CAPABILITY, Target, supported_kernels
    from pmc_jax.model.memory import Footprint, rows_at_once
    from pmc_jax.planning.devices import find_topology
    from pmc_jax.planning.phases import Compiled, Job, compile_decoding
    from pmc_jax.training.optimizer import Optimizer
    from pmc_jax.unlearning.pmc import PMC
    from pmc_jax.unlearning.schedule import Training

    architecture = yaml.safe_load((HERE.parent / f"configs/model/{name}.yaml").read_text())
    cfg = family_of(architecture["architecture"]).from_hf(architecture["architecture"])
    topology = find_topology(device, None)
    assert topology.memory is not None
    kernels = supported_kernels(topology.backend, False, "bfloat16", capability=MIN_CAPABILITY)
    model = Footprint(cfg, "bfloat16", Target(topology.backend, False, kernels))
    free = topology.memory - model.weights(4) - model.decoding_weights
    found = []
    for part, samples in (("evaluation", 1), (f"attack x {ATTACK}", ATTACK)):
        sizes = {"width": PROMPT, "time": ROOM, "filters": samples > 1}
        prompts, wave = rows_at_once(model, free, prompts=400, samples=samples, **sizes)
        planned = model.generate(prompts, wave, PROMPT, ROOM, filters=samples > 1)
        training = Training(max_length=PROMPT + ROOM + 1)
        job = Job(cfg, "bfloat16", "float32", "full", PMC(samples=wave), training, Optimizer(),
                  1, 1, PROMPT)  # fmt: skip
        functions: list[Compiled] = []
        sampling = Sampling(float(samples > 1), 0, 0.95 if samples > 1 else 1.0, stop_ids=(0,))
        compile_decoding(
            job, topology.mesh(1, 1), part, prompts, wave, sampling, {}, functions.append
        )
        weights = functions[0].bytes["decoding params"]
        peak = max(function.peak for function in functions) - weights
        found.append(
            {"model": name, "part": part, "device": device, "free": free, "prompts": prompts,
             "samples": wave, "planned": planned, "compiled": peak}
        )  # fmt: skip
    return found


def gigabytes(size: float | None) -> str:
    """Bytes as gigabytes."""
    return "-" if size is None else f"{size / GB:.2f}"


def main() -> None:
    """Measure, print the tables, and write `memory.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("tofu", metavar="TOFU")
    parser.add_argument("--questions", type=int, default=256)
    parser.add_argument("--limits", type=int, nargs="*", default=LIMITS, metavar="GB")
    parser.add_argument("--device", default="h100:1")
    parser.add_argument("--large", nargs="*", default=LARGE, metavar="NAME")
    parser.add_argument("--out", type=Path, default=HERE / "memory.json")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(to_json(work(options.model, options.tofu, options.questions)))
        return
    arguments = [options.model, options.tofu, "--questions", str(options.questions)]
    found = {"questions": options.questions, "limits": [], "compiled": []}
    print("limit GB  peak GB  answers  samples  training (tokens/s)", flush=True)
    for limit in options.limits:
        one = limited(limit, arguments)
        found["limits"].append(one)
        speeds = [one.get(part, {}).get("tokens_per_second", 0.0)
                  for part in ("answers", "samples", "training")]  # fmt: skip
        numbers = "".join(f"{speed:9,.0f}" for speed in speeds)
        print(f"{limit:8}  {gigabytes(one.get('peak')):>7}{numbers}  {' '.join(one['said'])}"
              f"{'' if one['status'] == 0 else 'failed'}", flush=True)  # fmt: skip
        write_json(options.out, found)
    for name in options.large:
        for row in compiled(name, options.device):
            found["compiled"].append(row)
            sizes = ", ".join(
                f"{part} {gigabytes(row[part])} GB" for part in ("planned", "compiled", "free")
            )
            print(
                f"{row['model']}, {row['part']}: {row['prompts']} prompts x {row['samples']} "
                f"samples at a time; {sizes}",
                flush=True,
            )
        write_json(options.out, found)


if __name__ == "__main__":
    main()
