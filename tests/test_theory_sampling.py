"""The sampled statements on collapse: the behaviour of random runs, with bounds for every N.

Means of bounded quantities are checked by Hoeffding's inequality and frequencies by exact binomial
(Clopper–Pearson) intervals, each at a false-alarm rate of DELTA. The tests make fewer than 10,000
such comparisons. By the union bound, a correct implementation fails less than once in 10⁸ runs.
`wrong` versions show that each check has the power to find an error.
"""

import importlib
import math
from contextlib import contextmanager
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markov import from_distribution, law, states
from scipy.stats import beta

from pmc_jax import theory

DELTA = 1e-12
RUNS = 20_000


def assert_mean(values: np.ndarray, expected, width: float = 1.0) -> None:
    """The mean over the first axis of values from an interval of this width (Hoeffding 1963)."""
    radius = width * math.sqrt(math.log(2 / DELTA) / (2 * len(values)))
    assert np.abs(np.mean(values, 0) - expected).max() <= radius


def interval(hits: int, trials: int) -> tuple[float, float]:
    """The Clopper–Pearson interval for the probability of a hit."""
    low = 0.0 if hits == 0 else beta.ppf(DELTA / 2, hits, trials - hits + 1)
    high = 1.0 if hits == trials else beta.isf(DELTA / 2, hits + 1, trials - hits)
    return float(low), float(high)


def assert_probability(hits, expected: float) -> None:
    low, high = interval(int(np.sum(hits)), len(hits))
    assert low <= expected <= high


@contextmanager
def caught():
    """The check inside must fail, because it gets a wrong version."""
    with pytest.raises(AssertionError):
        yield


def keys(seed: int, runs: int = RUNS) -> jax.Array:
    return jax.random.split(jax.random.key(seed), runs)


# Few sizes, because each one compiles; the distributions vary freely.
SIZES = [(2, 3), (5, 4), (30, 2)]  # (N, K)
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def starts(draw):
    N, K = draw(st.sampled_from(SIZES))
    weight = st.one_of(st.floats(0.01, 1.0), st.just(0.0), st.just(1.0))
    weights = draw(st.lists(weight, min_size=K, max_size=K).filter(lambda w: sum(w) > 0))
    return N, jnp.asarray(np.array(weights) / sum(weights), jnp.float32)


@partial(jax.jit, static_argnums=(0, 3, 4))
def _paths(relearn, keys, probs, N, rounds, retain):
    K = len(probs)

    def run(key):
        round_keys = jax.random.split(key, rounds)
        first = theory.draw(round_keys[0], probs, N)

        def fitted(x):
            return theory.frequencies(x if retain is None else jnp.concatenate([x, retain]), K)

        def step(x, key):
            new = relearn(key, x, retain, first)
            return new, fitted(new)

        _, later = jax.lax.scan(step, first, round_keys[1:])
        return jnp.concatenate([probs[None], fitted(first)[None], later])

    return jax.vmap(run)(keys)


def paths(relearn, seed, probs, N, rounds, retain=None) -> np.ndarray:
    """Trajectories [runs, rounds + 1, K] of `relearn(key, categories, retain, first)`."""
    return np.asarray(_paths(relearn, keys(seed), probs, N, rounds, retain))


def of_the_first_round(key, x, retain, first):
    """Wrong: fits and samples the first round's samples in every round."""
    return theory.relearn(key, first, retain)


def without_replacement(key, x, retain, first):
    """Wrong: shuffles the samples, so that none is lost."""
    return jax.random.permutation(key, x)


def of_the_commonest(key, x, retain, first):
    """Wrong: sharpens, because it keeps the more frequent one of two draws."""
    a, b = theory.relearn(key, x), theory.relearn(jax.random.fold_in(key, 1), x)
    count = (x[:, None] == x[None]).sum(1)
    frequency = lambda y: jnp.where(y[:, None] == x[None], count[None], 0).max(1)  # noqa: E731
    return jnp.where(frequency(a) >= frequency(b), a, b)


