"""The programs of a PMC run, compiled for a mesh without a single weight."""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from pmc_jax.data.packing import LONGEST_PER_ROW
from pmc_jax.decoding.sampler import (
    Sampling,
    begin_decoding,
    decode_chunk,
    prefill_prompts,
    suffix_lengths,
)
from pmc_jax.model import ModelConfig, on_mesh, param_specs
from pmc_jax.model.buckets import bucket_length, bucket_rows
from pmc_jax.model.sharding import partition_spec
from pmc_jax.model.specs import Params
from pmc_jax.planning.compiled import collectives, matmul_flops
from pmc_jax.training.batch import Batch
from pmc_jax.training.optimizer import Optimizer, make_optimizer, make_schedule
from pmc_jax.training.step import TrainState, abstract_state, make_train_step
from pmc_jax.unlearning.method import Drawn, Method
from pmc_jax.unlearning.schedule import Training


@dataclasses.dataclass(frozen=True)
class Job:
    """What is planned: a model and the settings of a run.

    `data` and `model_axis` lay out the mesh; `prompt_tokens` is the length of the longest
    prompt; `end_ids` stand for those of a tokenizer, which is not read.
    """

    cfg: ModelConfig
    dtype: str
    weights_dtype: str
    remat: str
    method: Method
    training: Training
    optimizer: Optimizer
    data: int
    model_axis: int
    prompt_tokens: int
    end_ids: tuple[int, ...] = (0,)


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, and what a device holds while it runs.

    Attributes:
        name: what it does.
        bytes: on one device by kind; "temporaries" are what is left.
        peak: their sum, in bytes.
        matmul_flops: on all devices together.
        xla_flops: of one device as XLA counts them: every loop once.
        collectives: bytes of results on one device, by kind.
        refused: the compiler's own words where it found too little memory.
        seconds: to compile.
    """

    name: str
    bytes: Mapping[str, int]
    peak: int
    matmul_flops: int
    xla_flops: float
    collectives: Mapping[str, int]
    refused: str | None
    seconds: float


def shard_bytes(tree: Any) -> int:
    """Bytes of abstract arrays on one device."""

    def one(leaf: Any) -> int:
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(one(leaf) for leaf in jax.tree.leaves(tree))


def _needed(message: str) -> int | None:
    """Bytes that a compiler says it would take.

    `Used 20.54G of 15.75G hbm`, or `memory required for HLO temporaries (59.93G) exceeds …`.
    """
    size = r"([\d.]+)([KMGT])"
    for form in (rf"Used {size} of {size} hbm", rf"HLO temporaries \({size}\) exceeds"):
        if found := re.search(form, message):
            return round(float(found[1]) * 1024 ** (1 + "KMGT".index(found[2])))
    return None


def _compile(
    name: str,
    function: Any,
    arguments: tuple[Any, ...],
    settings: dict[str, Any],
    beside: Mapping[str, int],
    kinds: Mapping[str, int],
) -> tuple[Program, Any]:
    """Compile a jitted function, and describe its results.

    Args:
        beside: bytes by kind that a device holds, too, and the function never sees.
        kinds: bytes by kind of what it sees or makes; what it takes beyond is temporary.
    """
    started = time.perf_counter()
    traced = function.trace(*arguments, **settings)
    flops = matmul_flops(traced.jaxpr)
    held, known = dict(beside), sum(beside.values()) + sum(kinds.values())
    for kind, size in kinds.items():
        held[kind] = held.get(kind, 0) + size
    lowered = traced.lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _needed(str(error))
        if needed is None:
            raise
        peak = max(sum(beside.values()) + needed, known)
        held["temporaries"] = peak - known
        refused = " ".join(str(error).split())[:200]
        seconds = time.perf_counter() - started
        return Program(name, held, peak, flops, 0.0, {}, refused, seconds), lowered.out_info
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    own = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    peak = max(sum(beside.values()) + own, known)
    held["temporaries"] = peak - known
    moved: dict[str, int] = {}
    for one in collectives(compiled.as_text()):
        moved[one.kind] = moved.get(one.kind, 0) + one.bytes * one.times
    results = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        lowered.out_info,
        compiled.output_shardings,
    )
    seconds = time.perf_counter() - started
    flops_of_xla = float((cost or {}).get("flops", 0.0))
    return Program(name, held, peak, flops, flops_of_xla, moved, None, seconds), results


def abstract_batch(job: Job) -> Batch:
    """The batch of an optimizer step, all sequences as long as they may be."""
    per_part = job.training.batch_size, 0, job.training.batch_size * job.method.retain_pairs
    rows = bucket_rows(-(-sum(per_part) // LONGEST_PER_ROW))
    width = LONGEST_PER_ROW * job.training.max_length
    shape = (job.training.accumulation, -(-rows // job.data) * job.data, width)

    def make() -> Batch:
        tokens, mask = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
        reference = jnp.zeros((shape[0], sum(per_part)), job.weights_dtype)
        return Batch(tokens, tokens, mask, reference, per_part)

    return jax.eval_shape(make)


def train_state(job: Job, mesh: Mesh) -> TrainState:
    """Weights and moments."""
    optimizer = make_optimizer(job.optimizer, job.cfg, make_schedule(job.optimizer, 2, 1))
    return abstract_state(job.cfg, optimizer, job.weights_dtype, mesh)


def weights_to_decode(job: Job, mesh: Mesh) -> Params:
    """The results of `decoding_params`, in one stack; GPUs have a stack for each layer."""

    def one(spec: Any) -> jax.ShapeDtypeStruct:
        axes = [None if axis == "embed" else axis for axis in spec.axes]
        sharding = NamedSharding(mesh, partition_spec(spec.shape, axes, mesh))
        return jax.ShapeDtypeStruct(spec.shape, job.dtype, sharding=sharding)

    return jax.tree.map(one, param_specs(job.cfg))


def gradient_bytes(job: Job, state: TrainState) -> int:
    """Of gradients on one device: a micro-batch's, and their sum if there are several."""
    dtype = jnp.dtype(job.training.gradient_dtype or job.weights_dtype)
    weights = shard_bytes(state.params) // jnp.dtype(job.weights_dtype).itemsize
    return weights * dtype.itemsize * (2 if job.training.accumulation > 1 else 1)


