"""Unrolled and joined weights, and the GPU implementations (Pallas, cuDNN) run on a CPU."""

import importlib
import re
from contextlib import nullcontext
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_llama, random_params
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_families import random_model
from test_model import SWITCHES, load, our_logits, positions_of

from pmc_jax.decoding import Sampling, generate, sampler
from pmc_jax.evaluation.quantisation import BLOCK, quantise_params
from pmc_jax.model import (
    ModelConfig,
    SuffixCache,
    decoding_params,
    layer_stacks,
    layer_states,
    make_mesh,
    parts_of,
    squeeze_single,
)
from pmc_jax.model.attention import causal_attention, write_and_attend
from pmc_jax.model.kernels import dispatch
from pmc_jax.model.kernels.gpu_causal import causal_attention_gpu
from pmc_jax.model.kernels.gpu_decode import samples_together, write_and_attend_gpu

# Imported with importlib because the package has a function of the same name.
forward_module = importlib.import_module("pmc_jax.model.forward")
pytestmark = pytest.mark.usefixtures("quick_compilation")
CFG = ModelConfig(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4,
    num_kv_heads=2, head_dim=16,
)  # fmt: skip


def sampled(params, cfg, dtype="float64", temperature=1.0):
    """Three responses to each of four prompts."""
    return generate(
        params, [[3, 4, 5], [6, 7, 8, 9, 10], [11], [12, 13]], cfg=cfg,
        sampling=Sampling(temperature, top_k=20, top_p=0.9, stop_ids=(1,)), samples=3,
        key=jax.random.key(0), limits=[19] * 4, dtype=dtype,
    )  # fmt: skip


# --- unrolled and joined weights ------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_unrolled_weights_give_the_same_logits(name, tmp_path, rng):
    checkpoint = load(random_llama(**SWITCHES[name]), tmp_path)
    cfg = checkpoint.cfg
    unrolled = decoding_params(checkpoint.params, cfg, jnp.float32, unrolled=True)
    assert len(layer_stacks(unrolled)) == cfg.num_layers
    assert "q+k+v" in layer_stacks(unrolled)[0] and "q" not in layer_stacks(unrolled)[0]
    assert ("gate+up_bias" in layer_stacks(unrolled)[0]) == cfg.mlp_bias
    tokens = rng.integers(0, 97, (2, 12))
    expected = our_logits(checkpoint, tokens)
    checkpoint.params.clear()
    checkpoint.params.update(unrolled)
    np.testing.assert_allclose(our_logits(checkpoint, tokens), expected, rtol=0, atol=1e-5)


def test_unrolled_layers_are_traced_once(monkeypatch):
    traced, block = [], forward_module.block

    def noting(*arguments):
        traced.append(arguments)
        return block(*arguments)

    monkeypatch.setattr(forward_module, "block", noting)
    params = random_params(jax.random.key(0), CFG)
    unrolled = decoding_params(params, CFG, jnp.float32, unrolled=True)
    tokens = jnp.zeros((2, 5), jnp.int32)
    jax.jit(partial(forward_module.prefill, cfg=CFG)).trace(unrolled, tokens, tokens == 0)
    assert CFG.num_layers > 1 and len(traced) == 1


@pytest.mark.slow
@pytest.mark.parametrize("family", ["phi", "gemma3_text", "qwen2"])
def test_unrolled_weights_sample_the_same(family, tmp_path):
    """In float64, so that no sample differs by rounding."""
    with jax.enable_x64(True):
        checkpoint = load(random_model(family), tmp_path)
        decode = partial(decoding_params, checkpoint.params, checkpoint.cfg, jnp.float64)
        expected = sampled(decode(unrolled=False), checkpoint.cfg)
        assert sampled(decode(unrolled=True), checkpoint.cfg) == expected


