"""PMC's training objective is that of the paper, and its λ is an argument of the step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import random_params
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pmc_jax.model import ModelConfig
from pmc_jax.model.sequences import sequence_nll
from pmc_jax.training.batch import Batch
from pmc_jax.training.objective import make_objective
from pmc_jax.training.optimizer import Optimizer, make_optimizer
from pmc_jax.training.step import accumulated_gradients, init_state, make_train_step
from pmc_jax.unlearning.pmc import PMC

CFG = ModelConfig(
    vocab_size=23, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2,
    num_kv_heads=1, head_dim=8,
)  # fmt: skip
PARTS, ROWS, TIME, FORGET, RETAIN = 2, 3, 9, 3, 3


@pytest.fixture(scope="module", autouse=True)
def doubles():
    """Double precision for the whole module."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module")
def params(doubles):
    return random_params(jax.random.key(0), CFG, jnp.float64)


@pytest.fixture(scope="module")
def as_trained(params):
    """Losses and gradients summed over micro-batches as in an optimizer step, compiled once."""
    objective = make_objective(PMC(), CFG, jnp.float64)

    @jax.jit
    def found(params, batch, retain_weight):
        return accumulated_gradients(params, batch, objective, CFG, retain_weight, {})

    return found


@pytest.fixture(scope="module")
def as_published(params):
    """The loss of the whole batch at once by the paper's equation, and its gradients."""

    def mean(nll, mask):
        return jnp.sum(nll * mask) / jnp.maximum(jnp.sum(mask), 1)

    def loss(params, tokens, segments, selected, retain, retain_weight):
        nll = sequence_nll(params, tokens, segments, CFG, jnp.float64, "none")
        return mean(nll, selected) + retain_weight * mean(nll, retain), nll

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@st.composite
def batches(draw):
    """Two micro-batches with two sequences per row, of any length, kind and loss mask."""
    shape = PARTS, ROWS, TIME
    numbers = [draw(st.permutations(range(1, FORGET + RETAIN + 1))) for _ in range(PARTS)]
    segments = np.zeros(shape, np.int32)
    for part, row in np.ndindex(shape[:2]):
        first = draw(st.integers(0, TIME))
        second = draw(st.integers(0, TIME - first))
        segments[part, row, :first] = numbers[part][2 * row]
        segments[part, row, first : first + second] = numbers[part][2 * row + 1]
    tokens = draw(arrays(np.int32, shape, elements=st.integers(0, CFG.vocab_size - 1)))
    mask = draw(arrays(bool, shape)) & (segments > 0)
    reference = np.zeros((PARTS, FORGET + RETAIN))
    on_devices = map(jnp.asarray, (tokens, segments, mask, reference))
    return Batch(*on_devices, sizes=(FORGET, 0, RETAIN))


@settings(max_examples=60)
@given(batch=batches(), retain_weight=st.floats(0, 4))
def test_the_objective_of_a_whole_batch_is_the_papers(
    params, as_trained, as_published, batch, retain_weight
):
    gradients, losses = as_trained(params, batch, retain_weight)
    segments, mask = np.asarray(batch.segments), np.asarray(batch.loss_mask)
    selected, retain = mask & (segments <= FORGET), mask & (segments > FORGET)
    whole = (x.reshape(-1, TIME) for x in (batch.tokens, batch.segments, selected, retain))
    (loss, nll), expected = as_published(params, *whole, retain_weight)
    for found, own in ((losses.forget_loss, selected), (losses.retain_loss, retain)):
        mean = np.asarray(nll).reshape(mask.shape)[own].mean() if own.any() else 0.0
        assert float(found) == pytest.approx(mean, rel=1e-12, abs=1e-12)
    assert float(losses.loss) == pytest.approx(float(loss), rel=1e-12, abs=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), gradients, expected)
    assert as_trained._cache_size() == 1


def test_two_values_of_the_retain_weight_share_one_compiled_step(params, rng):
    """λ changes the result, which is always forget loss plus λ times retain loss."""
    optimizer = make_optimizer(Optimizer(), CFG, optax.constant_schedule(1e-2))
    step = make_train_step(optimizer, PMC(), CFG, dtype=jnp.float64)
    segments = jnp.broadcast_to(jnp.arange(1, 5, dtype=jnp.int32)[:, None], (1, 4, TIME))
    tokens = jnp.asarray(rng.integers(0, CFG.vocab_size, segments.shape), jnp.int32)
    batch = Batch(tokens, segments, segments > 0, jnp.zeros((1, 4)), sizes=(2, 0, 2))
    ends = []
    for retain_weight in (0.5, 3.0):
        state = init_state(jax.tree.map(jnp.copy, params), optimizer)
        state, losses, _ = step(state, batch, retain_weight, {})
        expected = losses.forget_loss + retain_weight * losses.retain_loss
        assert float(losses.loss) == pytest.approx(float(expected), rel=1e-12)
        ends.append(state.params)
    assert step._cache_size() == 1
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, ends), strict=True))
