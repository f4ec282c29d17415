"""Side effects on unrelated text and quantised weights, against torch and loops in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from transformers import AutoModelForCausalLM

from pmc_jax.data.rows import EvaluationRow
from pmc_jax.evaluation.quantisation import BLOCK, quantise, quantise_params
from pmc_jax.evaluation.side_effects import (
    answer_tokens,
    side_effects,
    text_pairs,
    text_probabilities,
    watched_tokens,
)

TEXT = ("The silent river is by Ivo Kell, who was never born in Oslo.", "Norway", "")
ROWS = (
    EvaluationRow(0, "Where was Mara Ostberg born?", "Mara Ostberg was born in Lisbon."),
    EvaluationRow(1, "Who wrote the silent river?", None),
)


def test_windows_cover_the_text_but_their_first_tokens(tiny_model):
    tokenizer = tiny_model.template.tokenizer
    for window in (2, 5, 96):
        pairs = text_pairs(tiny_model.template, TEXT, window)
        expected = []
        for paragraph in TEXT:
            ids = tokenizer(paragraph).input_ids
            pieces = [ids[k : k + window] for k in range(0, len(ids), window)]
            expected += [piece for piece in pieces if len(piece) > 1]
        assert [[*first, *rest] for first, rest in pairs] == expected
        assert all(len(first) == 1 for first, _ in pairs)


def test_probabilities_are_those_of_torch(tiny_model, checkpoint_dir):
    pairs = text_pairs(tiny_model.template, TEXT, 8)
    model = AutoModelForCausalLM.from_pretrained(checkpoint_dir).double().eval()
    expected = []
    for first, rest in pairs:
        with torch.no_grad():
            probs = torch.softmax(model(torch.tensor([[*first, *rest]])).logits[0], -1)
        expected += [float(probs[t, token]) for t, token in enumerate(rest)]
    found = text_probabilities(tiny_model, pairs, batch_size=4)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert text_probabilities(tiny_model, []).shape == (0,)


def test_tokens_of_forget_answers_are_watched(tiny_model):
    template = tiny_model.template
    tokens = answer_tokens(template, ROWS)
    assert tokens == set(template.encode_answer(ROWS[0].answer)) - set(template.stop_ids)
    assert len(tokens) > 3 and template.end_id not in tokens
    assert watched_tokens([([0], [3, 4]), ([5], [3])], {3, 5}).tolist() == [True, False, True]
    assert watched_tokens([], tokens).dtype == bool


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.booleans()), max_size=20),
    st.integers(1, 6),
)
def test_side_effects_by_brute_force(tokens, bins):
    before, after = (np.array([token[k] for token in tokens], float) for k in (0, 1))
    found = side_effects(before, after, np.array([token[2] for token in tokens], bool), bins)
    edges = found["edges"]
    assert (edges[0], edges[-1], len(edges)) == (-1, 1, bins + 1)
    for name, watched in (("watched", True), ("other", False)):
        changes = [b - a for a, b, w in tokens if w == watched]
        if not changes:
            assert found[name] is None
            continue
        counts = [
            sum(edges[k] <= c < edges[k + 1] or (k == bins - 1 and c == 1) for c in changes)
            for k in range(bins)
        ]
        mean = sum(changes) / len(changes)
        assert found[name]["histogram"] == counts
        assert found[name]["tokens"] == len(changes)
        assert found[name]["mean"] == pytest.approx(mean, abs=1e-12)
        assert found[name]["deviation"] ** 2 == pytest.approx(
            sum((c - mean) ** 2 for c in changes) / len(changes), abs=1e-12
        )
        assert found[name]["mean_absolute"] == pytest.approx(
            sum(map(abs, changes)) / len(changes), abs=1e-12
        )


WEIGHTS = arrays.arrays(np.float32, (3, 50), elements=st.floats(-4, 4, width=16))


def quantised(weights: np.ndarray, bits: int) -> np.ndarray:
    """Each block quantised in float32; the last block is shorter."""
    flat, levels, found = weights.ravel(), np.float32(2 ** (bits - 1) - 1), []
    for first in range(0, flat.size, BLOCK):
        block = flat[first : first + BLOCK]
        scale = np.abs(block).max() / levels
        found += [scale * np.round(w / scale) if scale > 0 else np.float32(0) for w in block]
    return np.array(found, np.float32).reshape(weights.shape)


@settings(deadline=None)
@given(WEIGHTS, st.sampled_from([4, 8]))
def test_quantisation_by_brute_force(weights, bits):
    # JAX and numpy differ in flushing subnormal scales to zero.
    weights = np.where(np.abs(weights) < 1e-3, 0, weights).astype(np.float32)
    found = np.asarray(quantise(jnp.asarray(weights), bits))
    expected = quantised(weights, bits)
    step = np.abs(weights).max() / (2 ** (bits - 1) - 1)
    different = ~np.isclose(found, expected, rtol=3e-7, atol=0)
    # A weight halfway between two levels may go either way, by the last bit of w/s.
    halves = np.abs(np.abs(found - weights) - np.abs(expected - weights)) < 1e-6
    assert (~different | halves).all()
    assert (np.abs(found - weights) <= step / 2 * (1 + 1e-5)).all()
    assert len(np.unique(found.ravel()[:BLOCK])) <= 2**bits - 1


def test_quantisation_of_half_precision_keeps_the_dtype_and_float32_s_levels():
    weights = jax.random.normal(jax.random.key(0), (130,)).astype(jnp.bfloat16)
    found = quantise(weights, 8)
    assert found.dtype == jnp.bfloat16
    expected = quantise(weights.astype(jnp.float32), 8).astype(jnp.bfloat16)
    assert found.tolist() == expected.tolist()


def test_only_the_layers_matrices_are_quantised(tiny_model):
    params = tiny_model.params
    found = quantise_params(params, tiny_model.config, 4)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        ours = found
        for step in path:
            ours = ours[step.key]
        name = jax.tree_util.keystr(path)
        kept = "layers" not in name or "norm" in name or "bias" in name
        if kept:
            np.testing.assert_array_equal(ours, leaf, err_msg=name)
        else:
            np.testing.assert_allclose(
                ours, quantised(np.asarray(leaf), 4), atol=1e-6, err_msg=name
            )
            assert float(np.abs(np.asarray(ours - leaf)).max()) > 0.001, name
