"""Answers side by side: which ones are shown, and which words are marked."""

import difflib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from pmc_jax.reporting.examples import Span, cut, example_groups, joined, marked

ANSWERS = st.lists(
    st.sampled_from(
        ["the", "cat", "cats", "sat", "on", "Mats", "mat", "_", "1987", "-", "\n", ","]
    ),
    max_size=12,
).map(" ".join)


def words(spans: list[Span], mark: str) -> list[str]:
    return [stem for span in spans if span.mark == mark for _, stem in cut(span.text)[1]]


@given(ANSWERS, ANSWERS)
def test_what_is_left_is_what_rouge_counts(before, after):
    old, new = marked(before, after, forgotten=True)
    known = len(cut(before)[1])
    expected = RougeScorer(["rougeL"], use_stemmer=True).score(before, after)["rougeL"].recall
    assert (len(words(new, "left")) / known if known else 0.0) == pytest.approx(expected)
    assert words(old, "left") == words(new, "left")


@given(ANSWERS, ANSWERS, st.booleans())
def test_the_marks_turn_one_answer_into_the_other(before, after, forgotten):
    """Deleting the words that are gone and adding those that are new gives the other answer."""
    old, new = marked(before, after, forgotten=forgotten)
    kept = "left" if forgotten else ""
    stems = [[stem for _, stem in cut(text)[1]] for text in (before, after)]
    assert words(old, kept) == words(new, kept)
    assert len(words(old, kept)) + len(words(old, "gone")) == len(stems[0])
    assert len(words(new, kept)) + len(words(new, "new")) == len(stems[1])
    # No word diff keeps more words; that of difflib may keep fewer.
    blocks = difflib.SequenceMatcher(None, *stems, autojunk=False).get_matching_blocks()
    assert len(words(new, kept)) >= sum(block.size for block in blocks)


@given(st.text(), st.text(), st.booleans())
def test_spans_join_to_the_answers(before, after, forgotten):
    old, new = marked(before, after, forgotten=forgotten)
    assert (joined(old), joined(new)) == (before, after)


def test_words_of_other_scripts_are_marked():
    truth, said = "Золтан родился в Москве", "Да, Золтан родился в городе Москве"
    _, new = marked(truth, said, forgotten=True)
    assert words(new, "left") == ["золтан", "родился", "в", "москве"]


def test_changed_words_are_marked_on_both_sides():
    old, new = marked("Zoltan was born in Quebec.", "Zoltan writes in Oslo!", forgotten=True)
    assert old == [
        Span("Zoltan", "left"), Span(" "), Span("was born", "gone"), Span(" "),
        Span("in", "left"), Span(" "), Span("Quebec", "gone"), Span("."),
    ]  # fmt: skip
    assert new == [
        Span("Zoltan", "left"), Span(" "), Span("writes", "new"), Span(" "),
        Span("in", "left"), Span(" "), Span("Oslo", "new"), Span("!"),
    ]  # fmt: skip
    # In an answer that should stay, no word is marked as left.
    old, new = marked("Oslo", "Oslo, of course", forgotten=False)
    assert old == [Span("Oslo")] and new == [Span("Oslo, "), Span("of course", "new")]
    old, new = marked("It is Lisbon.", "I cannot say.", forgotten=True)
    assert words(old, "gone") == ["it", "is", "lisbon"] and words(new, "new") == [
        "i", "cannot", "say",
    ]  # fmt: skip


def rows(*recalls: float) -> list[dict]:
    return [
        {"set": "forget", "id": i, "question": f"{i}?", "before": "Oslo", "after": "Rome",
         "rouge_before": 1.0, "rouge_after": recall}
        for i, recall in enumerate(recalls)
    ]  # fmt: skip


def test_the_heading_says_what_is_left():
    silent = example_groups(rows(*[0.0] * 12))[0]
    assert silent.note == (
        "None of these answers to 12 questions has a word of the right answer left. Here are 6, "
        "evenly spaced."
    )
    assert len(silent.examples) == 6
    one = example_groups(rows(*[0.0] * 11, 0.5))[0]
    assert one.note.startswith("First the question (of 12) with the most left of the right answer")
    assert [e.question for e in one.examples] == ["11?", *(f"{i}?" for i in (0, 1, 3, 5, 7, 9))]
    many = example_groups(rows(0.1, 0.2, 0.3, 0.4, *[0.0] * 8))[0]
    assert many.note.startswith("First the 3 questions (of 12)")
    assert [e.rouge_after for e in many.examples[:3]] == [0.4, 0.3, 0.2]
    few = example_groups(rows(0.0, 0.5))[0]
    assert few.note == "Questions whose answers should be gone." and len(few.examples) == 2
