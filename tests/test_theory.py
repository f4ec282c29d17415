"""The exact statements on collapse: Markov chains, brute force and closed forms, no sampling.

docs/theory.md names the test of each step of the proofs. A `wrong` version beside a statement shows
that its check would find an error.
"""

import itertools
import math
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from markov import from_distribution, states, transition

from pmc_jax import theory
from pmc_jax.theory.curated import compositions

# Compiled as a whole, once for each n and number of categories.
bradley_terry_update, argmax_update = (
    jax.jit(update, static_argnums=2)
    for update in (theory.bradley_terry_update, theory.argmax_update)
)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@contextmanager
def caught():
    """The check inside must fail, because it gets a wrong version."""
    with pytest.raises(AssertionError):
        yield


@st.composite
def distributions(draw, min_size=1, max_size=6, zeros=True):
    """Distributions with ties, zeros, one-hot and nearly degenerate ones, and ordinary ones."""
    weight = st.one_of(
        st.just(1.0), st.floats(1e-3, 1.0), st.just(1e-9), *([st.just(0.0)] if zeros else [])
    )
    weights = np.array(draw(st.lists(weight, min_size=min_size, max_size=max_size)))
    assume(weights.sum() > 0)
    return weights / weights.sum()


@st.composite
def rewarded(draw, zeros=True):
    """A distribution and rewards, with ties."""
    probs = draw(distributions(2, 4, zeros))
    # XLA treats subnormal numbers as 0, so they would tie with 0.
    reward = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-2, 2, allow_subnormal=False))
    rewards = draw(st.lists(reward, min_size=len(probs), max_size=len(probs)))
    return probs, np.array(rewards)


SMALL = st.sampled_from([(1, 3), (2, 2), (3, 3), (5, 2), (4, 3), (3, 4)])  # (N, K)


def evolve(probs, N, rounds, retain=None):
    """Distributions over `states` after rounds 1, 2, … from π_0 = `probs`."""
    law, step = from_distribution(probs, N), transition(N, len(probs), retain)
    for _ in range(rounds):
        yield law
        law = law @ step


@st.composite
def chains(draw):
    N, K = draw(SMALL)
    return N, draw(distributions(K, K))


# --- model collapse -----------------------------------------------------------------------


def check_martingale(laws, probs, N):
    counts = states(N, len(probs))
    for law in laws:
        np.testing.assert_allclose(law @ counts / N, probs, atol=1e-12)


def check_decay(laws, probs, N):
    h = np.asarray(theory.heterozygosity(jnp.asarray(states(N, len(probs)) / N)))
    start = 1 - (probs**2).sum()
    for t, law in enumerate(laws, 1):
        np.testing.assert_allclose(law @ h, start * (1 - 1 / N) ** t, atol=1e-12)


def check_survival(laws, probs, N):
    """P(not collapsed at t) lies between its bounds; the lower one also holds for t = 0."""
    K = len(probs)
    start = 1 - (probs**2).sum()
    assert float((probs > 0).sum() > 1) >= start / (1 - 1 / K) - 1e-12
    mixed = (states(N, K) > 0).sum(1) > 1
    for t, law in enumerate(laws, 1):
        alive, decay = law[mixed].sum(), start * (1 - 1 / N) ** t
        assert alive >= decay / (1 - 1 / K) - 1e-12
        if N > 1:
            assert alive <= min(1, decay * N**2 / (2 * (N - 1))) + 1e-12
        else:
            assert alive == 0


@given(chains())
def test_relearning_is_a_martingale(chain):
    N, probs = chain
    counts = states(N, len(probs))
    np.testing.assert_allclose(transition(N, len(probs)) @ counts, counts, atol=1e-12)
    check_martingale(evolve(probs, N, 6), probs, N)


@given(chains())
def test_heterozygosity_shrinks_by_exactly_one_over_n(chain):
    N, probs = chain
    check_decay(evolve(probs, N, 8), probs, N)


@given(st.integers(2, 9), st.integers(2, 4))
def test_what_has_not_collapsed_has_a_least_spread(N, K):
    """Step 4 of the proof: the smallest H of a mixed state has N − 1 samples in one category."""
    counts = states(N, K)
    h = np.asarray(theory.heterozygosity(jnp.asarray(counts / N)))
    mixed = (counts > 0).sum(1) > 1
    np.testing.assert_allclose(h[~mixed], 0, atol=1e-15)
    assert h[mixed].min() == pytest.approx(2 * (N - 1) / N**2, abs=1e-15)
    assert h.max() <= 1 - 1 / K + 1e-15


