"""The phases of a run, compiled for a mesh without any weights."""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import DTypeLike

from pmc_jax.data.packing import LONGEST_PER_ROW
from pmc_jax.decoding import Sampling
from pmc_jax.decoding.sampler import (
    begin_decoding,
    decode_chunk,
    prefill_prompts,
    suffix_lengths,
)
from pmc_jax.model import ModelConfig, on_mesh, param_specs
from pmc_jax.model.buckets import bucket_length, bucket_rows
from pmc_jax.model.kernels.dispatch import MIN_CAPABILITY, Target, supported_kernels
from pmc_jax.model.memory import MOST_ROWS, Footprint
from pmc_jax.model.products import Quantised, is_quantised
from pmc_jax.model.sharding import gathered, partition_spec
from pmc_jax.model.specs import Params, Spec
from pmc_jax.model.trainable import Trainable
from pmc_jax.planning.compiled import collectives, matmul_flops
from pmc_jax.training.batch import Batch
from pmc_jax.training.optimizer import Optimizer, make_optimizer, make_schedule
from pmc_jax.training.step import TrainState, abstract_state, make_train_step
from pmc_jax.unlearning.method import Drawn, Method
from pmc_jax.unlearning.schedule import Training


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is decoded at a time: samples of each of so many prompts, and how they are drawn."""

    prompts: int
    samples: int
    sampling: Sampling


@dataclasses.dataclass(frozen=True)
class Job:
    """A planned run: its model and its settings.

    Attributes:
        cfg: the model's shape.
        dtype, weights_dtype: of matrix products, and of the weights in training.
        remat: what the backward pass recomputes: "none", "dots" or "full".
        method, training, optimizer: the settings of the run.
        data, model_axis: sizes of the mesh axes "data" and "model".
        prompt_tokens: the length of the longest prompt.
        answer_batch: greedy answers decoded at a time; None: `training.decode_batch`.
        attack: the sampling attack of the evaluations; None: they have none.
        end_ids: stand for the tokenizer's, which is not read.
        part: what is trained; None: all weights.
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
    answer_batch: int | None = None
    attack: Asked | None = None
    end_ids: tuple[int, ...] = (0,)
    part: Trainable | None = None


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled function and the memory of a device while it runs.

    Attributes:
        name: the phase and the step of it, such as "sample: decode".
        bytes: on one device by kind; "temporaries" are the rest of the compiler's number.
        peak: their sum, in bytes.
        matmul_flops: FLOPs of matrix products on all devices.
        xla_flops: FLOPs on one device as XLA counts them: every loop once.
        collectives: bytes of their results on one device, by kind.
        refused: the compiler's message if it found too little memory.
        seconds: the time that compiling took.
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


def bytes_needed(message: str) -> int | None:
    """The bytes that a function needs, from a compiler's message.

    `Used 20.54G of 15.75G hbm`, or `memory required for HLO temporaries (59.93G) exceeds …`.
    """
    size = r"([\d.]+)([KMGT])"
    for form in (rf"Used {size} of {size} hbm", rf"HLO temporaries \({size}\) exceeds"):
        if found := re.search(form, message):
            return round(float(found[1]) * 1024 ** (1 + "KMGT".index(found[2])))
    return None


