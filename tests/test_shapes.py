"""A run uses only the shapes that it names before the first step."""

import dataclasses
from unittest import mock

import jax.numpy as jnp
import pytest
from test_decoding_layout import CFG
from test_savings import PLAIN, new_run, words_model  # noqa: F401

from pmc_jax.decoding import Decoding, sampler, suffix_lengths
from pmc_jax.decoding.layout import cache_lengths, few_rows, shapes
from pmc_jax.model.kernels.dispatch import Target
from pmc_jax.training.loop import steps
from pmc_jax.unlearning.pmc import PMC, sampling
from pmc_jax.unlearning.savings.arguments import savings
from pmc_jax.unlearning.savings.shapes import run_shapes

pytestmark = pytest.mark.usefixtures("quick_compilation")

BATCHES = {
    "savings": {"prune": True, "wave": 2, "compact": True, "grow_cache": True, "chunk": 2},
    "few rows, unequal steps": {
        "decode_batch": 8,
        "batch_size": 2,
        "accumulation": 1,
        "compact": True,
    },
    "micro-batches": {"batch_size": 1, "accumulation": 2},
    "drafts": {"drafts": True, "compact": True, "epochs": 3},
}


def limits(run):
    return [sampling.sample_limit(run, i) for i in range(len(run.task.prompts))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "limit", "beginnings"),
    [
        ("savings", None, 0), ("few rows, unequal steps", 14, 0), ("micro-batches", None, 0),
        ("savings", None, 1), ("micro-batches", 14, 2), ("drafts", 14, 0), ("drafts", None, 1),
    ],
)  # fmt: skip
def test_a_run_has_no_shape_that_it_does_not_name(
    name,
    limit,
    beginnings,
    words_model,  # noqa: F811
    monkeypatch,
    x64,
):
    training = dataclasses.replace(PLAIN, **BATCHES[name])
    pmc = PMC(samples=4, max_new_tokens=limit, retain_per_forget=2, beginnings=beginnings)
    run, state = new_run(words_model, pmc, training, seed=3)
    counted = []
    seen = {"prompts": set(), "rows": set(), "caches": set(), "training": set()}

    def noting(function, note):
        def call(*arguments, **options):
            note(*arguments)
            return function(*arguments, **options)

        return call

    def note_chunk(params, prefix, state, *_):
        seen["rows"].add(state.tokens.shape[:2])
        seen["caches"].add(state.suffix.length)

    note_prefill = lambda params, tokens, *_: seen["prompts"].add(tokens.shape)  # noqa: E731

    def note_batch(state, batch, *_):
        seen["training"].add(batch.tokens.shape[1:])
        counted.append(int((batch.segments > 0).sum()))

    for name in ("prefill_prompts", "read_drafts"):
        monkeypatch.setattr(sampler, name, noting(getattr(sampler, name), note_prefill))
    monkeypatch.setattr(sampler, "decode_chunk", noting(sampler.decode_chunk, note_chunk))
    train_step = noting(words_model[2], note_batch)
    records = [record for _, record in steps(run, train_step, {}, state)]
    assert [record.tokens_trained for record in records] == counted
    named = run_shapes(run, limits(run))
    for field, found in seen.items():
        assert found and found <= set(getattr(named, field)), field
    assert len(named.lines()) == 4


def test_few_questions_are_not_padded_to_a_whole_batch(words_model, x64):  # noqa: F811
    training = dataclasses.replace(PLAIN, batch_size=64, decode_batch=512, compact=True)
    run, state = new_run(words_model, PMC(samples=4), training, seed=3)
    questions = len(run.task.prompts)
    assert questions < 64 and max(run_shapes(run, limits(run)).rows) == (questions, 4)
    found = savings(run, [0], None, state.method.response)
    assert found["decode_batch"] == 4 * questions


