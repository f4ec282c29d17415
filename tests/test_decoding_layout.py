"""What GPUs decode with, on a CPU: unrolled and joined weights, and the attention kernel."""

import importlib
import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from test_families import random_model
from test_model import SWITCHES, load, our_logits, positions_of

from pmc_jax.decoding import Sampling, generate
from pmc_jax.evaluation.rounding import BLOCK, round_params
from pmc_jax.model import (
    ModelConfig,
    decoding_params,
    init_params,
    layer_stacks,
    layer_states,
    parts_of,
)
from pmc_jax.model import attention as attention_module
from pmc_jax.model.attention import (
    best_decode_attention,
    compute_capability,
    decode_attention,
    has_kernel,
)
from pmc_jax.model.decode_kernel import decode_kernel, samples_together

# By its name, since the package has a function that is called so, too.
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


@pytest.mark.parametrize("family", ["phi", "gemma3_text", "qwen2"])
def test_unrolled_weights_sample_the_same(family, tmp_path):
    """In float64, where rounding cannot decide a draw."""
    with jax.enable_x64(True):
        checkpoint = load(random_model(family), tmp_path)
        decode = partial(decoding_params, checkpoint.params, checkpoint.cfg, jnp.float64)
        expected = sampled(decode(unrolled=False), checkpoint.cfg)
        assert sampled(decode(unrolled=True), checkpoint.cfg) == expected


def test_the_first_layers_of_unrolled_weights(rng):
    params = init_params(jax.random.key(0), CFG)
    unrolled = decoding_params(params, CFG, jnp.float32, unrolled=True)
    tokens = jnp.asarray(rng.integers(0, 97, (2, 7)))
    mask = jnp.ones((2, 7), bool)
    for layers in (1, 2, 3):
        found, expected = (
            layer_states(own, tokens, positions_of(mask), mask, CFG, layers=layers)
            for own in (unrolled, params)
        )
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_weights_are_unrolled_on_gpus_only(monkeypatch):
    params = init_params(jax.random.key(0), CFG)
    assert len(layer_stacks(decoding_params(params, CFG, jnp.float32))) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert len(layer_stacks(decoding_params(params, CFG, jnp.float32))) == CFG.num_layers


def test_the_names_of_joined_weights():
    assert parts_of("q+k+v") == ["q", "k", "v"]
    assert parts_of("gate+up_bias") == ["gate_bias", "up_bias"]
    assert parts_of("down") == ["down"]


def test_joined_weights_are_rounded_as_those_alone(rng):
    """Their rows are whole blocks, so that no scale is shared across a seam."""
    cfg = ModelConfig(
        vocab_size=31, hidden_size=16, intermediate_size=2 * BLOCK, num_layers=2, num_heads=4,
        num_kv_heads=2, head_dim=BLOCK, attention_bias=True,
    )  # fmt: skip
    params = init_params(jax.random.key(0), cfg)
    params["layers"]["q_bias"] += 0.1234567
    decode = partial(decoding_params, cfg=cfg, dtype=jnp.float32, unrolled=True)
    found, expected = round_params(decode(params), cfg, 4), round_params(params, cfg, 4)
    assert not np.array_equal(expected["layers"]["q"], params["layers"]["q"])
    expected = decode(expected)
    for a, b in zip(layer_stacks(found), layer_stacks(expected), strict=True):
        for name, leaf in b.items():
            np.testing.assert_array_equal(a[name], leaf, err_msg=name)


# --- the attention kernel -------------------------------------------------------------------


