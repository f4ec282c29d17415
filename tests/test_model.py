"""The decoder against `transformers`, for every switch of the Llama family."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import SMALL, random_llama, slow_but
from flax.traverse_util import flatten_dict, unflatten_dict
from transformers import AutoConfig, LlamaForCausalLM
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

from convert.export import stored_tensors
from convert.families import LLAMA
from convert.load import Checkpoint, load_checkpoint, load_config
from pmc_jax.model import (
    ModelConfig,
    abstract_params,
    decay_mask,
    decode_step,
    forward,
    grow,
    init_params,
    init_suffix,
    logits,
    param_count,
    prefill,
    token_nll,
)
from pmc_jax.model.forward import REMAT_POLICIES, normalise
from pmc_jax.model.products import wide_einsum
from pmc_jax.model.rope import inverse_frequencies

pytestmark = pytest.mark.usefixtures("quick_compilation")

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

SAME_SHAPES: dict[str, dict[str, Any]] = {
    "norm eps": {"rms_norm_eps": 1e-2},
    "gelu": {"hidden_act": "gelu"},
    "gelu tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "rope theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
    "rope linear": {
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    },
    "rope llama3": {"rope_parameters": {**LLAMA3, "rope_theta": 500.0}},
}

SWITCHES = SAME_SHAPES | {
    "plain": {},
    "one kv head": {"num_key_value_heads": 1},
    "no grouping": {"num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True},
    "attention bias": {"attention_bias": True},
    "mlp bias": {"mlp_bias": True},
    "head_dim of hidden/heads": {"head_dim": None},
    "wide head_dim": {"head_dim": 20},
    "everything": {
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "num_key_value_heads": 1,
        "rope_parameters": {**LLAMA3, "rope_theta": 500.0},
    },
}


def load(model: torch.nn.Module, directory: Path) -> Checkpoint:
    model.save_pretrained(directory)
    return load_checkpoint(directory)


def positions_of(mask):
    return jnp.maximum(jnp.cumsum(jnp.asarray(mask), axis=1) - 1, 0)


@partial(jax.jit, static_argnames=("cfg", "dtype"))
def jitted_logits(params, tokens, mask, cfg: ModelConfig, dtype=jnp.float32):
    hidden = forward(params, tokens, positions_of(mask), mask, cfg, dtype=dtype)
    return logits(params, hidden, cfg)


def our_logits(checkpoint: Checkpoint, tokens, mask=None, dtype=jnp.float32) -> np.ndarray:
    mask = np.ones(tokens.shape, bool) if mask is None else mask
    return np.asarray(jitted_logits(checkpoint.params, tokens, mask, checkpoint.cfg, dtype))


def their_logits(model, tokens, mask) -> torch.Tensor:
    return model(
        torch.tensor(tokens),
        attention_mask=torch.tensor(mask).long(),
        position_ids=torch.tensor(np.asarray(positions_of(mask))).long(),
    ).logits


def padded_batch(rng, time=24):
    """Tokens and mask: one row without padding, one padded on the left, one on the right."""
    place = np.arange(time)
    mask = np.stack([place >= 0, place >= 5, place < time - 4])
    return rng.integers(0, SMALL["vocab_size"], mask.shape), mask


@pytest.mark.parametrize(
    "name",
    slow_but(["plain", "rope linear", "rope llama3", "tied", "mlp bias", "everything"], SWITCHES),
)
def test_logits_and_gradients_equal_transformers(name, tmp_path, rng):
    model = random_llama(**SWITCHES[name])
    checkpoint = load(model, tmp_path)
    tokens, mask = padded_batch(rng)
    counted = mask & np.pad(mask[:, :-1], ((0, 0), (1, 0)))

    theirs = their_logits(model, tokens, mask)
    if name in SAME_SHAPES:
        # The comparison is only meaningful if the switch changes the output of these weights.
        plain = their_logits(random_llama(), tokens, mask)
        assert (plain - theirs).abs().max() > 1e-3
    nll = torch.nn.functional.cross_entropy(
        theirs[:, :-1].transpose(1, 2), torch.tensor(tokens[:, 1:]), reduction="none"
    )
    their_loss = nll[torch.tensor(counted[:, 1:])].mean()
    their_loss.backward()
    their_gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def loss_and_logits(params):
        inputs = jnp.asarray(tokens)
        hidden = forward(params, inputs, positions_of(mask), jnp.asarray(mask), checkpoint.cfg)
        nll = token_nll(params, hidden, inputs, checkpoint.cfg)
        loss = jnp.sum(nll * counted) / counted.sum()
        return loss, logits(params, hidden, checkpoint.cfg)

    (loss, ours), gradients = loss_and_logits(checkpoint.params)
    assert np.abs(np.asarray(ours) - theirs.detach().numpy())[mask].max() <= 1e-5
    assert float(loss) == pytest.approx(their_loss.item(), rel=1e-5)
    found = dict(stored_tensors(gradients, checkpoint.cfg, LLAMA, "float32"))
    assert set(found) == set(their_gradients)
    for tensor, gradient in found.items():
        expected = their_gradients[tensor]
        assert np.abs(gradient - expected).max() <= 1e-4 * np.abs(expected).max(), tensor


def test_every_leaf_changes_the_output(tmp_path, rng):
    checkpoint = load(random_llama(attention_bias=True, mlp_bias=True), tmp_path)
    leaves = flatten_dict(checkpoint.params)
    assert len(leaves) == 19
    tokens, mask = padded_batch(rng)
    plain = our_logits(checkpoint, tokens)
    for path, leaf in leaves.items():
        for layer in range(leaf.shape[0]) if path[0] == "layers" else [...]:
            noise = 0.1 * rng.normal(size=leaf[layer].shape)
            params = unflatten_dict({**leaves, path: leaf.at[layer].add(noise)})
            changed = jitted_logits(params, tokens, np.ones_like(mask), checkpoint.cfg)
            assert np.abs(np.asarray(changed) - plain).max() > 1e-4, (path, layer)


ROPES: dict[str, dict[str, Any]] = {
    "old theta": {"rope_theta": 50.0},
    "null scaling": {"rope_theta": 50.0, "rope_scaling": None},
    "no theta": {},
    "old linear": {"rope_theta": 70.0, "rope_scaling": {"type": "linear", "factor": 4}},
    "old rope_type": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "both names": {"rope_scaling": {"rope_type": "linear", "type": "llama3", "factor": 4.0}},
    "old llama3": {"rope_theta": 500.0, "rope_scaling": LLAMA3},
    "llama 3.1": {
        "rope_theta": 500000.0,
        "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192},
    },
    "llama 3.2": {
        "rope_theta": 500000.0,
        "rope_scaling": {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192},
    },
    "original length outside": {"rope_scaling": LLAMA3, "original_max_position_embeddings": 24},
    "original length absent": {
        "rope_theta": 500.0,
        "max_position_embeddings": 20,
        "rope_scaling": {key: LLAMA3[key] for key in list(LLAMA3)[:4]},
    },
    "new default": {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
    "new without type": {"rope_parameters": {"rope_theta": 50.0}},
    "new, theta outside": {
        "rope_theta": 60.0,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0},
    },
    "theta in both": {"rope_theta": 60.0, "rope_parameters": {"rope_theta": 50.0}},
    "new llama3": {"rope_parameters": {**LLAMA3, "rope_theta": 500.0}},
    "both spellings": {
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50.0},
    },
}


@pytest.mark.parametrize("name", ROPES)
def test_every_spelling_of_rope_gives_the_frequencies_of_transformers(name, tmp_path):
    content = {**SMALL, "model_type": "llama", "head_dim": 64, **ROPES[name]}
    (tmp_path / "config.json").write_text(json.dumps(content))
    model = LlamaForCausalLM(AutoConfig.from_pretrained(tmp_path))
    found = inverse_frequencies(load_config(tmp_path).rope, 64)
    # transformers computes in float32; a missing factor would change far more.
    np.testing.assert_allclose(found, model.model.rotary_emb.inv_freq, rtol=2e-6)


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_prefill_and_decode_equal_the_whole_forward_pass(name, tmp_path, rng):
    """At every position, for several samples of left-padded prompts."""
    checkpoint = load(random_llama(**SWITCHES[name]), tmp_path)
    cfg, params = checkpoint.cfg, checkpoint.params
    prompts, samples, prompt, time = 2, 3, 9, 20
    mask = np.arange(time) >= np.array([[0], [4]])
    tokens = rng.integers(0, SMALL["vocab_size"], (prompts, samples, time))
    tokens[:, :, :prompt] = tokens[:, :1, :prompt]
    whole = our_logits(checkpoint, tokens.reshape(-1, time), mask.repeat(samples, axis=0))
    whole = whole.reshape(prompts, samples, time, -1)

    first, prefix = jax.jit(prefill, static_argnames="cfg")(
        params, tokens[:, 0, :prompt], mask[:, :prompt], cfg
    )
    assert np.abs(np.asarray(first) - whole[:, 0, prompt - 1]).max() <= 1e-5
    step_once = jax.jit(decode_step, static_argnames="cfg")
    suffix = init_suffix(prefix, samples, 6)
    for step, place in enumerate(range(prompt, time)):
        if step == suffix.length:
            suffix = grow(suffix, 2 * suffix.length)
        found, suffix = step_once(params, tokens[:, :, place], step, prefix, suffix, cfg)
        assert np.abs(np.asarray(found) - whole[:, :, place]).max() <= 1e-5
    assert np.abs(whole[:, 0, -1] - whole[:, 1, -1]).max() > 1e-3


def test_padding_on_either_side_changes_nothing(tmp_path, rng):
    checkpoint = load(random_llama(), tmp_path)
    sequence = rng.integers(0, 97, 11)
    found = []
    for begin in (0, 0, 4, 13):
        tokens, mask = rng.integers(0, 97, (3, 24)), np.zeros((3, 24), bool)
        tokens[1, begin : begin + 11], mask[1, begin : begin + 11] = sequence, True
        found.append(our_logits(checkpoint, tokens, mask)[1, begin : begin + 11])
    for other in found[1:]:
        assert np.abs(other - found[0]).max() <= 1e-5


def test_one_is_added_to_a_norm_in_float32(tiny_model, rng):
    """In bfloat16, 1 + w would be 1 for small w. The reference is Gemma's norm in transformers."""
    cfg = dataclasses.replace(tiny_model.config, norm="rms_plus_one", norm_eps=1e-6)
    x, weight = rng.normal(size=(4, 16)).astype(np.float32), 1e-3 * rng.normal(size=16)
    reference = Gemma3RMSNorm(16, eps=1e-6).to(torch.bfloat16)
    with torch.no_grad():
        reference.weight.copy_(torch.tensor(weight))
        expected = reference(torch.tensor(x)).numpy()
    weights = {"a": jnp.asarray(weight).astype(jnp.bfloat16)}
    np.testing.assert_allclose(normalise(jnp.asarray(x), weights, "a", cfg), expected, rtol=1e-6)