def right(key, x, retain, first):
    return theory.relearn(key, x, retain)


# --- the functions themselves -------------------------------------------------------------


def assert_law(counts: np.ndarray, expected: np.ndarray) -> None:
    """The share of each count vector against its probability, over `states`."""
    N, K = int(counts[0].sum()), counts.shape[1]
    for outcome, chance in zip(states(N, K), expected, strict=True):
        assert_probability((counts == outcome).all(1), chance)


def counts_of(categories, K: int) -> np.ndarray:
    return np.rint(np.asarray(theory.frequencies(categories, K)) * categories.shape[-1])


def normalised(probs) -> np.ndarray:
    exact = np.asarray(probs, np.float64)
    return exact / exact.sum()


@st.composite
def retained(draw):
    """A start, and the categories of a few retained samples."""
    N, probs = draw(starts())
    M = draw(st.sampled_from([1, 3]))
    category = st.integers(0, len(probs) - 1)
    return N, probs, np.array(draw(st.lists(category, min_size=M, max_size=M)))


@pytest.mark.slow
@settings(max_examples=6)
@given(retained(), SEEDS)
def test_a_round_has_the_multinomial_distribution(case, seed):
    """Counts after `draw`, and after `relearn` with and without retained samples."""
    N, probs, retain = case
    K = len(probs)
    drawn = jax.vmap(theory.draw, (0, None, None))(keys(seed), probs, N)
    assert_law(counts_of(drawn, K), from_distribution(normalised(probs), N))
    state, round_keys = drawn[0], keys(seed + 1)
    again = jax.vmap(theory.relearn, (0, None))(round_keys, state)
    mixed = jax.vmap(theory.relearn, (0, None, None))(round_keys, state, jnp.asarray(retain))
    x, R = (np.bincount(np.asarray(found), minlength=K) for found in (state, retain))
    assert_law(counts_of(again, K), from_distribution(x / N, N))
    right = from_distribution((x + R) / (N + len(retain)), N)
    assert_law(counts_of(mixed, K), right)
    double = from_distribution((x + 2 * R) / (N + 2 * len(retain)), N)
    if np.abs(double - right).max() > 0.1:
        with caught():  # every retained sample counted twice
            assert_law(counts_of(mixed, K), double)


_trajectories = jax.jit(
    jax.vmap(theory.trajectory, (0, None, None, None, None)), static_argnums=(2, 3)
)


@pytest.mark.slow
@settings(max_examples=6)
@given(retained(), st.booleans(), SEEDS)
def test_trajectories_have_the_law_of_the_chain(case, alone, seed):
    """π_3 of `trajectory` against the chain's third power, and not its second or fourth."""
    N, probs, retain = case
    K, M = len(probs), 0 if alone else len(retain)
    R = np.zeros(K, int) if alone else np.bincount(retain, minlength=K)
    found = np.asarray(
        _trajectories(keys(seed), probs, N, 3, None if alone else jnp.asarray(retain))
    )
    assert found.shape == (RUNS, 4, K)
    np.testing.assert_array_equal(found[:, 0], np.broadcast_to(probs, (RUNS, K)))
    counts = np.rint(found[:, 3] * (N + M)) - R
    expected = law(normalised(probs), N, 3, R)
    assert_law(counts, expected)
    for rounds in (2, 4):
        wrong = law(normalised(probs), N, rounds, R)
        if np.abs(wrong - expected).max() > 0.1:
            with caught():
                assert_law(counts, wrong)


# --- model collapse -----------------------------------------------------------------------


def expected_heterozygosity(probs, N, t):
    exact = np.asarray(probs, np.float64)
    return (1 - (exact**2).sum()) * (1 - 1 / N) ** t


def heterozygosity(probs):
    return np.asarray(theory.heterozygosity(jnp.asarray(probs)))


def check_martingale(path, probs, N):
    for t in (1, 2, 24):
        assert_mean(path[:, t], np.asarray(probs))


