"""Relearning against PyTorch's AdamW on the same model in transformers."""

from pathlib import Path

import jax
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from pmc_jax.evaluation.likelihood import answer_scores
from pmc_jax.evaluation.relearning import relearn

LEARNING_RATE = 1e-3
STEPS = (0, 1, 4)
PAIRS = [([0, 5, 9, 11], [20, 21, 22, 1]), ([0, 7], [30, 1]), ([0, 8, 3], [40, 41, 1])]


def answer_log_probs(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> torch.Tensor:
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1)[torch.arange(len(answer)), torch.tensor(answer)]


def torch_curve(directory: Path, seed: int) -> list[np.ndarray]:
    """The answers' log-probabilities after each number of steps, with two pairs per step."""
    model = AutoModelForCausalLM.from_pretrained(directory).double().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    rng = np.random.default_rng(seed)
    order = [int(i) for _ in range(STEPS[-1]) for i in rng.permutation(len(PAIRS))]
    found = []
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            with torch.no_grad():
                rows = [answer_log_probs(model, *pair) for pair in PAIRS]
            found.append(torch.cat(rows).numpy())
        batch = [PAIRS[i] for i in order[2 * step : 2 * step + 2]]
        optimizer.zero_grad()
        (-torch.cat([answer_log_probs(model, *pair) for pair in batch]).mean()).backward()
        optimizer.step()
    return found


def test_relearning_is_adamw_on_the_answers(tiny_model, checkpoint_dir):
    before = jax.tree.map(np.array, tiny_model.params)
    curve = []
    for step, model in relearn(
        tiny_model, PAIRS, STEPS, batch_size=2, learning_rate=LEARNING_RATE, seed=3
    ):
        scores = answer_scores(model, PAIRS)
        curve.append((step, np.concatenate([row.log_probs for row in scores])))
    assert [step for step, _ in curve] == list(STEPS)
    for (_, ours), theirs in zip(curve, torch_curve(checkpoint_dir, 3), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4)
    assert curve[-1][1].mean() > curve[0][1].mean() + 0.05
    jax.tree.map(np.testing.assert_array_equal, tiny_model.params, before)
