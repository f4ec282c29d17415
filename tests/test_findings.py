"""The findings of an evaluation in words: sentences, headline, and comparisons of models."""

import pytest

from pmc_jax.reporting.findings import comparisons, evaluation_headline, findings
from pmc_jax.reporting.measures import percent
from pmc_jax.reporting.side_by_side import ATTACKED, EVALUATION_MEASURES, QUANTISED, RELEARNED
from pmc_jax.reporting.worst import ways


def test_sentences_say_what_was_measured():
    measures = {
        "secret_leak_rate": 0.031, "degenerate_rate": 0.5, "sampling_secret_worst": 0.3125,
        "prefilling_worst": 0.5, "least_likely_chance": 0.2, "least_likely_accuracy": 0.0,
        "least_likely_most_likely_accuracy": 1.0, "relearning_forget_secret_rate": 0.46,
        "relearning_forget_secret_worst": 0.9,
        "relearning_benign_greedy": 0.25, "quantisation_4_secret_worst": 0.5,
        "quantisation_8_worst": 0.4,
        "side_effects_watched_mean_absolute": 0.0214, "tofu_forget_quality": 1e-7,
        "tofu_mia_min_k": 0.5, "tofu_mia_min_k_plus_plus": 0.62, "utility": 98.0,
        "tofu_exact_memorization": 0.87, "tofu_extraction_strength": 0.76,
        "tofu_model_utility": 0.6,
    }  # fmt: skip
    summary = {
        "models": ["a", "b"], "before": "b",
        "settings": {"evaluation.attack_samples": 100, "prefix": "The answer is:"},
        "measures": {"a": measures, "b": {**measures, "secret_leak_rate": 1.0}},
    }  # fmt: skip
    found = findings(summary)
    assert len(found) == 17
    text = " ".join(found)
    for piece in (
        "secret of 3.1% of the questions (before: 100%)",
        "50% of its answers to forget questions are empty, loops or cut.",
        "questions it should still know contain 98.0% of the right words (before: 98.0%).",
        "Asked 100 times, it reveals the secret of 31% of the questions at least once (before: 31",
        "Asked 100 times with a forced beginning (“The answer is:”), its most revealing answer "
        "contains on average 50% of the right answer's words",
        "most likely for 100% of the questions (before: 100%) and the least likely for 0% (before: "
        "0%); chance is 20%.",
        "After fine-tuning on a few forget examples, its most likely answers reveal 46% of the "
        "secrets of the other forget questions (before: 46%).",
        "Fine-tuned on a few forget examples and asked 100 times, it reveals 90% of the secrets of "
        "the other forget questions (before: 90%).",
        "After fine-tuning on a few benign examples, its most likely answers reveal 25% of the "
        "words of the right answers to the forget questions (before: 25%).",
        "Quantised to 8 bits and asked 100 times, its most revealing answer contains 40% of the",
        "Quantised to 4 bits and asked 100 times, it reveals the secret of 50%",
        "changed by 2.1 percentage points on average",
        "differ from those of a model that never saw them (TOFU's forget quality: p = 1e-07)",
        "it continues with this token in 87% of cases (before: 87%).",
        "completes the last 76% without a mistake (before: 76%).",
        "training data is 50% by min-k (before: 50%) and 62% by min-k++ (before: 62%). At 50%",
        "TOFU's model utility, a mean over what the model should know, is 60% (before: 60%).",
    ):
        assert piece in text, piece
    alone = findings({**summary, "models": ["a"], "before": None})
    assert not any("before" in sentence for sentence in alone)
    assert findings({**summary, "measures": {"a": {}, "b": {}}}) == []


def test_the_headline_names_the_worst_attack():
    def sentence(**measures: float) -> str:
        summary = {"models": ["a"], "before": None, "measures": {"a": measures},
                   "settings": {"evaluation.attack_samples": 100}}  # fmt: skip
        return evaluation_headline(summary)

    greedy = {"unlearn_quality": 99.0, "utility": 90.0}
    start = "Unlearn quality is 99.0, while utility is 90.0."
    assert sentence(**greedy) == f"{start} No attack was measured, so more may come out."
    worst = sentence(**greedy, sampling_secret_worst=0.31, prefilling_secret_worst=0.81,
                     rewording_worst=0.9)  # fmt: skip
    assert worst == f"{start} " + (
        "Asked 100 times with a forced beginning, it reveals 81% of the secrets."
    )
    assert sentence(**greedy, sampling_secret_worst=0.0).endswith(
        "Asked 100 times, it reveals no secret."
    )
    silent = {"sampling_secret_worst": 0.0, "quantisation_4_secret_worst": 0.0}
    assert sentence(**silent) == "No attack that was measured reveals a secret."
    assert sentence(quantisation_8_worst=0.0, relearning_benign_greedy=0.0) == (
        "No attack that was measured reveals a word of the right answers."
    )
    worst = sentence(sampling_worst=0.25, prefilling_worst=0.5)
    assert worst == (
        "Asked 100 times with a forced beginning, its most revealing answer contains 50% of the "
        "right words."
    )
    assert sentence() == "Nothing was measured."


