"""Loading checkpoints on eight virtual devices, in a process of its own.

`python tests/eight_devices.py SRC NATIVE` loads a Hugging Face directory and a native checkpoint
onto several meshes, and prints as JSON, for each mesh, the shards of each leaf, whether the values
are the same as on one device, and the most bytes that a device held.
"""

import gc
import json
import sys
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from convert.load import load_checkpoint
from pmc_jax.model import make_mesh, param_specs

LAYOUTS = ((1, 1), (8, 1), (4, 2), (2, 4), (1, 8))


def bytes_by_device() -> dict[int, int]:
    """Bytes of all live arrays on each device; arrays that share memory count once."""
    buffers = {
        (shard.device.id, shard.data.unsafe_buffer_pointer()): shard.data.nbytes
        for array in jax.live_arrays()
        for shard in array.addressable_shards
    }
    found: dict[int, int] = {}
    for (device, _), size in buffers.items():
        found[device] = found.get(device, 0) + size
    return found


def check(source: Path, native: Path, data: int, model: int) -> dict[str, object]:
    mesh = make_mesh(data, model)
    gc.collect()
    before = bytes_by_device()
    most = 0

    def watch(done: int) -> None:
        nonlocal most
        most = max(most, *(n - before.get(k, 0) for k, n in bytes_by_device().items()))

    checkpoint = load_checkpoint(source, mesh=mesh, on_tensor=watch)
    leaves = flatten_dict(checkpoint.params)
    axes = {path: spec.axes for path, spec in flatten_dict(param_specs(checkpoint.cfg)).items()}
    plain = flatten_dict(load_checkpoint(source).params)
    restored = flatten_dict(load_checkpoint(native, mesh=mesh).params)
    return {
        "leaves": {
            "/".join(path): {
                "axes": axes[path],
                "shape": leaf.shape,
                "shards": [shard.data.shape for shard in leaf.addressable_shards],
            }
            for path, leaf in leaves.items()
        },
        "equal": all(
            np.array_equal(leaves[path], plain[path])
            and np.array_equal(restored[path], plain[path])
            and restored[path].sharding == leaves[path].sharding
            for path in leaves
        ),
        "most_bytes": most,
    }


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    source, native = map(Path, sys.argv[1:])
    print(json.dumps({f"{a}x{b}": check(source, native, a, b) for a, b in LAYOUTS}))
