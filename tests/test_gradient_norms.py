"""Gradient norms of single answers against torch's autograd on the same weights, in float64."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import random_llama
from test_families import random_model

from convert.load import load_checkpoint
from pmc_jax.evaluation.gradient_norms import gradient_norms
from pmc_jax.model import decoding_params, stacked

pytestmark = pytest.mark.usefixtures("quick_compilation")
MODELS = {
    "llama": lambda: random_llama(attention_bias=True, mlp_bias=True),
    "tied": lambda: random_llama(tie_word_embeddings=True),
    "phi3": lambda: random_model("phi3"),  # q, k and v are one tensor, and so are gate and up
}


def norms_of_torch(model, pairs) -> list[float]:
    """The mean over parameters of the norm of their gradients; the end token carries no loss."""
    found = []
    for prompt, answer in pairs:
        model.zero_grad()
        logits = model(torch.tensor([prompt + answer])).logits[0]
        predicted = slice(len(prompt) - 1, len(prompt) + len(answer) - 2)
        torch.nn.functional.cross_entropy(logits[predicted], torch.tensor(answer[:-1])).backward()
        norms = [parameter.grad.norm(p=2).item() for parameter in model.parameters()]
        found.append(float(np.mean(norms)))
    return found


@pytest.mark.usefixtures("double_llama")
@pytest.mark.parametrize(("name", "unrolled"), [("llama", False), ("tied", True), ("phi3", True)])
def test_norms_are_those_of_torch(name, unrolled, tiny_model, tmp_path, rng, x64):
    reference = MODELS[name]().double()
    reference.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path, dtype="float64")
    params = decoding_params(checkpoint.params, checkpoint.cfg, jnp.float64, unrolled=unrolled)
    model = dataclasses.replace(
        tiny_model, params=params, config=checkpoint.cfg, directory=tmp_path, dtype="float64"
    )
    pairs = [
        (rng.integers(3, 97, before).tolist(), rng.integers(3, 97, after).tolist())
        for before, after in ((5, 4), (1, 2), (9, 6), (3, 1))
    ]
    seen = []
    found = gradient_norms(model, pairs, on_batch=lambda *done: seen.append(done))
    assert seen == [(1, 4), (1, 2), (1, 6), (1, 1)]
    expected = norms_of_torch(reference, pairs[:-1])
    # transformers computes Phi-3's norms and rotary angles in float32.
    np.testing.assert_allclose(found[:-1], expected, rtol=3e-6 if name == "phi3" else 1e-10)
    assert found[-1] == 0, "an answer of its end token alone has no loss"
    again = stacked(params, checkpoint.cfg)
    assert again["layers"].keys() == checkpoint.params["layers"].keys()
    for leaf_name, leaf in again["layers"].items():
        np.testing.assert_array_equal(leaf, checkpoint.params["layers"][leaf_name])
