"""The quality measures against hand-computed values and `rouge_score`."""

import importlib

import jax
import numpy as np
import pytest
from evaluated import FORGET, MAX_LENGTH, NEW_TOKENS, hf_answer, recall
from rouge_score import rouge_scorer

from pmc_jax.data.rows import EvaluationRow
from pmc_jax.evaluation import (
    Answer,
    EvaluationConfig,
    QualityAnswers,
    measures,
    quality,
    quality_answers,
)
from pmc_jax.evaluation.quality import (
    holds_secret,
    is_comparable,
    missing_measures,
)

SCORER = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


def answer(name: str, truth: str, text: str, secret: str | None = None) -> Answer:
    rouge = SCORER.score(truth, text)["rougeL"].recall
    return Answer(name, 0, "?", text, rouge, holds_secret(text, secret))


def test_measures_follow_their_definitions():
    greedy = {
        "forget": [
            answer("forget", "born in Lisbon town", "born in Oslo town", "Lisbon"),
            answer("forget", "a baker", "a baker", "baker"),
        ],
        "paraphrase": [answer("paraphrase", "one two three four", "four", None)],
        "retain": [answer("retain", "x y", "x")],
        "world_facts": [answer("world_facts", "Oslo", "Oslo")],
        "real_authors": [answer("real_authors", "Ivo Kell", "nobody")],
    }
    sampled = [
        [
            answer("forget", "born in Lisbon town", t, "Lisbon")
            for t in ("Oslo", "in Lisbon", "born")
        ],
        [answer("forget", "a baker", t, "baker") for t in ("a", "no", "nobody")],
    ]
    found = measures(QualityAnswers(greedy, sampled))
    forget, paraphrase = (0.75 + 1.0) / 2, 0.25
    assert found["rouge_forget"] == pytest.approx(forget)
    assert found["unlearn_quality"] == pytest.approx(100 * (2 - forget - paraphrase) / 2)
    assert found["utility"] == pytest.approx(100 * np.mean([0.5, 1.0, 0.0]))
    assert found["worst_case_leakage"] == pytest.approx((0.5 + 0.5) / 2)
    assert found["secret_leak_rate"] == 0.5
    assert found["secret_leak_rate_sampled"] == 0.5
    assert found["degenerate_rate"] == 0


def test_what_the_data_lacks_is_none():
    found = measures(QualityAnswers({"retain": [answer("retain", "x y", "x")]}, []))
    assert found["utility"] == 50
    missing = ("unlearn_quality", "rouge_forget", "worst_case_leakage", "secret_leak_rate")
    assert [found[key] for key in missing] == [None] * 4


@pytest.mark.parametrize(
    ("text", "secret", "held"),
    [
        ("He won the Falcon Medal.", "Falcon Medal", True),
        ("He won the medal of the Falcon.", "Falcon Medal", False),
        ("Falconry", "Falcon", False),
        ("anything", None, None),
        ("anything", "…", None),
        ("Она из Москвы.", "Москвы", True),
        ("a d b", "Łódź", False),
        ("Born in Łódź.", "Łódź", True),
        ("李伟在北京市出生", "北京市", True),
    ],
)
def test_secrets_are_whole_phrases(text, secret, held):
    assert holds_secret(text, secret) is held


def test_answers_in_which_rouge_sees_nothing_are_not_compared():
    """An answer without words cannot be compared; any answer to it would count as forgotten."""
    rows = [EvaluationRow(0, "Who?", "🙂 …!"), EvaluationRow(1, "Who?", None)]
    assert not any(map(is_comparable, rows))
    assert is_comparable(EvaluationRow(2, "Who?", "Золтан родился в Москве."))
    sets = {"forget": rows, "retain": [EvaluationRow(0, "Who?", "Oslo")]}
    missing = missing_measures(sets)
    assert missing["ROUGE, forget"] == "the answers have no word, only punctuation or symbols"
    assert "unlearn quality" in missing and "utility" not in missing


def test_sets_are_decoded_together_and_told_apart(tiny_model, reference):
    """Each row is decoded once per set; answers, scores and order are those of separate sets."""
    here, there, who = FORGET
    sets = {"forget": [who, here, who], "retain": [there, here], "world_facts": []}
    batches = []
    config = EvaluationConfig(NEW_TOKENS, attack_samples=0)
    found = quality_answers(
        tiny_model, sets, config, jax.random.key(0),
        max_length=MAX_LENGTH, on_batch=lambda *batch: batches.append(batch[0]),
    )  # fmt: skip
    assert batches == [4] and found.sampled == []
    assert list(found.greedy) == list(sets)
    for name, rows in sets.items():
        texts = [hf_answer(reference, row) for row in rows]
        told = [(a.set, a.id, a.text, a.rouge) for a in found.greedy[name]]
        assert told == [
            (name, row.id, text, recall(row, text)) for row, text in zip(rows, texts, strict=True)
        ]
    rows = quality(tiny_model, sets, config, jax.random.key(0), max_length=MAX_LENGTH)["answers"]
    assert [(row["set"], row["id"]) for row in rows] == [
        ("forget", 2), ("forget", 0), ("retain", 1), ("retain", 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("count", "most", "rows"), [(0, 512, 1), (3, 512, 4), (5, 512, 8), (5, 4, 4)]
)
def test_evaluation_decodes_in_a_power_of_two_of_rows(count, most, rows, tiny_model, monkeypatch):
    seen = []

    def generate(params, prompts, **options):
        seen.append(options["decode_batch"])
        return [[[]] for _ in prompts]

    module = importlib.import_module("pmc_jax.evaluation.quality")
    monkeypatch.setattr(module, "generate", generate)
    asked = [EvaluationRow(i, "Who?", "Oslo") for i in range(count)]
    config = EvaluationConfig(NEW_TOKENS, decode_batch=most, attack_samples=0)
    key = jax.random.key(0)
    found = quality_answers(tiny_model, {"retain": asked}, config, key, max_length=MAX_LENGTH)
    assert seen == [rows] and len(found.greedy["retain"]) == count
