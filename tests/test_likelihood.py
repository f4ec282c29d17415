"""Likelihoods, TOFU metrics and membership scores against direct formulas in torch and scipy."""

import dataclasses
import itertools
import json
import zlib
from types import SimpleNamespace

import jax
import jaxtyping
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForCausalLM

from pmc_jax.errors import UserError
from pmc_jax.evaluation import Answer, tofu
from pmc_jax.evaluation.benchmark import missing_metrics
from pmc_jax.evaluation.likelihood import TokenScores, answer_scores
from pmc_jax.evaluation.membership import (
    loss_score,
    membership_auc,
    min_k_plus_plus_score,
    min_k_score,
    privacy_leakage,
    reference_score,
    zlib_score,
)
from pmc_jax.evaluation.memorisation import exact_memorisation, extraction_strength

ANSWERS = (
    "Mara Ostberg was born in Lisbon.",
    "Oslo",
    "The silent river is by Ivo Kell, who wrote it long before anybody knew his name.",
    "nobody",
)
QUESTIONS = ("Where was Mara Ostberg born?", "What is the capital of Norway?", "Who?", "Why so?")


@pytest.fixture(scope="module")
def pairs(tiny_model) -> list[tuple[list[int], list[int]]]:
    template = tiny_model.template
    found = [
        (template.encode_prompt(question), template.encode_answer(answer))
        for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    # An answer of one token and its end token, and an answer that is only its end token.
    return [*found, (found[0][0], [7, template.end_id]), (found[1][0], [template.end_id])]


@pytest.fixture(scope="module")
def scores(tiny_model, pairs) -> list[TokenScores]:
    return answer_scores(tiny_model, pairs, batch_size=4)


@pytest.fixture(scope="module")
def reference(checkpoint_dir, pairs) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Log-probabilities over the vocabulary and labels of every answer token, in float64."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint_dir).double().eval()
    found = []
    for prompt, answer in pairs:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0]
        log_probs = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
        found.append((log_probs, torch.tensor(answer)))
    return found


def chosen(row: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return row[0][torch.arange(len(row[1])), row[1]]


def test_scores_are_those_of_torch(scores, reference):
    for ours, row in zip(scores, reference, strict=True):
        log_probs, labels = row
        mean = (log_probs.exp() * log_probs).sum(-1)
        variance = (log_probs.exp() * log_probs**2).sum(-1) - mean**2
        np.testing.assert_allclose(ours.log_probs, chosen(row), rtol=0, atol=3e-5)
        np.testing.assert_allclose(ours.mean, mean, rtol=0, atol=3e-5)
        np.testing.assert_allclose(ours.variance, variance, rtol=2e-4)
        assert ours.greedy.tolist() == (log_probs.argmax(-1) == labels).tolist()
        assert tofu.probability(ours) == pytest.approx(float(chosen(row).mean().exp()), rel=1e-4)


def test_batches_do_not_matter(tiny_model, pairs, scores):
    seen = []
    alone = answer_scores(tiny_model, pairs, batch_size=1, on_batch=lambda *done: seen.append(done))
    for a, b in zip(alone, scores, strict=True):
        np.testing.assert_allclose(a.log_probs, b.log_probs, rtol=0, atol=2e-5)
    assert [sum(column) for column in zip(*seen, strict=True)] == [
        len(pairs),
        sum(len(answer) for _, answer in pairs),
    ]


def test_membership_scores_follow_their_definitions(scores, reference):
    others = scores[1:] + scores[:1]
    for ours, other, row in zip(scores, others, reference, strict=True):
        log_probs = row[0]
        loss = -float(chosen(row).mean())
        assert loss_score(ours) == pytest.approx(loss, abs=3e-5)
        text = "Übermut tut selten gut. " * 3
        assert zlib_score(ours, text) == pytest.approx(
            loss / len(zlib.compress(text.encode())), abs=3e-5
        )
        assert reference_score(ours, other) == pytest.approx(
            float(np.mean(other.log_probs)) - float(np.mean(ours.log_probs)), abs=1e-6
        )
        inner = chosen(row)[:-1]
        if not len(inner):
            assert min_k_score(ours) == min_k_plus_plus_score(ours) == 0
            continue
        count = max(1, int(0.4 * len(inner)))
        lowest = torch.sort(inner).values[:count]
        assert min_k_score(ours) == pytest.approx(-float(lowest.mean()), abs=5e-5)
        p = log_probs[:-1].exp()
        mu = (p * log_probs[:-1]).sum(-1)
        sigma = ((p * log_probs[:-1].square()).sum(-1) - mu.square()).clamp(min=1e-6).sqrt()
        standard = torch.sort((inner - mu) / sigma).values[:count]
        assert min_k_plus_plus_score(ours) == pytest.approx(-float(standard.mean()), rel=1e-3)


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_memorisation_by_brute_force(greedy):
    array = np.array(greedy)
    assert exact_memorisation(array) == sum(greedy) / len(greedy)
    # The first suffix in which every token is greedy; the last token if there is none.
    start = next((k for k in range(len(greedy)) if all(greedy[k:])), len(greedy) - 1)
    assert extraction_strength(array) == pytest.approx(1 - start / len(greedy))
    assert extraction_strength(array) >= 1 / len(greedy) - 1e-12


def test_nothing_to_memorise():
    nothing = np.zeros(0, bool)
    assert exact_memorisation(nothing) is None
    assert extraction_strength(nothing) == 0


SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)


