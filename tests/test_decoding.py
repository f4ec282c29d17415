"""The sampler against `generate` of `transformers`, sorts, and exact probabilities."""

import importlib
import re
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
from conftest import SMALL, random_llama, slow_but
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.load import load_checkpoint
from pmc_jax.decoding import (
    RUNNING,
    Decoding,
    Sampling,
    draw,
    filter_threshold,
    generate,
    sampler,
)
from pmc_jax.decoding.draw import greedy, largest
from pmc_jax.decoding.layout import FIRST_LENGTH, shapes
from pmc_jax.model import make_mesh

# Imported with importlib because the package has a function of the same name.
draw_module = importlib.import_module("pmc_jax.decoding.draw")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    model = random_llama(std=0.4, head_dim=16)  # head_dim 16, which the CPU kernels need
    directory = tmp_path_factory.mktemp("decoding")
    model.save_pretrained(directory)
    return model, load_checkpoint(directory)


def decode(checkpoint, prompts, sampling, limit=24, **options):
    return generate(
        checkpoint.params, prompts, cfg=checkpoint.cfg, sampling=sampling,
        limits=[limit] * len(prompts), **{"key": jax.random.key(0), **options},
    )  # fmt: skip


def some_prompts(count, rng, longest=40):
    lengths = rng.integers(1, longest, count)
    return [rng.integers(0, SMALL["vocab_size"], n).tolist() for n in lengths]


@pytest.mark.slow
def test_greedy_equals_transformers_generate_token_for_token(tiny, rng):
    model, checkpoint = tiny
    prompts, stops = some_prompts(200, rng), (1, 17, 40)
    limit = 2 * FIRST_LENGTH + 5
    found = decode(checkpoint, prompts, Sampling(0.0, stop_ids=stops), limit, decode_batch=64)
    lengths = set()
    # Prompts of one length at a time, so that transformers needs no padding.
    for width in {len(prompt) for prompt in prompts}:
        own = [i for i, prompt in enumerate(prompts) if len(prompt) == width]
        tokens = torch.tensor([prompts[i] for i in own])
        with torch.no_grad():
            whole = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=limit,
                do_sample=False, eos_token_id=list(stops), pad_token_id=0,
            )  # fmt: skip
        for i, row in zip(own, whole[:, width:].tolist(), strict=True):
            (response,) = found[i]
            assert response == row[: len(response)]
            # transformers pads after the same end token.
            assert response[-1] in stops or len(response) == limit
            assert not any(row[len(response) :])
            lengths.add(len(response))
    assert min(lengths) < FIRST_LENGTH and max(lengths) == limit


def test_stop_ids_and_min_new_tokens_belong_to_the_call(tiny, rng):
    _, checkpoint = tiny
    prompts = some_prompts(6, rng)
    free = decode(checkpoint, prompts, Sampling(0.0))
    assert all(len(response) == 24 for (response,) in free)
    stop = free[0][0][3]
    stopped = decode(checkpoint, prompts, Sampling(0.0, stop_ids=(stop,)))
    for (response,), (whole,) in zip(stopped, free, strict=True):
        end = whole.index(stop) + 1 if stop in whole else 24
        assert response == whole[:end]
    held = decode(checkpoint, prompts, Sampling(0.0, stop_ids=(stop,), min_new_tokens=10))
    assert all(stop not in response[:10] for (response,) in held)


def test_limits_are_per_prompt(tiny, rng):
    _, checkpoint = tiny
    prompts = some_prompts(5, rng)
    limits = [0, 1, 7, 16, 24]
    free = decode(checkpoint, prompts, Sampling(0.0))
    found = generate(
        checkpoint.params, prompts, cfg=checkpoint.cfg, sampling=Sampling(0.0),
        key=jax.random.key(0), limits=limits,
    )  # fmt: skip
    for (response,), (whole,), limit in zip(found, free, limits, strict=True):
        assert response == whole[:limit]