def test_bfloat16_is_close(tmp_path, rng):
    checkpoint = load(random_llama(attention_bias=True, mlp_bias=True), tmp_path)
    tokens, _ = padded_batch(rng)
    half, full = our_logits(checkpoint, tokens, dtype=jnp.bfloat16), our_logits(checkpoint, tokens)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - full).max() < 0.05 * np.abs(full).max()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gradients_of_float32_products_have_the_dtype_of_the_operands(dtype, rng):
    """The value is as exact as in float32. The cotangent is cast, and then the gradients are."""
    a = jnp.asarray(rng.normal(size=(3, 5)), dtype)
    b = jnp.asarray(rng.normal(size=(5, 7)), dtype)
    weights = jnp.asarray(rng.normal(size=(3, 7)), jnp.float32)

    def loss(a, b):
        found = wide_einsum("nd,dv->nv", a, b)
        assert found.dtype == jnp.float32
        return (found * weights).sum(), found

    gradients, value = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(a, b)
    wide_a, wide_b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    cotangent = np.asarray(weights.astype(dtype), np.float64)
    np.testing.assert_allclose(value, wide_a @ wide_b, rtol=0, atol=1e-5)
    expected = (cotangent @ wide_b.T, wide_a.T @ cotangent)
    for gradient, exact in zip(gradients, expected, strict=True):
        assert gradient.dtype == dtype
        error = np.abs(np.asarray(gradient, np.float64) - exact)
        assert (error <= float(jnp.finfo(dtype).eps) * np.abs(exact) + 1e-5).all()