def compile_function(
    name: str,
    jitted: Any,
    arguments: tuple[Any, ...],
    settings: dict[str, Any],
    beside: Mapping[str, int],
    kinds: Mapping[str, int],
    shared: int = 0,
) -> tuple[Compiled, Any]:
    """Compile a jitted function. Also returns its results as abstract arrays.

    Args:
        beside: bytes by kind of arrays on a device that the function does not use.
        kinds: bytes by kind of its arguments and results; the rest is temporary.
        shared: bytes of its arguments that are in `beside`.
    """
    started = time.perf_counter()
    traced = jitted.trace(*arguments, **settings)
    flops = matmul_flops(traced.jaxpr)
    held, known = dict(beside), sum(beside.values()) + sum(kinds.values())
    for kind, size in kinds.items():
        held[kind] = held.get(kind, 0) + size
    lowered = traced.lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = bytes_needed(str(error))
        if needed is None:
            raise
        peak = max(sum(beside.values()) + needed - shared, known)
        held["temporaries"] = peak - known
        refused = " ".join(str(error).split())[:200]
        seconds = time.perf_counter() - started
        return Compiled(name, held, peak, flops, 0.0, {}, refused, seconds), lowered.out_info
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    own = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        - shared
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
    return Compiled(name, held, peak, flops, flops_of_xla, moved, None, seconds), results


def sequences_of(job: Job) -> tuple[int, int, int]:
    """How many sequences of each kind a micro-batch has."""
    size = job.training.part_size
    return size * job.method.answers_per_question, 0, size * job.method.retain_pairs


