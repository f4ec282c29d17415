"""Attention kernels on eight virtual devices, in a process of their own.

`python tests/eight_device_kernels.py` prints JSON. For each layout and kernel, it has the kernel
that was chosen, the largest error against XLA's operations on one device, and the shapes that the
compiled function moves between devices. Pallas's kernel is interpreted; XLA stands in for cuDNN.
"""

import itertools
import json
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from pmc_jax.model import make_mesh, on_mesh
from pmc_jax.model.kernels import dispatch
from pmc_jax.model.kernels.dispatch import (
    CAUSAL_AXES,
    DECODE_AXES,
    Target,
    causal_attention_for,
    causal_kernel,
    current_target,
    decode_kernel,
    write_and_attend_for,
)
from pmc_jax.model.kernels.gpu_causal import causal_attention_gpu
from pmc_jax.model.kernels.gpu_decode import write_and_attend_gpu
from pmc_jax.model.sharding import to_devices
from pmc_jax.planning.compiled import collectives

LAYOUTS = ((8, 1), (4, 2), (2, 4), (1, 8))
BATCH, TIME, KV_HEADS, HEADS, HEAD_DIM = 8, 12, 4, 8, 16
SAMPLES, PROMPT, ROOM, LAYERS, STEP = 3, 16, 24, 2, 5
SCALE = HEAD_DIM**-0.5


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sequences() -> tuple[np.ndarray, ...]:
    """Arguments of `causal_attention`: packed rows with padding, within a window."""
    qkv = [numbers(seed, BATCH, TIME, heads, HEAD_DIM) for seed, heads in
           enumerate((HEADS, KV_HEADS, KV_HEADS))]  # fmt: skip
    position = np.arange(TIME)
    segments = np.where(position < TIME - 2, 1 + position // 4, 0)
    return (*qkv, np.tile(segments, (BATCH, 1)).astype(np.int32), np.asarray(3, np.int32))


def decoded(drafts: bool) -> tuple:
    """Arguments of `write_and_attend` in the second layer; with drafts, each sample has a place."""
    q = numbers(0, BATCH, SAMPLES, HEADS, HEAD_DIM)
    k, v = (numbers(seed, BATCH, SAMPLES, KV_HEADS, HEAD_DIM) for seed in (1, 2))
    angles = numbers(3, BATCH, SAMPLES if drafts else 1, HEAD_DIM // 2)
    prefix = [numbers(seed, BATCH, KV_HEADS, PROMPT, HEAD_DIM) for seed in (4, 5)]
    suffix = [numbers(seed, LAYERS, BATCH, SAMPLES, KV_HEADS, ROOM, HEAD_DIM) for seed in (6, 7)]
    mask = np.arange(PROMPT) >= np.arange(BATCH)[:, None]
    unused = np.arange(BATCH * SAMPLES, dtype=np.int32).reshape(BATCH, SAMPLES) % 5
    place = np.asarray(1, np.int32), np.asarray(STEP, np.int32), None
    rope = np.cos(angles), np.sin(angles)
    return (q, k, v, rope, *prefix, mask, *suffix, *place, unused if drafts else None)


def attend(target, q, k, v, segments, window):
    """Attention within sequences as a run takes it on this target, and its gradients."""

    def weighted(q, k, v):
        mixed = causal_attention_for(target, q, k, None)(q, k, v, segments, window, scale=SCALE)
        mixed = jnp.where((segments > 0)[..., None, None], mixed, 0)
        return (mixed * jnp.cos(q)).sum(), mixed

    gradients, mixed = jax.grad(weighted, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return mixed, gradients


def decode(target, *args):
    """A decode step's attention, and the written part of the caches."""
    attention = write_and_attend_for(target, args[0], args[4], args[7])
    mixed, *caches = attention(*args, scale=SCALE)
    return mixed, [cache[1, ..., : STEP + 1, :] for cache in caches]


def targets() -> list[Target]:
    """The target of now, and the same mesh as if it had GPUs."""
    found = current_target(jnp.float32)
    return [found, Target("gpu", found.mesh, frozenset({"triton", "cudnn"}), found.model)]


def error(found, reference) -> float:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(reference), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def placed(args, axes):
    """Host arrays on the current mesh."""
    return tuple(
        None if arg is None else jax.tree.map(lambda x, own: to_devices(x, *own), arg, own)
        for arg, own in zip(args, axes, strict=False)
    )


CASES = {
    "whole sequences": (attend, sequences(), CAUSAL_AXES),
    "decode step": (decode, decoded(False), DECODE_AXES),
    "decode step after drafts": (decode, decoded(True), DECODE_AXES),
}


def main() -> None:
    references = {
        name: jax.jit(partial(function, Target("cpu", False)))(*args)
        for name, (function, args, _) in CASES.items()
    }
    found = {}
    for layout, (name, (function, args, axes)) in itertools.product(LAYOUTS, CASES.items()):
        with on_mesh(make_mesh(*layout)):
            for target in targets():
                own = placed(args, axes)
                compiled = jax.jit(partial(function, target)).lower(*own).compile()
                kernel = (
                    decode_kernel(target, HEAD_DIM, KV_HEADS)
                    if function is decode
                    else causal_kernel(target, HEAD_DIM, KV_HEADS, TIME, None)
                )
                found[f"{layout[0]}x{layout[1]} {target.backend} {name}"] = {
                    "kernel": kernel,
                    "error": error(compiled(*own), references[name]),
                    "moved": [list(each.shape) for each in collectives(compiled.as_text())],
                }
    print(json.dumps(found))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    # On a few cores, eight devices that run two compiled functions at once can block each other.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    interpreted = partial(write_and_attend_gpu, interpret=True)
    by_xla = partial(causal_attention_gpu, implementation="xla")
    with (
        mock.patch("pmc_jax.model.kernels.gpu_decode.write_and_attend_gpu", interpreted),
        mock.patch.object(dispatch, "causal_attention_gpu", by_xla),
    ):
        main()