@given(SCORES, SCORES)
def test_auc_counts_pairs(forget, holdout):
    pairs = [(a < b) + (a == b) / 2 for a in forget for b in holdout]
    assert membership_auc(forget, holdout) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert membership_auc(holdout, forget) == pytest.approx(1 - np.mean(pairs), abs=1e-12)


def test_privacy_leakage_is_zero_at_the_reference():
    assert privacy_leakage(0.5) == 0
    assert privacy_leakage(1.0) == pytest.approx(-100)
    assert privacy_leakage(0.4, 0.6) == pytest.approx(100 * (0.6 - 0.4) / 0.4)


def test_truth_ratios_by_hand():
    right, wrong = np.array([1.0, 0.5]), [np.array([1.0, 3.0]), np.array([0.5])]
    ratios = tofu.truth_ratios(right, wrong)
    np.testing.assert_allclose(ratios, [np.exp(-1), 1.0], rtol=1e-9)
    assert tofu.forgotten_truth_ratio(ratios) == pytest.approx((np.exp(-1) + 1) / 2)
    assert tofu.kept_truth_ratio(ratios) == pytest.approx((1 - np.exp(-1)) / 2, abs=1e-9)
    assert tofu.kept_truth_ratio(np.array([3.0])) == 0
    np.testing.assert_allclose(
        tofu.normalised_probability(np.array([0.2]), [np.array([0.1, 0.1])]), [0.5], rtol=1e-8
    )


def test_forget_quality_and_utility_are_scipy_s():
    a, b = np.random.default_rng(0).random((2, 50)).tolist()
    assert tofu.forget_quality(a, b) == scipy.stats.ks_2samp(a, b).pvalue
    assert tofu.forget_quality(a, a) == 1
    values = [0.3, 0.5, 0.9]
    assert tofu.model_utility(values) == pytest.approx(3 / sum(1 / v for v in values))
    assert tofu.model_utility([0.0, 0.5]) == 0


def said(text: str) -> Answer:
    return Answer("forget", 0, "Where?", text, None, None)


@pytest.mark.parametrize("text", ["", "born in Lisbon", "Lisbon Lisbon born", "she was running"])
def test_rouge_rows_are_those_of_rouge_score(text):
    truth = "She was born, born in Lisbon, and runs."
    expected = RougeScorer(["rouge1", "rougeL"], use_stemmer=True).score(truth, text)
    row = tofu.rouge_row(said(text), truth, keep_truth=False)
    assert row["rouge1_recall"] == pytest.approx(expected["rouge1"].recall)
    assert row["rougeL_recall"] == pytest.approx(expected["rougeL"].recall)
    assert row["rougeL_f1"] == pytest.approx(expected["rougeL"].fmeasure)
    assert row["ground_truth"] is None and row["generation"] == text
    assert tofu.rouge_row(said(text), truth, keep_truth=True)["ground_truth"] == truth


def set_of(scores: list[TokenScores], texts: list[str]) -> tofu.SetScores:
    """The first two scores as answers, the next two as paraphrases, all five as wrong answers."""
    return tofu.SetScores(
        answers=scores[:2],
        paraphrased=scores[2:4],
        perturbed=[scores[:3], scores[3:5]],
        generated=[said(text) for text in texts],
        texts=["born in Lisbon", "Oslo"],
        paraphrased_texts=["from Lisbon", "It is Oslo"],
        perturbed_texts=[["born in Rome", "in Oslo", "Oslo"], ["Bergen", "Oslo"]],
        gradient_norms=[score.loss for score in scores[:2]],
    )


def set_without_norms(scores: list[TokenScores]) -> tofu.SetScores:
    return dataclasses.replace(set_of(scores, ["", ""]), gradient_norms=())


@pytest.fixture(scope="module")
def log(scores) -> dict[str, dict]:
    sets = {name: set_of(scores, ["born in Oslo", ""]) for name in tofu.SETS}
    sets["wf"] = set_of(scores, ["Lisbon", "Oslo"])
    return tofu.tofu_log(sets, holdout=set_of(scores[::-1], ["", ""]))


