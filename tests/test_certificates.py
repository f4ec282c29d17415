"""Certified leakage: closed forms, brute force, and coverage by simulation."""

import itertools

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from pmc_jax.evaluation.certificates import (
    THRESHOLDS,
    Band,
    certify,
    clopper_pearson,
    deviation_bound,
    dkw_band,
    in_words,
    mean_bound,
    mean_leak_bound,
    pooled_band,
)
from pmc_jax.evaluation.leakage import expected_maxima, greedy_leakage, leakage
from pmc_jax.evaluation.quality import Answer

RUNS = 400


@pytest.mark.parametrize(("leaks", "samples"), [(0, 100), (3, 100), (99, 100), (100, 100), (0, 1)])
def test_clopper_pearson_inverts_the_binomial(leaks, samples):
    bound = clopper_pearson(leaks, samples, 0.99)
    if leaks == samples:
        assert bound == 1
        return
    assert scipy.stats.binom.cdf(leaks, samples, bound) == pytest.approx(0.01, rel=1e-6)


def test_no_leak_has_a_closed_form():
    assert clopper_pearson(0, 100, 0.99) == pytest.approx(1 - 0.01**0.01, rel=1e-6)


def test_hoeffdings_condition_holds_from_three_quarters_on():
    """At a confidence of 0.75 or more, the bound is at least (leaks + 1)/samples."""
    for samples in (*range(1, 60), 500, 3000):
        leaks = np.arange(samples - 1)
        assert (scipy.stats.binom.cdf(leaks, samples, (leaks + 1) / samples) >= 0.25).all()


def test_clopper_pearson_covers_unequal_probabilities():
    rng = np.random.default_rng(0)
    chances = rng.beta(0.3, 3.0, 40)
    leaks = (rng.random((RUNS, 40, 5)) < chances[None, :, None]).sum(axis=(1, 2))
    held = [chances.mean() <= mean_leak_bound(int(count), 200, 0.9) for count in leaks]
    # Far enough below 0.9 that a correct bound fails for one seed in about 10,000.
    assert np.mean(held) > 0.9 - 3.7 * np.sqrt(0.09 / RUNS)


def test_one_answer_that_did_not_leak_bounds_unequal_probabilities():
    """All samples leak but one, which leaks with probability 1 − miss, so coverage is exact."""
    samples, confidence = 10, 0.9
    misses = np.linspace(0, 1, 1001)

    def fails(bound: float) -> np.ndarray:
        return (1 - misses / samples > bound) & (misses > 1 - confidence + 1e-12)

    assert fails(clopper_pearson(samples - 1, samples, confidence)).any()
    assert not fails(mean_leak_bound(samples - 1, samples, confidence)).any()
    assert mean_leak_bound(3, samples, confidence) == clopper_pearson(3, samples, confidence)