@pytest.mark.slow
def test_a_response_does_not_depend_on_its_batch(tiny, rng, x64):
    """Nor on its bucket or the decoding options; in float64, so that rounding changes no sample."""
    _, checkpoint = tiny
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), checkpoint.params)
    prompts = some_prompts(9, rng)
    sampling = Sampling(1.0, top_k=30, top_p=0.9, stop_ids=(1,))

    def run(chosen, samples, decode_batch, **options):
        return generate(
            params, [prompts[i] for i in chosen], cfg=checkpoint.cfg, sampling=sampling,
            key=jax.random.key(3), limits=[20] * len(chosen), samples=samples, step=5,
            question_ids=chosen, decode_batch=decode_batch, dtype=jnp.float64, **options,
        )  # fmt: skip

    whole = run(range(9), 4, 512)
    assert len({tuple(response) for row in whole for response in row}) > 18
    pieces = run([7, 2], 4, 512) + run([4], 2, 512)
    assert pieces == [whole[7], whole[2], whole[4][:2]]
    assert run(range(9), 4, 8) == whole
    still = Decoding(chunk=64, compact=False, grow_cache=False)
    assert run(range(9), 4, 512, wave=3, decoding=still) == whole


def sorted_keep(logits: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """The tokens that are kept, by sorting; tied tokens are kept together."""
    keep = np.ones(len(logits), bool)
    if 0 < top_k < len(logits):
        keep = logits >= np.sort(logits)[-top_k]
    if top_p < 1:
        weights = np.where(keep, np.exp(logits - logits.max()), 0.0)
        probabilities = weights / weights.sum()
        order = np.argsort(-logits, kind="stable")
        mass = np.cumsum(probabilities[order])
        last = min(int(np.searchsorted(mass, top_p)), len(mass) - 1)
        keep &= logits >= logits[order[last]]
    return keep


def rows():
    values = st.sampled_from([-3.0, -1.5, -1.0, 0.0, 0.25, 1.0, 2.0])
    smooth = st.floats(-20, 20, width=32)

    def of_size(size):  # few sizes: each is a compilation
        """few sizes, since each one compiles"""
        return st.one_of(st.lists(one, min_size=size, max_size=size) for one in (values, smooth))

    return st.sampled_from([1, 2, 13, 60]).flatmap(of_size)


TOP_KS = st.sampled_from([0, 1, 2, 5, 12, 13, 40, 59, 60, 70])


@pytest.mark.slow
@settings(max_examples=200)
@given(rows(), TOP_KS, st.floats(0.01, 1.0), st.booleans())
def test_the_filter_equals_a_sort(values, top_k, top_p, bisect):
    logits = np.array(values)
    jax.config.update("jax_enable_x64", True)
    small = draw_module.SMALL_TOP_K
    try:
        # Both ways to find the top-k threshold must agree.
        draw_module.SMALL_TOP_K = 0 if bisect else small
        threshold = filter_threshold(jnp.asarray(logits), top_k, top_p)
    finally:
        draw_module.SMALL_TOP_K = small
        jax.config.update("jax_enable_x64", False)
    expected = sorted_keep(logits, top_k, top_p)
    found = logits >= float(threshold[0])
    if not np.array_equal(found, expected):
        # The two may differ only if a mass is within rounding of top_p.
        weights = np.exp(logits - logits.max())
        weights = np.where(sorted_keep(logits, top_k, 1.0), weights, 0)
        smaller = min(found.sum(), expected.sum())
        mass = np.sort(weights)[::-1][:smaller].sum() / weights.sum()
        assert mass == pytest.approx(top_p, abs=1e-12)


@pytest.mark.parametrize("bisect", [False, True])
@pytest.mark.parametrize(
    "logits",
    [
        np.zeros(300, np.float32),
        np.where(np.arange(300) == 123, 50.0, -50.0).astype(np.float32),
        np.repeat([3.0, 2.0, 1.0], 100).astype(np.float32),
        np.linspace(-1e-6, 1e-6, 300, dtype=np.float32),
        np.random.default_rng(0).normal(size=300).astype(np.float32) * 8,
    ],
    ids=["flat", "one-hot", "steps", "nearly flat", "normal"],
)
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (50, 1.0), (50, 0.95), (7, 0.3), (0, 0.05)])
def test_the_filter_on_adversarial_rows(logits, top_k, top_p, bisect, monkeypatch):
    if bisect:
        monkeypatch.setattr(draw_module, "SMALL_TOP_K", 0)
    found = logits >= float(filter_threshold(jnp.asarray(logits), top_k, top_p)[0])
    expected = sorted_keep(logits.astype(np.float64), top_k, top_p)
    np.testing.assert_array_equal(found, expected)


