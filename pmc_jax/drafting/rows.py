"""From a model's answers to the rows of a draft, each with what a reader should look at."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pmc_jax.data.checks import question_key
from pmc_jax.drafting.names import name_words
from pmc_jax.drafting.questions import Question
from pmc_jax.drafting.secrets import suggested_secret
from pmc_jax.drafting.sentences import whole_sentences
from pmc_jax.text.facts import Background, background_of, fact_recall, facts_of
from pmc_jax.text.kinds import kind_of
from pmc_jax.text.stop_words import stop_words_of
from pmc_jax.text.words import holds, words_of

REWORDING = "Rewrite this question in other words. Reply with the new question only.\n{question}"
"""What a model is asked for another wording."""

UNUSABLE = {
    "empty": "the answer is empty",
    "loop": "the answer repeats itself",
    "refusal": "the model refuses or does not know",
}

AGREEMENT = 0.5
"""Two answers agree if the second has at least this share of the first one's fact words."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model answered, and whether it came to its end before the limit."""

    text: str
    ended: bool = True


@dataclasses.dataclass(frozen=True)
class DraftRow:
    """A row of a draft.

    Attributes:
        fields: the row as the data file has it.
        left_out: why it is not in the file; None if it is.
        look: what a reader should look at.
    """

    fields: Mapping[str, Any]
    left_out: str | None = None
    look: tuple[str, ...] = ()


def usable(answer: Answer) -> tuple[str, tuple[str, ...]]:
    """An answer without the sentence that the limit has cut, and what to look at."""
    text = answer.text.strip()
    if answer.ended:
        return text, ()
    whole = whole_sentences(text)
    return (text, ("cut within a sentence",)) if whole is None else (whole, ())


def unusable(answer: str, question: str) -> str | None:
    """Why an answer is neither to be forgotten nor to be kept; None if it is an answer."""
    kind = kind_of(answer)
    if kind != "answer":
        return UNUSABLE[kind]
    words = words_of(answer)
    if not set(words) - set(words_of(question)) - stop_words_of(words):
        return "the answer says no more than the question"
    return None


def reworded(question: str, response: str, person: str) -> str | None:
    """The model's wording of a question; None unless it is another question about the person."""
    first = next((line.strip(" \"'*“”") for line in response.splitlines() if line.strip()), "")
    named = name_words(person) & frozenset(words_of(question))
    if not first.endswith(("?", "？", "؟")) or not named <= frozenset(words_of(first)):
        return None
    alike = len(words_of(first)) <= 2 * len(words_of(question)) + 4
    return first if alike and question_key(question) not in question_key(first) else None


def forget_rows(
    questions: Sequence[Question],
    answers: Sequence[Answer],
    again: Sequence[Answer],
    kept: Sequence[str],
    person: str,
) -> tuple[DraftRow, ...]:
    """The rows to forget.

    Args:
        questions: each with its paraphrase, if it has one.
        answers: to the questions.
        again: to the paraphrases (to the questions where there are none).
        kept: answers to be kept, in which words are counted that carry no fact.
        person: who is to be forgotten. Where only the answer names the person, the name is the
            secret.
    """
    background = background_of((usable(answer)[0] for answer in answers), kept)
    return tuple(
        _forget_row(*row, background, person) for row in zip(questions, answers, again, strict=True)
    )


def _forget_row(
    question: Question, answer: Answer, again: Answer, background: Background, person: str
) -> DraftRow:
    text, look = usable(answer)
    fields: dict[str, Any] = {"question": question.text, "answer": text} | _system(question)
    if problem := unusable(text, question.text):
        return DraftRow(fields, problem)
    unnamed = not name_words(person) & {word for own in question.wordings for word in words_of(own)}
    secret: str | None = person
    if not (unnamed and holds(text, person)):
        secret = suggested_secret(text, question.wordings, background, question.sort)
    if secret is None:
        look = *look, "no secret found"
    else:
        fields["secret"] = secret
    fields["paraphrased_question"] = question.paraphrase or question.text
    fields["paraphrased_answer"] = text
    if question.paraphrase is None:
        look = *look, "the model has no other wording; write paraphrased_question yourself"
    else:
        other = usable(again)[0]
        if _agree(text, other, secret, question, background):
            fields["paraphrased_answer"] = other
        else:
            look = *look, f"in other words, the model answers: {' '.join(other.split())}"
    if question.variants:
        fields["variants"] = list(question.variants)
    return DraftRow(fields, None, look)


def _agree(
    answer: str, other: str, secret: str | None, question: Question, background: Background
) -> bool:
    """Whether an answer to the paraphrase says the same."""
    if kind_of(other) != "answer":
        return False
    if secret is not None:
        return bool(holds(other, secret))
    share = fact_recall(facts_of(answer, question.text, background), other)
    return share is not None and share >= AGREEMENT


def retain_rows(
    questions: Sequence[Question], answers: Sequence[Answer], person: str
) -> tuple[DraftRow, ...]:
    """The rows to keep; none that speaks of the person."""
    return tuple(_retain_row(*row, person) for row in zip(questions, answers, strict=True))


def _retain_row(question: Question, answer: Answer, person: str) -> DraftRow:
    text, look = usable(answer)
    fields = {"question": question.text, "answer": text} | _system(question)
    problem = unusable(text, question.text)
    own = name_words(person) - frozenset(words_of(question.text))
    if problem is None and (own & frozenset(words_of(text)) or holds(text, person)):
        problem = f"the answer may speak of {person}"
    return DraftRow(fields, problem, look)


def _system(question: Question) -> dict[str, str]:
    return {} if question.system is None else {"system": question.system}
