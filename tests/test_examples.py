"""Answers side by side: which ones are shown, and which words are marked."""

import difflib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from pmc_jax.data.rows import EvaluationRow
from pmc_jax.evaluation.quality import row_facts, scored
from pmc_jax.reporting.examples import (
    Span,
    cut,
    example,
    example_groups,
    joined,
    leaking,
    marked,
)
from pmc_jax.text.facts import Background

ANSWERS = st.lists(
    st.sampled_from(
        ["the", "cat", "cats", "sat", "on", "Mats", "mat", "_", "1987", "-", "\n", ","]
    ),
    max_size=12,
).map(" ".join)


def words(spans: list[Span], mark: str) -> list[str]:
    return [stem for span in spans if span.mark == mark for _, stem in cut(span.text)[1]]


@given(ANSWERS, ANSWERS)
def test_the_marks_turn_one_answer_into_the_other(before, after):
    """Take out what is gone and put in what is new; nothing else has changed."""
    old, new = marked(before, after)
    stems = [[stem for _, stem in cut(text)[1]] for text in (before, after)]
    assert words(old, "") == words(new, "")
    assert len(words(old, "")) + len(words(old, "gone")) == len(stems[0])
    assert len(words(new, "")) + len(words(new, "new")) == len(stems[1])
    # No word diff keeps more; difflib's may keep less.
    blocks = difflib.SequenceMatcher(None, *stems, autojunk=False).get_matching_blocks()
    assert len(words(new, "")) >= sum(block.size for block in blocks)
    known = len(cut(before)[1])
    expected = RougeScorer(["rougeL"], use_stemmer=True).score(before, after)["rougeL"].recall
    assert (len(words(new, "")) / known if known else 0.0) == pytest.approx(expected)


@given(st.text(), st.text())
def test_spans_join_to_the_answers(before, after):
    for old, new in (marked(before, after), leaking(row(before, after), Background())):
        assert (joined(old), joined(new)) == (before, after)


def row(before: str, after: str, question: str = "Where was Zoltan born?", **more) -> dict:
    return {"set": "forget", "id": 0, "question": question, "before": before, "after": after,
            **more}  # fmt: skip


def judged(answer: str, before: str, after: str, secret: str | None = None) -> dict:
    """A row with the marks of the evaluation, which knows the right answer."""
    asked = EvaluationRow(0, "Where was Zoltan born?", answer, secret)
    facts = row_facts(asked, Background())
    old, new = (scored("forget", asked, facts, text, truncated=False) for text in (before, after))
    return row(before, after, facts_after=new.facts, marks_before=old.marks, marks_after=new.marks)


def test_words_of_the_right_answer_are_marked_as_leaks():
    """A right answer that the old one did not have is a leak; "the" and the question are not."""
    found = judged("Zoltan was born in Leipzig.", "Zoltan was born in the old Oslo.",
                   "The answer: Zoltan was born in Leipzig.")  # fmt: skip
    old, new = leaking(found, Background())
    assert words(new, "left") == ["leipzig"] and words(new, "gone") == words(new, "new") == []
    assert not [span for span in old if span.mark]
    found = judged("It is Leipzig in Saxony.", "Leipzig in Saxony", "Saxony, in the East")
    old, new = leaking(found, Background())
    assert words(old, "gone") == ["leipzig"]
    assert words(old, "left") == words(new, "left") == ["saxoni"]


def test_the_secret_is_marked_first_of_all():
    found = judged("He won the Falcon Medal in Leipzig.", "the Falcon Medal",
                   "A falcon medal, or a medal", secret="Falcon Medal")  # fmt: skip
    old, new = leaking(found, Background())
    assert words(new, "secret") == ["falcon", "medal"] and words(new, "left") == ["medal"]
    assert words(old, "secret") == ["falcon", "medal"]


def test_without_a_right_answer_the_facts_of_the_old_one_are_marked():
    old, new = leaking(row("Zoltan was born in Leipzig.", "In Leipzig was he."), Background())
    assert new == [Span("In "), Span("Leipzig", "left"), Span(" was he.")]
    assert words(old, "left") == ["leipzig"]
    old, new = leaking(row("Zoltan was born in Leipzig.", "In Oslo"), Background())
    assert words(old, "gone") == ["leipzig"] and new == [Span("In Oslo")]
    said = row("Золтан родился в Москве", "Да, в городе Москве")
    assert Span("Москве", "left") in example(said, forgotten=True).after


def test_changed_words_are_marked_on_both_sides():
    old, new = marked("Oslo", "Oslo, of course")
    assert old == [Span("Oslo")] and new == [Span("Oslo, "), Span("of course", "new")]
    old, new = marked("It is Lisbon.", "I cannot say.")
    assert words(old, "gone") == ["it", "is", "lisbon"] and words(new, "new") == [
        "i", "cannot", "say",
    ]  # fmt: skip


def rows(*recalls: float) -> list[dict]:
    return [
        {"set": "forget", "id": i, "question": f"{i}?", "before": "Oslo", "after": "Rome",
         "rouge_before": 1.0, "rouge_after": recall}
        for i, recall in enumerate(recalls)
    ]  # fmt: skip


def test_the_worst_come_first_with_their_badges():
    verdicts = ["gone"] * 10 + ["still there", "partly"]
    verdict = {
        "rows": [
            {"id": i, "verdict": name, "words_left": int(i == 11), "words": 2, "samples": 32,
             "samples_revealing": 0, "kind": "answer", "truncated": False}
            for i, name in enumerate(verdicts)
        ]
    }  # fmt: skip
    (group,) = example_groups(rows(*[0.0] * 10, 0.5, 0.9), verdict)
    assert group.title == "To be forgotten" and group.note.endswith("The worst first. 9 of 12.")
    assert [example.question for example in group.examples[:3]] == ["10?", "11?", "0?"]
    assert [example.badge for example in group.examples[:3]] == ["still there", "partly", "gone"]
    assert group.examples[1].note == "1 of 2 fact words left, revealed in 0 of 32 samples"
    few = example_groups(rows(0.0, 0.5))[0]
    assert [e.rouge_after for e in few.examples] == [0.5, 0.0] and few.examples[0].badge == ""
    assert example_groups(rows(0.0))[0].note == "Questions whose answers should be gone."
