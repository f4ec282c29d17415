"""Padding, masks and orders of batches against loops that follow the definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmc_jax.data.batches import (
    epoch_order,
    loss_rows,
    retain_draw,
    train_sequence,
)
from pmc_jax.model.buckets import bucket_length, halved

SERIES = sorted([2**k for k in range(4, 20)] + [3 * 2**k for k in range(3, 18)])
tokens = st.lists(st.integers(0, 99), max_size=12)
some_tokens = st.lists(st.integers(0, 99), min_size=1, max_size=12)


def test_bucket_length_is_the_next_of_the_series():
    assert SERIES[:9] == [16, 24, 32, 48, 64, 96, 128, 192, 256]
    for length in range(1, 5000):
        assert bucket_length(length) == min(size for size in SERIES if size >= length)


@given(st.integers(1, 5000), st.integers(0, 5000))
def test_a_width_is_halved_as_long_as_it_holds_what_it_must(length, more):
    most = length + more
    width = halved(most, length)
    assert length <= width <= most
    assert width in [-(-most // 2**k) for k in range(14)]
    assert width == most or width >= 16
    assert -(-width // 2) < max(length, 16)


@given(st.lists(st.tuples(some_tokens, some_tokens), min_size=1, max_size=5), st.integers(0, 5))
def test_loss_rows(pairs, extra):
    prompts, answers = zip(*pairs, strict=True)
    length = max(len(p) + len(a) for p, a in pairs) + extra
    padded, mask, loss_mask = loss_rows(prompts, answers, length)
    assert padded.dtype == np.int32
    for i, (prompt, answer) in enumerate(pairs):
        text = prompt + answer
        for t in range(length):
            assert padded[i, t] == (text[t] if t < len(text) else 0)
            assert mask[i, t] == (t < len(text))
            assert loss_mask[i, t] == (len(prompt) <= t < len(text))


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="at most 3 in all"):
        loss_rows([[1, 2]], [[3, 4]], 3)
    with pytest.raises(ValueError, match="at least one of each"):
        loss_rows([[1, 2]], [[]], 3)
    with pytest.raises(ValueError, match="leaves no room within 2"):
        train_sequence([1, 2], [3], 9, 2)


@given(some_tokens, tokens, st.sampled_from([None, 200, 201]), st.integers(0, 14))
def test_train_sequence(prompt, body, stop, room):
    """Token 200 ends a trained answer, 201 also stops a sample, 0 to 99 are ordinary tokens."""
    max_length = len(prompt) + 1 + room
    sample = body if stop is None else [*body, stop]
    kept, answer = train_sequence(prompt, sample, 200, max_length, stop_ids=(200, 201))
    assert kept == prompt
    assert len(prompt) + len(answer) <= max_length
    if len(prompt) + len(body) + 1 <= max_length:
        assert answer == [*body, 200]
    else:
        assert len(prompt) + len(answer) == max_length
        assert answer == body[: len(answer)]  # no end token in the middle of a sentence


def test_epoch_order_is_a_permutation_of_seed_and_epoch():
    orders = {(s, e): epoch_order(s, e, 50).tolist() for s in range(4) for e in range(4)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 16
    assert epoch_order(2, 3, 50).tolist() == orders[2, 3]
    # Every question is equally likely to be first: 4,000 draws of 50, within 5 standard deviations.
    first = np.bincount([epoch_order(7, e, 50)[0] for e in range(4000)], minlength=50)
    assert np.abs(first - 80).max() < 5 * np.sqrt(4000 * (1 / 50) * (49 / 50))


def test_retain_draw_is_uniform_with_replacement():
    draws = np.concatenate([retain_draw(0, step, 64, 20) for step in range(500)])
    counts = np.bincount(draws, minlength=20)
    assert len(counts) == 20
    assert np.abs(counts - 1600).max() < 5 * np.sqrt(32000 * (1 / 20) * (19 / 20))
    assert len(set(retain_draw(0, 3, 64, 20).tolist())) < 64
    assert retain_draw(0, 3, 64, 20).tolist() == retain_draw(0, 3, 64, 20).tolist()
    assert retain_draw(0, 3, 64, 20).tolist() != retain_draw(0, 4, 64, 20).tolist()
    assert retain_draw(0, 3, 64, 20).tolist() != retain_draw(1, 3, 64, 20).tolist()