@given(chains())
def test_collapse_is_certain_with_the_probabilities_of_the_start(chain):
    N, probs = chain
    counts = states(N, len(probs))
    law = from_distribution(probs, N) @ np.linalg.matrix_power(transition(N, len(probs)), 4096)
    absorbed = [law[(counts[:, k] == N)].sum() for k in range(len(probs))]
    np.testing.assert_allclose(absorbed, probs, atol=1e-9)


@given(chains())
def test_the_chance_of_not_having_collapsed_has_geometric_bounds(chain):
    N, probs = chain
    check_survival(evolve(probs, N, 60), probs, N)


@given(chains())
def test_support_never_grows(chain):
    N, probs = chain
    counts, step = states(N, len(probs)), transition(N, len(probs))
    gained = (counts[:, None] == 0) & (counts[None] > 0)
    assert (step[gained.any(-1)] == 0).all()


SMOOTHED = (states(4, 3) + 0.1) / (4 + 0.1 * 3)
WRONG_CHAINS = {
    "fits with pseudo-counts": np.stack([from_distribution(p, 4) for p in SMOOTHED]),
    "shuffles the samples": np.eye(len(SMOOTHED)),
}


@pytest.mark.parametrize("check", [check_martingale, check_decay, check_survival])
@pytest.mark.parametrize("wrong", WRONG_CHAINS)
def test_the_chain_checks_notice_a_wrong_chain(check, wrong):
    N, probs = 4, np.array([0.6, 0.3, 0.1])
    laws = [from_distribution(probs, N)]
    for _ in range(60):
        laws.append(laws[-1] @ WRONG_CHAINS[wrong])
    if check is check_martingale and wrong == "shuffles the samples":
        check(laws, probs, N)  # a shuffle keeps the mean, but nothing else
    else:
        with caught():
            check(laws, probs, N)


# --- partial collapse ---------------------------------------------------------------------


@st.composite
def retained_chains(draw):
    N, K = draw(SMALL)
    retain = np.array(draw(st.lists(st.integers(0, 4), min_size=K, max_size=K)))
    assume(retain.sum() > 0)
    return N, draw(distributions(K, K)), retain


@given(retained_chains())
def test_mass_outside_the_retain_data_decays_and_vanishes(chain):
    N, probs, retain = chain
    M = retain.sum()
    a = N / (N + M)
    fitted = (states(N, len(probs)) + retain) / (N + M)
    outside = np.asarray(theory.outside_mass(jnp.asarray(fitted), jnp.asarray(retain > 0)))
    start = probs[retain == 0].sum()
    for t, law in enumerate(evolve(probs, N, 20, retain), 1):
        np.testing.assert_allclose(law @ outside, start * a**t, atol=1e-12)
        assert law[outside > 1e-12].sum() <= (N + M) * start * a**t + 1e-12


@given(retained_chains())
def test_what_is_lost_outside_the_retain_data_stays_lost(chain):
    N, probs, retain = chain
    counts, step = states(N, len(probs)), transition(N, len(probs), retain)
    gained = (counts[:, None] == 0) & (counts[None] > 0) & (retain == 0)
    assert (step[gained.any(-1)] == 0).all()


def stationary_moments(N, retain):
    """Mean and variance of π at stationarity, from the chain restricted to supp(R)."""
    kept = retain[retain > 0]
    counts, step = states(N, len(kept)), transition(N, len(kept), kept)
    law = np.linalg.matrix_power(step, 1 << 14)[0]
    fitted = (counts + kept) / (N + kept.sum())
    mean = law @ fitted
    return mean, law @ (fitted - mean) ** 2


@settings(max_examples=30)
@given(SMALL, st.lists(st.integers(0, 4), min_size=4, max_size=4))
def test_retained_categories_are_stationary_around_their_share(size, retain):
    N, K = size
    retain = np.array(retain[:K])
    assume(retain.sum() > 0)
    M = retain.sum()
    rho, a = retain[retain > 0] / M, N / (N + M)
    mean, variance = stationary_moments(N, retain)
    np.testing.assert_allclose(mean, rho, atol=1e-10)

    def expected(a):
        return a**2 * rho * (1 - rho) / (N * (1 - a**2 * (1 - 1 / N)))

    np.testing.assert_allclose(variance, expected(a), atol=1e-10)
    if len(rho) > 1:
        with caught():  # every retained sample counted twice
            np.testing.assert_allclose(variance, expected(N / (N + 2 * M)), atol=1e-10)


