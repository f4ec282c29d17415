"""Memory: bounds against the compiler, what is free, and what happens when it runs out."""

import ctypes
import dataclasses
import importlib
import os
import resource
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import slow_but

import pmc_jax as pmc
from pmc_jax.decoding import Sampling
from pmc_jax.decoding.generate import fewer_rows
from pmc_jax.decoding.sampler import DecodeState, decode_chunk
from pmc_jax.errors import UserError
from pmc_jax.evaluation import likelihood
from pmc_jax.evaluation.likelihood import answer_scores, next_token_scores
from pmc_jax.model import (
    ModelConfig,
    PrefixCache,
    RopeConfig,
    SuffixCache,
    decoding_params,
    param_count,
    param_specs,
    prefill,
)
from pmc_jax.model.kernels.dispatch import Target
from pmc_jax.model.memory import (
    MOST_ROWS,
    SHARE,
    Footprint,
    first_fitting,
    footprint,
    halvings,
    rows_at_once,
)
from pmc_jax.model.products import Quantised, is_quantised
from pmc_jax.model.trainable import LoRA, trainable
from pmc_jax.runtime import memory
from pmc_jax.training.batch import Batch
from pmc_jax.training.optimizer import Optimizer, make_optimizer
from pmc_jax.training.sizes import (
    Lengths,
    enough,
    micro_batch_shape,
    shortage,
    sizes,
    step_bytes,
)
from pmc_jax.training.step import abstract_state, make_train_step
from pmc_jax.unlearning.pmc import PMC
from pmc_jax.unlearning.schedule import Training

LLAMA = ModelConfig(
    vocab_size=4096, hidden_size=192, intermediate_size=512, num_layers=2, num_heads=6,
    num_kv_heads=2, head_dim=32,
)  # fmt: skip
GEMMA = ModelConfig(
    vocab_size=16384, hidden_size=128, intermediate_size=512, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=32, norm="rms_plus_one", qk_norm=True, post_norms=True,
    activation="gelu_pytorch_tanh", tie_embeddings=True, windows=(16, 0), local_rope=RopeConfig(),
)  # fmt: skip
PHI = ModelConfig(
    vocab_size=4096, hidden_size=256, intermediate_size=1024, num_layers=2, num_heads=8,
    num_kv_heads=8, head_dim=32, norm="layer", parallel_block=True, gated_mlp=False,
    activation="gelu_new", attention_bias=True, attention_out_bias=True, mlp_bias=True,
    head_bias=True,
)  # fmt: skip
MODELS = {"llama": LLAMA, "gemma": GEMMA, "phi": PHI}
LOOSEST = 3.0
"""No bound is more than this many times what the compiler says."""

FULL = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes.")


def bytes_of(function, *trees, donated: int | None = None) -> int:
    """What a compiled function takes beside its arguments; the tree `donated` becomes its result.

    The function gets a flat list of arrays, since jaxtyping rejects trees of what `lower` creates.
    """
    leaves, structure = jax.tree.flatten(trees)
    before = 0 if donated is None else len(jax.tree.leaves(trees[:donated]))
    count = 0 if donated is None else len(jax.tree.leaves(trees[donated]))
    flat = jax.jit(
        lambda *leaves: jax.tree.leaves(function(*jax.tree.unflatten(structure, leaves))),
        donate_argnums=range(before, before + count),
    )
    found = flat.lower(*leaves).compile().memory_analysis()
    made = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.temp_size_in_bytes + max(made, 0)