def check_decay(path, probs, N):
    for t in (1, 3, 6):
        assert_mean(heterozygosity(path[:, t]), expected_heterozygosity(probs, N, t))


def check_survival(path, probs, N):
    K = len(probs)
    for t in (1, 6, 24):
        low, high = interval(((path[:, t] > 0).sum(1) > 1).sum(), RUNS)
        decay = expected_heterozygosity(probs, N, t)
        assert high >= decay / (1 - 1 / K)
        assert low <= min(1, decay * N**2 / (2 * (N - 1)))


@settings(max_examples=5)
@given(starts(), SEEDS)
def test_runs_keep_their_mean_and_lose_their_spread_in_time(start, seed):
    N, probs = start
    path = paths(right, seed, probs, N, 24)
    for check in (check_martingale, check_decay, check_survival):
        check(path, probs, N)
    assert not ((path[:, :-1] == 0) & (path[:, 1:] > 0)).any()  # support never grows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (check_martingale, of_the_commonest),
        (check_decay, of_the_first_round),
        (check_decay, without_replacement),
        (check_survival, of_the_first_round),
        (check_survival, without_replacement),
    ],
)
def test_wrong_relearning_is_caught(check, wrong):
    probs = jnp.array([0.4, 0.3, 0.2, 0.1])
    check(paths(right, 0, probs, 5, 24), probs, 5)
    with caught():
        check(paths(wrong, 0, probs, 5, 24), probs, 5)


NEAR_DEGENERATE = jnp.array([1 - 3e-3, 1e-3, 1e-3, 1e-3])
TIES = jnp.full(5, 0.2)
STARTS = [NEAR_DEGENERATE, TIES, jnp.array([0.5, 0.5]), jnp.array([0.0, 0.7, 0.0, 0.3])]


def check_collapse(probs, N):
    """Proposition C.3: runs end one-hot, in category k with probability π_0(k)."""
    runs, exact = 5000, normalised(probs)
    found = theory.collapse(keys(N, runs), probs, N, 2000)
    assert (found.time > 0).all() and (found.category >= 0).all()
    if N == 1:
        assert (found.time == 1).all()
    for k, chance in enumerate(exact):
        assert_probability(found.category == k, chance)
    start = 1 - (exact**2).sum()
    for t in (1, 4, 16, 64) if N > 1 else ():
        low, high = interval((found.time > t).sum(), runs)
        decay = start * (1 - 1 / N) ** t
        assert high >= decay / (1 - 1 / len(probs)) and low <= decay * N**2 / (2 * (N - 1))


@pytest.mark.parametrize("probs", STARTS)
@pytest.mark.parametrize("N", [1, 2, 9])
def test_every_start_collapses_where_and_when_it_should(probs, N):
    check_collapse(probs, N)


def twice(key, x, retain, first):
    """Wrong: two rounds in one."""
    return theory.relearn(jax.random.fold_in(key, 1), theory.relearn(key, x))


@pytest.mark.parametrize("wrong", [of_the_commonest, twice])
def test_a_wrong_collapse_is_caught(monkeypatch, wrong):
    module = importlib.import_module("pmc_jax.theory.collapse")
    monkeypatch.setattr(module, "relearn", lambda key, x: wrong(key, x, None, None))
    rounds = module._chunk.__wrapped__
    # A new function, so that JAX does not reuse an earlier trace.
    monkeypatch.setattr(module, "_chunk", jax.jit(lambda *arguments: rounds(*arguments)))
    with caught():
        check_collapse(jnp.array([0.4, 0.3, 0.2, 0.1]), 9)


def test_a_run_depends_on_its_own_key_only():
    probs, all_keys = jnp.array([0.5, 0.3, 0.2]), keys(7, 300)
    whole = theory.collapse(all_keys, probs, 20, 400)
    part = theory.collapse(all_keys[33:40], probs, 20, 400)
    np.testing.assert_array_equal(whole.time[33:40], part.time)
    np.testing.assert_array_equal(whole.category[33:40], part.category)
    short = theory.collapse(all_keys, probs, 20, 25)
    early = (whole.time <= 25) & (whole.time > 0)
    np.testing.assert_array_equal(short.time, np.where(early, whole.time, -1))
    np.testing.assert_array_equal(short.category, np.where(early, whole.category, -1))