# --- infinite data ------------------------------------------------------------------------


@st.composite
def pairs(draw):
    K = draw(st.integers(2, 6))
    return draw(distributions(K, K)), draw(distributions(K, K))


def check_contraction(update, p, q, weight):
    start, retain = jnp.asarray(p), jnp.asarray(q)
    found = start
    for t in range(1, 6):
        last, found = found, update(found, retain, weight)
        before, after = (theory.total_variation(x, retain) for x in (last, found))
        assert float(after) == pytest.approx(float(before) / (1 + weight), abs=1e-14)
        expected = theory.retain_closed_form(start, retain, weight, t)
        np.testing.assert_allclose(found, expected, atol=1e-14)


@settings(max_examples=40)
@given(pairs(), st.floats(0.05, 5))
def test_infinite_data_contracts_to_the_retain_distribution(pair, weight):
    p, q = pair
    check_contraction(theory.retain_update, p, q, weight)
    if np.abs(p - q).sum() > 0.1:
        with caught():  # the weight on the wrong term
            check_contraction(lambda x, r, w: (w * x + r) / (1 + w), p, q, weight + 1.1)


@settings(max_examples=50)
@given(pairs(), st.floats(0.05, 5), st.lists(st.floats(0.01, 1), min_size=6, max_size=6))
def test_the_retain_update_minimises_the_objective(pair, weight, weights):
    p, q = pair
    other = np.array(weights[: len(p)]) / sum(weights[: len(p)])

    def loss(x):
        return -scipy.special.xlogy(p, x).sum() - weight * scipy.special.xlogy(q, x).sum()

    best = np.asarray(theory.retain_update(jnp.asarray(p), jnp.asarray(q), weight))
    assert loss(best) <= loss(other) + 1e-12
    assert loss(best) <= loss(0.9 * best + 0.1 * other) + 1e-12


# --- curated collapse ---------------------------------------------------------------------


def brute_force(probs, rewards, n, choose):
    """The distribution of the chosen one of n ordered draws, by enumerating all draws."""
    drawn = np.array(list(itertools.product(range(len(probs)), repeat=n)))
    chosen = probs[drawn].prod(1, keepdims=True) * choose(rewards[drawn])
    return np.bincount(drawn.ravel(), chosen.ravel(), minlength=len(probs))


def bradley_terry(rewards):
    return scipy.special.softmax(rewards, axis=1)


def first_best(rewards):
    return np.arange(rewards.shape[1]) == rewards.argmax(1)[:, None]


UPDATES = [(bradley_terry_update, bradley_terry), (argmax_update, first_best)]


def test_iterate_repeats_and_normalises():
    start, retain = jnp.array([0.2, 0.3, 0.5]), jnp.array([1.0, 0.0, 0.0])
    path = theory.iterate(lambda p: 3 * theory.retain_update(p, retain, 0.5), start, 4)
    for t, found in enumerate(path):
        expected = theory.retain_closed_form(start, retain, 0.5, t)
        np.testing.assert_allclose(found, expected, atol=1e-14)


@pytest.mark.slow
@settings(max_examples=40)
@given(rewarded(), st.integers(1, 4))
def test_curated_updates_equal_enumeration(case, n):
    probs, rewards = case
    for update, choose in UPDATES:
        found = update(jnp.asarray(probs), jnp.asarray(rewards), n)
        expected = brute_force(probs, rewards, n, choose)
        np.testing.assert_allclose(found, expected, atol=1e-13)
        wrong = brute_force(probs, -rewards, n, choose)  # selects the least reward instead
        if np.abs(wrong - expected).max() > 1e-6:
            with caught():
                np.testing.assert_allclose(found, wrong, atol=1e-13)


@pytest.mark.slow
@settings(max_examples=15)
@given(rewarded(), st.integers(1, 4))
def test_single_precision_is_enough(case, n):
    probs, rewards = case
    # values that single precision can represent
    rewards = np.float32(np.round(rewards, 2)).astype(float)
    with jax.enable_x64(False):
        for update, choose in UPDATES:
            found = update(jnp.asarray(probs), jnp.asarray(rewards), n)
            assert found.dtype == jnp.float32
            expected = brute_force(probs, rewards, n, choose)
            np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-30)