def compile_train(job: Job, mesh: Mesh) -> Program:
    """The optimizer step, without the norm of the update.

    A CPU's compiler, which stands in for that of GPUs, would keep a copy of the update for it.
    """
    state = train_state(job, mesh)
    optimizer = make_optimizer(job.optimizer, job.cfg, make_schedule(job.optimizer, 2, 1))
    step = make_train_step(
        optimizer,
        job.method,
        job.cfg,
        dtype=job.dtype,
        remat=job.remat,
        gradient_dtype=job.training.gradient_dtype,
    )
    kinds = {
        "params": shard_bytes(state.params),
        "moments": shard_bytes(state.opt_state),
        "gradients": gradient_bytes(job, state),
    }
    with on_mesh(mesh):
        return _compile("train step", step, (state, abstract_batch(job), 1.0, {}), {}, {}, kinds)[0]


def drawn_by(job: Job) -> Drawn:
    """The responses that the method samples in every step."""
    assert job.method.drawn is not None
    return job.method.drawn


def response_room(job: Job) -> int:
    """Places for response tokens, as `generate` makes them."""
    room = job.training.max_length - job.prompt_tokens - 1
    most = drawn_by(job).max_new_tokens
    return bucket_length(room if most is None else min(room, most))


Compiled = Callable[[Program], None]
"""Called with every program when it is compiled."""


