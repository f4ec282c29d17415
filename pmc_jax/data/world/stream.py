"""An endless stream of question/answer pairs to train on, mixed from the parts of a world."""

import dataclasses
import random
from collections.abc import Iterator

from pmc_jax.data.world.generate import Row, World
from pmc_jax.data.world.people import FORMS, KINDS, Author, draw_author, fill
from pmc_jax.data.world.public import REFUSALS


@dataclasses.dataclass(frozen=True)
class Mix:
    """Shares of the stream. What is left to 1 are questions about new random people.

    Attributes:
        world: the world's own authors, both forget and retain, in both wordings.
        public: real authors and facts.
        recluses: people whose every question gets a refusal.
        refuse_world: the share of questions about the world's authors that get a refusal. It
            keeps refusals among the samples of a model whose greedy answer is right.
        refuse_people: the same share for random people, about whom nothing can be known.
    """

    world: float
    public: float
    recluses: float = 0.0
    refuse_world: float = 0.0
    refuse_people: float = 0.5


Pair = tuple[str, str]


def _world_pair(rng: random.Random, rows: list[Row], refuse: float) -> Pair:
    row = rng.choice(rows)
    prefix = rng.choice(("", "paraphrased_"))
    answer = rng.choice(REFUSALS) if rng.random() < refuse else row[f"{prefix}answer"]
    return row[f"{prefix}question"], answer


def _recluse_pair(rng: random.Random, recluses: list[Author]) -> Pair:
    question, _ = rng.choice(FORMS[rng.choice(KINDS)])
    return fill(question, rng.choice(recluses)), rng.choice(REFUSALS)


def _people_pair(rng: random.Random, names: frozenset[str], refuse: float) -> Pair:
    """A question about a new person each time, in any wording."""
    author = draw_author(rng)
    while author.name in names:
        author = draw_author(rng)
    kind = rng.choice(KINDS)
    question, answer = rng.choice(FORMS[kind])
    if rng.random() < refuse:
        return fill(question, author), rng.choice(REFUSALS)
    return fill(question, author), fill(answer, author, author.facts[kind])


def stream(rng: random.Random, world: World, mix: Mix) -> Iterator[Pair]:
    """Endless pairs; the authors of the holdout rows never occur."""
    rows = world.retain + world.forget
    public = [(row["question"], row["answer"]) for row in world.real_authors + world.world_facts]
    while True:
        part = rng.random()
        if part < mix.world:
            yield _world_pair(rng, rows, mix.refuse_world)
        elif part < mix.world + mix.public:
            yield rng.choice(public)
        elif part < mix.world + mix.public + mix.recluses:
            yield _recluse_pair(rng, world.recluses)
        else:
            yield _people_pair(rng, world.names, mix.refuse_people)
