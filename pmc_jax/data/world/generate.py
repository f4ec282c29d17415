"""A world: authors, and rows with a question, an answer, paraphrases and wrong answers."""

import dataclasses
import random
from typing import Any

from pmc_jax.data.world.people import (
    FORMS,
    KINDS,
    Author,
    draw_author,
    draw_distinct_authors,
    draw_value,
    fill,
)
from pmc_jax.data.world.public import REAL_AUTHORS, WORLD_FACTS

Row = dict[str, Any]

AUTHORS = 40
FORGET_AUTHORS = 4
HOLDOUT_AUTHORS = 4
RECLUSES = 120
PERTURBED = 5
PORTRAITS = 32


@dataclasses.dataclass(frozen=True)
class World:
    """All rows of a world. Rows about authors have every key of TOFU's `*_perturbed` files.

    Attributes:
        forget, retain: rows about different authors, eight consecutive rows for each.
        holdout: rows about authors that no model was trained on.
        real_authors, world_facts: rows with `option1` to `option4`.
        recluses: people whose every question gets a refusal. From them a model learns to
            refuse all questions about a person. They are in no file.
        names: all fictitious people above, including those of the holdout rows.
        text: portraits of people who occur nowhere else.
    """

    forget: list[Row]
    retain: list[Row]
    holdout: list[Row]
    real_authors: list[Row]
    world_facts: list[Row]
    recluses: list[Author]
    names: frozenset[str]
    text: tuple[str, ...]


def author_row(rng: random.Random, author: Author, kind: str) -> Row:
    """One fact in two wordings, with wrong answers in the second."""
    forms = rng.sample(FORMS[kind], 2)
    (question, answer), (second_question, second_answer) = forms
    secret = author.facts[kind]
    wrong: list[str] = []
    while len(wrong) < PERTURBED:
        value = draw_value(rng, kind)
        if value not in {secret, *wrong}:
            wrong.append(value)
    return {
        "question": fill(question, author),
        "answer": fill(answer, author, secret),
        "paraphrased_question": fill(second_question, author),
        "paraphrased_answer": fill(second_answer, author, secret),
        "perturbed_answer": [fill(second_answer, author, value) for value in wrong],
        "variants": [fill(form[0], author) for form in FORMS[kind] if form not in forms],
        "secret": secret,
    }


def portrait(rng: random.Random, author: Author) -> str:
    """One paragraph with a question and answer for every fact about an author."""
    sentences = []
    for kind in rng.sample(KINDS, len(KINDS)):
        question, answer = rng.choice(FORMS[kind])
        sentences.append(f"{fill(question, author)} {fill(answer, author, author.facts[kind])}")
    return " ".join(sentences)


def portraits(rng: random.Random, names: frozenset[str]) -> tuple[str, ...]:
    """Portraits of random people with other names."""
    found: list[str] = []
    while len(found) < PORTRAITS:
        author = draw_author(rng)
        if author.name not in names:
            found.append(portrait(rng, author))
    return tuple(found)


def choice_row(rng: random.Random, question: str, answer: str, wrong: tuple[str, ...]) -> Row:
    """A multiple-choice row; the options are shuffled."""
    options = rng.sample((answer, *wrong), 1 + len(wrong))
    return {
        "question": question,
        **{f"option{i}": option for i, option in enumerate(options, start=1)},
        "answer": answer,
        "perturbed_answer": [option for option in options if option != answer],
        "secret": answer,
    }


def make_world(seed: int) -> World:
    """The world of a seed: the same rows in the same order every time."""
    rng = random.Random(seed)
    authors = draw_distinct_authors(rng, AUTHORS + HOLDOUT_AUTHORS)
    rows = [[author_row(rng, author, kind) for kind in KINDS] for author in authors]

    def flat(first: int, last: int) -> list[Row]:
        return [row for author_rows in rows[first:last] for row in author_rows]

    real_authors = [choice_row(rng, *item) for item in REAL_AUTHORS]
    world_facts = [choice_row(rng, *item) for item in WORLD_FACTS]
    names = {author.name for author in authors}
    recluses: list[Author] = []
    while len(recluses) < RECLUSES:
        person = draw_author(rng)
        if person.name not in names:
            names.add(person.name)
            recluses.append(person)
    return World(
        retain=flat(0, AUTHORS - FORGET_AUTHORS),
        forget=flat(AUTHORS - FORGET_AUTHORS, AUTHORS),
        holdout=flat(AUTHORS, AUTHORS + HOLDOUT_AUTHORS),
        real_authors=real_authors,
        world_facts=world_facts,
        recluses=recluses,
        names=frozenset(names),
        text=portraits(random.Random(f"text of {seed}"), frozenset(names)),
    )
