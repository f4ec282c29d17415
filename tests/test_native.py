"""The C++ kernels against XLA's operations, and how they are compiled and cached."""

import dataclasses
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_params
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from test_decoding_layout import (
    CFG,
    attended,
    check_kernel,
    sampled,
    with_gradient,
)

from pmc_jax.data.packing import packed
from pmc_jax.decoding.draw import largest
from pmc_jax.model import decoding_params
from pmc_jax.model.attention import causal_attention
from pmc_jax.model.kernels import cpu_decode, cpu_top_k
from pmc_jax.model.kernels import native as native_module
from pmc_jax.model.kernels.cpu_causal import causal_attention_cpu
from pmc_jax.model.kernels.cpu_decode import write_and_attend_cpu
from pmc_jax.model.kernels.dispatch import current_target
from pmc_jax.model.kernels.native import compiled, compiler
from pmc_jax.training.batch import Batch
from pmc_jax.training.objective import make_objective
from pmc_jax.training.step import accumulated_gradients
from pmc_jax.unlearning.pmc import PMC

needs_kernels = pytest.mark.skipif(
    "native" not in current_target(jnp.float32).kernels, reason="needs CPUs and a C++ compiler"
)


# --- attention at decode steps -----------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"head_dim": 8, "prompt": 1, "room": 1, "step": 0},
        {"head_dim": 24, "prompt": 13, "window": 0},
        {"head_dim": 80, "half": 0.2, "window": 1},
        {"head_dim": 32, "half": 0.375, "softcap": 2.0},
        {"window": 5, "step": 0},
        {"drafts": True},
        {"drafts": True, "window": 50, "prompt": 130, "samples": 7},
        {"drafts": True, "samples": 11, "batch": 1, "kv_heads": 1, "prompt": 21},
        {"window": 50, "prompt": 130},  # the window begins within the prompt
        {"window": 20, "step": 79, "layers": 3, "layer": 2},  # the window begins within the suffix
        {"samples": 7, "kv_heads": 1, "per_head": 1, "half": 0.25},
        {"samples": 1, "batch": 1, "per_head": 5},
    ],
    ids=str,
)
def test_attention_equals_that_of_xla(case):
    """The cache holds NaN from the newest token on; none of it may be read."""
    check_kernel(jax.jit(write_and_attend_cpu, static_argnames=("scale", "softcap")), **case)


@pytest.mark.slow
@needs_kernels
@settings(max_examples=15, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.data())
def test_attention_in_other_shapes(data):
    pick = lambda *of: data.draw(st.sampled_from(of))  # noqa: E731
    room = pick(1, 16, 80)
    check_kernel(
        write_and_attend_cpu, seed=data.draw(st.integers(0, 2**32 - 1)),
        samples=pick(1, 3, 8), batch=pick(1, 2), kv_heads=pick(1, 2), per_head=pick(1, 3, 4),
        prompt=pick(1, 8, 21, 130), room=room, head_dim=pick(8, 16, 40),
        step=data.draw(st.integers(0, room - 1)), window=pick(None, 0, 1, 5, 40, 200),
        softcap=pick(None, 2.0), half=pick(0.5, 0.25, 0.375), drafts=pick(False, True),
    )  # fmt: skip


@needs_kernels
@pytest.mark.parametrize(("extra", "window"), [(16, None), (11, None), (3, 50)])
def test_attention_does_not_depend_on_the_batch(extra, window):
    """Bit-identical; it does not depend on the prompt's bucket or the size of the cache either."""
    arguments, options = attended(0, batch=3, samples=7, prompt=24, room=80, window=window)
    q, k, v, rope, prefix_k, prefix_v, mask, suffix_k, suffix_v, *places = arguments
    whole, *_ = write_and_attend_cpu(*arguments, **options)
    chosen, few = slice(1, 2), slice(2, 5)
    wider = [(0, 0), (0, 0), (extra, 0), (0, 0)]
    alone, *_ = write_and_attend_cpu(
        *(x[chosen, few] for x in (q, k, v)), tuple(table[chosen] for table in rope),
        *(jnp.pad(x[chosen], wider, constant_values=7.0) for x in (prefix_k, prefix_v)),
        jnp.pad(mask[chosen], wider[1:3]),
        *(x[:, chosen, few, :, :48] for x in (suffix_k, suffix_v)), *places, **options,
    )  # fmt: skip
    np.testing.assert_array_equal(alone, whole[chosen, few])