def test_the_first_layers_of_unrolled_weights(rng):
    params = random_params(jax.random.key(0), CFG)
    unrolled = decoding_params(params, CFG, jnp.float32, unrolled=True)
    tokens = jnp.asarray(rng.integers(0, 97, (2, 7)))
    mask = jnp.ones((2, 7), bool)
    states = jax.jit(partial(layer_states, cfg=CFG), static_argnames="layers")
    for layers in (1, 2, 3):
        found, expected = (
            states(own, tokens, positions_of(mask), mask, layers=layers)
            for own in (unrolled, params)
        )
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("backend", "alone", "unrolled"),
    [
        ("gpu", True, True), ("gpu", False, True), ("cpu", True, True), ("cpu", False, False),
        ("tpu", True, False),
    ],
)  # fmt: skip
def test_where_weights_are_unrolled(backend, alone, unrolled, monkeypatch):
    params = random_params(jax.random.key(0), CFG)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(dispatch, "_backend_of", lambda mesh: backend)
    with nullcontext() if alone else jax.set_mesh(make_mesh(1, 1)):
        found = decoding_params(params, CFG, jnp.float32)
    assert len(layer_stacks(found)) == (CFG.num_layers if unrolled else 1)


@pytest.mark.slow
def test_caches_of_unrolled_weights_are_written_in_place(native):
    """XLA may copy the caches before the loop and after it, but not at every step."""
    params = decoding_params(random_params(jax.random.key(0), CFG), CFG, jnp.float32, unrolled=True)
    compiled = []

    def reading(*arguments, **options):
        # the argument's classes do not accept abstract shapes
        leaves, tree = jax.tree.flatten(arguments)
        flat = jax.jit(lambda *x: decode_chunk(*jax.tree.unflatten(tree, x), **options))
        compiled.append(flat.lower(*leaves).compile().as_text())
        return decode_chunk(*arguments, **options)

    decode_chunk = sampler.decode_chunk
    with mock.patch.object(sampler, "decode_chunk", reading):
        sampled(params, CFG, "float32")
    assert compiled
    cache, prompt_keys = r"4,3,2,\d\d,16", r"4,2,16,\d+"

    def computed(body, shape):
        form = rf"= f32\[(?:1,)?{shape}\]\S* ([\w-]+)\("
        passing = "get-tuple-element", "bitcast", "parameter"
        found = ((line, re.search(form, line)) for line in body.splitlines())
        return [line for line, match in found if match and match[1] not in passing]

    for text in compiled:
        computations = dict(re.findall(r"^%?([\w.-]+) (.*?^})", text, re.DOTALL | re.MULTILINE))
        bodies = [computations[name] for name in re.findall(r"body=%?([\w.-]+)", text)]
        (body,) = [body for body in bodies if re.search(rf"f32\[(?:1,)?{cache}\]", body)]
        kernels = [line for line in body.splitlines() if "_write_and_attend" in line]
        caches = computed(body, cache)
        if native == "kernels":
            assert len(kernels) == CFG.num_layers and not caches, caches
            assert all("{1}: (5, {}), {2}: (6, {})" in line for line in kernels), kernels
            assert not computed(body, prompt_keys)  # only before the loop
        else:
            assert len(caches) == 2 * CFG.num_layers and not kernels, caches
            assert all("dynamic-update-slice" in line for line in caches), caches


@pytest.mark.slow
def test_unrolled_weights_on_a_mesh_sample_the_same():
    """On a mesh, caches of one layer keep their layer axis, and weights are not joined."""
    cache = jnp.zeros((1, 2, 3, 2, 16, 16))
    suffix = SuffixCache(k=(cache,), v=(cache,))
    with jax.enable_x64(True):
        params = random_params(jax.random.key(0), CFG, jnp.float64)
        unrolled = partial(decoding_params, params, CFG, jnp.float64, unrolled=True)
        expected = sampled(unrolled(), CFG)
        assert squeeze_single(suffix).k[0].shape == cache.shape[1:]
        with jax.set_mesh(make_mesh(1, 1)):
            assert squeeze_single(suffix).k[0].shape == cache.shape
            assert sampled(unrolled(), CFG) == expected


def test_the_names_of_joined_weights():
    assert parts_of("q+k+v") == ["q", "k", "v"]
    assert parts_of("gate+up_bias") == ["gate_bias", "up_bias"]
    assert parts_of("down") == ["down"]