def chi_square_p(counts: np.ndarray, probabilities: np.ndarray) -> float:
    likely = probabilities > 0
    assert counts[~likely].sum() == 0
    expected = probabilities[likely] * counts.sum()
    return scipy.stats.chisquare(counts[likely], expected).pvalue


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (12, 1.0), (0, 0.8), (12, 0.8)])
def test_draws_follow_the_filtered_softmax(top_k, top_p, rng):
    logits = rng.normal(size=300) * 2
    keep = sorted_keep(logits, top_k, top_p)
    weights = np.where(keep, np.exp(logits), 0)
    keys = jax.random.split(jax.random.key(1), 40_000)
    batch = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (40_000, 300))
    tokens = np.asarray(draw(keys, batch, top_k, top_p))
    counts = np.bincount(tokens, minlength=300)
    probabilities = weights / weights.sum()
    common = probabilities * 40_000 >= 5
    pooled = np.append(probabilities[common], probabilities[~common].sum())
    assert chi_square_p(np.append(counts[common], counts[~common].sum()), pooled) > 1e-6
    assert counts[~keep].sum() == 0


@pytest.mark.parametrize(("top_k", "top_p"), [(10, 1.0), (10, 0.99), (10, 0.3), (40, 0.9)])
def test_draws_keep_ties_with_the_last_of_the_top_together(top_k, top_p):
    """30 tokens of weight 3 and 30 of weight 1; top-k ends among tokens of equal weight."""
    logits = np.log(np.repeat([1.0, 3.0, 1.0, 1e-6], [10, 30, 20, 20]))
    logits = logits[np.random.default_rng(0).permutation(80)]
    keep = sorted_keep(logits, top_k, top_p)
    assert keep.sum() == (60 if top_k == 40 else 30)
    keys = jax.random.split(jax.random.key(1), 40_000)
    batch = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (40_000, 80))
    counts = np.bincount(np.asarray(draw(keys, batch, top_k, top_p)), minlength=80)
    weights = np.where(keep, np.exp(logits), 0)
    assert chi_square_p(counts, weights / weights.sum()) > 1e-6


def drawn_by_sorting(uniform, logits, top_k, top_p):
    """The token by inversion: largest first, ties by lower index, ties beyond top-k last."""
    order = np.lexsort((np.arange(len(logits)), -logits))
    weights = np.exp(logits[order] - logits.max())
    weights[~sorted_keep(logits, top_k, top_p)[order]] = 0
    return order[np.argmax(np.cumsum(weights) > uniform * weights.sum())]


@pytest.mark.parametrize("distinct", [3, 10**6])
@pytest.mark.parametrize(("top_k", "top_p"), [(7, 0.9), (50, 1.0), (50, 0.7)])
@pytest.mark.parametrize("vocab", [300, 16_391])
def test_draws_are_those_of_a_sort(vocab, top_k, top_p, distinct, rng):
    """Rows with ties at the top-k threshold and rows without, in one call, in float64."""
    logits = rng.integers(0, distinct, (24, vocab)) * (6 / distinct)
    logits[::3] = rng.normal(size=(8, vocab))
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(1), 24)
        logits = jnp.asarray(logits)
        found = jax.jit(draw, static_argnums=(2, 3))(keys, logits, top_k, top_p, 0.7)
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float64))(keys)
        scaled = np.asarray(jnp.asarray(logits) * (1 / jnp.asarray(0.7)))
    expected = [
        drawn_by_sorting(*row, top_k, top_p)
        for row in zip(np.asarray(uniform), scaled, strict=True)
    ]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("vocab", [300, 20_000])
@pytest.mark.parametrize("given", [True, False], ids=["given temperature", "any temperature"])
def test_ties_in_one_row_change_no_other(vocab, given, native, rng):
    """Also after a soft cap in the same compiled function, whose scaling XLA may move."""
    x = rng.normal(size=(64, vocab)).astype(np.float32) * 20
    x[0] = rng.integers(0, 3, vocab)
    without = np.concatenate([rng.normal(size=(1, vocab)).astype(np.float32), x[1:]])

    @jax.jit
    def sampled(keys, x, temperature):
        capped = 30 * jnp.tanh(x / 30)
        return draw(keys, capped, 7, 0.9, 0.9 if given else temperature)

    found, expected = [], []
    for number in range(20):
        keys = jax.random.split(jax.random.key(number), 64)
        found.append(sampled(keys, x, 0.9))
        expected.append(sampled(keys, without, 0.9))
    found, expected = np.stack(found), np.stack(expected)
    np.testing.assert_array_equal(found[:, 1:], expected[:, 1:])
    assert (x[0, found[:, 0]] == 2).all()