@needs_kernels
def test_few_prompts_are_split_by_samples():
    """The kernel then splits the samples over threads, which changes no result."""
    arguments, options = attended(0, batch=1, kv_heads=1, samples=11)
    q, k, v, *shared, suffix_k, suffix_v, layer, step, window = arguments
    whole, *caches = write_and_attend_cpu(*arguments, **options)
    for j in range(11):
        of = slice(j, j + 1)
        alone, *own = write_and_attend_cpu(
            q[:, of], k[:, of], v[:, of], *shared, suffix_k[:, :, of], suffix_v[:, :, of],
            layer, step, window, **options,
        )  # fmt: skip
        np.testing.assert_array_equal(alone, whole[:, of])
        for cache, wanted in zip(own, caches, strict=True):
            np.testing.assert_array_equal(cache, wanted[:, :, of])


@pytest.mark.slow
@needs_kernels
@pytest.mark.skipif(
    platform.machine() != "x86_64" or not shutil.which("g++"), reason="needs g++ for x86-64"
)
def test_attention_does_not_depend_on_the_batch_when_tuned_for_zen(tmp_path):
    """With this tuning, GCC fuses multiplications and additions in some loops only."""
    chosen = "test_attention_does_not_depend_on_the_batch or test_few_prompts or test_a_sequence"
    told = {"CXX": "g++ -mtune=znver3", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-k", chosen, __file__],
        env={**os.environ, **told}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
    assert list(tmp_path.rglob("kernels-*.so"))


@needs_kernels
def test_equal_keys_have_equal_weights():
    """Bit-identical, whether the products are computed eight at a time or one by one."""
    arguments, options = attended(0, batch=1, samples=3, room=16, step=8, prompt=8, half=0.5)
    q, k, v, rope, prefix_k, prefix_v, mask, suffix_k, suffix_v, *places = arguments
    unrotated = jnp.ones_like(rope[0]), jnp.zeros_like(rope[1])
    suffix_k = jnp.broadcast_to(k[None, ..., None, :], suffix_k.shape)
    one_hot = jnp.eye(suffix_v.shape[-2], v.shape[-1])
    weights, *_ = write_and_attend_cpu(
        q, k, jnp.broadcast_to(one_hot[8], v.shape), unrotated, prefix_k,
        jnp.zeros_like(prefix_v), jnp.zeros_like(mask), suffix_k,
        jnp.broadcast_to(one_hot, suffix_v.shape), *places, **options,
    )  # fmt: skip
    np.testing.assert_allclose(weights[..., :9].sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(weights[..., :9], np.repeat(weights[..., :1], 9, axis=-1))


@needs_kernels
def test_nan_in_one_key_stays_in_its_sample():
    """A NaN in the key of one sample reaches only the queries of that sample."""
    arguments, options = attended(0)
    k = arguments[1].at[1, 2, 0, 3].set(jnp.nan)
    found, *_ = write_and_attend_cpu(arguments[0], k, *arguments[2:], **options)
    expected = np.zeros(found.shape, bool)
    expected[1, 2, :3] = True  # the queries that share the key
    np.testing.assert_array_equal(np.isnan(found), expected)


# --- attention within sequences ----------------------------------------------------------------


def sequences(rng, time, *, batch=2, kv_heads=2, per_head=2, head_dim=16):
    """Queries, keys, values, a cotangent, and segments with padding before, between and after."""
    heads = (kv_heads * per_head, kv_heads, kv_heads, kv_heads * per_head)
    arrays = [rng.normal(size=(batch, time, count, head_dim)).astype(np.float32) for count in heads]
    segments = np.zeros((batch, time), np.int32)
    for row in segments:
        place = int(rng.integers(0, 3))
        for number in range(1, 4):
            size = int(rng.integers(1, time + 1))
            row[place : place + size] = number
            place += size + int(rng.integers(0, 2))
    return arrays, segments


def check_causal(arrays, segments, window, softcap, tolerance=1e-6):
    """Compare values and gradients with XLA's in double precision."""
    softcapped = [partial(f, softcap=softcap) for f in (causal_attention_cpu, causal_attention)]
    window = None if window is None else jnp.int32(window)
    fixed = segments, window, arrays[0].shape[-1] ** -0.5
    found = with_gradient(softcapped[0], *arrays, *fixed)
    with jax.enable_x64(True):
        wide = [jnp.asarray(x, jnp.float64) for x in arrays]
        expected = map(np.asarray, with_gradient(softcapped[1], *wide, *fixed))
    for own, wanted in zip(found, expected, strict=True):
        assert (own.dtype, wanted.dtype) == (jnp.float32, np.float64)
        difference = np.linalg.norm(np.asarray(own) - wanted)
        assert difference <= tolerance * np.linalg.norm(wanted)


@needs_kernels
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"time": 100, "head_dim": 24, "window": 20},  # the queries span several blocks
        {"time": 50, "softcap": 2.0, "window": 7, "per_head": 3},
        pytest.param({"time": 1, "window": 0}, marks=pytest.mark.slow),
        pytest.param({"window": 1, "kv_heads": 1, "per_head": 1}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_causal_attention_and_its_gradients(case, rng):
    case = {"time": 21, "window": None, "softcap": None, **case}
    window, softcap = case.pop("window"), case.pop("softcap")
    check_causal(*sequences(rng, **case), window, softcap)


@pytest.mark.slow
@needs_kernels
@settings(max_examples=25, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.data())
def test_causal_attention_in_other_shapes(data):
    pick = lambda *of: data.draw(st.sampled_from(of))  # noqa: E731
    arrays, segments = sequences(
        np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))), pick(1, 15, 16, 17, 90),
        batch=pick(1, 3), kv_heads=pick(1, 2, 5), per_head=pick(1, 2, 4), head_dim=pick(8, 40, 64),
    )  # fmt: skip
    check_causal(arrays, segments, pick(None, 0, 1, 9, 16, 200), pick(None, 1.0))