DISTRIBUTIONS = {
    "beta": scipy.stats.beta(0.4, 2.0),
    "uniform": scipy.stats.uniform(),
    "nearly always nothing": scipy.stats.beta(0.05, 1.0),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_bands_and_moments_cover(name):
    """The bands hold at least as often as stated, and so do the bounds on mean and deviation."""
    law = DISTRIBUTIONS[name]
    rng = np.random.default_rng(1)
    held = []
    for _ in range(RUNS):
        band = dkw_band(law.rvs(50, random_state=rng).tolist(), 0.8)
        inside = np.all(law.sf(band.points[:-1]) <= band.above + 1e-12)
        inside &= np.all(law.cdf(band.points[1:]) <= band.below + 1e-12)
        held.append((inside, law.mean() <= mean_bound(band), law.std() <= deviation_bound(band)))
    assert (np.mean(held, axis=0) > 0.8 - 3.7 * np.sqrt(0.16 / RUNS)).all()


def test_pooled_bands_cover_questions_that_differ():
    rng = np.random.default_rng(2)
    shapes = rng.uniform(0.1, 2.0, 8)
    laws = [scipy.stats.beta(shape, 2.0) for shape in shapes]
    points = np.array(THRESHOLDS)
    above = np.mean([law.sf(points) for law in laws], axis=0)
    mean = np.mean([law.mean() for law in laws])
    deviation = np.sqrt(np.mean([law.var() + law.mean() ** 2 for law in laws]) - mean**2)
    held = []
    for _ in range(RUNS // 4):
        band = pooled_band([law.rvs(10, random_state=rng).tolist() for law in laws], 0.8)
        held.append(
            (
                (above <= band.above).all(),
                mean <= mean_bound(band),
                deviation <= deviation_bound(band),
            )
        )
    assert (np.mean(held, axis=0) > 0.8 - 3.7 * np.sqrt(0.16 * 4 / RUNS)).all()


VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@given(VALUES, st.floats(0.5, 0.999))
def test_bounds_are_above_what_was_seen(values, confidence):
    band = dkw_band(values, confidence)
    assert mean_bound(band) >= np.mean(values) - 1e-12
    assert deviation_bound(band) >= np.std(values) - 1e-9
    assert 0 <= mean_bound(band) <= 1 and 0 <= deviation_bound(band) <= 0.5


@given(VALUES)
@settings(max_examples=25)
def test_moment_bounds_are_the_integrals(values):
    """Numerical integration of the formula in the docstring, on a grid of c."""
    band = dkw_band(values, 0.9)

    def step(heights: np.ndarray, x: np.ndarray) -> np.ndarray:
        return heights[np.searchsorted(band.points, x, side="right") - 1]

    middle = (np.arange(4000) + 0.5) / 4000
    assert mean_bound(band) == pytest.approx(step(band.above, middle).mean(), abs=1e-2)
    squares = [
        np.mean(
            2 * np.clip(c - middle, 0, None) * step(band.below, middle)
            + 2 * np.clip(middle - c, 0, None) * step(band.above, middle)
        )
        for c in np.linspace(0, 1, 101)
    ]
    assert deviation_bound(band) ** 2 == pytest.approx(min(0.25, *squares), abs=1e-2)


def test_without_uncertainty_the_bounds_are_the_moments():
    points = np.array([0.0, 0.25, 0.5, 1.0])
    masses = np.array([0.5, 0.3, 0.2])  # at 0, 0.25 and 0.5
    below = np.cumsum(masses)
    band = Band(points, above=1 - below, below=below)
    mean = masses @ points[:3]
    assert mean_bound(band) == pytest.approx(mean)
    assert deviation_bound(band) == pytest.approx(np.sqrt(masses @ (points[:3] - mean) ** 2))


@given(
    st.lists(st.lists(st.integers(0, 4).map(float), min_size=5, max_size=5), min_size=1, max_size=3)
)
def test_expected_maxima_average_over_all_subsets(rows):
    found = expected_maxima(np.array(rows))
    for m in range(1, 6):
        means = [np.mean([max(s) for s in itertools.combinations(row, m)]) for row in rows]
        np.testing.assert_allclose(found[:, m - 1], means, atol=1e-9)


def test_a_long_curve_stays_finite():
    curve = expected_maxima(np.random.default_rng(0).random((2, 400)))
    assert np.isfinite(curve).all() and (np.diff(curve, axis=1) >= -1e-9).all()


def answer(question: int, rouge: float, leaked: bool | None) -> Answer:
    return Answer("forget", question, "?", "", rouge, leaked)


def test_leakage_of_an_attack():
    samples = [
        [answer(0, r, leak) for r, leak in ((0.0, False), (1.0, True), (0.5, False))],
        [answer(1, r, False) for r in (0.0, 0.25, 0.0)],
    ]
    found = leakage(samples, 0.95)
    assert found["samples"] == 3
    assert found["mean"] == pytest.approx(1.75 / 6)
    assert found["worst"] == found["curve"][-1] == pytest.approx(0.625)
    assert found["curve"][0] == pytest.approx(found["mean"])
    assert found["secret_rate"] == pytest.approx(1 / 6)
    assert found["secret_worst"] == 0.5
    assert found["secret_curve"] == pytest.approx([1 / 6, 1 / 3, 0.5])
    assert found["certificate"]["leaks"] == 1
    assert found["certificate"]["leak_bound"] == clopper_pearson(1, 6, 0.95)
    assert found["questions"][0]["leak_bound"] == clopper_pearson(1, 3, 0.95)
    assert found["questions"][1]["mean_bound"] == mean_bound(dkw_band([0, 0.25, 0], 0.95))
    assert "at most" in found["in_words"] and "95% confidence" in found["in_words"]
    greedy = greedy_leakage([row[0] for row in samples])
    assert greedy["mean"] == 0 and greedy["secret_rate"] == 0


@given(st.lists(st.lists(st.sampled_from((0, 0.05, 0.31, 0.95, 1)), min_size=1), min_size=1))
def test_answers_above_each_recall_are_counted(rows):
    found = certify([list(map(float, row)) for row in rows], [[None] * len(r) for r in rows], 0.9)
    values = [value for row in rows for value in row]
    assert found.samples == len(values)
    for threshold, above, bound in zip(
        found.thresholds, found.above, found.above_bound, strict=True
    ):
        assert above == sum(value > threshold for value in values)
        assert bound >= above / len(values)


def test_the_most_revealing_answer_of_each_question_is_kept():
    """An answer with the secret comes before any without; among these, the highest recall wins."""
    samples = [
        [Answer("forget", 0, "Who?", text, rouge, leaked) for text, rouge, leaked in row]
        for row in (
            [("a", 0.9, False), ("b", 0.2, True), ("c", 0.3, True)],
            [("d", 0.1, None), ("e", 0.4, None), ("f", 0.0, None)],
        )
    ]
    first, second = leakage(samples, 0.95)["questions"]
    assert first["worst"].items() >= {"text": "c", "rouge": 0.3, "leaked": True}.items()
    assert second["worst"].items() >= {"text": "e", "rouge": 0.4, "leaked": None}.items()
    assert first["question"] == "Who?"


def test_rows_without_a_secret_have_no_leak_bound():
    found = leakage([[answer(0, 0.5, None)] * 4], 0.9)
    assert found["secret_rate"] is found["secret_curve"] is found["certificate"]["leaks"] is None
    certificate = found["certificate"]
    half = dict(zip(certificate["thresholds"], certificate["above_bound"], strict=True))[0.5]
    assert "secret" not in found["in_words"]
    assert f"at most {100 * half:.2f}% of sampled answers" in found["in_words"]
    assert "(0 of 4 sampled answers did)" in found["in_words"]
    more = leakage([[answer(0, rouge, None) for rouge in (0.5, 0.6, 1.0)]], 0.9)
    assert "(2 of 3 sampled answers did)" in more["in_words"]


def test_a_leak_rate_is_of_the_answers_to_questions_with_a_secret():
    rows = [[answer(q, 0.2, (i == 0) if q < 2 else None) for i in range(100)] for q in range(10)]
    found = leakage(rows, 0.99)
    bound = 100 * clopper_pearson(2, 200, 0.99)
    assert found["certificate"]["samples"] == 1000
    assert (
        f"at most {bound:.2f}% of sampled answers to the forget questions that have a secret"
        in (found["in_words"])
    )
    assert "(2 of 200 sampled answers did)" in found["in_words"]
    deviation = 100 * found["certificate"]["deviation_bound"]
    assert (
        f"standard deviation of this recall is at most {deviation:.1f} points." in found["in_words"]
    )


def test_certificates_in_words():
    certificate = certify([[0.0] * 50] * 64, [[False] * 50] * 64, 0.99)
    bound = 100 * clopper_pearson(0, 3200, 0.99)
    assert f"at most {bound:.2f}% of sampled answers" in in_words(certificate)
    assert "0 of 3,200" in in_words(certificate)