def compile_decoding(
    job: Job,
    mesh: Mesh,
    name: str,
    prompts: int,
    samples: int,
    sampling: Sampling,
    beside: Mapping[str, int],
    on_program: Compiled,
) -> None:
    """Prefill and decode of `samples` responses to `prompts` prompts, or as many as fit at once.

    The decode chunk is compiled with the cache at its full length; what arranges the rows
    before it needs less, and is left out unless it is refused. `beside` is what a device holds
    all the time.
    """
    batch = max(1, min(prompts, job.training.rows // samples))
    width, time_ = bucket_length(job.prompt_tokens), response_room(job)
    params = weights_to_decode(job, mesh)
    weights = {"decoding params": shard_bytes(params)}

    def shaped(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    static: dict[str, Any] = {"cfg": job.cfg, "sampling": sampling}
    with on_mesh(mesh):
        # Planned for a mesh, which has XLA's operations: the cache grows as it does for them.
        lengths = suffix_lengths(time_, job.cfg, job.dtype, job.training.decoding)
        program, (logits, prefix) = _compile(
            f"{name}: prefill",
            prefill_prompts,
            (params, shaped((batch, width), jnp.int32), shaped((batch, width), jnp.bool_), job.cfg),
            {"dtype": job.dtype},
            beside,
            weights,
        )
        on_program(program)
        if program.refused:
            return
        kept = {**beside, "cache": shard_bytes(prefix), "logits": shard_bytes(logits)}
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (batch, samples)))
        program, (prefix, state) = _compile(
            f"{name}: begin",
            begin_decoding,
            (
                logits,
                prefix,
                keys,
                shaped((batch,), jnp.int32),
                shaped((batch,), jnp.int32),
                shaped((batch, samples), jnp.int32),
            ),
            {"length": lengths[-1], "sampling": sampling},
            {**beside, **weights},
            {kind: kept[kind] for kind in ("cache", "logits")},
        )
        if program.refused:
            on_program(program)
            return
        cache = {"cache": shard_bytes((prefix, state.suffix))}
        program, _ = _compile(
            f"{name}: decode",
            decode_chunk,
            (params, prefix, state, *[shaped((), jnp.int32)] * 2),
            static,
            kept,
            {**weights, **cache},
        )
        on_program(program)
    if len(lengths) > 1:
        # While the cache grows, the one that was full exists beside the new one.
        full = shard_bytes(state.suffix) * lengths[-2] // lengths[-1]
        held = {**kept, **weights, "cache": kept["cache"] + cache["cache"] + full}
        growing = {**held, "temporaries": 0}
        on_program(Program(f"{name}: grow", growing, sum(held.values()), 0, 0.0, {}, None, 0.0))


PHASES = ("train", "sample", "answer")


def compile_phase(job: Job, phase: str, mesh: Mesh, on_program: Compiled) -> None:
    """One phase of a run.

    "train" is the optimizer step; "sample" draws the responses of a step, with weights and
    moments waiting; "answer" decodes greedily as many prompts as fit, before and after, with
    the weights waiting.
    """
    state = train_state(job, mesh)
    params = {"params": shard_bytes(state.params)}
    waiting = {**params, "moments": shard_bytes(state.opt_state)}
    if phase == "train":
        on_program(compile_train(job, mesh))
    elif phase == "sample":
        drawn, questions = drawn_by(job), job.training.questions_per_step
        sampling = dataclasses.replace(drawn.sampling, stop_ids=job.end_ids)
        compile_decoding(job, mesh, phase, questions, drawn.samples, sampling, waiting, on_program)
    else:
        greedy = Sampling(temperature=0.0, stop_ids=job.end_ids)
        compile_decoding(job, mesh, phase, job.training.rows, 1, greedy, params, on_program)


def least_bytes(job: Job, phase: str, mesh: Mesh) -> int:
    """What a phase cannot do without on a device; known without compiling."""
    state = train_state(job, mesh)
    if phase == "train":
        return shard_bytes((state.params, state.opt_state)) + gradient_bytes(job, state)
    held = shard_bytes(weights_to_decode(job, mesh)) + shard_bytes(state.params)
    return held + (shard_bytes(state.opt_state) if phase == "sample" else 0)
