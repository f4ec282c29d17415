"""Packed rows: the layout's laws, and that nothing computed on them differs from lone sequences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_params, slow_but
from hypothesis import given, settings
from hypothesis import strategies as st
from pmc_jax.training.objectives import AnswerRows, Frozen, MethodBatch, method_objective
from pmc_jax.training.packing import PackedRows, divided, first_fit, packed, row_width
from published import CONFIGS, CONTROL

from pmc_jax.model import ModelConfig, RopeConfig, forward
from pmc_jax.model.buckets import bucket_rows
from pmc_jax.training.step import accumulated_gradients, pmc_objective, sequence_states
from pmc_jax.unlearning import LossRows

WIDTH, VOCAB = 24, 97
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_layers": 3,
    "num_heads": 4, "num_kv_heads": 2, "head_dim": 4,
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("quick_compilation")

LONG = RopeConfig(
    kind="longrope", original_max_position_embeddings=9, short_factor=(1.0, 1.5),
    long_factor=(2.0, 3.0), attention_factor=1.1,
)  # fmt: skip
MODELS = {
    "plain": ModelConfig(**SIZES),
    "windows and a local rotation": ModelConfig(
        **SIZES, windows=(3, 0, 5), local_rope=RopeConfig(theta=100.0)
    ),
    "long and short sequences in one row": ModelConfig(**SIZES, rope=LONG),
}

lengths = st.lists(st.integers(2, WIDTH), max_size=30)


def some_pairs(rng, count: int, longest: int = WIDTH):
    """Random prompts and answers of at most `longest` tokens together."""
    found = []
    for total in rng.integers(2, longest + 1, count):
        prompt = int(rng.integers(1, total))
        tokens = rng.integers(3, VOCAB, total).tolist()
        found.append((tokens[:prompt], tokens[prompt:]))
    return found


@given(lengths)
def test_every_sequence_is_in_one_row_with_room(found):
    rows = first_fit(found, WIDTH)
    assert sorted(itertools.chain(*rows)) == list(range(len(found)))
    filled = [sum(found[i] for i in row) for row in rows]
    assert all(0 < own <= WIDTH for own in filled)
    # What was put into a later row had no room in any before it.
    assert all(a + b > WIDTH for a, b in itertools.combinations(filled, 2))


def test_bucket_rows_is_the_next_of_its_series():
    series = [*range(9), 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80]
    for rows in range(81):
        assert bucket_rows(rows) == min(size for size in series if size >= rows)


@given(lengths.filter(len), st.integers(WIDTH, 400))
def test_a_row_holds_the_longest_and_some_of_mean_length(found, most):
    width = row_width(found, most)
    assert max(found) <= width <= 2 * most
    assert width == 2 * most or width >= 4 * (sum(found) // len(found))
    # No other width is near the widest.
    assert width == 2 * most or width <= 1.5 * most


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 20), st.integers(1, 3), st.integers(1, 4))
def test_rows_hold_the_sequences_and_nothing_else(seed, count, parts, multiple):
    pairs = some_pairs(np.random.default_rng(seed), count)
    own = divided(pairs, parts, -(-count // parts))
    rows = packed(own, WIDTH, multiple)
    assert rows.tokens.shape[1] % multiple == 0
    for part, tokens, segments, loss_mask in zip(own, *rows, strict=True):
        assert segments.max(initial=0) == len(part)
        for number, (prompt, answer) in enumerate(part, start=1):
            here = segments == number
            assert here.any(axis=1).sum() == 1
            assert tokens[here].tolist() == [*prompt, *answer]
            assert loss_mask[here].tolist() == [False] * len(prompt) + [True] * len(answer)
            places = np.flatnonzero(here.any(axis=0))
            assert places[-1] - places[0] + 1 == len(places)
        assert not tokens[segments == 0].any() and not loss_mask[segments == 0].any()
    assert [pair for part in own for pair in part] == pairs


def test_sequences_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"1 prompt and 3 answer tokens; expected .* at most 3"):
        packed([[([1], [2, 3, 4])]], 3)
    with pytest.raises(ValueError, match="0 answer tokens; expected at least one"):
        packed([[([1], [])]], 3)


def alone(parts, width: int = WIDTH) -> PackedRows:
    """One sequence to a row, in the layout of `packed`."""
    shape = (len(parts), max(map(len, parts)), width)
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    loss_mask = np.zeros(shape, bool)
    for a, part in enumerate(parts):
        for row, (prompt, answer) in enumerate(part):
            end = len(prompt) + len(answer)
            tokens[a, row, :end] = [*prompt, *answer]
            segments[a, row, :end] = row + 1
            loss_mask[a, row, len(prompt) : end] = True
    return PackedRows(tokens, segments, loss_mask)


@pytest.mark.parametrize("name", MODELS)
def test_states_are_those_of_each_sequence_alone(name, rng, x64):
    cfg = MODELS[name]
    params = random_params(jax.random.key(0), cfg, jnp.float64)
    pairs = some_pairs(rng, 14)
    rows, lone = packed([pairs], WIDTH), alone([pairs])

    @jax.jit
    def both(tokens, segments, lone_tokens, mask):
        places = jnp.broadcast_to(jnp.arange(WIDTH), mask.shape)
        expected = forward(params, lone_tokens, places, mask, cfg, dtype=jnp.float64)
        return sequence_states(params, tokens, segments, cfg, jnp.float64, "none"), expected

    lone_mask = lone.segments[0] > 0
    here, expected = jax.device_get(
        both(rows.tokens[0], rows.segments[0], lone.tokens[0], lone_mask)
    )
    assert len(here) < len(pairs)
    for number in range(1, len(pairs) + 1):
        np.testing.assert_allclose(
            here[rows.segments[0] == number], expected[lone.segments[0] == number], atol=1e-12
        )


def gradients(objective, batch, *fixed):
    cfg = MODELS["plain"]
    params = random_params(jax.random.key(0), cfg, jnp.float64)
    find = jax.jit(lambda p, batch, *fixed: accumulated_gradients(p, batch, objective, cfg, *fixed))
    return find(params, batch, *fixed)


def assert_same(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_pmc_has_the_gradients_of_one_sequence_to_a_row(rng, x64):
    parts = divided(some_pairs(rng, 11), 2, 6)  # the second is not full

    def batch(rows: PackedRows) -> LossRows:
        return LossRows(*map(jnp.asarray, rows), retain=jnp.asarray(rows.segments > 2))

    objective = pmc_objective(MODELS["plain"], 1.5, jnp.float64)
    together, apart = packed(parts, WIDTH), alone(parts)
    assert together.tokens.size < apart.tokens.size
    assert_same(gradients(objective, batch(together)), gradients(objective, batch(apart)))


@pytest.mark.parametrize(
    "name",
    slow_but(["gd_kl"], ["gd_kl", "dpo", "rmu", "npo", "simnpo", "ceu", "undial"]),
)
def test_methods_have_the_gradients_of_one_sequence_to_a_row(name, rng, x64):
    kinds = {kind: divided(some_pairs(rng, 9), 2, 5) for kind in ("answers", "preferred", "retain")}
    reference = rng.uniform(10, 40, (3, 2, 5))

    def batch(lay_out) -> MethodBatch:
        return MethodBatch(
            **{
                kind: AnswerRows(*map(jnp.asarray, lay_out(parts)), reference=jnp.asarray(n_ref))
                for (kind, parts), n_ref in zip(kinds.items(), reference, strict=True)
            }
        )

    cfg = MODELS["plain"]
    objective = method_objective(CONFIGS[name], cfg, jnp.float64)
    frozen = Frozen(
        random_params(jax.random.key(1), cfg, jnp.float64), jnp.asarray(CONTROL[: cfg.hidden_size])
    )
    together = gradients(objective, batch(lambda parts: packed(parts, WIDTH)), frozen)
    assert_same(together, gradients(objective, batch(alone), frozen))