def test_joined_weights_are_rounded_as_those_alone(rng):
    """A row of a joined weight is a whole number of blocks, so no block spans two weights."""
    cfg = ModelConfig(
        vocab_size=31, hidden_size=16, intermediate_size=2 * BLOCK, num_layers=2, num_heads=4,
        num_kv_heads=2, head_dim=BLOCK, attention_bias=True,
    )  # fmt: skip
    params = random_params(jax.random.key(0), cfg)
    params["layers"]["q_bias"] += 0.1234567
    decode = partial(decoding_params, cfg=cfg, dtype=jnp.float32, unrolled=True)
    found, expected = quantise_params(decode(params), cfg, 4), quantise_params(params, cfg, 4)
    assert not np.array_equal(expected["layers"]["q"], params["layers"]["q"])
    expected = decode(expected)
    for a, b in zip(layer_stacks(found), layer_stacks(expected), strict=True):
        for name, leaf in b.items():
            np.testing.assert_array_equal(a[name], leaf, err_msg=name)


# --- the attention kernel -------------------------------------------------------------------


def attended(
    seed=0, batch=2, samples=3, kv_heads=2, per_head=3, prompt=24, room=80, head_dim=16, layers=1,
    layer=0, step=40, half=0.5, window=None, softcap=None, dtype=jnp.float32, drafts=False,
):  # fmt: skip
    """Arguments of `write_and_attend` with NaN where nothing is written yet, and its options.

    With `drafts`, every sample has a position of its own and does not see the end of its prompt.
    """
    rng = np.random.default_rng(seed)

    def some(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(dtype)

    q = some(batch, samples, kv_heads * per_head, head_dim)
    k, v = (some(batch, samples, kv_heads, head_dim) for _ in range(2))
    each = samples if drafts else 1
    angles = rng.uniform(0, 6, (batch, each, int(head_dim * half))).astype(np.float32)
    prefix = [some(batch, kv_heads, prompt, head_dim) for _ in range(2)]
    suffix = [some(layers, batch, samples, kv_heads, room, head_dim) for _ in range(2)]
    for x in suffix:
        x[layer, ..., step:, :] = np.nan
    mask = np.arange(prompt) >= prompt - rng.integers(1, prompt + 1, batch)[:, None]
    place = (jnp.int32(layer), jnp.int32(step), None if window is None else jnp.int32(window))
    rope = (np.cos(angles), np.sin(angles))
    arguments = (q, k, v, rope, *prefix, mask, *suffix, *place)
    if drafts:
        unused = rng.integers(0, prompt + 1, (batch, samples))
        unused[0, 0] = 0
        arguments = (*arguments, unused.astype(np.int32))
    return jax.tree.map(jnp.asarray, arguments), {"scale": head_dim**-0.5, "softcap": softcap}


# there the kernel is compiled, and float32 products are rounded
ON_GPU = jax.default_backend() == "gpu"
OPTIONS = "scale", "softcap"
gpu_kernel = partial(
    jax.jit(write_and_attend_gpu, static_argnames=(*OPTIONS, "together", "interpret")),
    interpret=not ON_GPU,
)
by_xla = jax.jit(write_and_attend, static_argnames=OPTIONS)


def check_kernel(kernel, **case):
    """Compare a kernel's attention and caches with those of `write_and_attend` in float32."""
    arguments, options = attended(**case)
    suffix, layer, step = arguments[7:9], int(arguments[9]), int(arguments[10])
    wide = [np.float32(x) if getattr(x, "ndim", 0) > 2 else x for x in arguments]
    wide[7:9] = (np.nan_to_num(x) for x in wide[7:9])
    with jax.default_matmul_precision("highest"):
        expected, *written = by_xla(*wide, **options)
    found, *caches = kernel(*arguments, **options)
    assert found.dtype == arguments[0].dtype
    new = (layer, ..., step, slice(None))
    pairs = [(found, expected), *zip(caches, written, strict=True)]
    pairs = [[np.float32(x) for x in pair] for pair in pairs]
    pairs[1:] = [(own[new], wanted[new]) for own, wanted in pairs[1:]]
    tolerance = 1e-2 if found.dtype == jnp.bfloat16 else 1e-6
    for own, wanted in pairs:
        assert np.linalg.norm(own - wanted) <= tolerance * np.linalg.norm(wanted)
    for own, before in zip(caches, suffix, strict=True):  # the rest of the cache is unchanged
        own, before = (np.array(x, np.float32) for x in (own, before))
        own[new] = before[new] = 0
        np.testing.assert_array_equal(own, before)


@pytest.mark.parametrize("window", [None, 0, 3, 50])
def test_a_sample_attends_as_if_its_prompt_ended_before_what_is_unused(window):
    *arguments, unused = attended(drafts=True, window=window)[0]
    found = by_xla(*arguments, unused, scale=0.25)[0]
    q, k, v, rope, prefix_k, prefix_v, mask, *caches, layer, step, _ = arguments
    window = arguments[-1]
    for b, j in np.ndindex(*unused.shape):
        one, row, end = slice(b, b + 1), slice(j, j + 1), 24 - int(unused[b, j])
        alone = by_xla(
            *(x[one, row] for x in (q, k, v)), tuple(x[one, row] for x in rope),
            *(x[one, :, :end] for x in (prefix_k, prefix_v)), mask[one, :end],
            *(x[:, one, row] for x in caches), layer, step, window, scale=0.25,
        )[0]  # fmt: skip
        np.testing.assert_allclose(found[b, j], alone[0, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"drafts": True},
        {"drafts": True, "window": 50, "prompt": 130, "samples": 7},
        {"window": 0},
        {"window": 1},
        {"window": 5, "step": 0},
        {"window": 50, "prompt": 130},  # the window begins within the prompt
        {"window": 20, "step": 79, "layers": 3, "layer": 2},  # the window begins within the suffix
        {"softcap": 2.0, "half": 0.375, "head_dim": 32},
        {"samples": 7, "kv_heads": 1, "per_head": 1, "half": 0.25},
        {"samples": 1, "per_head": 4, "dtype": jnp.bfloat16},
    ],
    ids=str,
)
def test_the_kernel_equals_write_and_attend(case):
    """The cache holds NaN from the newest token on; none of it may be read."""
    kernel = partial(gpu_kernel, together=5) if case.get("samples") == 7 else gpu_kernel
    check_kernel(kernel, **{**({"dtype": jnp.bfloat16} if ON_GPU else {}), **case})


