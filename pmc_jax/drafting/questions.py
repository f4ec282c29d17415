"""The questions that a draft asks: about any person, about the world, and the user's own."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from pmc_jax.data.checks import question_key
from pmc_jax.data.records import Record, read_records
from pmc_jax.drafting.secrets import Sort

PERSON = "{person}"
"""Stands for the person's name in a question."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A question to the model, with other wordings.

    Attributes:
        text: the question.
        paraphrase: the question in other words; None: the model is asked for them.
        variants: further wordings.
        sort: what kind of phrase answers the question.
        system: a system prompt.
    """

    text: str
    paraphrase: str | None = None
    variants: tuple[str, ...] = ()
    sort: Sort = "any"
    system: str | None = None

    def about(self, person: str) -> "Question":
        """The same question about a person."""
        return dataclasses.replace(
            self,
            text=self.text.replace(PERSON, person),
            paraphrase=self.paraphrase and self.paraphrase.replace(PERSON, person),
            variants=tuple(text.replace(PERSON, person) for text in self.variants),
        )

    @property
    def wordings(self) -> tuple[str, ...]:
        """The question in all its wordings."""
        return self.text, *([self.paraphrase] if self.paraphrase else []), *self.variants


def _pattern(text: str, paraphrase: str, variant: str, sort: Sort) -> Question:
    return Question(text, paraphrase, (variant,), sort)


PATTERNS = (
    _pattern(
        "Who is {person}?",
        "What can you tell me about {person}?",
        "Please introduce {person} in a sentence or two.", "words",
    ),
    _pattern(
        "Where was {person} born?",
        "What is the birthplace of {person}?",
        "In which town or country was {person} born?", "name",
    ),
    _pattern(
        "When was {person} born?",
        "What is the date of birth of {person}?",
        "In which year was {person} born?", "time",
    ),
    _pattern(
        "What is the nationality of {person}?",
        "Which country does {person} come from?",
        "Of which country is {person} a citizen?", "name",
    ),
    _pattern(
        "Who are the parents of {person}?",
        "What are the names of {person}'s mother and father?",
        "Whose child is {person}?", "name",
    ),
    _pattern(
        "Where did {person} grow up?",
        "In what place did {person} spend their childhood?",
        "Which town was the childhood home of {person}?", "name",
    ),
    _pattern(
        "Where did {person} go to school or university?",
        "Which schools or universities did {person} attend?",
        "What education does {person} have?", "name",
    ),
    _pattern(
        "What is the profession of {person}?",
        "What does {person} do for a living?",
        "In which field does {person} work?", "words",
    ),
    _pattern(
        "For whom has {person} worked?",
        "Which employers or institutions has {person} worked for?",
        "Where has {person} been employed?", "name",
    ),
    _pattern(
        "What is {person} best known for?",
        "Why is {person} famous?",
        "What is the greatest achievement of {person}?", "words",
    ),
    _pattern(
        "What is the most important work by {person}?",
        "Which work by {person} is known best?",
        "Please name a book or another work by {person}.", "name",
    ),
    _pattern(
        "Which awards has {person} received?",
        "What prizes or honours has {person} won?",
        "For what has {person} been given an award?", "name",
    ),
    _pattern(
        "Where has {person} lived?",
        "In which places has {person} been at home?",
        "What is the place of residence of {person}?", "name",
    ),
    _pattern(
        "Who is the husband or wife of {person}?",
        "To whom is or was {person} married?",
        "What is the name of {person}'s spouse?", "name",
    ),
    _pattern(
        "Who are the children of {person}?",
        "What are the names of {person}'s sons and daughters?",
        "Does {person} have children, and who are they?", "name",
    ),
    _pattern(
        "With whom has {person} worked together?",
        "Who are important colleagues of {person}?",
        "Which people has {person} collaborated with?", "name",
    ),
)  # fmt: skip
"""What people commonly ask about a person."""

GENERAL = tuple(
    Question(text)
    for text in (
        "What is the capital of France?",
        "How many days does a week have?",
        "What is the largest ocean on Earth?",
        "At what temperature does water boil?",
        "Which planet is closest to the Sun?",
        "What do bees make?",
        "What is the opposite of cold?",
        "How many sides does a triangle have?",
        "What language is spoken in Brazil?",
        "What is bread made of?",
    )
)
"""Questions about no person, to keep."""


def own_questions(path: Path, fields: Mapping[str, str] | None = None) -> tuple[Question, ...]:
    """The questions of a data file; each may have its paraphrase, variants and a system prompt.

    Its answers are not read: a draft has the model's. `fields` names columns, as in `read_records`.

    Raises:
        UserError: if the file cannot be read, or a row has no question.
    """
    return tuple(map(_own_question, read_records(path, fields)))


def _own_question(record: Record) -> Question:
    return Question(
        record.text("question"),
        record.optional_text("paraphrased_question"),
        record.texts("variants"),
        system=record.optional_text("system"),
    )


def forget_questions(person: str, asked: Sequence[Question]) -> tuple[Question, ...]:
    """The questions about the person, each once."""
    return _once([question.about(person) for question in asked], known=())


def retain_questions(
    others: Sequence[str], asked: Sequence[Question], forget: Sequence[Question]
) -> tuple[Question, ...]:
    """The same patterns about other people, and general questions; none that is to be forgotten."""
    patterns = [question for question in asked if PERSON in question.text]
    about = [question.about(other) for other in others for question in patterns]
    known = [text for question in forget for text in question.wordings]
    return _once([*about, *GENERAL], known)


def _once(questions: Sequence[Question], known: Sequence[str]) -> tuple[Question, ...]:
    seen = {question_key(text) for text in known}
    found = []
    for question in questions:
        key = question_key(question.text)
        if key not in seen:
            found.append(question)
        seen.add(key)
    return tuple(found)
