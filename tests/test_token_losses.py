"""Losses on whole distributions: closed forms, limits, and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax
from scipy.stats import entropy

from pmc_jax.unlearning.baselines.ceu import complement_cross_entropy
from pmc_jax.unlearning.baselines.undial import adjusted_cross_entropy
from pmc_jax.unlearning.losses import kl_divergence

TOKENS = np.array([2, 0, 3])
LOGITS = arrays(np.float64, (3, 5), elements=st.floats(-8, 8))


@pytest.fixture(autouse=True)
def double(x64):
    """Everything in float64."""


@given(LOGITS)
def test_ceu_in_closed_form(logits):
    """−log(1 − p(y)) plus the entropy of the rest; its gradient is p − q, within (−1, 1)."""
    rows, p = np.arange(3), softmax(logits, axis=-1)
    q = p.copy()
    q[rows, TOKENS] = 0
    rest = q.sum(-1)
    q /= rest[:, None]
    value = lambda x: complement_cross_entropy(x, jnp.asarray(TOKENS))  # noqa: E731
    found = value(jnp.asarray(logits))
    np.testing.assert_allclose(found, -np.log(rest) + entropy(q, axis=-1), atol=1e-9)
    gradient = jax.grad(lambda x: value(x).sum())(jnp.asarray(logits))
    np.testing.assert_allclose(gradient, p - q, atol=1e-12)


def test_ceu_of_a_token_that_is_all_but_certain_is_finite():
    """Gradient ascent no longer moves there; here the gradient at y is its probability, 1."""
    logits = jnp.asarray([[0.0, 0.0, 800.0]])
    value = lambda x: complement_cross_entropy(x, jnp.asarray([2])).sum()  # noqa: E731
    assert np.isfinite(value(logits))
    np.testing.assert_allclose(jax.grad(value)(logits), [[-0.5, -0.5, 1.0]])


@given(LOGITS, LOGITS, st.floats(0, 8))
def test_undial_pulls_towards_the_adjusted_target(ours, target, beta):
    """Its gradient is p − softmax(z_ref − β·1[y])."""
    adjusted = target.copy()
    adjusted[np.arange(3), TOKENS] -= beta
    total = lambda x: adjusted_cross_entropy(  # noqa: E731
        x, jnp.asarray(target), jnp.asarray(TOKENS), beta
    ).sum()
    found = jax.grad(total)(jnp.asarray(ours))
    np.testing.assert_allclose(found, softmax(ours, -1) - softmax(adjusted, -1), atol=1e-12)


@given(LOGITS)
def test_undial_between_its_limits(logits):
    """At θ_ref, β = 0 has no gradient, and β → ∞ gives CE-U."""
    ours, tokens = jnp.asarray(logits), jnp.asarray(TOKENS)
    still = jax.grad(lambda x: adjusted_cross_entropy(x, ours, tokens, 0.0).sum())(ours)
    np.testing.assert_allclose(still, 0, atol=1e-12)
    limit = adjusted_cross_entropy(ours, ours, tokens, 1e3)
    np.testing.assert_allclose(limit, complement_cross_entropy(ours, tokens), atol=1e-9)


@given(LOGITS, LOGITS)
def test_kl_is_the_relative_entropy(ours, target):
    found = kl_divergence(jnp.asarray(ours), jnp.asarray(target), jnp.asarray(TOKENS))
    expected = entropy(softmax(target, axis=-1), softmax(ours, axis=-1), axis=-1)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@given(LOGITS, LOGITS)
def test_kl_pulls_towards_the_target(ours, target):
    """Its gradient is p − p_ref, which is 0 at the target, also with a constant added to the
    logits."""
    tokens = jnp.asarray(TOKENS)
    total = lambda x: kl_divergence(x, jnp.asarray(target), tokens).sum()  # noqa: E731
    found = jax.grad(total)(jnp.asarray(ours))
    np.testing.assert_allclose(found, softmax(ours, -1) - softmax(target, -1), atol=1e-12)
    shifted = jnp.asarray(target) + 3.0
    assert abs(float(total(shifted))) < 1e-12
    np.testing.assert_allclose(jax.grad(total)(shifted), 0, atol=1e-12)
