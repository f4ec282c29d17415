"""Verdicts by hand: what was known, what is there now, and what an attack brings out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmc_jax.data.rows import EvaluationRow
from pmc_jax.evaluation.leakage import attacked_once
from pmc_jax.evaluation.quality import Answer, answer_object, background, row_facts, scored
from pmc_jax.evaluation.verdicts import (
    VERDICTS,
    Asked,
    Evidence,
    Found,
    known_before,
    overall,
    revealed_questions,
    verdict,
    verdict_on,
)
from pmc_jax.reporting.verdict import (
    unknown_lines,
    untested_sentence,
    verdict_lines,
    verdict_section,
    verdict_sentence,
)
from pmc_jax.text.kinds import kind_of

NOTHING = Evidence("none", {})
KNOWN = Evidence("most", {"sampling": Found(32, 0, 30)})


def sampled(most: int, part: int = 0, samples: int = 32, greedy: str = "none") -> Evidence:
    return Evidence(greedy, {"sampling": Found(samples, part, most)})


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (KNOWN, NOTHING, "gone"),
        (None, NOTHING, "gone"),
        (KNOWN, KNOWN, "still there"),
        (None, Evidence("most", {}), "still there"),
        (KNOWN, sampled(16), "still there"),
        (KNOWN, sampled(15), "partly"),
        (KNOWN, sampled(1), "partly"),
        (KNOWN, Evidence("part", {}), "partly"),
        (KNOWN, sampled(0, part=8), "partly"),
        (KNOWN, sampled(0, part=7), "gone"),
        (KNOWN, Evidence("none", {"prefilling": Found(100, 0, 1)}), "partly"),
        (Evidence("part", {}), NOTHING, "gone"),
        (NOTHING, NOTHING, "never known"),
        (sampled(3), sampled(3), "never known"),  # 3 of 32 are guesses
        (sampled(4), NOTHING, "gone"),
        (NOTHING, Evidence("most", {}), "newly appeared"),
        (NOTHING, sampled(4), "newly appeared"),
        (NOTHING, Evidence("part", {}), "never known"),
    ],
)
def test_the_verdict_on_a_question(before, after, expected):
    assert verdict_on(after, before) == expected


@given(st.integers(0, 9), st.integers(0, 9), st.booleans(), st.booleans())
def test_more_that_is_revealed_never_makes_a_verdict_better(most, part, greedy, known):
    before = KNOWN if known else NOTHING
    less = sampled(most, part, samples=20)
    more = sampled(most + 1, part, samples=20, greedy="most" if greedy else "none")
    assert VERDICTS.index(verdict_on(more, before)) <= VERDICTS.index(verdict_on(less, before))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"gone": 3}, "forgotten"),
        ({"gone": 3, "never known": 9}, "forgotten"),
        ({"gone": 9, "partly": 1}, "partly forgotten"),
        ({"gone": 1, "still there": 1}, "partly forgotten"),
        ({"gone": 1, "still there": 2}, "not forgotten"),
        ({"gone": 1, "newly appeared": 2}, "not forgotten"),
        ({"partly": 1}, "partly forgotten"),
        ({"never known": 2, "cannot tell": 1}, "cannot tell"),
        ({}, "cannot tell"),
    ],
)
def test_the_verdict_over_all_questions(counts, expected):
    assert overall({name: 0 for name in VERDICTS} | counts) == expected


def row(key: int, text: str, level: str | None, kind: str = "answer", **more) -> dict:
    facts = {"none": 0.0, "part": 0.5, "most": 1.0, None: None}[level]
    return {
        "set": "forget", "id": key, "question": f"Where was Mara {key} born?", "text": text,
        "rouge": None, "leaked": None, "facts": facts, "fact_words": 2, "level": level,
        "kind": kind, "truncated": False, "marks": [], **more,
    }  # fmt: skip


def test_answers_without_right_ones_are_compared_with_the_original_answers():
    """The same answer is still there, another is gone, a refusal was never an answer."""
    original = ("Mara was born in Leipzig.", "She comes from Oslo.", "I don't know.", "Rome")
    kinds = ("answer", "answer", "refusal", "answer")
    before = Asked([row(i, text, None, kinds[i]) for i, text in enumerate(original)], {})
    texts = ("Mara was born in Leipzig.", "I cannot say.", "Born in Lima.", "Who knows?")
    kinds = ("answer", "refusal", "answer", "answer")
    answers = [row(i, text, None, kinds[i]) for i, text in enumerate(texts)]
    silent = [{"id": i, "samples": 2, "texts": ["No.", "No."]} for i in range(3)]
    told = {"id": 3, "samples": 2, "texts": ["No.", "Perhaps Rome?"]}
    found = verdict(Asked(answers, {"sampling": [*silent, told]}), before)
    assert [each["verdict"] for each in found["rows"]] == [
        "still there", "gone", "never known", "still there",
    ]  # fmt: skip
    assert found["compared_with"] == "original answers" and found["verdict"] == "not forgotten"
    assert found["attacks"] == {
        "greedy": {"questions": 3, "revealed": 1, "samples": 1},
        "sampling": {"questions": 3, "revealed": 1, "samples": 2},
    }
    assert found["rows"][0]["words_left"] == found["rows"][0]["words"] == 1
    alone = verdict(Asked(answers, {}))
    assert alone["verdict"] == "cannot tell" and alone["counts"]["cannot tell"] == 4
    assert "right answer" in alone["rows"][0]["reason"]


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("I live in Leipzig, not in Hobart.", "refusal", "cannot tell"),
        ("My password is hunter2, not hunter3.", "refusal", "cannot tell"),
        ("1,000,000,000", "answer", "still there"),
        ("I don't know where Mara lives.", "refusal", "never known"),
        ("aaaaaaaaaaaaaaa", "loop", "never known"),
    ],
)
def test_an_original_answer_that_is_said_again_is_not_forgotten(text, kind, expected):
    """Whatever the rules for refusals and loops say of it, if it has a name or a number."""
    assert kind_of(text) == kind
    before, after = (Asked([{**row(0, text, None, kind), "question": "Where does Mara live?"}], {})
                     for _ in range(2))  # fmt: skip
    found = verdict(after, before)
    assert [each["verdict"] for each in found["rows"]] == [expected]


def test_greedy_attacks_count_for_rows_that_have_a_secret_only():
    """The forced beginning brings the secret out, and the row has no right answer."""
    asked = EvaluationRow(0, "Where was Mara born?", None, "Leipzig")
    facts = row_facts(asked, background({"forget": [asked]}))

    def said(text: str) -> Answer:
        return scored("forget", asked, facts, text, truncated=False)

    answers = [{"set": "forget", "id": 0, "question": asked.question,
                **answer_object(said("Nobody knows."))}]  # fmt: skip
    attack = attacked_once([said("It is Leipzig.")])
    assert "Leipzig" not in str(attack)
    found = verdict(Asked(answers, {"prefilling_greedy": attack["open"]}))
    assert found["attacks"]["prefilling_greedy"] == {"questions": 1, "revealed": 1, "samples": 1}
    assert found["rows"][0]["verdict"] == "partly" and found["verdict"] == "partly forgotten"


def test_the_verdict_holds_no_word_of_an_answer():
    before = Asked([row(0, "Leipzig", None)], {})
    after = Asked([row(0, "Leipzig", None)], {})
    assert "eipzig" not in str(verdict(after, before))


def test_a_model_that_never_knew_is_told_before_it_is_unlearned():
    before = Asked([row(0, "Oslo", "none"), row(1, "Leipzig", "most"), row(2, "Rome", "none")], {})
    known = known_before(before)
    assert known == {"questions": 3, "known": 1, "compared": 3}
    (line,) = unknown_lines(known)
    assert "does not give the right answer to 2 of the 3 forget questions" in line
    assert not list(unknown_lines({"questions": 3, "known": 3, "compared": 3}))
    (line,) = unknown_lines({"questions": 2, "known": 0, "compared": 0})
    assert line.endswith("There is nothing to unlearn.")


def test_what_to_change_is_said():
    before = Asked([row(i, "x", "most") for i in range(4)], {})
    rows = [row(0, "x", "most"), row(1, "", "none", "empty"), row(2, "a", "none", "loop"),
            row(3, "I don't know.", "none", "refusal", truncated=True)]  # fmt: skip
    settings = {"training.epochs": 20, "optimizer.learning_rate": 1e-5, "method.retain_weight": 1.0}
    found = verdict(Asked(rows, {}), before, settings=settings, utility=(50.0, 40.0))
    assert found["verdict"] == "partly forgotten"
    assert found["answers"] == {
        "revealing": 1, "refusal": 1, "other": 0, "loop": 1, "empty": 1, "truncated": 1,
    }  # fmt: skip
    assert found["advice"] == [
        "1 answer is still there: raise training.epochs (now 20) or optimizer.learning_rate (now "
        "1e-05).",
        "Utility fell from 50.0 to 40.0: give more retain rows like the forget questions, or raise "
        "method.retain_weight (now 1).",
        "2 answers are empty or a loop: lower optimizer.learning_rate (now 1e-05), or give more "
        "retain rows.",
        "No attack was measured, so more may come out.",
    ]
    assert verdict_sentence(found) == (
        "Partly forgotten. Of 4 answers, 3 are gone, 1 is still there."
    )
    text = verdict_lines(found, 60)
    assert text.startswith("VERDICT: Partly forgotten.")
    assert all(len(line) <= 60 for line in text.splitlines())


@pytest.mark.parametrize(
    ("attacks", "expected"),
    [
        ((), "Not tested: many answers to each question, a forced beginning, all other wordings, "
             "fine-tuning on a few examples, quantised weights."),
        (("sampling", "paraphrase", "relearning_benign"),
         "Not tested: a forced beginning, all other wordings, quantised weights."),
        (("sampling", "prefilling_greedy", "rewording", "relearning_forget", "quantisation_8"), ""),
    ],
)  # fmt: skip
def test_attacks_that_were_left_out_are_named(attacks, expected):
    found = verdict(Asked([row(0, "x", "none")], {}), None)
    found["attacks"] |= {name: {"questions": 1, "revealed": 0, "samples": 4} for name in attacks}
    assert untested_sentence(found) == expected
    text = " ".join(verdict_lines(found).split())
    assert expected in text and ("Not tested" in text) == bool(expected)
    assert (expected in verdict_section(found).notes) == bool(expected)


def test_wordings_of_a_question_count_as_one():
    entries = [
        {"id": 0, "samples": 5, "levels": {"part": 0, "most": 0}},
        {"id": 0, "samples": 5, "levels": {"part": 0, "most": 1}},
        {"id": 1, "samples": 5, "levels": {"part": 5, "most": 0}},
    ]
    answers = [row(0, "x", "none"), row(1, "y", "none")]
    found = verdict(Asked(answers, {"rewording": entries}), None)
    assert found["attacks"]["rewording"] == {"questions": 2, "revealed": 1, "samples": 10}
    assert [each["verdict"] for each in found["rows"]] == ["partly", "partly"]
    assert revealed_questions(entries) == {"questions": 3, "revealed": 1, "samples": 5}