@needs_kernels
@pytest.mark.parametrize("window", [None, jnp.int32(9)])
def test_a_sequence_does_not_depend_on_its_row(window, rng):
    """Bit-identical: not on its neighbours, its position in the row, or the row's width."""
    (q, k, v, out), segments = sequences(rng, 60, batch=3)
    whole = with_gradient(causal_attention_cpu, q, k, v, out, segments, window, 0.25)
    own = segments[1] == 2
    assert 1 < own.sum() < 60
    alone = [np.zeros((1, 71, *x.shape[2:]), np.float32) for x in (q, k, v, out)]
    mask = np.zeros((1, 71), bool)
    place = slice(3, 3 + own.sum())
    mask[0, place] = True
    for to, x in zip(alone, (q, k, v, out), strict=True):
        to[0, place] = x[1, own]
    found = with_gradient(causal_attention_cpu, *alone, mask, window, 0.25)
    for one, all_of_them in zip(found, whole, strict=True):
        np.testing.assert_array_equal(one[0, place], all_of_them[1, own])


@needs_kernels
def test_padding_and_other_sequences_see_nothing_of_a_sequence(rng):
    """A NaN in a key affects only its own sequence, from that token on."""
    (q, k, v, out), segments = sequences(rng, 40)
    first, last = np.flatnonzero(segments[0] == 1)[[0, -1]]
    assert last > first + 1
    k[0, first + 1] = np.nan
    mixed, *gradients = with_gradient(causal_attention_cpu, q, k, v, out, segments, None, 0.25)
    plain = causal_attention_cpu(*map(jnp.asarray, (q, k, v, segments)), scale=0.25)
    padded = np.asarray(plain)[segments == 0]
    assert padded.size and not padded.any()
    poisoned = np.zeros(segments.shape, bool)
    poisoned[0, first + 1 : last + 1] = True
    np.testing.assert_array_equal(np.isnan(mixed).any((2, 3)), poisoned)
    poisoned[0, first] = True
    for gradient in gradients:
        assert not np.isnan(np.asarray(gradient)[~poisoned]).any()
        assert not np.asarray(gradient)[segments == 0].any()


@needs_kernels
def test_rows_of_padding_and_mapped_ones(rng):
    arrays, segments = sequences(rng, 12)
    q, k, v, _ = map(jnp.asarray, arrays)
    nothing = causal_attention_cpu(q, k, v, jnp.zeros_like(segments), scale=1.0)
    np.testing.assert_array_equal(nothing, np.zeros(q.shape))
    attention = partial(causal_attention_cpu, scale=0.5)
    mapped = jax.vmap(lambda *one: attention(*(x[None] for x in one))[0])
    expected = attention(q, k, v, jnp.asarray(segments))
    np.testing.assert_array_equal(mapped(q, k, v, jnp.asarray(segments)), expected)