def size_of(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def weights(cfg, dtype):
    def make():
        params = jax.tree.map(lambda spec: jnp.zeros(spec.shape), param_specs(cfg))
        return decoding_params(params, cfg, dtype)

    return jax.eval_shape(make)


@pytest.mark.parametrize(
    ("name", "dtype", "samples", "filtered"),
    slow_but(
        [("llama", "float32", 1, False)],
        [
            (name, dtype, samples, filtered)
            for name in MODELS
            for dtype in ("float32", "bfloat16")
            for samples, filtered in ((1, False), (4, True))
        ],
    ),
)
def test_decoding_takes_no_more_than_planned(name, dtype, samples, filtered):
    cfg, prompts, width, time = MODELS[name], 32 // samples, 64, 128
    model, params = footprint(cfg, dtype), weights(cfg, dtype)
    assert size_of(params) == model.decoding_weights
    tokens, mask = jnp.zeros((prompts, width), jnp.int32), jnp.ones((prompts, width), bool)
    taken = bytes_of(lambda *args: prefill(*args, cfg, dtype=dtype), params, tokens, mask)
    assert taken <= model.prefill(prompts, width) <= LOOSEST * taken

    def empty(*shape):
        shape = (1, prompts, *shape, cfg.head_dim)
        return tuple(jnp.zeros(shape, dtype) for _ in range(cfg.num_layers))

    heads = cfg.num_kv_heads
    prefix = PrefixCache(empty(heads, width), empty(heads, width), mask)
    suffix = SuffixCache(empty(samples, heads, time), empty(samples, heads, time))
    rows = jnp.zeros((prompts, samples), jnp.int32)
    state = DecodeState(
        tokens=jnp.zeros((prompts, samples, time + 1), jnp.int32), length=rows, last=rows,
        done=rows > 0, keys=jax.random.split(jax.random.key(0), rows.shape), limit=rows,
        broken=rows > 0, step=jnp.int32(0), suffix=suffix,
    )  # fmt: skip
    assert size_of((prefix.k, prefix.v)) == model.cache(prompts * width)
    assert size_of(suffix) == model.cache(prompts * samples * time)
    sampling = Sampling(1.0, 0, 0.9, stop_ids=(0,)) if filtered else Sampling(0.0, stop_ids=(0,))

    def decode(*args):
        return decode_chunk.__wrapped__(*args, cfg=cfg, sampling=sampling)

    end = jnp.int32(0)
    taken = bytes_of(decode, params, prefix, state, end, end, donated=2)
    taken += size_of((prefix.k, prefix.v, suffix))
    assert taken <= model.decode(prompts, samples, width, time, filters=filtered) <= LOOSEST * taken


@pytest.mark.parametrize(
    ("name", "dtype"),
    slow_but(
        [("llama", "float32")],
        [(name, dtype) for name in MODELS for dtype in ("float32", "bfloat16")],
    ),
)
def test_scoring_takes_no_more_than_planned(name, dtype):
    cfg, rows, time = MODELS[name], 32, 128
    tokens = jnp.zeros((rows, time), jnp.int32)

    def score(*args):
        return next_token_scores(*args, cfg=cfg, dtype=dtype)

    taken = bytes_of(score, weights(cfg, dtype), tokens, tokens == 0)
    assert taken <= footprint(cfg, dtype).score(rows, time) <= LOOSEST * taken


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize(("name", "dtype"), [("llama", "float32"), ("phi", "float32"),
                                             ("llama", "bfloat16")])  # fmt: skip
@pytest.mark.parametrize("parts", [1, 2])
def test_training_takes_no_more_than_planned(name, dtype, remat, parts):
    cfg, rows, time = MODELS[name], 16, 128
    optimizer = make_optimizer(
        Optimizer(learning_rate=1e-3, schedule="constant"), cfg, optax.constant_schedule(1e-3)
    )
    shape = (parts, rows, time)
    batch = Batch(
        tokens=jnp.zeros(shape, jnp.int32), segments=jnp.zeros(shape, jnp.int32),
        loss_mask=jnp.ones(shape, bool), reference=jnp.zeros((parts, rows)), sizes=(rows, 0, 0),
    )  # fmt: skip
    step = make_train_step(optimizer, PMC(), cfg, dtype=dtype, remat=remat)
    state = abstract_state(cfg, optimizer, "float32")
    taken = bytes_of(lambda *args: step(*args, 1.0, {})[0], state, batch, donated=0)
    bound = footprint(cfg, dtype).train_step(
        rows, time, remat=remat, gradient_bytes=4, parts=parts, update_norm=False
    )
    assert taken <= bound <= LOOSEST * taken


@pytest.mark.slow
@pytest.mark.parametrize("base_dtype", slow_but(["auto"], ["auto", "int8"]))
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_an_adapter_takes_no_more_than_planned(dtype, remat, base_dtype):
    """Far less than training all weights, and no more than the bound says."""
    cfg, rows, time = LLAMA, 4, 64
    part = trainable(cfg, adapter=LoRA(rank=4, base_dtype=base_dtype))
    optimizer = make_optimizer(
        Optimizer(learning_rate=1e-3), cfg, optax.constant_schedule(1e-3), part=part
    )
    batch = Batch(
        tokens=jnp.zeros((1, rows, time), jnp.int32),
        segments=jnp.zeros((1, rows, time), jnp.int32),
        loss_mask=jnp.ones((1, rows, time), bool), reference=jnp.zeros((1, rows)),
        sizes=(rows, 0, 0),
    )  # fmt: skip
    step = make_train_step(optimizer, PMC(), cfg, dtype=dtype, remat=remat, part=part)
    state = abstract_state(cfg, optimizer, "float32", part=part)

    def struct(spec):
        if isinstance(spec, Quantised):
            shapes = spec.values.shape, spec.scales.shape
            return Quantised(*map(jax.ShapeDtypeStruct, shapes, ("int8", "float32")))
        return jax.ShapeDtypeStruct(spec.shape, dtype if spec.init == "normal" else "float32")

    base = jax.tree.map(struct, part.base_specs, is_leaf=is_quantised)

    def one(state, batch, base):
        return step(state, batch, 1.0, {"base": base})[0]

    taken = bytes_of(one, state, batch, base, donated=0)
    model = footprint(cfg, dtype, part, cast=False)
    bound = model.train_step(rows, time, remat=remat, gradient_bytes=4, parts=1, update_norm=False)
    assert taken <= bound
    whole = footprint(cfg, dtype)
    assert bound < whole.train_step(
        rows, time, remat=remat, gradient_bytes=4, parts=1, update_norm=False
    )
    assert model.trained(4) == 4 * sum(s.size for s in jax.tree.leaves(state.params))


def on_mesh_of(data: int, model: int) -> Footprint:
    return Footprint(LLAMA, "bfloat16", Target("gpu", data * model > 1), data, model)


def test_a_mesh_divides_what_it_shards():
    one, eight = on_mesh_of(1, 1), on_mesh_of(4, 2)
    count = param_count(LLAMA)
    assert one.weights(4) == 4 * count and eight.weights(4) < 4.1 * count / 8
    assert one.cache(100) == 2 * 2 * 2 * 32 * 2 * 100 == 2 * eight.cache(100)
    assert eight.generate(64, 4, 64, 128) < one.generate(64, 4, 64, 128) / 7
    # Seven prompts are replicated, three heads are not divided by two.
    assert eight.rows(7) == 7 and eight.rows(8) == 2 and on_mesh_of(1, 4).cache(1) == one.cache(1)


def test_sizes_come_from_a_ladder():
    model = on_mesh_of(1, 1)

    def chosen(free, samples=1, prompts=1000, wave=0):
        return rows_at_once(
            model, free, prompts=prompts, samples=samples, width=64, time=128, filters=False,
            wave=wave,
        )  # fmt: skip

    assert chosen(None) == (MOST_ROWS, 1) and chosen(None, prompts=5) == (8, 1)
    assert chosen(None, 100) == (5, 100) and chosen(None, 20, wave=4) == (25, 4)
    ladder = {chosen(free, samples=100) for free in range(0, 10**9 // 5, 10**5)}
    assert ladder == {(5, 100), (3, 100), (2, 100), (1, 100), (1, 50), (1, 25), (1, 13), (1, 7),
                      (1, 4), (1, 2), (1, 1)}  # fmt: skip
    for free in (10**7, 10**8, 10**9):
        prompts, samples = chosen(free, 20)
        assert model.generate(prompts, samples, 64, 128, filters=False) <= SHARE * free
    assert rows_at_once(
        on_mesh_of(4, 2), None, prompts=10, samples=3, width=64, time=128, filters=True
    ) == (16, 3)  # fmt: skip
    assert halvings(10) == [10, 5, 3, 2, 1]
    assert first_fitting([4, 2, 1], lambda n: 100 * n, 300) == 2
    assert first_fitting([4, 2, 1], lambda n: 100 * n, 1) == 1


def test_prompts_are_halved_before_samples():
    found, size = [], (8, 5)
    while size := fewer_rows(*size, 2):
        found.append(size)
    assert found == [(4, 5), (2, 5), (2, 3), (2, 2), (2, 1)]


def test_a_micro_batch_is_laid_out_as_in_training():
    """Eight sequences of 60 tokens with as many pairs of 40, in rows of the bucket for 200."""
    lengths = Lengths(30, 30, [60] * 8, [40] * 100)
    rows, width = micro_batch_shape(lengths, 8, 1, 1, 200)
    assert (rows, width) == (4, 256)  # two rows of 4 · 60, one of 6 · 40, one of 2 · 40
    training, method = Training(batch_size=8), PMC(samples=4)
    model = dataclasses.replace(on_mesh_of(1, 1), target=Target("cpu", False))

    def chosen(free, **changes):
        return sizes(
            dataclasses.replace(training, **changes), method, lengths, model, free, kinds=1,
            remat="none", update_norm=False, weights_dtype="float32",
        )  # fmt: skip

    assert chosen(None) == {"decode_batch": 32, "wave": 0, "micro_batch": 8}
    assert chosen(0) == {"decode_batch": 4, "wave": 1, "micro_batch": 1}
    assert chosen(0, decode_batch=64, micro_batch=2) == {}
    model_and_data = {"kinds": 1, "remat": "none", "update_norm": False}
    step = step_bytes(
        training, method, lengths, model, 1, weights_dtype="float32", **model_and_data
    )
    assert chosen(step * 10)["micro_batch"] > 1  # a share of what is free is enough
    assert step == model.train_step(*micro_batch_shape(lengths, 1, 1, 1, 200), remat="none",
                                    gradient_bytes=4, parts=8, update_norm=False)  # fmt: skip
    some = dataclasses.replace(training, micro_batch=3)
    assert (some.part_size, some.parts) == (3, 3) and training.parts == 1


SAVES = {"a": 1, "b": 5, "c": 2, "d": 9}
"""What each of four settings saves, in 0.1 GB."""


def needed(changes):
    return 10**8 * (25 - sum(SAVES[key] for key in changes))


@pytest.mark.parametrize("free", range(25))
def test_the_settings_that_are_named_are_enough_and_all_needed(free):
    found = enough(SAVES, needed, free * 10**8)
    if free < 25 - sum(SAVES.values()):
        assert found == SAVES
    else:
        assert needed(found) <= free * 10**8
        rest = [{**found} for _ in found]
        for key, own in zip(found, rest, strict=True):
            del own[key]
            assert needed(own) > free * 10**8


def test_a_run_that_may_not_fit_is_told():
    """Four fifths of what is free count: the bounds leave out what allocators waste."""
    assert shortage(needed, None, SAVES) == []
    assert shortage(needed, 3_125_000_000, SAVES) == []
    begin = "an optimizer step needs up to 2.5 GB beside weights and moments, and "
    assert shortage(needed, 2_250_000_000, SAVES) == [
        begin + "2.2 GB are free, so the run may be killed; b=5 c=2 needs up to 1.8 GB"
    ]
    assert shortage(needed, 3_100_000_000, SAVES) == [
        begin + "3.1 GB are free, so the run may be killed; a=1 needs up to 2.4 GB"
    ]
    assert shortage(needed, 5 * 10**8, SAVES, "x=y") == [
        begin + "0.5 GB are free, so the run may be killed; a=1 b=5 c=2 d=9 needs up to 0.8 GB, "
        "x=y less"
    ]
    assert shortage(needed, 10**9, {}) == [begin + "1.0 GB are free, so the run may be killed"]


# --- what is free


def machine(root, *, available=8_000_000, rss=1_000_000, groups=""):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:   {available} kB\n")
    (root / "proc/self/status").write_text(f"VmSize:\t5000000 kB\nVmRSS:\t {rss} kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    return root


def group(path, **files):
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name.replace("__", ".")).write_text(str(content))


def test_free_memory_is_the_least_of_all_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    root = machine(tmp_path / "plain")
    assert memory.host_memory(root=root) == 8_000_000 * 1024
    assert memory.host_memory(3 * 10**9, root) == 3 * 10**9 - 1_000_000 * 1024
    assert memory.host_memory(1, root) == 0
    # Version 2: the parent's limit is what holds.
    root = machine(tmp_path / "two", groups="0::/job/step\n")
    group(root / "sys/fs/cgroup/job/step", memory__max="max", memory__current=5)
    group(root / "sys/fs/cgroup/job", memory__max=4000, memory__current=1500,
          memory__stat="anon 1000\ninactive_file 500\n")  # fmt: skip
    assert memory.host_memory(root=root) == 4000 - 1000
    # Version 1.
    root = machine(tmp_path / "one", groups="4:memory:/a\n3:cpuset:/a\n")
    group(root / "sys/fs/cgroup/memory/a", memory__limit_in_bytes=7000,
          memory__usage_in_bytes=2000, memory__stat="total_inactive_file 1000\n")  # fmt: skip
    assert memory.host_memory(root=root) == 6000


def test_resource_limits_count(tmp_path, monkeypatch):
    root = machine(tmp_path)
    limits = {resource.RLIMIT_AS: 6 * 10**9}
    monkeypatch.setattr(
        resource, "getrlimit", lambda kind: (limits.get(kind, resource.RLIM_INFINITY), -1)
    )
    assert memory.host_memory(root=root) == 6 * 10**9 - 5_000_000 * 1024


def test_a_person_can_limit_it(monkeypatch):
    monkeypatch.setattr(memory, "_allowed", None)
    assert memory.allowed_memory() is None
    monkeypatch.setenv(memory.VARIABLE, "2GB")
    assert memory.allowed_memory() == 2 * 10**9
    memory.allow_memory("1GiB")
    assert memory.allowed_memory() == 2**30
    with pytest.raises(UserError, match="memory=lots: expected a size"):
        memory.allow_memory("lots")
    assert memory.free_memory() is not None


# --- when it runs out


@pytest.fixture
def forgetful(monkeypatch):
    """Nothing that ran out in one test is remembered in another."""
    monkeypatch.setattr(memory, "_smaller", {})


@pytest.mark.slow
def test_decoding_goes_on_with_half_as_many(tiny_model, monkeypatch, capsys, forgetful):
    module = importlib.import_module("pmc_jax.decoding.generate")
    questions = [f"Who is number {i}?" for i in range(6)]

    def answers():
        return tiny_model.generate(questions, samples=4, temperature=1.0, max_new_tokens=8)

    expected, real, seen = answers(), module.sample, []

    def limited(params, tokens, mask, keys, *rest, **options):
        rows = keys.shape[0] * min(options["wave"] or keys.shape[1], keys.shape[1])
        seen.append(rows)
        if rows > 2:
            raise FULL
        return real(params, tokens, mask, keys, *rest, **options)

    monkeypatch.setattr(module, "sample", limited)
    assert answers() == expected
    assert seen[:5] == [32, 16, 8, 4, 2] and set(seen[5:]) == {2}
    (line,) = capsys.readouterr().out.splitlines()
    assert "out of memory" in line and "2 responses at a time instead" in line
    seen.clear()
    assert answers() == expected and set(seen) == {2} and not capsys.readouterr().out

    monkeypatch.setattr(module, "sample", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(UserError, match="out of memory: decoding 1 responses at a time does not"):
        answers()


def test_other_errors_are_not_taken_for_it():
    assert memory.ran_out(FULL) and memory.ran_out(MemoryError())
    assert not memory.ran_out(jax.errors.JaxRuntimeError("INTERNAL: broken"))
    assert not memory.ran_out(ValueError("RESOURCE_EXHAUSTED"))


def test_scoring_goes_on_with_half_as_many(tiny_model, monkeypatch, capsys, forgetful):
    pairs = [([3, 4, 5], [6, 7, 1][: 1 + i % 3]) for i in range(5)]
    expected, real = answer_scores(tiny_model, pairs), likelihood.next_token_scores

    def limited(params, tokens, *rest, **options):
        if len(tokens) > 2:
            raise FULL
        return real(params, tokens, *rest, **options)

    monkeypatch.setattr(likelihood, "next_token_scores", limited)
    for a, b in zip(answer_scores(tiny_model, pairs), expected, strict=True):
        np.testing.assert_allclose(a.log_probs, b.log_probs, atol=1e-5)
    assert "2 answers at a time instead" in capsys.readouterr().out


def test_a_step_that_does_not_fit_names_what_to_change(tiny_model, monkeypatch, forgetful):
    data = pmc.Dataset.from_dicts(
        [{"question": f"Where was {i} born?", "answer": "Oslo"} for i in range(4)],
        [{"question": "What is 1?", "answer": "One."}],
    )
    module, returned = importlib.import_module("pmc_jax.training.run"), []
    monkeypatch.setattr("pmc_jax.training.loop.return_freed", lambda: returned.append(True))

    def full(*_, **__):
        def step(*_):
            assert returned  # before the step, what sampling has freed is free again
            raise FULL

        return step

    monkeypatch.setattr(module, "make_train_step", full)
    with pytest.raises(UserError) as error:
        pmc.unlearn(tiny_model, data, pmc.GA(), pmc.Training(batch_size=4, max_length=64))
    assert "out of memory at step 0" in str(error.value)
    assert "training.micro_batch=2 or model.remat=full" in str(error.value)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_freed_memory_is_returned_to_the_system():
    """Pieces below another one that is in use stay with the C library until then."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    count, size = 600, 10**5
    pieces = [np.ones(size, np.uint8) for _ in range(count)]
    last = pieces[-1]
    del pieces
    before = resident()
    memory.return_freed()
    assert before - resident() > 0.5 * count * size
    assert last.all()