@pytest.mark.parametrize("vocab", [300, 20_000])
@pytest.mark.parametrize("on_a_mesh", [False, True])
def test_no_row_is_sorted(vocab, on_a_mesh, native):
    """XLA sorts the whole row unless it recognises that only the largest values are used."""
    keys, logits = jax.random.split(jax.random.key(0), 24), jnp.zeros((24, vocab))
    with jax.set_mesh(make_mesh(1, 1)) if on_a_mesh else nullcontext():
        lowered = jax.jit(draw, static_argnums=(2, 3)).lower(keys, logits, 7, 0.9, 0.7)
        text = lowered.compile().as_text()
    assert not re.search(rf"24,{vocab}\].* sort\(", text)
    if jax.default_backend() != "cpu":  # other backends find the largest under other names
        return
    called = set(re.findall(r'custom_call_target="(\w+)"', text))
    if native == "kernels" and not on_a_mesh:
        assert len(called) == 1 and called.pop().endswith("_top_k")
    else:
        assert called == {"TopK"}


@pytest.mark.parametrize("distinct", [3, 40, 10_000])
@pytest.mark.parametrize("count", [1, 7, 50])
def test_the_largest_of_a_large_vocabulary(distinct, count, native, rng):
    """Tokens and order of `lax.top_k`, which prefers the lower index, also with many ties."""
    logits = jnp.asarray(rng.integers(0, distinct, (4, 16_391)), jnp.float32)
    for found, expected in zip(
        jax.jit(largest, static_argnums=1)(logits, count), jax.lax.top_k(logits, count), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_greedy_takes_the_first_of_the_largest(rng):
    logits = rng.integers(0, 4, (50, 7)).astype(np.float32)
    np.testing.assert_array_equal(greedy(jnp.asarray(logits)), logits.argmax(-1))


def test_sampled_pairs_of_tokens_follow_the_model(tiny):
    """Temperature, top-k and top-p together, over the first two tokens of a response."""
    model, checkpoint = tiny
    prompt, temperature, top_k, top_p = [5, 9, 33], 0.7, 6, 0.85

    def probabilities(tokens):
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0, -1].double().numpy() / temperature
        weights = np.where(sorted_keep(logits, top_k, top_p), np.exp(logits - logits.max()), 0)
        return weights / weights.sum()

    first = probabilities(prompt)
    joint = {
        (a, b): first[a] * second[b]
        for a in np.flatnonzero(first)
        for second in [probabilities([*prompt, int(a)])]
        for b in np.flatnonzero(second)
    }
    sampling = Sampling(temperature, top_k, top_p)
    (responses,) = decode(checkpoint, [prompt], sampling, 2, samples=20_000, decode_batch=20_000)
    counts = dict.fromkeys(joint, 0)
    for response in responses:
        counts[tuple(response)] += 1
    pairs = list(joint)
    p = chi_square_p(np.array([counts[x] for x in pairs]), np.array([joint[x] for x in pairs]))
    assert p > 1e-6


@pytest.mark.parametrize(
    ("top_k", "top_p"),
    slow_but([(7, 0.9), (50, 1.0)], [(0, 1.0), (0, 0.8), (200, 0.8), (7, 0.9), (50, 1.0)]),
)
def test_draws_of_one_row_are_those_of_equal_rows(top_k, top_p, native, rng):
    """Also for tokens that tie at the top-k threshold."""
    logits = jnp.asarray(rng.integers(0, 9, (6, 300)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), (6, 40))
    drawn = jax.jit(draw, static_argnums=(2, 3))
    each = jnp.broadcast_to(logits[:, None], (6, 40, 300))
    found = drawn(keys, logits, top_k, top_p, 0.7)
    np.testing.assert_array_equal(found, drawn(keys, each, top_k, top_p, 0.7))
    assert (found != found[:, :1]).any(1).all()


