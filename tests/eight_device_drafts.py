"""Responses with drafts on eight virtual devices, in a process of their own.

`python tests/eight_device_drafts.py LAYOUT…` prints, for each layout (`4x2`, …), whether the
responses with and without drafts are those of one device without drafts, in float64.
"""

import json
import sys

import jax
import numpy as np

from pmc_jax.decoding import Sampling, generate
from pmc_jax.model import (
    ModelConfig,
    decoding_params,
    init_params,
    make_mesh,
    on_mesh,
    param_shardings,
)

CFG = ModelConfig(
    vocab_size=96, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2,
    head_dim=8,
)  # fmt: skip


def responses(params, drafts):
    """Six samples of five prompts, in waves of four."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 96, size).tolist() for size in (3, 7, 5, 12, 2)]
    return generate(
        params, prompts, cfg=CFG, sampling=Sampling(0.7, top_k=9, top_p=0.95, stop_ids=(1, 2)),
        key=jax.random.key(0), limits=[20] * 5, samples=6, wave=4, drafts=drafts, dtype="float64",
    )  # fmt: skip


def main(layouts: list[str]) -> None:
    """Compare every layout with one device."""
    params = init_params(jax.random.key(0), CFG, "float64")
    params = jax.tree.map(lambda leaf: 8 * leaf, params)
    plain = responses(params, None)
    drafts = [[own[0], [*own[1][:5], 4]] for own in plain]
    found = {"1x1": responses(params, drafts) == plain}
    for layout in layouts:
        mesh = make_mesh(*map(int, layout.split("x")))
        with on_mesh(mesh):
            placed = jax.device_put(params, param_shardings(CFG, mesh))
            own = decoding_params(placed, CFG, "float64")
            found[layout] = [responses(own, some) == plain for some in (None, drafts)]
    print(json.dumps(found))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    # On a few cores, eight devices that run two compiled functions at once can block each other.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.config.update("jax_enable_x64", True)
    main(sys.argv[1:])