def test_what_has_collapsed_already_stays():
    found = theory.collapse(keys(0, 3), jnp.array([0.0, 1.0]), 5, 10)
    assert found.time.tolist() == [0, 0, 0] and found.category.tolist() == [1, 1, 1]


# --- partial collapse ---------------------------------------------------------------------


def check_outside(relearn, seed, probs, N, retain):
    retain = jnp.asarray(retain)
    path = paths(relearn, seed, probs, N, 6, retain)
    kept = np.isin(np.arange(len(probs)), retain)
    start, M = float(np.asarray(probs)[~kept].sum()), len(retain)
    a = N / (N + M)
    for t in (1, 3, 6):
        outside = path[:, t][:, ~kept].sum(1)
        assert_mean(outside, start * a**t)
        low, _ = interval((outside > 0).sum(), RUNS)
        assert low <= (N + M) * start * a**t
    assert not ((path[:, 1:-1] == 0) & (path[:, 2:] > 0))[:, :, ~kept].any()


@settings(max_examples=5)
@given(retained(), SEEDS)
def test_mass_outside_the_retain_data_decays(case, seed):
    N, probs, retain = case
    check_outside(right, seed, probs, N, retain)


def without_retain(key, x, retain, first):
    """Wrong: the retain data left out."""
    return theory.relearn(key, x)


def with_retain_twice(key, x, retain, first):
    """Wrong: the retain data count twice."""
    return theory.relearn(key, x, jnp.tile(retain, 2))


MISAPPLIED = [without_retain, with_retain_twice, of_the_first_round]


@pytest.mark.slow
@pytest.mark.parametrize("wrong", MISAPPLIED)
def test_a_misapplied_retain_weight_is_caught(wrong):
    probs = jnp.array([0.2, 0.2, 0.3, 0.3])
    check_outside(right, 1, probs, 5, [0, 0, 1])
    with caught():
        check_outside(wrong, 1, probs, 5, [0, 0, 1])


def check_fluctuation(relearn):
    """After 60 rounds: mean ρ, the variance of the formula, and the whole law of the chain."""
    N, retain = 12, np.array([3, 1, 0])
    M, probs = retain.sum(), jnp.array([0.1, 0.4, 0.5])
    expected = law(normalised(probs), N, 60, retain)
    fitted = (states(N, 3) + retain) / (N + M)
    rho, a = retain / M, N / (N + M)
    variance = a**2 * rho * (1 - rho) / (N * (1 - a**2 * (1 - 1 / N)))
    np.testing.assert_allclose(expected @ fitted, rho, atol=1e-6)
    np.testing.assert_allclose(expected @ (fitted - rho) ** 2, variance, atol=1e-6)
    path = paths(relearn, 3, probs, N, 60, jnp.repeat(jnp.arange(3), retain, total_repeat_length=M))
    assert_law(np.rint(path[:, -1] * (N + M)) - retain, expected)


def test_retained_categories_fluctuate_as_predicted():
    check_fluctuation(right)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", MISAPPLIED)
def test_a_wrong_fluctuation_is_caught(wrong):
    with caught():
        check_fluctuation(wrong)


# --- curated collapse ---------------------------------------------------------------------

REWARDS = jnp.array([0.0, 0.5, 0.5, 2.0])


def check_curated(sample, seed, probs, rewards, n, best):
    """Frequencies of selected samples against the population update."""
    update = theory.argmax_update if best else theory.bradley_terry_update
    expected = np.asarray(update(probs, rewards, n), np.float64)
    found = np.asarray(sample(jax.random.key(seed), probs, rewards, n, RUNS, best=best))
    for k, chance in enumerate(expected):
        # up to float32 rounding of the probability
        low, high = interval((found == k).sum(), RUNS)
        assert low - 1e-6 <= chance <= high + 1e-6


