"""Reward, selection and memory against `rouge_score` and the rules written out directly."""

import json
import math
import unicodedata
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from rouge_score.tokenizers import DefaultTokenizer

from pmc_jax.errors import UserError
from pmc_jax.text.rouge import rouge_l_recall, rouge_words
from pmc_jax.unlearning.pmc import (
    empty_memory,
    needs_sampling,
    response_score,
    select,
    short_answer_penalty,
    update_memory,
)
from pmc_jax.unlearning.pmc.reward import reward_of

SCORER = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
published_words = DefaultTokenizer(use_stemmer=True).tokenize


def reference_recall(reference: str, candidate: str) -> float:
    return SCORER.score(reference, candidate)["rougeL"].recall


VOCABULARY = (
    "the author's generously running runs Müller İstanbul 1991 naïve à É don't — ... a b "
    "flies ponies DIED skies caresses Straße \ufffd 🙂 ’s _x_ O'Neill Beltrán Łódź ø Hawaiʻi "
    "Nguyễn Walmart™ km² ½ 1º ¿Qué? Ångström’s"
)
WORDS = st.sampled_from(VOCABULARY.split())


def is_latin(character: str) -> bool:
    """Whether `rouge_score` is meant to read a character, or to read past it.

    Letters and digits are Latin and no variants of others, as "ﬁ" is of "fi".
    """
    kind, name = unicodedata.category(character), unicodedata.name(character, "")
    if kind[0] not in "LN":
        return kind in ("Po", "Pd", "Ps", "Pe", "Pi", "Pf", "Sc", "Sk", "Zs")
    if unicodedata.decomposition(character).startswith("<"):
        return kind == "No"
    return "LATIN" in name.split() or character.isascii()  # not Glagolitic "LATINATE MYSLITE"


LATIN = "".join(filter(is_latin, map(chr, range(0x2E7F))))
TEXT = st.one_of(
    st.text(LATIN, max_size=40),
    st.text(max_size=40, alphabet=st.sampled_from(LATIN[:400])),
    st.lists(WORDS, max_size=14).map(" ".join),
).map(partial(unicodedata.normalize, "NFC"))


@settings(max_examples=2000)
@given(TEXT, TEXT)
def test_recall_equals_rouge_score_on_latin_texts(reference, candidate):
    assert rouge_l_recall(reference, candidate) == reference_recall(reference, candidate)
    assert list(rouge_words(reference)) == published_words(reference)


def real_answers() -> list[str]:
    tofu = Path(__file__).parents[2] / "shared" / "tofu" / "forget10.json"
    bundled = Path(__file__).parents[1] / "pmc_jax" / "assets" / "world" / "data" / "full.json"
    lines = (tofu if tofu.is_file() else bundled).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["answer"] for line in lines]


def test_recall_equals_rouge_score_on_real_answers(rng):
    answers = real_answers()
    for a, b in rng.integers(0, len(answers), (1500, 2)):
        found = rouge_l_recall(answers[a], answers[b])
        assert found == reference_recall(answers[a], answers[b])


@pytest.mark.parametrize(
    ("original", "response", "score"),
    [
        ("", "", 1.0),
        ("", "anything", 0.0),
        ("!?", "?!", 0.5),
        ("🙂", "Paris", 0.0),
        ("Paris", "", 0.0),
    ],
)
def test_scores_without_words(original, response, score):
    assert response_score(original, response) == score


def test_wordless_responses_can_be_rejected():
    for original in ("Paris", "東京"):
        assert response_score(original, "", reject_wordless=True) == 1.0
        assert response_score(original, "…🙂", reject_wordless=True) == 1.0
        assert response_score(original, "大阪", reject_wordless=True) == 0.0


@pytest.mark.parametrize(
    ("response", "words"),
    [
        ("", 1), ("  ", 1), ("one", 1), ("don't", 1), ("a b", 2), ("a  b", 3), (" a b ", 2),
        ("東", 1), ("東京", 2), ("서울에서 왔다", 6),
    ],
)  # fmt: skip
def test_the_penalty_counts_words_as_published_and_signs(response, words):
    assert short_answer_penalty(response, words + 1) == math.exp(-words)
    assert short_answer_penalty(response, words) == 0
    assert short_answer_penalty(response, 0) == 0
    assert response_score("zzz", response, min_len=words + 1) == math.exp(-words)


SCORES = st.lists(
    st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.25, 0.5, 1.0]), min_size=3, max_size=3),
    min_size=1,
    max_size=12,
)


@settings(max_examples=300)
@given(st.lists(SCORES, min_size=2, max_size=2), st.randoms(use_true_random=False))
def test_selection_and_memory_follow_the_published_rules(visits, random):
    """Two questions visited in random order, against the same rules on plain dicts."""
    order = [(q, scores) for q, visit in enumerate(visits) for scores in visit]
    random.shuffle(order)
    best: dict[int, tuple[float, list[int]]] = {}
    memory = empty_memory(2, 4)
    for visit, (question, scores) in enumerate(order):
        skipped = question in best and best[question][0] == 0
        assert (needs_sampling(memory, [question]) == []) == skipped
        if skipped:
            continue
        responses = [[visit, j] for j in range(3)]
        winner = min(range(3), key=lambda j: (scores[j], j))
        if question not in best or scores[winner] <= best[question][0]:
            best[question] = (scores[winner], responses[winner])
        (chosen,) = select(np.array([scores]))
        memory = update_memory(memory, [question], [scores[chosen]], [responses[chosen]])
    for question, (score, response) in best.items():
        assert memory.score[question] == score
        assert memory.tokens[question, : memory.length[question]].tolist() == response


def test_update_leaves_the_old_memory_and_shorter_responses_leave_no_rest():
    old = update_memory(empty_memory(1, 5), [0], [0.5], [[1, 2, 3, 4]])
    new = update_memory(old, [0], [0.5], [[9]])
    assert old.tokens[0].tolist() == [1, 2, 3, 4, 0]
    assert new.tokens[0].tolist() == [9, 0, 0, 0, 0] and new.length[0] == 1
    worse = update_memory(new, [0], [0.6], [[7, 7]])
    assert worse.tokens[0].tolist() == [9, 0, 0, 0, 0]


def test_bradley_terry_selection_has_its_probabilities():
    scores, temperature, count = np.array([0.0, 0.2, 0.7]), 0.4, 20_000
    weights = np.exp((1 - scores) / temperature)
    keys = jax.random.split(jax.random.key(0), count)
    chosen = select(np.tile(scores, (count, 1)), temperature, keys)
    found = np.bincount(chosen, minlength=3) / count
    # Hoeffding with a failure probability of 1e-9 per category.
    assert np.abs(found - weights / weights.sum()).max() < math.sqrt(math.log(2e9) / (2 * count))


def given_reward(original, response):
    return {"none": None, "nan": math.nan, "text": "one", "small": np.float32(0.25)}[response]


@pytest.mark.parametrize("response", ["none", "nan", "text"])
def test_a_reward_that_is_no_number_is_refused(response):
    score = reward_of(f"{__name__}:given_reward").score
    assert score("", "small") == 0.75
    with pytest.raises(
        UserError, match=r"given_reward: gave .* for the response .*; expected a nu"
    ):
        score("", response)