def test_draw_never_takes_a_token_without_weight():
    """The largest uniform numbers below 1 meet trailing zero weights, where rounding could slip."""
    logits = jnp.full((5000, 257), -jnp.inf).at[:, 3].set(0.0).at[:, 129].set(-12.0)
    tokens = draw(jax.random.split(jax.random.key(0), 5000), logits)
    assert set(np.asarray(tokens).tolist()) <= {3, 129}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("samples", "limits", "expected", "asked"),
    [
        # Of eight prompts with 16 samples, two are left, then one, whose cache grows.
        (
            16, [3] * 6 + [9, 40],
            [((8, 16), 16, 2), ((8, 8), 16, 14), ((8, 2), 48, 23)], [0, 32, 16],
        ),
        # 95 running samples of nineteen prompts do not fit the shape (32, 3); 45 of nine do.
        (
            5, [3] * 13 + [6] * 10 + [12] * 9,
            [((32, 5), 16, 2), ((32, 5), 16, 3), ((32, 3), 16, 6)], [0, 95, 45],
        ),
    ],
    ids=["few prompts", "many prompts"],
)  # fmt: skip
def test_a_chunk_ends_when_what_is_left_fits_a_smaller_shape(
    samples, limits, expected, asked, tiny, rng, monkeypatch
):
    """Only samples that still run are considered for pruning."""
    _, checkpoint = tiny
    steps, running, decode_chunk = [], [], sampler.decode_chunk

    def noting(params, prefix, state, until, few, **options):
        first, shape, room = int(state.step), state.tokens.shape[:2], state.suffix.length
        state = decode_chunk(params, prefix, state, until, few, **options)
        steps.append((shape, room, int(state.step) - first))
        return state

    def prune(places, found):
        running.append(int((found.status == RUNNING).sum()))
        return np.zeros(found.status.shape, bool)

    def decoded(prune=None, **options):
        return generate(
            checkpoint.params, prompts, cfg=checkpoint.cfg, sampling=Sampling(1.0),
            key=jax.random.key(0), limits=limits, samples=samples, prune=prune,
            decoding=Decoding(**options),
        )  # fmt: skip

    prompts = some_prompts(len(limits), rng, longest=8)
    plain = decoded(chunk=64, compact=False, grow_cache=False)
    monkeypatch.setattr(sampler, "decode_chunk", noting)
    assert decoded(prune, chunk=64) == plain
    assert steps == expected
    assert running == asked


@pytest.mark.slow
def test_calls_with_prompts_up_to_a_length_share_few_widths(tiny, rng, monkeypatch):
    _, checkpoint = tiny
    widths, prefill = [], sampler.prefill_prompts

    def noting(params, tokens, *arguments, **options):
        widths.append(tokens.shape[1])
        return prefill(params, tokens, *arguments, **options)

    monkeypatch.setattr(sampler, "prefill_prompts", noting)
    for length, own, shared in (
        (7, 16, 24),
        (23, 24, 24),
        (25, 32, 48),
        (40, 48, 48),
        (50, 64, 64),
    ):
        prompt = rng.integers(3, 97, length).tolist()
        alone, along = (
            generate(
                checkpoint.params, [prompt], cfg=checkpoint.cfg, sampling=Sampling(0.0),
                key=jax.random.key(0), limits=[4], longest_prompt=longest,
            )
            for longest in (0, 40)
        )  # fmt: skip
        assert alone == along
        assert widths[-2:] == [own, shared]


def test_shapes_are_few_so_that_nothing_recompiles(tiny, rng):
    """Batches of 17 to 32 prompts of up to 16 tokens share one compiled function.

    With compaction there is one for each shape.
    """
    _, checkpoint = tiny

    def compiled(counts, **options):
        for count in counts:
            prompts = [rng.integers(0, 97, rng.integers(9, 16)).tolist() for _ in range(count)]
            sampling = Sampling(1.0, stop_ids=(1,))
            decode(checkpoint, prompts, sampling, 12, decode_batch=64, **options)
        return sampler.prefill_prompts._cache_size(), sampler.decode_chunk._cache_size()

    still = {"decoding": Decoding(compact=False)}
    before = compiled([32], **still)
    assert compiled([17, 25, 31], **still) == before
    prefills, chunks = compiled([32, 17, 25, 31], decoding=Decoding(chunk=1))
    assert prefills == before[0]
    assert chunks < before[1] + len(shapes(64, 1))