def test_float32_products_of_float32_operands_are_plain_ones():
    a = jnp.ones((4, 4))

    def traced(function):
        return str(jax.make_jaxpr(jax.grad(lambda a: function("ij,jk->ik", a, a).sum()))(a))

    assert traced(wide_einsum) == traced(jnp.einsum)


@pytest.mark.slow
def test_remat_leaves_gradients_alone(tmp_path, rng):
    checkpoint = load(random_llama(), tmp_path)
    tokens = jnp.asarray(rng.integers(0, 97, (2, 16)))
    mask = jnp.ones((2, 16), bool)

    @partial(jax.jit, static_argnums=1)
    @jax.grad
    def gradient(layers, remat):
        params = {**checkpoint.params, "layers": layers}
        hidden = forward(params, tokens, positions_of(mask), mask, checkpoint.cfg, remat=remat)
        return (hidden**3).sum()

    layers = checkpoint.params["layers"]
    plain = jax.tree.leaves(gradient(layers, "none"))
    for policy in REMAT_POLICIES:
        again = jax.tree.leaves(gradient(layers, policy))
        for a, b in zip(plain, again, strict=True):
            assert jnp.abs(a - b).max() <= 1e-6 * jnp.abs(a).max(), policy


def test_nll_in_chunks_equals_cross_entropy(tmp_path, rng, monkeypatch):
    monkeypatch.setattr("pmc_jax.model.nll.CHUNK", 7)
    cfg = load(random_llama(), tmp_path).cfg
    hidden = rng.normal(size=(3, 10, cfg.hidden_size)).astype(np.float32)
    head = rng.normal(size=(cfg.hidden_size, cfg.vocab_size)).astype(np.float32)
    tokens = rng.integers(0, cfg.vocab_size, (3, 10))
    found = jax.jit(token_nll, static_argnums=3)({"lm_head": head}, hidden, tokens, cfg)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(hidden @ head)[:, :-1].transpose(1, 2),
        torch.tensor(tokens[:, 1:]),
        reduction="none",
    )
    np.testing.assert_allclose(found[:, 1:], expected.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[:, 0], 0)