@pytest.mark.slow
@settings(max_examples=3, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.data())
def test_the_kernel_in_other_shapes(data):
    pick = lambda *of: data.draw(st.sampled_from(of))  # noqa: E731
    room, samples = pick(16, 80), pick(1, 3, 7)
    check_kernel(
        partial(gpu_kernel, together=pick(None, *range(1, samples + 1))),
        seed=data.draw(st.integers(0, 2**32 - 1)), samples=samples, batch=pick(1, 2),
        kv_heads=pick(1, 2), per_head=pick(1, 3, 4), prompt=pick(8, 24, 130), room=room,
        head_dim=pick(16, 32), step=data.draw(st.integers(0, room - 1)),
        window=pick(None, 0, 1, 5, 40, 200), softcap=pick(None, 2.0), half=pick(0.5, 0.25, 0.375),
        drafts=pick(False, True), dtype=jnp.bfloat16 if ON_GPU else pick(jnp.float32, jnp.bfloat16),
    )  # fmt: skip


@pytest.mark.slow
def test_samples_that_share_a_program_do_not_matter():
    """Bit-identical, so that a response does not depend on its batch."""
    arguments, options = attended(0, samples=7, per_head=2, dtype=jnp.bfloat16)
    kernel = partial(gpu_kernel, *arguments, **options)
    alone, *_ = kernel(together=1)
    for together in (2, 5, 7):
        found, *_ = kernel(together=together)
        np.testing.assert_array_equal(np.float32(found), np.float32(alone))