@st.composite
def four(draw):
    """A distribution and rewards over four categories, with ties and zeros."""
    weight = st.one_of(st.floats(0.01, 1), st.just(0.0), st.just(1.0))
    reward = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-2, 2, width=16))
    weights = draw(st.lists(weight, min_size=4, max_size=4).filter(lambda w: sum(w) > 0))
    rewards = draw(st.lists(reward, min_size=4, max_size=4))
    return jnp.asarray(np.array(weights) / sum(weights), jnp.float32), jnp.array(rewards)


@pytest.mark.slow
@settings(max_examples=8)
@given(four(), st.sampled_from([2, 5]), st.booleans(), SEEDS)
def test_selected_samples_follow_the_population(case, n, best, seed):
    check_curated(theory.curated_sample, seed, *case, n, best)


@pytest.mark.parametrize("best", [False, True])
def test_wrong_selection_is_caught(best):
    probs = jnp.full(4, 0.25)

    def least(key, probs, rewards, n, samples, *, best):
        return theory.curated_sample(key, probs, -rewards, n, samples, best=best)

    def other(key, probs, rewards, n, samples, *, best):
        return theory.curated_sample(key, probs, rewards, n, samples, best=not best)

    check_curated(theory.curated_sample, 0, probs, REWARDS, 5, best)
    for wrong in (least, other):
        with caught():
            check_curated(wrong, 0, probs, REWARDS, 5, best)


DRAWS = 200_000


def check_monte_carlo(estimate, seed, probs, rewards, n):
    """The mean of shares in [0, 1] is within δ (Hoeffding), so n p times it is within δ n p(x).

    The sum, which is 1, is then within δ n. Dividing by it leaves an error of at most δ n (p(x) +
    p'(x)) / (1 − δ n), where p' is the exact update.
    """
    exact = np.asarray(theory.bradley_terry_update(probs, rewards, n))
    found = np.asarray(estimate(jax.random.key(seed), probs, rewards, n, DRAWS))
    delta = n * math.sqrt(math.log(2 / DELTA) / (2 * DRAWS))
    radius = delta * (np.asarray(probs) + exact) / (1 - delta)
    assert (np.abs(found - exact) <= radius + 1e-6).all()


@settings(max_examples=6)
@given(four(), st.sampled_from([2, 5]), SEEDS)
def test_monte_carlo_tends_to_the_exact_update(case, n, seed):
    check_monte_carlo(theory.bradley_terry_monte_carlo, seed, *case, n)


def test_a_wrong_monte_carlo_is_caught():
    probs, mc = jnp.array([0.5, 0.2, 0.2, 0.1]), theory.bradley_terry_monte_carlo
    for wrong in (
        lambda key, p, r, n, draws: mc(key, p, -r, n, draws),  # selects the least reward
        lambda key, p, r, n, draws: mc(key, p, r, 2, draws),  # one other sample, whatever n is
        # the other samples are uniform
        lambda key, p, r, n, draws: mc(key, jnp.full(4, 0.25), r, n, draws),
    ):
        with caught():
            check_monte_carlo(wrong, 0, probs, REWARDS, 5)


def test_with_finite_samples_the_best_response_can_be_lost():
    """A round loses x* with probability (1 − p'(x*))^N, and x* never comes back."""
    probs, n, N = jnp.array([0.4, 0.3, 0.29, 0.01]), 3, 10
    kept = float(theory.argmax_update(probs, REWARDS, n)[3])

    def lost(key):
        return (theory.curated_sample(key, probs, REWARDS, n, N, best=True) != 3).all()

    hits = np.asarray(jax.jit(jax.vmap(lost))(keys(5)))
    assert_probability(hits, (1 - kept) ** N)
    with caught():  # the probability without selection
        assert_probability(hits, (1 - 0.01) ** N)
    without = jnp.array([0.4, 0.3, 0.3, 0.0])
    again = theory.curated_sample(jax.random.key(0), without, REWARDS, n, RUNS, best=True)
    assert not (again == 3).any()
