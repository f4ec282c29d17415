"""Packed rows: the rules of the layout, and the same results as for sequences on their own."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_params, slow_but
from hypothesis import given, settings
from hypothesis import strategies as st
from published import CONFIGS, CONTROL

from pmc_jax.data.packing import PackedRows, divided, first_fit, packed, row_width
from pmc_jax.model import ModelConfig, RopeConfig, forward
from pmc_jax.model.buckets import bucket_rows
from pmc_jax.model.sequences import sequence_states
from pmc_jax.training.batch import Batch
from pmc_jax.training.objective import make_objective
from pmc_jax.training.step import accumulated_gradients
from pmc_jax.unlearning.losses import KINDS
from pmc_jax.unlearning.pmc import PMC

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
    """Random prompts and answers with at most `longest` tokens together."""
    found = []
    for total in rng.integers(2, longest + 1, count):
        prompt = int(rng.integers(1, total))
        tokens = rng.integers(3, VOCAB, total).tolist()
        found.append((tokens[:prompt], tokens[prompt:]))
    return found


def numbered(parts):
    """The sequences of each micro-batch, numbered from 1."""
    return [dict(enumerate(part, 1)) for part in parts]


@given(lengths)
def test_every_sequence_is_in_one_row_with_room(found):
    rows = first_fit(dict(enumerate(found)), WIDTH)
    assert sorted(itertools.chain(*rows)) == list(range(len(found)))
    filled = [sum(found[i] for i in row) for row in rows]
    assert all(0 < own <= WIDTH for own in filled)
    # A sequence in a later row did not fit into any row before it.
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
    # Every other width is further from the largest one.
    assert width == 2 * most or width <= 1.5 * most


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 20), st.integers(1, 3), st.integers(1, 4))
def test_rows_hold_the_sequences_and_nothing_else(seed, count, parts, multiple):
    pairs = some_pairs(np.random.default_rng(seed), count)
    own = divided(pairs, parts, -(-count // parts))
    rows = packed(numbered(own), WIDTH, multiple)
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
        packed([{1: ([1], [2, 3, 4])}], 3)
    with pytest.raises(ValueError, match="0 answer tokens; expected at least one"):
        packed([{1: ([1], [])}], 3)


def alone(parts, width: int = WIDTH) -> PackedRows:
    """One sequence per row, in the layout of `packed`."""
    shape = (len(parts), max(map(len, parts)), width)
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    loss_mask = np.zeros(shape, bool)
    for a, part in enumerate(parts):
        for row, (number, (prompt, answer)) in enumerate(part.items()):
            end = len(prompt) + len(answer)
            tokens[a, row, :end] = [*prompt, *answer]
            segments[a, row, :end] = number
            loss_mask[a, row, len(prompt) : end] = True
    return PackedRows(tokens, segments, loss_mask)


@pytest.mark.parametrize("name", MODELS)
def test_states_are_those_of_each_sequence_alone(name, rng, x64):
    cfg = MODELS[name]
    params = random_params(jax.random.key(0), cfg, jnp.float64)
    pairs = some_pairs(rng, 14)
    rows, lone = packed(numbered([pairs]), WIDTH), alone(numbered([pairs]))

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


def gradients(method, batch, frozen):
    cfg = MODELS["plain"]
    params = random_params(jax.random.key(0), cfg, jnp.float64)
    objective = make_objective(method, cfg, jnp.float64)
    find = jax.jit(
        lambda p, batch, frozen: accumulated_gradients(p, batch, objective, cfg, 1.5, frozen)
    )
    return find(params, batch, frozen)


def assert_same(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_pmc_has_the_gradients_of_one_sequence_to_a_row(rng, x64):
    parts = numbered(divided(some_pairs(rng, 11), 2, 6))  # the second micro-batch is not full

    def batch(rows: PackedRows) -> Batch:
        return Batch(*map(jnp.asarray, rows), reference=jnp.zeros((2, 6)), sizes=(2, 0, 4))

    together, apart = packed(parts, WIDTH), alone(parts)
    assert together.tokens.size < apart.tokens.size
    assert_same(gradients(PMC(), batch(together), {}), gradients(PMC(), batch(apart), {}))


@pytest.mark.parametrize(
    "name",
    slow_but(["gd_kl"], ["gd_kl", "dpo", "rmu", "npo", "simnpo", "ceu", "undial"]),
)
def test_methods_have_the_gradients_of_one_sequence_to_a_row(name, rng, x64):
    kinds = [divided(some_pairs(rng, 9), 2, 5) for _ in KINDS]
    reference = rng.uniform(10, 40, (2, 15))
    parts = [
        {
            5 * kind + index: pair
            for kind, own in enumerate(kinds)
            for index, pair in enumerate(own[part], 1)
        }
        for part in range(2)
    ]

    def batch(rows: PackedRows) -> Batch:
        return Batch(*map(jnp.asarray, rows), reference=jnp.asarray(reference), sizes=(5, 5, 5))

    cfg = MODELS["plain"]
    frozen = {
        "params": random_params(jax.random.key(1), cfg, jnp.float64),
        "control": jnp.asarray(CONTROL[: cfg.hidden_size]),
    }
    # In packed rows, sequences of all kinds share rows.
    together, apart = batch(packed(parts, WIDTH)), batch(alone(parts))
    expected = gradients(CONFIGS[name], apart, frozen)
    assert_same(gradients(CONFIGS[name], together, frozen), expected)
