"""Memory and speed of loading a large checkpoint: `python benchmarks/conversion.py`.

Writes a random Llama checkpoint of two billion parameters in several bfloat16 files. Then it
measures these tasks, each in a process of its own:

- reading the bytes through one buffer, and into arrays that stay in memory,
- loading the model in the files' dtype and in float32,
- converting it to a native checkpoint and back.

"Beyond" is the peak memory of the process, less its memory before the task and less the parameters
themselves.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

os.environ["JAX_PLATFORMS"] = "cpu"
import convert.__main__ as convert
from convert.export import plan_tensors
from convert.families import LLAMA
from convert.load import load_checkpoint, tensor_names
from convert.tensors import write_tensors
from pmc_jax.data.files import to_json
from pmc_jax.model import ModelConfig, param_count, param_specs

MODEL = {"hidden_size": 2560, "intermediate_size": 8192, "num_heads": 20, "num_kv_heads": 4,
         "head_dim": 128, "vocab_size": 32_000}  # fmt: skip
PER_FILE = 10**9
REPETITIONS = 3
CONVERSIONS = ("from-hf", "to-hf")
ITEM = {"read": 0, "read and keep": 0, "as stored": 2, "float32": 4, "from-hf": 2, "to-hf": 2}
"""Bytes per parameter in memory, by task."""


def shape(parameters: float) -> ModelConfig:
    """A Llama with about this many parameters; the number of layers is chosen."""
    one, two = (ModelConfig(num_layers=n, **MODEL) for n in (1, 2))
    each = param_count(two) - param_count(one)
    return ModelConfig(
        num_layers=max(1, round((parameters - param_count(one)) / each) + 1), **MODEL
    )


def write_model(directory: Path, cfg: ModelConfig) -> int:
    """Write the checkpoint tensor by tensor; return its size in bytes."""
    directory.mkdir()
    dtypes = dict.fromkeys(tensor_names(LLAMA, cfg), "BF16")
    tensors = list(plan_tensors(cfg, LLAMA, dtypes))
    rng = np.random.default_rng(0)

    def values() -> Iterator[np.ndarray]:
        for tensor in tensors:
            yield rng.random(tensor.shape, np.float32).astype(ml_dtypes.bfloat16)

    write_tensors(directory, tensors, values(), PER_FILE)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **LLAMA.to_hf(cfg)}
    (directory / "config.json").write_text(to_json(config))
    return sum(tensor.nbytes for tensor in tensors)


def memory(field: str) -> int:
    """Memory of this process in bytes: `VmRSS` is the current value, `VmHWM` the peak."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(x.split()[1]) for x in status.splitlines() if x.startswith(field))


def read_bytes(directory: Path) -> None:
    """Read every file through one buffer."""
    buffer = bytearray(1 << 24)
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def one(task: str, directory: Path) -> dict[str, Any]:
    """Run a task in this process."""
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.numpy.zeros(8).block_until_ready()
    before, started = memory("VmRSS"), time.perf_counter()
    kept = 0
    if task == "read":
        read_bytes(directory)
    elif task == "read and keep":
        files = [np.fromfile(path, np.uint8) for path in sorted(directory.glob("*.safetensors"))]
        kept = sum(file.nbytes for file in files)
    elif task in CONVERSIONS:
        with contextlib.redirect_stdout(sys.stderr):
            assert convert.main([task, *map(str, places(task, directory))]) == 0
        kept = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    else:
        dtype = None if task == "as stored" else task
        params = jax.block_until_ready(load_checkpoint(directory, dtype=dtype).params)
        kept = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "params": kept, "beyond": memory("VmHWM") - before - kept}


def places(task: str, directory: Path) -> tuple[Path, Path]:
    """Source and destination of a conversion."""
    native = directory.with_name("native")
    return (directory, native) if task == "from-hf" else (native, directory.with_name("back"))


def measure(task: str, directory: Path) -> dict[str, Any]:
    """Run a task several times, each in a process of its own; return medians."""
    found = []
    for _ in range(REPETITIONS):
        if task in CONVERSIONS:
            shutil.rmtree(places(task, directory)[1], ignore_errors=True)
        command = [sys.executable, __file__, "--task", task, "--directory", str(directory)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return {key: float(np.median([row[key] for row in found])) for key in found[0]} | {
        "all_seconds": [row["seconds"] for row in found]
    }


def main() -> None:
    """Measure, print a table, and write `benchmarks/conversion.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=float, default=2e9, help="of the model; %(default)g")
    parser.add_argument(
        "--directory", type=Path, help="directory for the files; the default is a temporary one"
    )
    parser.add_argument("--task", help="used by the benchmark's own processes")
    options = parser.parse_args()
    if options.task:
        print(to_json(one(options.task, options.directory)))
        return
    cfg = shape(options.parameters)
    largest = max(math.prod(spec.shape) for spec in param_specs(cfg)["layers"].values())
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        directory = Path(scratch) / "model"
        size = write_model(directory, cfg)
        rows = {task: measure(task, directory) for task in ITEM}
    for task, row in rows.items():
        row["largest_stacked_leaf"] = largest * ITEM[task]
        row["ratio_to_read"] = row["seconds"] / rows["read"]["seconds"]
    load = os.getloadavg()[0]
    result = {"parameters": param_count(cfg), "layers": cfg.num_layers, "file_bytes": size,
              "rows": rows, "load_average": load}  # fmt: skip
    (Path(__file__).parent / "conversion.json").write_text(to_json(result, indent=2) + "\n")
    print(f"{param_count(cfg):,} parameters, {size / 1e9:.1f} GB of bfloat16; load {load:.1f}\n")
    heads = ("median s", 10), ("ratio", 8), ("params GB", 11), ("beyond GB", 11), ("leaf GB", 9)
    print(f"{'':<12}" + "".join(f"{head:>{width}}" for head, width in heads) + f"{'leaves':>8}")
    for task, row in rows.items():
        leaf = row["largest_stacked_leaf"]
        leaves = f"{row['beyond'] / leaf:>8.2f}" if leaf else f"{'':>8}"
        print(
            f"{task:<12}{row['seconds']:>10.1f}{row['ratio_to_read']:>7.1f}x"
            f"{row['params'] / 1e9:>11.2f}{row['beyond'] / 1e9:>11.2f}{leaf / 1e9:>9.2f}{leaves}"
        )


if __name__ == "__main__":
    main()