def batch_shape(job: Job) -> tuple[int, int, int]:
    """Micro-batches, rows and tokens of a step whose sequences all have the greatest length."""
    rows = bucket_rows(-(-sum(sequences_of(job)) // LONGEST_PER_ROW))
    width = LONGEST_PER_ROW * job.training.max_length
    return job.training.parts, -(-rows // job.data) * job.data, width


def abstract_batch(job: Job) -> Batch:
    """The batch of an optimizer step in which all sequences have the greatest length."""
    shape, per_part = batch_shape(job), sequences_of(job)

    def make() -> Batch:
        tokens, mask = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
        reference = jnp.zeros((shape[0], sum(per_part)), job.weights_dtype)
        return Batch(tokens, tokens, mask, reference, per_part)

    return jax.eval_shape(make)


def train_state(job: Job, mesh: Mesh) -> TrainState:
    """Trained weights and moments, as abstract arrays."""
    schedule = make_schedule(job.optimizer, 2, 1)
    optimizer = make_optimizer(job.optimizer, job.cfg, schedule, part=job.part)
    return abstract_state(job.cfg, optimizer, job.weights_dtype, mesh, job.part)


def base_weights(job: Job, mesh: Mesh) -> Params:
    """The weights that are not trained, as abstract arrays; {} if all are.

    Beside an adapter, matrices are in the dtype of products, which holds those of published
    models exactly.
    """
    if job.part is None:
        return {}

    def one(spec: Spec) -> jax.ShapeDtypeStruct:
        narrow = job.part is not None and job.part.adapter is not None and spec.init == "normal"
        return abstract(spec, job.dtype if narrow else job.weights_dtype, spec.axes, mesh)

    def each(spec: Spec | Quantised) -> Any:
        if isinstance(spec, Quantised):
            return abstract_quantised(spec, job, spec.values.axes, mesh)
        return one(spec)

    return jax.tree.map(each, job.part.base_specs, is_leaf=is_quantised)


def abstract(
    spec: Spec, dtype: DTypeLike, axes: Sequence[str | None], mesh: Mesh
) -> jax.ShapeDtypeStruct:
    """An abstract array of a spec's shape, sharded along `axes`."""
    sharding = NamedSharding(mesh, partition_spec(spec.shape, axes, mesh))
    return jax.ShapeDtypeStruct(spec.shape, dtype, sharding=sharding)


def abstract_quantised(
    spec: Quantised, job: Job, axes: Sequence[str | None], mesh: Mesh
) -> Quantised:
    """A quantised weight as abstract arrays."""
    return Quantised(
        abstract(spec.values, jnp.int8, axes, mesh),
        abstract(spec.scales, job.weights_dtype, axes, mesh),
    )


def weights_to_decode(job: Job, mesh: Mesh, *, plain: bool = False) -> Params:
    """The result of `decoding_params` in one stack; GPUs have a stack for each layer.

    `plain` weights are those of a model without an adapter beside them.
    """

    def one(spec: Spec) -> jax.ShapeDtypeStruct:
        return abstract(spec, job.dtype, gathered(spec.axes), mesh)

    def each(spec: Spec | Quantised) -> Any:
        if isinstance(spec, Quantised):
            return abstract_quantised(spec, job, gathered(spec.values.axes), mesh)
        return one(spec)

    if applied_on_the_fly(job) and not plain:
        assert job.part is not None
        base = jax.tree.map(each, job.part.base_specs, is_leaf=is_quantised)
        return job.part.joined(jax.tree.map(one, job.part.specs), base)
    return jax.tree.map(one, param_specs(job.cfg))


def applied_on_the_fly(job: Job) -> bool:
    """Whether decoding multiplies by the adapter apart from the weights."""
    adapter = None if job.part is None else job.part.adapter
    return adapter is not None and not adapter.merge


def decoding_bytes(job: Job, mesh: Mesh) -> int:
    """Bytes on one device of the weights to decode with, without those that are the base's."""
    own = shard_bytes(weights_to_decode(job, mesh))
    if not applied_on_the_fly(job) or job.data > 1:
        return own
    base = jax.tree.leaves(base_weights(job, mesh), is_leaf=is_quantised)
    kept = (jnp.dtype(job.dtype), jnp.dtype(jnp.int8))
    return own - shard_bytes([leaf for leaf in base if leaf.dtype in kept])


def answering_bytes(job: Job, mesh: Mesh) -> tuple[int, int]:
    """Bytes on one device of the weights while a model is evaluated, and of those to decode with.

    Beside an adapter, the model's own weights are in the dtype of its files, taken to be
    `dtype`; those to decode with share their memory if the adapter is applied on the fly.
    """
    decoded = shard_bytes(weights_to_decode(job, mesh, plain=True))
    if job.part is None or job.part.adapter is None:
        held = shard_bytes((train_state(job, mesh).params, base_weights(job, mesh)))
        return held, decoded
    specs = param_specs(job.cfg)
    held = shard_bytes(jax.tree.map(lambda s: abstract(s, job.dtype, s.axes, mesh), specs))
    shared = applied_on_the_fly(job) and job.data == 1
    return held, 0 if shared else decoded


def gradient_bytes(job: Job, state: TrainState) -> int:
    """Bytes of gradients on one device: a micro-batch's, and the sum over several."""
    dtype = jnp.dtype(job.training.gradient_dtype or job.weights_dtype)
    weights = shard_bytes(state.params) // jnp.dtype(job.weights_dtype).itemsize
    return weights * dtype.itemsize * (2 if job.training.parts > 1 else 1)


def compile_train(job: Job, mesh: Mesh) -> Compiled:
    """Compile the optimizer step without the norm of the update.

    XLA's CPU compiler, which stands in for that of GPUs, would keep a copy of the update for it.
    """
    state = train_state(job, mesh)
    schedule = make_schedule(job.optimizer, 2, 1)
    optimizer = make_optimizer(job.optimizer, job.cfg, schedule, part=job.part)
    base = base_weights(job, mesh)
    step = make_train_step(
        optimizer,
        job.method,
        job.cfg,
        dtype=job.dtype,
        remat=job.remat,
        gradient_dtype=job.training.gradient_dtype,
        part=job.part,
    )
    kinds = {
        **({"base": shard_bytes(base)} if base else {}),
        "params": shard_bytes(state.params),
        "moments": shard_bytes(state.opt_state),
        "gradients": gradient_bytes(job, state),
    }
    with on_mesh(mesh):
        return compile_function(
            "train step", step, (state, abstract_batch(job), 1.0, {"base": base} if base else {}),
            {}, {}, kinds,
        )[0]  # fmt: skip


def drawn_by(job: Job) -> Drawn:
    """The responses that the method samples in every step."""
    assert job.method.drawn is not None
    return job.method.drawn


def response_room(job: Job) -> int:
    """The length of the suffix cache, in tokens, as `generate` makes it."""
    room = job.training.max_length - job.prompt_tokens - 1
    most = drawn_by(job).max_new_tokens
    return bucket_length(room if most is None else min(room, most))


def longest_prompt(job: Job) -> int:
    """The tokens of the longest prompt that is sampled; forced beginnings are part of prompts."""
    return job.training.max_length if drawn_by(job).forced else job.prompt_tokens


OnCompiled = Callable[[Compiled], None]
"""Called with every function when it is compiled."""


def compile_decoding(
    job: Job,
    mesh: Mesh,
    name: str,
    params: Params,
    own: int,
    longest: int,
    prompts: int,
    samples: int,
    sampling: Sampling,
    beside: Mapping[str, int],
    on_compiled: OnCompiled,
) -> None:
    """Compile prefill and decoding of `samples` responses to each of `prompts` prompts.

    The decode chunk is compiled with the cache at its full length. The function between prefill
    and decoding needs less memory, so it is reported only if it is refused.

    Args:
        params: the weights to decode with.
        own: their bytes on a device without those that are in `beside`.
        longest: the tokens of the longest prompt.
        beside: bytes by kind that are in memory all the time.
    """
    batch, width, time_ = prompts, bucket_length(longest), response_room(job)
    weights, shared = {"decoding params": own}, shard_bytes(params) - own

    def shaped(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    static: dict[str, Any] = {"cfg": job.cfg, "sampling": sampling}
    with on_mesh(mesh):
        lengths = suffix_lengths(time_, job.cfg, job.dtype, job.training.decoding)
        function, (logits, prefix) = compile_function(
            f"{name}: prefill",
            prefill_prompts,
            (params, shaped((batch, width), jnp.int32), shaped((batch, width), jnp.bool_), job.cfg),
            {"dtype": job.dtype},
            beside,
            weights,
            shared,
        )
        on_compiled(function)
        if function.refused:
            return
        cache = {"cache": shard_bytes(prefix)}
        kept = {**beside, "logits": shard_bytes(logits)}
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (batch, samples)))
        function, state = compile_function(
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
            {**cache, "logits": kept["logits"]},
        )
        if function.refused:
            on_compiled(function)
            return
        cache = {"cache": shard_bytes((prefix, state.suffix))}
        function, _ = compile_function(
            f"{name}: decode",
            decode_chunk,
            (params, prefix, state, *[shaped((), jnp.int32)] * 2),
            static,
            kept,
            {**weights, **cache},
            shared,
        )
        on_compiled(function)
    if len(lengths) > 1:
        # While a stack's keys or values grow, the old ones are in memory, too.
        full = shard_bytes(state.suffix) * lengths[-2] // lengths[-1]
        old = full // (2 * len(state.suffix.k))
        held = {**kept, **weights, "cache": cache["cache"] + old}
        growing = {**held, "temporaries": 0}
        on_compiled(Compiled(f"{name}: grow", growing, sum(held.values()), 0, 0.0, {}, None, 0.0))


def answers_at_once(job: Job) -> int:
    """Greedy answers that are decoded at a time."""
    most = job.training.decode_batch if job.answer_batch is None else job.answer_batch
    return MOST_ROWS if isinstance(most, str) else most


PHASES = ("train", "sample", "answer", "attack")


def asked_in(job: Job, phase: str) -> Asked:
    """What is decoded at a time in the phase "sample", "answer" or "attack"."""
    if phase == "sample":
        drawn = drawn_by(job)
        return Asked(job.training.sampled_at_once(drawn.samples), drawn.samples, drawn.sampling)
    if phase == "attack":
        assert job.attack is not None
        return job.attack
    return Asked(answers_at_once(job), 1, Sampling(temperature=0.0))


def compile_phase(job: Job, phase: str, mesh: Mesh, on_compiled: OnCompiled) -> None:
    """Compile the functions of one phase of a run.

    "train" is the optimizer step. "sample" draws the responses of a step; weights and moments
    are in memory beside it. "answer" decodes as many prompts as fit greedily, before and after
    training, and "attack" samples the responses of the sampling attack; the weights are in memory
    beside them, without an adapter.
    """
    if phase == "train":
        on_compiled(compile_train(job, mesh))
        return
    if phase == "attack" and job.attack is None:
        return
    asked = asked_in(job, phase)
    sampling = dataclasses.replace(asked.sampling, stop_ids=job.end_ids)
    if phase == "sample":
        state, base = train_state(job, mesh), base_weights(job, mesh)
        waiting = {"base": shard_bytes(base)} if base else {}
        waiting |= {"params": shard_bytes(state.params), "moments": shard_bytes(state.opt_state)}
        params, own = weights_to_decode(job, mesh), decoding_bytes(job, mesh)
        longest = longest_prompt(job)
    else:
        held, own = answering_bytes(job, mesh)
        waiting, longest = {"params": held}, job.prompt_tokens
        params = weights_to_decode(job, mesh, plain=True)
    compile_decoding(
        job, mesh, phase, params, own, longest, asked.prompts, asked.samples, sampling, waiting,
        on_compiled,
    )  # fmt: skip


def footprint_of(job: Job, backend: str) -> Footprint:
    """The memory that the functions of a run take on such devices, from shapes alone."""
    several = job.data * job.model_axis > 1
    kernels = supported_kernels(backend, job.dtype, capability=MIN_CAPABILITY)
    return Footprint(
        job.cfg, job.dtype, Target(backend, several, kernels, job.model_axis), job.data,
        job.model_axis, job.part,
        cast=job.part is None or job.part.adapter is None,
    )  # fmt: skip


def bounded(function: Compiled, job: Job, backend: str) -> Compiled:
    """A function with temporaries within the bound by which "auto" chooses sizes.

    The CPU's compiler, which stands in for a GPU's, widens all weights in bfloat16 at once.
    """
    model = footprint_of(job, backend)
    phase, _, step = function.name.partition(": ")
    if phase == "train step":
        _, rows, width = batch_shape(job)
        gradients = jnp.dtype(job.training.gradient_dtype or job.weights_dtype).itemsize
        most = model.train_step(
            rows, width, remat=job.remat, gradient_bytes=gradients, parts=job.training.parts,
            update_norm=False,
        )  # fmt: skip
    elif step in ("prefill", "decode"):
        asked = asked_in(job, phase)
        width = bucket_length(longest_prompt(job) if phase == "sample" else job.prompt_tokens)
        filters = asked.sampling.top_k > 0 or asked.sampling.top_p < 1
        most = (
            model.prefill(asked.prompts, width) if step == "prefill"
            else model.decode(
                asked.prompts, asked.samples, width, response_room(job), filters=filters
            )
        )  # fmt: skip
    else:
        return function
    inside = ("gradients", "cache", "temporaries")
    held = sum(size for kind, size in function.bytes.items() if kind not in inside)
    peak = min(function.peak, held + most)
    rest = sum(size for kind, size in function.bytes.items() if kind != "temporaries")
    peak = max(peak, rest)
    return dataclasses.replace(
        function, peak=peak, bytes={**function.bytes, "temporaries": peak - rest}
    )


def least_bytes(job: Job, phase: str, mesh: Mesh) -> int:
    """The least memory of a phase on a device: that of its arrays, known without compiling."""
    state = train_state(job, mesh)
    if phase == "train":
        held = shard_bytes((state.params, state.opt_state, base_weights(job, mesh)))
        return held + gradient_bytes(job, state)
    if phase in ("answer", "attack"):
        return sum(answering_bytes(job, mesh))
    return decoding_bytes(job, mesh) + shard_bytes((state, base_weights(job, mesh)))
