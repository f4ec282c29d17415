"""The compiled train and decode steps on eight virtual devices, in a process of their own.

`python tests/eight_device_steps.py KV_HEADS…` prints JSON. For each number of key/value heads and
each layout, it has the errors against one device, whether each leaf has its sharding, and the
collectives of each compiled step: kind, shape of the result, and the number of loops around it.
"""

import dataclasses
import json
import math
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pmc_jax.data.prompt_config import PromptConfig
from pmc_jax.language_model import ModelSource, describe
from pmc_jax.model import (
    ModelConfig,
    decode_step,
    decoding_params,
    init_params,
    init_suffix,
    layer_stacks,
    make_mesh,
    on_mesh,
    param_shardings,
    prefill,
)
from pmc_jax.planning.compiled import collectives as exchanges
from pmc_jax.training.batch import Batch
from pmc_jax.training.objective import make_objective
from pmc_jax.training.optimizer import Optimizer, make_optimizer
from pmc_jax.training.step import accumulated_gradients, init_state, make_train_step
from pmc_jax.unlearning.baselines.rmu import RMU
from pmc_jax.unlearning.baselines.undial import UNDIAL
from pmc_jax.unlearning.method import TaskWithAnswers
from pmc_jax.unlearning.pmc import PMC
from pmc_jax.unlearning.schedule import Training

LAYOUTS = ((8, 1), (4, 2), (2, 4), (1, 8))


def model(kv_heads: int) -> ModelConfig:
    """A Llama in which each size occurs only once, so that a shape tells which array it is."""
    return ModelConfig(
        vocab_size=1040, hidden_size=128, intermediate_size=272, num_layers=3,
        num_heads=8, num_kv_heads=kv_heads, head_dim=24,
    )  # fmt: skip


def collectives(text: str) -> list[tuple[str, list[int], int]]:
    """Kind and result shape of every collective, and the number of loops around it."""
    return [(found.kind, list(found.shape), found.depth) for found in exchanges(text)]


def places(tree, shardings) -> bool:
    """Whether every leaf has the sharding that the table gives it."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    return all(leaf.sharding.is_equivalent_to(sharding, leaf.ndim) for leaf, sharding in pairs)


def rows_of(cfg: ModelConfig) -> Batch:
    """Two micro-batches of sixteen rows with two sequences each; half forget, half retain."""
    rng = np.random.default_rng(0)
    shape = (2, 16, 20)
    return Batch(
        tokens=jnp.asarray(rng.integers(0, cfg.vocab_size, shape)),
        segments=jnp.broadcast_to(1 + jnp.arange(16 * 20).reshape(16, 20) // 10, shape),
        loss_mask=jnp.asarray(rng.random(shape) < 0.5),
        reference=jnp.zeros((2, 32)),
        sizes=(16, 0, 16),
    )


def params_of(cfg: ModelConfig, mesh):
    """The same random weights on every mesh."""
    params = init_params(jax.random.key(0), cfg, jnp.float64)
    return params if mesh is None else jax.device_put(params, param_shardings(cfg, mesh))


def train_state(cfg: ModelConfig, mesh):
    """The state and the loss after three steps, and the compiled step's collectives."""
    optimizer = make_optimizer(Optimizer(), cfg, optax.constant_schedule(1e-3))
    rows = rows_of(cfg)
    state = init_state(params_of(cfg, mesh), optimizer)
    step = make_train_step(optimizer, PMC(), cfg, dtype="float64", remat="full")
    text = step.lower(state, rows, 1.5, {}).compile().as_text()
    for _ in range(3):
        state, losses, _ = step(state, rows, 1.5, {})
    return state, float(losses.loss), collectives(text)


METHODS = {
    "undial": UNDIAL(retain_weight=1.5, retain_loss="kl"),
    "rmu": RMU(layer=1, trained_layers=2),
}


def task_of(cfg: ModelConfig, mesh) -> TaskWithAnswers:
    """A task without questions, to compute what a method freezes."""
    model = describe(ModelSource(dtype="float64"), PromptConfig(template="plain"))
    model = dataclasses.replace(model, config=cfg, mesh=mesh)
    return TaskWithAnswers(model, Training(), seed=0, prompts=[], retain=[])


def method_gradients(name: str, cfg: ModelConfig, mesh):
    """The loss against the frozen target, its gradients, and whether both have their shardings."""
    method = METHODS[name]
    params, target = (init_params(jax.random.key(seed), cfg, jnp.float64) for seed in (0, 1))
    if mesh is not None:
        params, target = (
            jax.device_put(leaves, param_shardings(cfg, mesh)) for leaves in (params, target)
        )
    frozen = method.frozen(task_of(cfg, mesh), target)
    rng = np.random.default_rng(0)

    def rows(count: int) -> tuple[jax.Array, jax.Array]:
        shape = (1, count, 20)
        tokens = jnp.asarray(rng.integers(0, cfg.vocab_size, shape))
        return tokens, jnp.asarray(rng.random(shape) < 0.5)

    forget, retain = rows(8), rows(8)
    batch = Batch(
        tokens=jnp.concatenate([forget[0], retain[0]], axis=1),
        segments=1 + jnp.arange(16 * 20).reshape(1, 16, 20) // 10,
        loss_mask=jnp.concatenate([forget[1], retain[1]], axis=1),
        reference=jnp.zeros((1, 32)),
        sizes=(16, 0, 16),
    )
    objective = make_objective(method, cfg, "float64")

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def find(params, batch, retain_weight, frozen):
        return accumulated_gradients(params, batch, objective, cfg, retain_weight, frozen)

    gradients, losses = find(params, batch, method.retain_weight, frozen)
    placed = True
    if mesh is not None:
        shardings = param_shardings(cfg, mesh)
        kept = {"layers": {"down": shardings["layers"]["down"]}} if name == "rmu" else shardings
        placed = places(frozen["params"], kept) and places(gradients, shardings)
    return float(losses.loss), gradients, placed