@pytest.mark.parametrize("update", [update for update, _ in UPDATES])
@pytest.mark.parametrize("single", [True, False])
def test_the_rarest_response_wins_if_it_is_the_best(update, single):
    """A probability of 10⁻³⁰ grows n-fold in a round; rounding must not lose it."""
    n, rarest = 3, 1e-30
    with jax.enable_x64(not single):
        start = jnp.array([0.7, 0.3, rarest])
        rewards = jnp.array([0.0, 1.0, 60.0])
        path = np.asarray(theory.iterate(lambda p: update(p, rewards, n), start, 80))
    np.testing.assert_allclose(path[:20, 2], rarest * float(n) ** np.arange(20), rtol=1e-4)
    np.testing.assert_allclose(path[-1], [0, 0, 1], atol=1e-7)


@pytest.mark.parametrize("K", [1, 2, 5])
def test_equal_rewards_change_nothing(K):
    probs, rewards = jnp.arange(1.0, K + 1) / sum(range(1, K + 1)), jnp.full(K, -3.0)
    for n in (1, 2, 5):
        for update, _ in UPDATES:
            found = jax.jit(update, static_argnums=2)(probs, rewards, n)
            np.testing.assert_allclose(found, probs, atol=1e-14)
    np.testing.assert_allclose(theory.bradley_terry_limit(probs, rewards), probs, atol=1e-14)


def test_argmax_of_infinitely_many_takes_the_best():
    found = argmax_update(jnp.array([0.5, 0.3, 0.2]), jnp.array([0.0, 2.0, 1.0]), 100_000)
    np.testing.assert_allclose(found, [0, 1, 0], atol=1e-14)


@given(st.integers(0, 6), st.integers(1, 4))
def test_compositions_are_all_there(total, K):
    expected = {c for c in itertools.product(range(total + 1), repeat=K) if sum(c) == total}
    found = compositions(total, K)
    assert {tuple(row) for row in found} == expected and len(found) == len(expected)


def test_too_many_compositions_are_refused():
    with pytest.raises(ValueError, match="bradley_terry_monte_carlo"):
        bradley_terry_update(jnp.full(20, 0.05), jnp.arange(20.0), 20)


def check_improvement(update, probs, rewards, n):
    """In one round every increasing function of the reward gains, and e^r by at least the bound."""
    p, new = jnp.asarray(probs), update(jnp.asarray(probs), jnp.asarray(rewards), n)
    for level in rewards:  # step functions generate all increasing functions
        for step in (rewards >= level, rewards > level):
            assert float((new * step).sum()) >= float((p * step).sum()) - 1e-13
    gained = np.exp(rewards)
    mean, variance = theory.mean_and_variance(p, jnp.asarray(gained))
    highest = np.exp(rewards[probs > 0].max())
    bound = (1 - 1 / n) * float(variance) / highest
    assert float((new * gained).sum() - mean) >= bound - 1e-13


@pytest.mark.slow
@settings(max_examples=25)
@given(rewarded(), st.integers(2, 6))
def test_rewards_never_decrease_and_gain_what_is_promised(case, n):
    probs, rewards = case
    check_improvement(bradley_terry_update, probs, rewards, n)
    check_improvement(argmax_update, probs, rewards, n)
    check_improvement(lambda p, r, n: theory.bradley_terry_limit(p, r), probs, rewards, math.inf)
    spread = rewards[probs > 1e-3]
    if np.ptp(spread) > 0.1:
        with caught():
            check_improvement(lambda p, r, n: bradley_terry_update(p, -r, n), probs, rewards, n)


@settings(max_examples=10)
@given(st.floats(0.01, 0.99), st.floats(0, 2))
def test_bradley_terry_tends_to_its_limit_in_n(share, reward):
    p, r = jnp.array([share, 1 - share]), jnp.array([reward, 0.0])
    limit = theory.bradley_terry_limit(p, r)
    np.testing.assert_allclose(limit, p * np.exp(r) / (p * np.exp(r)).sum(), atol=1e-14)
    distances = [
        float(theory.total_variation(bradley_terry_update(p, r, n), limit)) for n in (64, 512, 4096)
    ]
    # The distance has order 1/n: with eight times the samples it is an eighth.
    for before, after in itertools.pairwise(distances):
        assert after <= before / 6 + 1e-11  # rounding of 4,096 terms