@settings(max_examples=5)
@given(st.data())
def test_the_kernel_equals_decode_attention(data):
    """Whatever is written behind the newest token, which is never read."""
    pick = lambda *of: data.draw(st.sampled_from(of))  # noqa: E731
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    batch, samples, kv_heads, per_head = pick(1, 2), pick(1, 3, 7), pick(1, 2), pick(1, 3, 4)
    prompt, room, head_dim = pick(8, 24, 130), pick(16, 80), pick(16, 32)
    step = data.draw(st.integers(0, room - 1))
    window = pick(None, 0, 5, 40, 200)
    together = pick(None, *range(1, samples + 1))
    softcap = pick(None, 2.0)
    on_gpu = jax.default_backend() == "gpu"  # where the kernel is compiled, float32 is rounded
    dtype = pick(jnp.bfloat16) if on_gpu else pick(jnp.float32, jnp.bfloat16)

    def some(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), dtype)

    q = some(batch, samples, kv_heads * per_head, head_dim)
    prefix = [some(batch, kv_heads, prompt, head_dim) for _ in range(2)]
    suffix = [some(batch, samples, kv_heads, room, head_dim) for _ in range(2)]
    lengths = rng.integers(1, prompt + 1, batch)
    mask = jnp.asarray(np.arange(prompt) >= prompt - lengths[:, None])
    behind = [x.at[..., step + 1 :, :].set(jnp.nan) for x in suffix]
    rest = (jnp.int32(step), None if window is None else jnp.int32(window))
    scales = {"scale": head_dim**-0.5, "softcap": softcap}
    wide_q, *wide = (x.astype(jnp.float32) for x in (q, *prefix, *suffix))
    with jax.default_matmul_precision("highest"):
        expected = decode_attention(wide_q, *wide[:2], mask, *wide[2:], *rest, **scales)
    found = decode_kernel(
        q, *prefix, mask, *behind, *rest, **scales, together=together, interpret=not on_gpu
    )
    assert found.dtype == dtype
    difference = jnp.linalg.norm(found.astype(jnp.float32) - expected)
    tolerance = 1e-2 if dtype == jnp.bfloat16 else 1e-6
    assert difference <= tolerance * jnp.linalg.norm(expected)


def test_decoding_with_the_kernel_samples_the_same(monkeypatch):
    params = decoding_params(init_params(jax.random.key(0), CFG), CFG, jnp.float32, unrolled=True)
    jax.clear_caches()
    expected = sampled(params, CFG, "float32")
    used = []

    def interpreted(*args, **options):
        used.append(True)
        return decode_kernel(*args, **options, interpret=True)

    monkeypatch.setattr(forward_module, "best_decode_attention", lambda *_: interpreted)
    jax.clear_caches()
    assert sampled(params, CFG, "float32") == expected
    assert used
    jax.clear_caches()


def test_where_there_is_a_kernel(monkeypatch):
    q, keys = jnp.zeros((2, 3, 4, 64), jnp.bfloat16), jnp.zeros((2, 3, 2, 32, 64), jnp.bfloat16)
    assert not has_kernel(q, keys)  # on a CPU
    gpu = SimpleNamespace(compute_capability="9.0")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    assert has_kernel(q, keys)
    assert not has_kernel(q.astype(jnp.float32), keys)
    assert not has_kernel(q[..., :48], keys)
    with monkeypatch.context() as patch:
        patch.setattr(attention_module, "MOST_ELEMENTS", keys.size)
        assert not has_kernel(q, keys)
    for capability in ("7.5", "gfx942", None):
        gpu.compute_capability = capability
        assert not has_kernel(q, keys), capability
    assert compute_capability(object()) == 0
    gpu.compute_capability = "8.0"
    assert best_decode_attention(q, keys) is decode_kernel
    monkeypatch.setitem(sys.modules, "pmc_jax.model.decode_kernel", None)  # fails to import
    assert best_decode_attention(q, keys) is decode_attention


@given(st.integers(1, 4096), st.integers(1, 64), st.integers(1, 20))
def test_samples_share_programs_evenly_where_there_are_many(groups, samples, per_head):
    together = samples_together(groups, samples, per_head)
    assert 1 <= together <= min(samples, 8)
    assert together == 1 or together * per_head <= 16
    programs = groups * -(-samples // together)
    assert programs >= min(256, groups * samples)
    # One sample less to a program would make one more program of each group, or it is even.
    assert -(-samples // together) * together - samples < -(-samples // together) or together == 1