def test_all_steps_pad_prompts_as_the_longest_of_the_run(words_model, x64, monkeypatch):  # noqa: F811
    run, state = new_run(words_model, PMC(samples=4), PLAIN, seed=3)
    lengths = [len(prompt) for prompt in run.task.prompts]
    shortest = lengths.index(min(lengths))
    assert lengths[shortest] < max(lengths)
    asked = mock.Mock(return_value=[[[1]]])
    monkeypatch.setattr(sampling, "generate", asked)
    sampling.sample_responses(run, state.method, state.train.params, 0, [shortest])
    assert asked.call_args.kwargs["longest_prompt"] == max(lengths)


def test_rows_are_whole_on_every_device_of_a_mesh(words_model, x64):  # noqa: F811
    run, _ = new_run(words_model, PMC(samples=4), PLAIN, seed=3)
    assert all(rows % 4 == 0 for rows, _ in run_shapes(run, limits(run), multiple=4).training)


@pytest.mark.parametrize(
    ("time", "lengths"),
    [
        (16, [16]), (24, [24]), (32, [16, 32]), (48, [16, 48]), (64, [32, 64]),
        (96, [32, 64, 96]), (192, [32, 64, 128, 192]), (256, [32, 64, 128, 256]),
    ],
)  # fmt: skip
def test_a_cache_is_about_as_long_as_what_it_holds(time, lengths):
    assert cache_lengths(time) == lengths
    assert cache_lengths(time, 8) == [*lengths[:1], *lengths[1:][-1:]]


def test_room_that_attention_does_not_read_comes_in_large_steps(monkeypatch):
    growing = Decoding()
    native, xla = Target("cpu", False, frozenset({"native"})), Target("cpu", False)
    for target, expected in ((native, [32, 192]), (xla, [32, 64, 128, 192])):
        monkeypatch.setattr(sampler, "current_target", lambda _, target=target: target)
        assert suffix_lengths(192, CFG, jnp.float32, growing) == expected
        assert suffix_lengths(192, CFG, jnp.float32, Decoding(grow_cache=False)) == [192]
        assert suffix_lengths(48, CFG, jnp.float32, growing) == [16, 48]
    assert cache_lengths(2000, 8) == [32, 256, 2000]
    monkeypatch.setattr(sampler, "current_target", lambda _: native)
    no_vectors = dataclasses.replace(CFG, head_dim=12)
    assert suffix_lengths(192, no_vectors, jnp.float32, growing) == [32, 64, 128, 192]


@pytest.mark.parametrize(
    ("running", "shape", "few"),
    [
        (320, (16, 20), 160), (161, (16, 20), 160), (160, (16, 20), 80), (1, (16, 20), 0),
        (160, (16, 10), 80), (80, (16, 10), 40),
        (80, (16, 5), 0), (8, (8, 1), 0),
    ],
)  # fmt: skip
def test_rows_are_looked_at_when_they_may_fit_a_smaller_shape(running, shape, few):
    """The rows are also checked later, when fewer of them run than now."""
    assert few_rows(running, shape, shapes(16, 20)) == few
    assert few_rows(running, shape, [shape]) == 0


@pytest.mark.parametrize(
    ("prompts", "samples", "options", "expected"),
    [
        (512, 1, {}, [(512, 1), (128, 1), (32, 1), (8, 1)]),
        (16, 20, {}, [(16, 20), (16, 10), (16, 5), (16, 2), (8, 1)]),
        (16, 20, {"wave": 5}, [(16, 5), (16, 2), (8, 1)]),
        (16, 20, {"compact": False}, [(16, 20)]),
        (16, 1, {}, [(16, 1), (8, 1)]),
        (9, 1, {}, [(9, 1), (5, 1)]),
        (3, 5, {}, [(3, 5), (3, 2)]),
        (8, 1, {}, [(8, 1)]),
    ],
)
def test_shapes_are_a_half_or_a_quarter_apart(prompts, samples, options, expected):
    assert shapes(prompts, samples, **options) == expected