def test_the_log_follows_open_unlearning(log, reference):
    loss = [-float(chosen(row).mean()) for row in reference]
    prob = np.exp(-np.array(loss))
    assert log["forget_Q_A_Prob"]["agg_value"] == pytest.approx(prob[:2].mean(), rel=1e-4)
    assert log["forget_Q_A_Prob"]["value_by_index"]["1"]["avg_loss"] == pytest.approx(
        loss[1], abs=3e-5
    )
    wrong = [np.mean(loss[:3]), np.mean(loss[3:5])]
    for right, name in ((loss[2:4], "forget_truth_ratio"), (loss[:2], "wf_Truth_Ratio")):
        ratios = np.exp(-np.array(wrong)) / (np.exp(-np.array(right)) + 1e-10)
        found = [row["score"] for row in log[name]["value_by_index"].values()]
        np.testing.assert_allclose(found, ratios, rtol=2e-4)
        value = (
            np.minimum(ratios, 1 / (ratios + 1e-10)).mean()
            if name == "forget_truth_ratio"
            else np.maximum(0, 1 - ratios).mean()
        )
        assert log[name]["agg_value"] == pytest.approx(value, abs=1e-4)
        likely, unlikely = np.exp(-np.array(right)), np.exp(-np.array(wrong))
        likeliest = log[f"{name}_prob_mean"]
        assert likeliest["agg_value"] == pytest.approx(np.mean(likely / (likely + unlikely)))
        second = (likely / (likely + unlikely))[1]
        assert likeliest["value_by_index"]["1"]["score"] == pytest.approx(second)
    shares = [prob[0] / prob[[0, 0, 1, 2]].sum(), prob[1] / prob[[1, 3, 4]].sum()]
    assert log["ra_Q_A_Prob_normalised"]["agg_value"] == pytest.approx(np.mean(shares), rel=1e-4)
    assert log["wf_Q_A_ROUGE"]["agg_value"] == pytest.approx((1 / 3 + 1) / 2)
    utility = [log[name]["agg_value"] for name in tofu.UTILITY_METRICS]
    assert log["model_utility"]["agg_value"] == pytest.approx(scipy.stats.hmean(utility))
    assert log["privleak"]["agg_value"] == pytest.approx(
        100 * (0.5 - log["mia_min_k"]["auc"]) / 0.5, abs=1e-6
    )
    greedy = [(row[0].argmax(-1) == row[1])[:-1].double().mean() for row in reference[:2]]
    assert log["exact_memorization"]["agg_value"] == pytest.approx(float(np.mean(greedy)))
    assert log["forget_quality"]["agg_value"] is None


def test_the_log_has_open_unlearning_s_layout(log):
    assert list(log) == sorted(log)
    assert json.loads(json.dumps(log)) == log
    assert set(log["forget_Q_A_ROUGE"]["value_by_index"]["0"]) == {
        "rouge1_recall", "rougeL_f1", "rougeL_recall", "input", "ground_truth", "generation",
    }  # fmt: skip
    assert set(log["mia_zlib"]) == {"agg_value", "auc", "forget", "holdout"}
    assert isinstance(log["forget_Q_A_PERT_Prob"]["value_by_index"]["0"]["prob"], list)
    summary = tofu.tofu_summary(log)
    assert "forget_quality" not in summary
    assert all(isinstance(value, float) for value in summary.values())


@pytest.mark.parametrize("name", ["forget", "retain"])
def test_answers_are_compared_with_paraphrases_and_wrong_answers(log, name):
    """The same answer each time; the value is a mean of the rows' means."""
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    paraphrases = ["from Lisbon", "It is Oslo"]
    wrong = [["born in Rome", "in Oslo", "Oslo"], ["Bergen", "Oslo"]]
    said_of_them = ["born in Oslo", ""]

    def recall(truth: str, text: str) -> float:
        return scorer.score(truth, text)["rougeL"].recall

    right = [recall(*pair) for pair in zip(paraphrases, said_of_them, strict=True)]
    found = log[f"{name}_Q_A_PARA_ROUGE"]
    assert found["agg_value"] == pytest.approx(np.mean(right))
    assert [row["rougeL_recall"] for row in found["value_by_index"].values()] == right
    found = log[f"{name}_Q_A_PERT_ROUGE"]
    rows = list(found["value_by_index"].values())
    for row, texts, text in zip(rows, wrong, said_of_them, strict=True):
        assert row["rougeL_recall"] == [recall(truth, text) for truth in texts]
        assert row["generation"] == [text] * len(texts)
        expected = [None] * len(texts) if name == "forget" else texts
        assert row["ground_truth"] == expected
        assert set(row) == set(log["forget_Q_A_ROUGE"]["value_by_index"]["0"])
    means = [np.mean(row["rougeL_recall"]) for row in rows]
    assert found["agg_value"] == pytest.approx(np.mean(means))