def bfloat16_moments(cfg: ModelConfig, mesh):
    """Adam's moments after two steps with gradients and moments in bfloat16."""
    settings = Optimizer(moment_dtype="bfloat16")
    optimizer = make_optimizer(settings, cfg, optax.constant_schedule(1e-3))
    step = make_train_step(
        optimizer, PMC(), cfg, dtype="float64", remat="full", gradient_dtype="bfloat16"
    )
    state = init_state(params_of(cfg, mesh), optimizer)
    for _ in range(2):
        state, _, _ = step(state, rows_of(cfg), 1.5, {})
    return state.opt_state[0].mu, state.opt_state[0].nu


def check_moments(kv_heads: int, data: int, model_axis: int) -> dict[str, object]:
    """Whether bfloat16 moments have their shardings, and the share that equals one device's."""
    cfg, mesh = model(kv_heads), make_mesh(data, model_axis)
    expected = jax.tree.leaves(bfloat16_moments(cfg, None))
    with on_mesh(mesh):
        found = bfloat16_moments(cfg, mesh)
    same = [
        np.asarray(a == b).reshape(-1)
        for a, b in zip(map(np.asarray, jax.tree.leaves(found)), map(np.asarray, expected),
                        strict=True)
    ]  # fmt: skip
    return {
        "placed": [places(moment, param_shardings(cfg, mesh)) for moment in found],
        "dtypes": sorted({str(leaf.dtype) for leaf in jax.tree.leaves(found)}),
        "same": float(np.concatenate(same).mean()),
    }


def decode_collectives(
    cfg: ModelConfig, mesh, unrolled: bool = False
) -> tuple[list, bool, float, np.ndarray]:
    """A decode step's collectives, whether its cache keeps its sharding, the share of the cache
    that one device holds, and the logits."""
    params = jax.device_put(init_params(jax.random.key(0), cfg), param_shardings(cfg, mesh))
    params = decoding_params(params, cfg, "float32", unrolled=unrolled)
    tokens = jnp.ones((16, 12), jnp.int32)
    _, prefix = jax.jit(prefill, static_argnames="cfg")(params, tokens, tokens > 0, cfg=cfg)
    suffix = jax.jit(init_suffix, static_argnums=(1, 2))(prefix, 5, 8)
    step = jax.jit(decode_step, static_argnames="cfg")
    arguments = (params, tokens[:, :5], jnp.int32(0), prefix, suffix)
    text = step.lower(*arguments, cfg=cfg).compile().as_text()
    logits, after = step(*arguments, cfg=cfg)
    k, stacks = suffix.k[0], len(layer_stacks(params))
    assert stacks == (cfg.num_layers if unrolled else 1)
    kept = places([*after.k, *after.v], [k.sharding] * 2 * stacks)
    part = math.prod(k.sharding.shard_shape(k.shape)) / k.size
    return collectives(text), kept, part, np.asarray(logits)


def check(kv_heads: int, data: int, model_axis: int, expected) -> dict[str, object]:
    """Compare one layout with the state and loss of a single device."""
    cfg, mesh = model(kv_heads), make_mesh(data, model_axis)
    with on_mesh(mesh):
        state, loss, train = train_state(cfg, mesh)
        decode, *cache, logits = decode_collectives(cfg, mesh)
        unrolled, *own_cache, own_logits = decode_collectives(cfg, mesh, unrolled=True)
    shardings = param_shardings(cfg, mesh)
    adam = state.opt_state[0]
    one, loss_of_one, method_results = expected
    pairs = zip(jax.tree.leaves(state.params), jax.tree.leaves(one.params), strict=True)
    methods = {}
    for name, (loss_before, gradients) in method_results.items():
        with on_mesh(mesh):
            value, found, placed = method_gradients(name, cfg, mesh)
        both = zip(jax.tree.leaves(found), jax.tree.leaves(gradients), strict=True)
        errors = [float(abs(np.asarray(a) - np.asarray(b)).max()) for a, b in both]
        methods[name] = {"loss": abs(value - loss_before), "error": max(errors), "placed": placed}
    return {
        "methods": methods,
        "placed": [places(tree, shardings) for tree in (state.params, adam.mu, adam.nu)],
        "loss_error": abs(loss - loss_of_one),
        "error": max(float(abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs),
        "train": train,
        "decode": decode,
        "cache": cache,
        "unrolled": {
            "decode": unrolled,
            "cache": own_cache,
            "error": float(abs(own_logits - logits).max()),
        },
    }


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    # On a few cores, eight devices that run two compiled functions at once can block each other.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.config.update("jax_enable_x64", True)
    result = {}
    for kv_heads in map(int, sys.argv[1:]):
        cfg = model(kv_heads)
        methods = {name: method_gradients(name, cfg, None)[:2] for name in METHODS}
        expected = (*train_state(cfg, None)[:2], methods)
        for data, model_axis in LAYOUTS:
            found = check(kv_heads, data, model_axis, expected)
            result[f"{kv_heads} {data}x{model_axis}"] = found
        result[f"{kv_heads} bfloat16 moments"] = check_moments(kv_heads, 4, 2)
    print(json.dumps(result))