@pytest.mark.parametrize("name", ["plain", "tied", "everything"])
def test_the_table_counts_and_decays_as_torch_does(name, tmp_path):
    model = random_llama(**SWITCHES[name])
    cfg = load(model, tmp_path).cfg
    assert param_count(cfg) == sum(p.numel() for p in model.parameters())
    mask = jax.tree.map(
        lambda decayed, leaf: np.full(leaf.shape, decayed, np.float32),
        decay_mask(cfg),
        abstract_params(cfg),
    )
    for tensor, decayed in stored_tensors(mask, cfg, LLAMA, "float32"):
        assert (decayed == (model.state_dict()[tensor].ndim == 2)).all(), tensor


def test_initial_weights_have_the_range_of_the_config(tmp_path):
    cfg = load(random_llama(initializer_range=0.03, attention_bias=True), tmp_path).cfg
    params = jax.jit(init_params, static_argnums=1)(jax.random.key(0), cfg)
    for path, leaf in flatten_dict(params).items():
        if path[-1].endswith(("norm", "bias")):
            assert (leaf == (0 if path[-1].endswith("bias") else 1)).all(), path
        else:
            # The standard deviation of n normal draws is off by about 1 / sqrt(2 n).
            assert float(leaf.std()) == pytest.approx(0.03, rel=4 / (2 * leaf.size) ** 0.5), path