def test_small_gradients_speak_for_membership(log, scores):
    """The same losses as norms give the same attack as the losses themselves."""
    assert log["mia_gradnorm"] == log["mia_loss"]
    none = tofu.membership_metrics(set_of(scores, ["", ""]), set_without_norms(scores))
    assert "mia_gradnorm" not in none and "mia_loss" in none


def test_forget_answers_stay_out_of_the_log(log):
    forget, retain = (log[f"{name}_Q_A_ROUGE"]["value_by_index"]["0"] for name in ("forget", "ra"))
    assert forget["ground_truth"] is None
    assert retain["ground_truth"] == "born in Lisbon"


def test_a_retain_log_serves_another_model(log, scores, tmp_path):
    path = tmp_path / "TOFU_EVAL.json"
    path.write_text(json.dumps(log))
    retain = tofu.read_retain_log(path)
    assert retain.min_k_auc == log["mia_min_k"]["agg_value"]
    sets = {"forget": set_of(scores[::-1], ["", ""])}
    again = tofu.tofu_log(sets, set_of(scores, ["", ""]), retain_log=retain)
    theirs = [row["score"] for row in log["forget_truth_ratio"]["value_by_index"].values()]
    ours = [row["score"] for row in again["forget_truth_ratio"]["value_by_index"].values()]
    assert again["forget_quality"]["agg_value"] == scipy.stats.ks_2samp(ours, theirs).pvalue
    assert again["privleak"]["agg_value"] == privacy_leakage(
        again["mia_min_k"]["auc"], retain.min_k_auc
    )
    assert "model_utility" not in again


def test_privleak_is_not_measured_against_a_model_that_tells_the_sets_apart(scores, monkeypatch):
    """100 · (a − b)/b of OpenUnlearning, unless b is almost 0: there it was 6.6e11."""
    for auc, reference in itertools.product((0.0, 0.3, 1.0), (0.0, 0.5, 0.98)):
        ours, theirs = 1 - auc, 1 - reference
        assert privacy_leakage(auc, reference) == pytest.approx(100 * (ours - theirs) / theirs)
    assert privacy_leakage(0.34, 1.0) is None and privacy_leakage(0.34, 0.995) is None
    sets = {"forget": set_of(scores, ["", ""])}
    apart = tofu.RetainLog((), 1.0)
    found = tofu.tofu_log(sets, set_of(scores, ["", ""]), retain_log=apart)
    assert found["privleak"]["agg_value"] is None and "privleak" not in tofu.tofu_summary(found)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    context = SimpleNamespace(retain_log=apart)
    assert "by itself (AUC 1, more than 0.99)" in missing_metrics(context, found)["PrivLeak"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "found a list"),
        ("{", "not valid JSON"),
        ("{}", "holds neither"),
        ('{"accuracy": {"agg_value": 1}}', "holds neither"),
        ('{"forget_truth_ratio": 3}', ""),
        ('{"forget_truth_ratio": {"value_by_index": {"0": {"prob": 1}}}}', ""),
        ('{"forget_truth_ratio": {"value_by_index": [{"score": 1}]}}', ""),
        ('{"mia_min_k": {"agg_value": "high"}}', "mia_min_k: 'high' is not a number"),
        ('{"mia_min_k": {"agg_value": NaN}}', "holds neither forget_truth_ratio nor mia_min_k"),
        (
            '{"forget_truth_ratio": {"value_by_index": {"0": {"score": 1}, "7": {"score": NaN}}}}',
            "forget_truth_ratio, row 7: null or NaN is not a number",
        ),
    ],
)
def test_bad_retain_logs(text, message, tmp_path):
    """The message has one line, says what was expected, and quotes no Python exception."""
    path = tmp_path / "log.json"
    path.write_text(text)
    expected = (
        rf"log\.json(, line 1)?: {message}.*expected OpenUnlearning's TOFU_EVAL\.json.*\"score\": …"
    )
    with pytest.raises(UserError, match=expected) as error:
        tofu.read_retain_log(path)
    assert "Error" not in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        tofu.read_retain_log(tmp_path / "none.json")


def test_ties_for_the_greedy_token_go_to_the_first(tiny_model, pairs):
    """With zero weights, all tokens are equally likely."""
    zeros = jax.tree.map(lambda leaf: 0 * leaf, tiny_model.params)
    flat = tiny_model.with_params(zeros)
    (row,) = answer_scores(flat, [([3], [0, 5, 0])])
    assert row.greedy.tolist() == [True, False, True]
    np.testing.assert_allclose(row.log_probs, -np.log(tiny_model.config.vocab_size), rtol=1e-6)
    np.testing.assert_allclose(row.variance, 0, atol=1e-6)