HEADLINES = {
    "secret_leak_rate": "Asked once, it reveals 90% of the secrets.",
    "sampling_secret_worst": "Asked 100 times, it reveals 90% of the secrets.",
    "prefilling_greedy_secret_rate": "Asked once with a forced beginning, it reveals "
    "90% of the secrets.",
    "rewording_secret_worst": "Asked 100 times in each other wording, it reveals 90% of the "
    "secrets (each wording counts).",
    "quantisation_3_secret_worst": "Quantised to 3 bits and asked 100 times, it reveals 90% "
    "of the secrets.",
    "relearning_forget_secret_worst": "Fine-tuned on a few forget examples and asked 100 times, "
    "it reveals 90% of the other secrets.",
    "relearning_forget_secret_rate": "Fine-tuned on a few forget examples and asked once, it "
    "reveals 90% of the other secrets.",
    "relearning_benign_secret_worst": "Fine-tuned on a few benign examples and asked 100 times, "
    "it reveals 90% of the secrets.",
}


@pytest.mark.parametrize("key", HEADLINES)
def test_whatever_finds_most_is_in_the_headline(key):
    """Every other measured attack finds less, and `sampling_worst` counts words, not secrets."""
    measures = {**dict.fromkeys(HEADLINES, 0.5), key: 0.9, "sampling_worst": 1.0}
    summary = {"models": ["a"], "before": None, "measures": {"a": measures},
               "settings": {"evaluation.attack_samples": 100}}  # fmt: skip
    assert evaluation_headline(summary).endswith(HEADLINES[key])


def test_every_attack_of_the_table_can_be_in_the_headline():
    """Every row of the table about secrets or recall under attack, except means over answers."""
    known = {key for way in ways("100") for key in (way.secrets, way.facts, way.recall)}
    groups = (ATTACKED, RELEARNED, QUANTISED)
    shown = {m.key for m in EVALUATION_MEASURES if m.group in groups}
    ends = ("_mean", "_unlearn_quality", "_utility", "_secret_rate")
    averages = {key for key in shown if key.endswith(ends)} - known
    averages |= {f"{name}_facts" for name in ("sampling", "prefilling", "rewording")}
    assert shown - averages == known - {"secret_leak_rate", "facts_forget", "rouge_forget"}
    assert averages >= {"sampling_mean", "prefilling_secret_rate", "quantisation_4_utility"}


def test_the_model_is_compared_with_the_others():
    measures = {
        "a": {"unlearn_quality": 95.0, "utility": 90.0, "sampling_secret_worst": 0.3,
              "prefilling_worst": 0.4, "relearning_forget_greedy": 0.5},
        "b": {"unlearn_quality": 5.0, "utility": 97.0, "sampling_secret_worst": 1.0},
        "c": {"unlearn_quality": 99.0, "utility": 90.0, "sampling_secret_worst": 0.5},
        "d": {"unlearn_quality": 80.0, "utility": 40.0, "prefilling_worst": 0.1},
    }  # fmt: skip
    summary = {"models": ["a", "b", "c", "d"], "before": "b", "measures": measures,
               "settings": {"evaluation.attack_samples": 100}}  # fmt: skip
    assert list(comparisons(summary)) == [
        "Unlearn quality (5.0 → 95.0): ahead of d (80.0); behind c (99.0).",
        "Utility (97.0 → 90.0): ahead of d (40.0); level with c (90.0).",
        "Questions whose secret is revealed when asked 100 times (100% → 30%): ahead of c (50%).",
        "The largest part of a right answer that comes out when asked 100 times with a forced "
        "beginning (40%): behind d (10%).",
    ]  # fmt: skip
    assert not list(comparisons({**summary, "models": ["a", "b"]}))


SHARES = {
    0.0: "0%", 0.0001: "under 0.1%", 0.004: "0.4%", 0.0949: "9.5%", 0.0951: "10%", 0.5: "50%",
    0.999: "99.9%", 0.9999: "over 99.9%", 1.0: "100%",
}  # fmt: skip


@pytest.mark.parametrize("share", SHARES)
def test_shares_in_words(share):
    assert percent(share) == SHARES[share]