@needs_kernels
def test_scores_beyond_all_numbers_are_capped(rng):
    """An infinite score becomes the cap with its sign, as with XLA's operations."""
    arrays, segments = sequences(rng, 9)
    q, k, v = (jnp.asarray(x) for x in arrays[:3])
    q, k = (x.at[..., 1:].set(0) * jnp.float32(1e38) for x in (q, k))
    fixed = v, jnp.asarray(segments)
    found = causal_attention_cpu(q, k, *fixed, scale=1.0, softcap=1.0)
    expected = causal_attention(q, k, *fixed, scale=1.0, softcap=1.0)
    real = segments > 0
    np.testing.assert_allclose(found[real], expected[real], rtol=1e-5, atol=1e-6)


@needs_kernels
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(
    ("remat", "changes"),
    [
        ("dots", {"windows": (3, 0, 5), "attention_softcap": 1.0}),
        pytest.param("none", {}, marks=pytest.mark.slow),
        pytest.param("full", {}, marks=pytest.mark.slow),
    ],
)
def test_training_has_the_same_gradients_with_kernels(remat, changes, rng):
    """The reference is XLA in double precision, for packed rows through all layers."""
    cfg = dataclasses.replace(CFG, **changes)
    params = random_params(jax.random.key(0), cfg)
    pairs = [([5, 6, 7], list(range(8, 8 + size))) for size in (4, 11, 2, 19, 7)]
    rows = packed([dict(enumerate(pairs, 1))], 32)
    batch = Batch(*map(jnp.asarray, rows), reference=jnp.zeros((1, 5)), sizes=(2, 0, 3))
    gradients = jax.jit(
        partial(accumulated_gradients, cfg=cfg, retain_weight=1.0, frozen={}),
        static_argnames="objective",
    )
    found, _ = gradients(params, batch, objective=make_objective(PMC(), cfg, remat=remat))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        expected, _ = gradients(wide, batch, objective=make_objective(PMC(), cfg, jnp.float64))
    for own, wanted in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        own, wanted = np.asarray(own), np.asarray(wanted)
        assert np.linalg.norm(own - wanted) <= 3e-6 * np.linalg.norm(wanted)


# --- the largest ------------------------------------------------------------------------------


SOME = st.one_of(
    # XLA treats subnormal products as 0 on some threads.
    st.floats(width=32).filter(lambda x: not 0 < abs(x) < 1e-30),
    st.sampled_from([0.0, -0.0, 1.0, float("inf"), float("-inf"), float("nan"), -float("nan")]),
)


@partial(jax.jit, static_argnums=1)
def largest_by_both(x, count, scale):
    return largest(x, count, scale), jax.lax.top_k(x * scale, count)


@needs_kernels
@settings(max_examples=100)
@given(
    some=st.lists(SOME, min_size=1, max_size=40),
    shape=st.sampled_from([(1, 1), (6, 17), (9, 300), (3, 1037), (6, 4096)]),
    count=st.sampled_from([1, 51]),
    scale=st.sampled_from([1.0, 0.9, 1 / 3]),
    seed=st.integers(0, 2**32 - 1),
)
@example(some=[0.0], shape=(6, 4096), count=51, scale=1.0, seed=0)
@example(some=[float("-inf"), 1.0], shape=(6, 4096), count=51, scale=0.9, seed=0)
def test_the_largest_are_those_of_lax_top_k(some, shape, count, scale, seed):
    """Equal values bit for bit, and equal indices, with many ties or none."""
    rng = np.random.default_rng(seed)
    often = rng.random((shape[0], 1)) < 0.7
    x = np.where(often, rng.choice(np.float32(some), shape), rng.normal(size=shape))
    count = min(count, shape[1])
    found, expected = largest_by_both(np.float32(x), count, np.float32(scale))
    np.testing.assert_array_equal(found[1], expected[1])
    values = (np.asarray(own[0]).view(np.int32) for own in (found, expected))
    np.testing.assert_array_equal(*values)


def test_top_k_of_more_than_there_are(native):
    with pytest.raises(ValueError, match=r"top_k|largest"):
        largest(jnp.zeros((2, 5)), 6)


def test_the_largest_can_be_mapped(native):
    logits = jnp.arange(360.0).reshape(3, 4, 30) % 11
    found = jax.vmap(partial(largest, count=7))(logits)
    for own, expected in zip(found, jax.lax.top_k(logits, 7), strict=True):
        np.testing.assert_array_equal(own, expected)


# --- where they are used ----------------------------------------------------------------------


