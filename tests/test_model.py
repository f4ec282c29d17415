"""The decoder against `transformers`, over every switch of the Llama family."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import SMALL, random_llama

from convert.export import stored_tensors
from convert.families import LLAMA
from convert.load import Checkpoint, load_checkpoint
from pmc_jax.model import (
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
from pmc_jax.model.forward import REMAT_POLICIES

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one kv head": {"num_key_value_heads": 1},
    "no grouping": {"num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True},
    "attention bias": {"attention_bias": True},
    "mlp bias": {"mlp_bias": True},
    "head_dim of hidden/heads": {"head_dim": None},
    "wide head_dim": {"head_dim": 20},
    "norm eps": {"rms_norm_eps": 1e-2},
    "gelu": {"hidden_act": "gelu"},
    "gelu tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "rope theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
    "rope linear": {
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    },
    "rope llama3": {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}},
    "everything": {
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "num_key_value_heads": 1,
        "rope_parameters": {**LLAMA3, "rope_theta": 500.0},
    },
}


def load(model: torch.nn.Module, directory: Path, dtype: str = "float32") -> Checkpoint:
    model.save_pretrained(directory)
    return load_checkpoint(directory, dtype=dtype)


def our_logits(checkpoint: Checkpoint, tokens: np.ndarray, mask: np.ndarray | None = None):
    mask = np.ones(tokens.shape, bool) if mask is None else mask
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    hidden = forward(
        checkpoint.params, jnp.asarray(tokens), jnp.asarray(positions), jnp.asarray(mask),
        checkpoint.cfg,
    )  # fmt: skip
    return np.asarray(logits(checkpoint.params, hidden, checkpoint.cfg))


@pytest.mark.parametrize("name", SWITCHES)
def test_logits_and_gradients_equal_transformers(name, tmp_path, rng):
    model = random_llama(**SWITCHES[name])
    checkpoint = load(model, tmp_path)
    tokens = rng.integers(0, SMALL["vocab_size"], (2, 37))
    reference = model(torch.tensor(tokens))
    ours = our_logits(checkpoint, tokens)
    assert np.abs(ours - reference.logits.detach().numpy()).max() <= 1e-4

    loss = model(torch.tensor(tokens), labels=torch.tensor(tokens)).loss
    loss.backward()
    positions = jnp.broadcast_to(jnp.arange(37), tokens.shape)

    def our_loss(params):
        mask = jnp.ones(tokens.shape, bool)
        hidden = forward(params, jnp.asarray(tokens), positions, mask, checkpoint.cfg)
        return token_nll(params, hidden, jnp.asarray(tokens), checkpoint.cfg)[:, 1:].mean()

    value, gradients = jax.value_and_grad(our_loss)(checkpoint.params)
    assert float(value) == pytest.approx(loss.item(), rel=1e-5)
    theirs = {name: p.grad.numpy() for name, p in model.named_parameters()}
    found = dict(stored_tensors(gradients, checkpoint.cfg, LLAMA, "float32"))
    assert set(found) == set(theirs)
    for tensor, gradient in found.items():
        scale = np.abs(theirs[tensor]).max()
        assert np.abs(gradient - theirs[tensor]).max() <= 1e-4 * scale, tensor


@pytest.mark.parametrize("name", [name for name in SWITCHES if name != "plain"])
def test_every_switch_changes_the_output(name, tmp_path, rng):
    """A switch that is read and dropped would leave the logits of the same weights alone."""
    changed = load(random_llama(**SWITCHES[name]), tmp_path / "changed")
    plain = load(random_llama(), tmp_path / "plain")
    tokens = rng.integers(0, SMALL["vocab_size"], (1, 37))
    assert changed.cfg != plain.cfg
    assert np.abs(our_logits(changed, tokens) - our_logits(plain, tokens)).max() > 1e-3


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_prefill_and_decode_equal_the_whole_forward_pass(name, tmp_path, rng):
    checkpoint = load(random_llama(**SWITCHES[name]), tmp_path)
    cfg, params = checkpoint.cfg, checkpoint.params
    tokens = rng.integers(0, SMALL["vocab_size"], (2, 20))
    padding = np.array([0, 3])
    mask = np.arange(20) >= padding[:, None]
    whole = our_logits(checkpoint, tokens, mask)
    first, prefix = prefill(params, jnp.asarray(tokens[:, :9]), jnp.asarray(mask[:, :9]), cfg)
    assert np.abs(np.asarray(first) - whole[:, 8]).max() <= 1e-5
    suffix = init_suffix(cfg, 2, 3, 4, jnp.float32)
    for step in range(11):
        if step == suffix.length:
            suffix = grow(suffix, 2 * suffix.length)
        fed = jnp.broadcast_to(jnp.asarray(tokens[:, 9 + step, None]), (2, 3))
        found, suffix = decode_step(params, fed, jnp.int32(step), prefix, suffix, cfg)
        assert np.abs(np.asarray(found) - whole[:, None, 9 + step]).max() <= 1e-5


def test_samples_of_a_prompt_do_not_see_each_other(tmp_path, rng):
    checkpoint = load(random_llama(), tmp_path)
    tokens = jnp.asarray(rng.integers(0, 97, (1, 5)))
    _, prefix = prefill(checkpoint.params, tokens, jnp.ones((1, 5), bool), checkpoint.cfg)
    suffix = init_suffix(checkpoint.cfg, 1, 2, 4, jnp.float32)
    for step, fed in enumerate(([7, 7], [11, 50], [23, 23])):
        found, suffix = decode_step(
            checkpoint.params, jnp.asarray([fed]), jnp.int32(step), prefix, suffix, checkpoint.cfg
        )
    assert np.abs(np.asarray(found[0, 0] - found[0, 1])).max() > 1e-3


def test_padding_on_either_side_changes_nothing(tmp_path, rng):
    checkpoint = load(random_llama(), tmp_path)
    tokens = rng.integers(0, 97, (1, 11))
    alone = our_logits(checkpoint, tokens)
    padded = np.concatenate([rng.integers(0, 97, (1, 4)), tokens, rng.integers(0, 97, (1, 3))], 1)
    mask = (np.arange(18) >= 4) & (np.arange(18) < 15)
    inside = our_logits(checkpoint, padded, mask[None])[:, 4:15]
    assert np.abs(alone - inside).max() <= 1e-5


def test_bfloat16_is_close(tmp_path, rng):
    checkpoint = load(random_llama(), tmp_path)
    tokens = jnp.asarray(rng.integers(0, 97, (2, 16)))
    positions, mask = jnp.broadcast_to(jnp.arange(16), (2, 16)), jnp.ones((2, 16), bool)

    def run(dtype):
        hidden = forward(checkpoint.params, tokens, positions, mask, checkpoint.cfg, dtype=dtype)
        return logits(checkpoint.params, hidden, checkpoint.cfg)

    half, full = run(jnp.bfloat16), run(jnp.float32)
    assert half.dtype == jnp.float32
    assert float(jnp.abs(half - full).max()) < 0.05 * float(jnp.abs(full).max())


@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_remat_leaves_gradients_alone(remat, tmp_path, rng):
    checkpoint = load(random_llama(), tmp_path)
    tokens = jnp.asarray(rng.integers(0, 97, (2, 16)))
    positions, mask = jnp.broadcast_to(jnp.arange(16), (2, 16)), jnp.ones((2, 16), bool)

    def loss(params, remat):
        hidden = forward(params, tokens, positions, mask, checkpoint.cfg, remat=remat)
        return token_nll(params, hidden, tokens, checkpoint.cfg).sum()

    plain = jax.grad(loss)(checkpoint.params, "none")
    again = jax.grad(loss)(checkpoint.params, remat)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_nll_in_chunks_equals_log_softmax(tmp_path, rng, monkeypatch):
    checkpoint = load(random_llama(), tmp_path)
    monkeypatch.setattr("pmc_jax.model.nll.CHUNK", 7)
    tokens = rng.integers(0, 97, (3, 10))
    scores = our_logits(checkpoint, tokens)
    positions, mask = jnp.broadcast_to(jnp.arange(10), (3, 10)), jnp.ones((3, 10), bool)
    hidden = forward(checkpoint.params, jnp.asarray(tokens), positions, mask, checkpoint.cfg)
    found = token_nll(checkpoint.params, hidden, jnp.asarray(tokens), checkpoint.cfg)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(scores[:, :-1]).transpose(1, 2), torch.tensor(tokens[:, 1:]), reduction="none"
    )
    np.testing.assert_allclose(found[:, 1:], expected.numpy(), atol=1e-5)
    np.testing.assert_array_equal(found[:, 0], 0)


@pytest.mark.parametrize("name", ["plain", "tied", "everything"])
def test_the_table_counts_and_initialises_every_weight(name, tmp_path):
    model = random_llama(**SWITCHES[name])
    cfg = load(model, tmp_path).cfg
    assert param_count(cfg) == sum(p.numel() for p in model.parameters())
    params = init_params(jax.random.key(0), cfg)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == param_count(cfg)
    assert float(params["layers"]["q"].std()) == pytest.approx(cfg.initializer_range, rel=0.1)
    assert (params["layers"]["attn_norm"] == 1).all()