@pytest.mark.parametrize(
    ("head_dim", "drafts"), [(64, False), (64, True), (128, True), (256, False)]
)
def test_the_kernel_is_lowered_for_gpus(head_dim, drafts):
    arguments, options = attended(
        0, head_dim=head_dim, per_head=2, dtype=jnp.bfloat16, drafts=drafts
    )
    traced = jax.jit(partial(write_and_attend_gpu, **options)).trace(*arguments)
    assert "decode_attention" in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.slow
def test_decoding_with_the_kernel_samples_the_same(monkeypatch):
    params = decoding_params(random_params(jax.random.key(0), CFG), CFG, jnp.float32, unrolled=True)
    jax.clear_caches()
    expected = sampled(params, CFG, "float32")
    used = []

    def interpreted(*args, **options):
        used.append(True)
        return write_and_attend_gpu(*args, **options, interpret=True)

    monkeypatch.setattr(forward_module, "write_and_attend_for", lambda *_: interpreted)
    jax.clear_caches()
    assert sampled(params, CFG, "float32") == expected
    assert used
    jax.clear_caches()


@partial(jax.jit, static_argnames=("attention", "scale"))
def with_gradient(attention, q, k, v, out, segments, window, scale):
    """The output of `attention` for segments of tokens, and its gradients, weighted by `out`."""

    def weighted(*qkv):
        mixed = attention(*qkv, segments, window, scale=scale)
        mixed = jnp.where((segments > 0)[..., None, None], mixed, 0)
        return (mixed * out).astype(jnp.promote_types(mixed.dtype, jnp.float32)).sum(), mixed

    gradients, mixed = jax.grad(weighted, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return mixed, *gradients


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_flash_attention_and_its_gradient(head_dim, window, rng):
    """Rows of several sequences with padding on both sides; with cuDNN if there is a GPU."""
    dtype, tolerance = (jnp.bfloat16, 1e-2) if ON_GPU else (jnp.float32, 1e-5)
    flash = partial(causal_attention_gpu, implementation="cudnn" if ON_GPU else "xla")
    q, k, v, out = (
        jnp.asarray(rng.normal(size=(2, 40, heads, head_dim)), dtype) for heads in (6, 2, 2, 6)
    )
    segments = jnp.asarray(np.repeat([[0, 1, 2, 0], [1, 2, 3, 3]], [3, 12, 20, 5], axis=1))
    fixed = segments, None if window is None else jnp.int32(window), 0.1
    wide = [x.astype(jnp.float32) for x in (q, k, v, out)]
    with jax.default_matmul_precision("highest"):
        expected = with_gradient(causal_attention, *wide, *fixed)
    found = with_gradient(flash, q, k, v, out, *fixed)
    assert all(x.dtype == dtype for x in found)
    for own, wanted in zip(found, expected, strict=True):
        difference = np.linalg.norm(np.asarray(own, np.float32) - wanted)
        assert difference <= tolerance * np.linalg.norm(wanted)


@given(st.integers(1, 4096), st.integers(1, 64), st.integers(1, 20))
def test_samples_share_programs_where_there_are_many(groups, samples, per_head):
    together = samples_together(groups, samples, per_head)
    most = max(1, min(8, 16 // per_head, samples))
    assert 1 <= together <= most
    programs = groups * -(-samples // together)
    assert programs >= min(256, groups * samples)
    if together < most:  # one more would leave too few programs, or as many as an even number
        more = groups * -(-samples // (together + 1))
        assert more < 256 or (more == programs and together % 2 == 0)


@pytest.mark.parametrize(
    ("prompts", "kv_heads", "per_head", "together"),
    [(4, 8, 3, 2), (16, 8, 3, 5), (4, 8, 4, 2), (16, 8, 4, 4), (4, 32, 1, 8), (64, 8, 3, 5)],
)
def test_samples_that_share_programs_in_the_published_runs(prompts, kv_heads, per_head, together):
    """With 20 samples: the numbers that were timed on a GPU (benchmarks/LOG.md)."""
    assert samples_together(prompts * kv_heads, 20, per_head) == together