@pytest.mark.slow
@needs_kernels
def test_decoding_with_kernels_samples_the_same(monkeypatch):
    """The same samples as with XLA's operations alone, under the same keys."""
    params = decoding_params(random_params(jax.random.key(0), CFG), CFG, jnp.float32)
    called, call = [], native_module.native_call

    def counting(name, *args, **options):
        called.append(name)
        return call(name, *args, **options)

    for module in (cpu_decode, cpu_top_k):
        monkeypatch.setattr(module, "native_call", counting)
    jax.clear_caches()
    found = sampled(params, CFG, "float32")
    assert set(called) == {"write_and_attend", "top_k"}
    called.clear()
    monkeypatch.setattr(native_module, "available", lambda: False)
    jax.clear_caches()
    assert sampled(params, CFG, "float32") == found
    assert not called
    jax.clear_caches()


def test_double_precision_has_xlas_operations(monkeypatch):
    """So that results in float64 do not depend on the kernels that a machine has."""
    monkeypatch.setattr(cpu_top_k, "native_call", None)
    with jax.enable_x64(True):
        values, _ = largest(jnp.arange(20.0), 3)
    np.testing.assert_array_equal(values, [19, 18, 17])


# --- compiling --------------------------------------------------------------------------------


@pytest.fixture
def short_source(tmp_path, monkeypatch):
    """A source that compiles at once."""
    path = tmp_path / "short.cc"
    path.write_text('extern "C" int pmc_jax_one() { return 1; }')
    monkeypatch.setattr(native_module, "SOURCE", path)
    monkeypatch.setattr(native_module, "KERNELS", ("one",))
    return path