def maximisers(probs, rewards):
    """p_0 restricted to the categories with the largest reward in its support."""
    kept = np.where(rewards == rewards[probs > 0].max(), probs, 0)
    return kept / kept.sum()


@settings(max_examples=8)
@given(rewarded(), st.integers(2, 4))
def test_curation_ends_in_the_start_restricted_to_the_best(case, n):
    probs, rewards = case
    rewards = np.round(rewards)  # the gap between the best reward and the others sets the speed
    limit = maximisers(probs, rewards)
    for update in (
        lambda p: bradley_terry_update(p, jnp.asarray(rewards), n),
        lambda p: theory.bradley_terry_limit(p, jnp.asarray(rewards)),
        lambda p: argmax_update(p, jnp.asarray(rewards), n),
    ):
        path = theory.iterate(update, jnp.asarray(probs), 200)
        np.testing.assert_allclose(path[-1], limit, atol=1e-9)
        mean, variance = theory.mean_and_variance(path, jnp.asarray(rewards))
        assert float(mean[-1]) == pytest.approx(rewards[probs > 0].max(), abs=1e-8)
        assert float(variance[-1]) < 1e-8
    if np.ptp(rewards[probs > 0]) > 0:
        with caught():
            np.testing.assert_allclose(limit, maximisers(probs, -rewards), atol=1e-9)


@settings(max_examples=60)
@given(rewarded(), st.integers(2, 20), st.integers(1, 5))
def test_argmax_takes_the_rest_to_its_nth_power(case, n, rounds):
    probs, rewards = case
    best = rewards == rewards[probs > 0].max()
    path = [jnp.asarray(probs)]
    for _ in range(rounds):
        path.append(argmax_update(path[-1], jnp.asarray(rewards), n))
    rest = np.array(path)[:, ~best].sum(1)
    np.testing.assert_allclose(rest, rest[0] ** (float(n) ** np.arange(rounds + 1)), atol=1e-12)


@settings(max_examples=25)
@given(rewarded(), st.integers(2, 4))
def test_argmax_is_bradley_terry_at_temperature_zero(case, n):
    probs, rewards = case
    rewards = np.round(rewards, 1)
    cold = bradley_terry_update(jnp.asarray(probs), jnp.asarray(rewards / 1e-3), n)
    best = argmax_update(jnp.asarray(probs), jnp.asarray(rewards), n)
    np.testing.assert_allclose(cold, best, atol=1e-12)


@given(rewarded(), st.integers(2, 10), st.floats(-1e-6, 1e-6))
def test_an_error_in_the_mass_grows_n_fold(case, n, error):
    """Why `iterate` normalises: otherwise the mass is raised to its n-th power each round."""
    probs, rewards = case
    mass = argmax_update(jnp.asarray(probs * (1 + error)), jnp.asarray(rewards), n).sum()
    assert float(mass) == pytest.approx((1 + error) ** n, abs=1e-12)


# --- statistics ---------------------------------------------------------------------------


@given(pairs())
def test_statistics_equal_scipy(pair):
    p, q = pair
    values = np.arange(len(p)) ** 2.0
    law = scipy.stats.rv_discrete(values=(values, p)) if (p > 0).all() else None
    assert float(theory.kl_divergence(jnp.asarray(p), jnp.asarray(q))) == pytest.approx(
        scipy.stats.entropy(p, q), abs=1e-12
    )
    subsets = itertools.product([False, True], repeat=len(p))
    largest = max(p[list(s)].sum() - q[list(s)].sum() for s in map(np.array, subsets))
    found = float(theory.total_variation(jnp.asarray(p), jnp.asarray(q)))
    assert found == pytest.approx(largest, abs=1e-12)
    if law is not None:
        mean, variance = theory.mean_and_variance(jnp.asarray(p), jnp.asarray(values))
        assert float(mean) == pytest.approx(law.mean(), abs=1e-9)
        assert float(variance) == pytest.approx(law.var(), abs=1e-8)


def test_collapse_time_is_the_first_one_hot_round():
    path = jnp.array([[0.5, 0.5], [0.9, 0.1], [1.0, 0.0], [1.0, 0.0]])
    assert int(theory.collapse_time(path)) == 2
    assert int(theory.collapse_time(path[:2])) == -1
    assert int(theory.collapse_time(path[2:])) == 0
    batch = jnp.stack([path[:2], path[1:3], path[2:]])
    assert theory.collapse_time(batch).tolist() == [-1, 1, 0]
