"""Drafts change no response: the same samples as plain decoding draws, in float64."""

import importlib
import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL, random_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sharding import on_eight_devices

from convert.load import load_checkpoint
from pmc_jax.decoding import FINISHED, Decoding, Sampling, generate, layout, sampler
from pmc_jax.decoding.drafts import best_drafts, usable
from pmc_jax.errors import NotFinite
from pmc_jax.model import make_mesh, on_mesh

# Imported with importlib because the package has a function of the same name.
generate_module = importlib.import_module("pmc_jax.decoding.generate")

PROMPTS = [[5, 9, 33], [7], [11, 4, 60, 61, 62, 2, 8, 90], [3, 3]]
LIMITS = [14, 20, 0, 1]
STOPS = (1, 17)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model that often repeats itself, in float64."""
    directory = tmp_path_factory.mktemp("drafts")
    random_llama(std=0.3, head_dim=16).save_pretrained(directory)
    with jax.enable_x64(True):
        return load_checkpoint(directory, dtype="float64")


def responses(checkpoint, sampling, drafts=None, seed=0, samples=6, dtype="float64", **options):
    """Responses to all prompts, with compaction at any number of rows."""
    with jax.enable_x64(dtype == "float64"), mock.patch.object(layout, "MANY_ROWS", 1):
        return generate(
            checkpoint.params, PROMPTS, cfg=checkpoint.cfg, sampling=sampling,
            key=jax.random.key(seed), limits=LIMITS, samples=samples, drafts=drafts, step=3,
            dtype=dtype, **options,
        )  # fmt: skip


@st.composite
def drafts_of(draw, found):
    """For each prompt up to two drafts: a response, whole or not, changed, or anything else."""
    drafts = []
    for own in found:
        some = []
        for _ in range(draw(st.integers(0, 2))):
            draft = list(draw(st.sampled_from(own)))
            draft = draft[: draw(st.integers(0, len(draft)))]
            tail = st.lists(st.integers(0, SMALL["vocab_size"] - 1), max_size=30)
            some.append(draft + draw(st.one_of(st.just([]), st.just([1]), tail)))
        drafts.append(some)
    return drafts


SAMPLINGS = (
    Sampling(0.0, stop_ids=STOPS),
    Sampling(0.5, stop_ids=STOPS),
    Sampling(0.8, top_k=5, top_p=0.9, stop_ids=STOPS, min_new_tokens=3),
    Sampling(0.6, top_p=0.7),
)
WORK = (
    {"decoding": Decoding(chunk=64, compact=False, grow_cache=False)},
    {"decoding": Decoding(chunk=2), "wave": 4},
    {"decoding": Decoding(chunk=3), "decode_batch": 12},
)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.data(), st.sampled_from(SAMPLINGS), st.sampled_from(WORK), st.integers(0, 3))
def test_drafts_change_no_response(small, data, sampling, work, seed):
    plain = responses(small, sampling, seed=seed)
    drafts = data.draw(drafts_of(plain))
    assert responses(small, sampling, drafts, seed, **work) == plain


def test_drafts_change_no_response_with_the_kernels(small):
    """In float32, where a kernel decodes, with drafts that are followed in part and whole."""
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), small.params)
    checkpoint = mock.Mock(params=single, cfg=small.cfg)
    plain = responses(checkpoint, SAMPLINGS[1], dtype="float32")
    drafts = [[own[0], own[-1][:3]] for own in plain]
    assert responses(checkpoint, SAMPLINGS[1], drafts, dtype="float32") == plain


def test_drafts_change_no_response_with_a_mesh(small):
    plain = responses(small, SAMPLINGS[2])
    drafts = [[own[0], [*own[1][:4], 5]] for own in plain]
    with on_mesh(make_mesh(1, 1)):
        assert responses(small, SAMPLINGS[2], drafts, wave=2) == plain


@pytest.mark.slow
def test_drafts_change_no_response_on_eight_devices():
    layouts = ("8x1", "4x2", "2x4")
    found = json.loads(on_eight_devices("eight_device_drafts.py", *layouts))
    assert found == {"1x1": True, **{layout: [True, True] for layout in layouts}}


@pytest.mark.parametrize("samples", [2, 9])
def test_greedy_drafts_change_no_response(small, samples):
    with mock.patch.object(generate_module, "MANY_SAMPLES", 3):
        found = responses(small, SAMPLINGS[1], "greedy", samples=samples)
    assert found == responses(small, SAMPLINGS[1], samples=samples)


def test_a_response_that_is_a_draft_is_not_decoded(small):
    """Nothing runs where every response is the draft; what leaves it runs from there on."""
    greedy = responses(small, SAMPLINGS[0], samples=1)
    running = []

    def noting(params, prefix, state, *arguments, **options):
        running.append(int((~np.asarray(state.done)).sum()))
        return decode_chunk(params, prefix, state, *arguments, **options)

    decode_chunk = sampler.decode_chunk
    with mock.patch.object(sampler, "decode_chunk", noting):
        drafts = [[[2, 2], own[0]] for own in greedy]
        assert responses(small, SAMPLINGS[0], drafts, samples=1) == greedy
        assert not running
        assert responses(small, SAMPLINGS[0], [[[2, 2]]] * 4, samples=1) == greedy
        assert running


def test_what_drafts_say_is_known_before_anything_runs(small):
    """So that pruning can drop a response for what it has of a draft."""
    plain = responses(small, SAMPLINGS[1])
    seen = []

    def prune(prompts, found):
        seen.append((list(prompts), found.length.copy(), found.status.copy()))
        return found.status < FINISHED

    dropped = responses(small, SAMPLINGS[1], [own[:1] for own in plain], prune=prune)
    assert len(seen) == 1
    for own, whole in zip(dropped, plain, strict=True):
        for response, expected in zip(own, whole, strict=True):
            assert response == expected[: len(response)] and (response or not expected)
        assert own[0] == whole[0]


def test_a_draft_ends_before_a_stop_token_and_the_limit():
    assert usable([3, 4, 1, 5], 9, (1,)) == [3, 4]
    assert usable([3, 4, 5], 2, (1,)) == [3]
    assert usable([1], 5, (1,)) == usable([3], 1, ()) == usable([3], 0, ()) == []


def test_the_draft_that_saves_most_is_kept():
    """Two prompts, two drafts each, two samples; the first sample of the first is finished."""
    drafts = np.array([[[7, 7, 7, 0], [8, 8, 0, 0]], [[0, 0, 0, 0], [9, 9, 9, 0]]])
    followed = np.array([[3, 0], [0, 2], [0, 0], [1, 3]])
    token = np.array([[5, 8], [7, 4], [9, 9], [3, 2]])
    begun = best_drafts(followed, token, drafts, np.array([4, 9]), (1,))
    assert begun.tokens.tolist() == [[[7, 7, 7, 5], [8, 8, 4, 0]], [[9, 3, 0, 0], [9, 9, 9, 2]]]
    assert begun.length.tolist() == [[4, 3], [2, 4]]
    assert begun.ended.tolist() == [[True, False], [False, False]]
    assert begun.best.tolist() == [1, 1]  # of what is left of the first prompt, 2 against 0
    assert begun.followed.tolist() == [[0, 2], [1, 3]]


def test_logits_that_are_not_finite_name_their_prompt(small):
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, small.params)
    checkpoint, messages = mock.Mock(params=broken, cfg=small.cfg), []
    for drafts in (None, [[[4]]] * 4):
        with pytest.raises(NotFinite) as error:
            responses(checkpoint, SAMPLINGS[1], drafts, samples=1)
        messages.append((error.value.index, str(error.value)))
    assert messages[0] == messages[1]