@needs_kernels
def test_kernels_are_compiled_once(short_source, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    path = compiled(compiler(), kept)
    assert [path] == list(kept.iterdir())  # and no temporary file
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", None)
        assert compiled(compiler(), kept) == path
    short_source.write_text("int two() { return 2; }")
    assert compiled(compiler(), kept) != path
    short_source.write_text("int three() { return }")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        compiled(compiler(), kept)
    assert "error" in failed.value.stderr
    assert len(list(kept.iterdir())) == 2


@needs_kernels
def test_compilers_that_do_not_know_a_flag(short_source, tmp_path, monkeypatch):
    flags = (("--no-such-flag",), *native_module.FOR_THIS_PROCESSOR)
    monkeypatch.setattr(native_module, "FOR_THIS_PROCESSOR", flags)
    assert compiled(compiler(), tmp_path).stat().st_size > 0


def test_the_compiler_is_that_of_cxx(monkeypatch):
    monkeypatch.setenv("CXX", "ccache g++ -m64")
    assert compiler() == ["ccache", "g++", "-m64"]
    monkeypatch.setenv("CXX", "")
    assert compiler() == []
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    assert compiler() == []


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (None, "found no C++ compiler (c++, g++, clang++): decoding and training are slower"),
        ("", None),  # an empty CXX turns the kernels off
        ("/no/such/compiler", "no C++ kernels, decoding and training are slower: [Errno 2]"),
        ("false", "no C++ kernels, decoding and training are slower: Command '['false'"),
        ("c++ '", "no C++ kernels, decoding and training are slower: No closing quotation"),
        (
            "complaining",
            "no C++ kernels, decoding and training are slower: x.cc:3:1: error: no such thing",
        ),
    ],
)
def test_without_a_compiler_one_line_says_so(named, said, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    complaining = tmp_path / "complaining"
    complaining.write_text(
        "#!/bin/sh\nprintf 'x.cc: In function f:\\nx.cc:3:1: error: no such thing\\n' >&2; exit 1"
    )
    complaining.chmod(0o755)
    if named is None:
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", "")
    else:
        monkeypatch.setenv("CXX", str(complaining) if named == "complaining" else named)
    assert native_module.register.__wrapped__() is None
    if said is None:
        assert not caplog.messages
    else:
        (line,) = caplog.messages
        assert line.startswith(said) and "\n" not in line
    assert not list(tmp_path.rglob("*.so"))


def test_a_cache_that_cannot_be_written(monkeypatch, caplog, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("CXX", "c++")
    assert native_module.register.__wrapped__() is None
    (line,) = caplog.messages
    assert line.startswith("no C++ kernels, decoding and training are slower: ")


def test_without_a_home_one_line_says_so(monkeypatch, caplog):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(native_module, "cache_directory", homeless)
    monkeypatch.setenv("CXX", "c++")
    assert native_module.register.__wrapped__() is None
    assert caplog.messages == [
        "no C++ kernels, decoding and training are slower: Could not determine home directory."
    ]


def flipped(content: bytes) -> bytes:
    """`content` with one bit changed, in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@needs_kernels
@pytest.mark.parametrize(
    "damage",
    [lambda x: b"", lambda x: x[: len(x) // 2], lambda x: x[:5000], lambda x: b"\0" * len(x),
     flipped],
    ids=["empty", "half", "first page", "zeros", "flipped"],
)  # fmt: skip
def test_damaged_kernels_are_compiled_again(damage, short_source, tmp_path, monkeypatch):
    """They are never loaded: code of which a part is missing ends a process with SIGBUS."""
    monkeypatch.setattr(native_module, "cache_directory", lambda: tmp_path / "kept")
    path = compiled(compiler(), tmp_path / "kept")
    path.write_bytes(damage(path.read_bytes()))
    opened = []
    real = native_module.ctypes.CDLL

    def opening(name: str) -> object:
        opened.append(Path(name).read_bytes())
        return real(name)

    monkeypatch.setattr(native_module.ctypes, "CDLL", opening)
    digest, library = native_module.load()
    (now,) = (tmp_path / "kept").iterdir()
    assert opened == [now.read_bytes()] and library.pmc_jax_one() == 1
    content = hashlib.sha256(now.read_bytes()).hexdigest()[:16]
    assert now.name == f"kernels-{digest}-{content}.so"


@needs_kernels
@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("sleep 60 & echo $! > {pid}; sleep 60", "did not end within 0.5 s; CXX= (empty) goes"),
        ('for out; do :; done; echo garbage > "$out"', "file too short"),
        ("true", "No such file"),  # it writes nothing
        ('c++ -shared -fPIC -x c++ /dev/null -o "$(eval echo \\${{$#}})"', "has no one"),
    ],
    ids=["hangs", "garbage", "nothing", "no kernels"],
)
def test_a_broken_compiler_is_one_line(does, said, short_source, tmp_path, monkeypatch, caplog):
    script = tmp_path / "compiler"
    pid = tmp_path / "pid"
    script.write_text("#!/bin/sh\n" + does.format(pid=pid))
    script.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setattr(native_module, "COMPILE_SECONDS", 0.5 if "sleep" in does else 60)
    started = time.monotonic()
    assert native_module.register.__wrapped__() is None
    assert time.monotonic() - started < 10
    (line,) = caplog.messages
    assert line.startswith("no C++ kernels, decoding and training are slower: ")
    assert said in line and "\n" not in line
    assert not list(tmp_path.rglob("compiling-*"))
    if "sleep" in does:  # what the compiler has started ends with it
        child = Path(f"/proc/{pid.read_text().strip()}/stat")
        while child.exists() and child.read_text().split()[2] != "Z":
            assert time.monotonic() - started < 30
            time.sleep(0.05)


@needs_kernels
def test_processes_that_compile_at_the_same_time(short_source, tmp_path, monkeypatch):
    together = threading.Barrier(4)
    real = native_module.content_digest

    def all_have_compiled(path: Path) -> str:
        together.wait(30)
        return real(path)

    monkeypatch.setattr(native_module, "content_digest", all_have_compiled)
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: compiled(compiler(), tmp_path / "kept"), range(4)))
    assert set(paths) == set((tmp_path / "kept").iterdir())
    for path in paths:
        assert path.stem.endswith(hashlib.sha256(path.read_bytes()).hexdigest()[:16])


@needs_kernels
def test_what_a_killed_compilation_leaves_is_removed(short_source, tmp_path):
    old, new = tmp_path / "compiling-old", tmp_path / "compiling-new"
    for path in (old, new):
        path.mkdir()
        (path / "kernels.so").write_text("half")
    os.utime(old, (0, 0))
    compiled(compiler(), tmp_path)
    assert not old.exists() and new.exists()


@needs_kernels
def test_the_name_of_a_kernel_tells_its_version(short_source, tmp_path, monkeypatch):
    """So that a cached compiled function never calls another version of a kernel."""
    paths = {compiled(compiler(), tmp_path)}
    for changed in (
        (native_module, "FLAGS", (*native_module.FLAGS, "-g")),
        (native_module.jaxlib, "__version__", "0.0"),
        (native_module.platform, "libc_ver", lambda: ("glibc", "2.0")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(*changed)
            paths.add(compiled(compiler(), tmp_path))
    paths.add(compiled([*compiler(), "-Wall"], tmp_path))
    assert len(paths) == 5
    monkeypatch.undo()
    digest, _ = native_module.load()
    assert native_module.register() == f"pmc_jax_{digest}_"
