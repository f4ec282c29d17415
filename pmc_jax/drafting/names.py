"""Names of other people that a model proposes, read strictly."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from pmc_jax.text.stop_words import stop_words_of
from pmc_jax.text.words import words_of

PROPOSALS = (
    "Write a numbered list of ten famous people with the same profession as {person}. Write their "
    "full names only.",
    "Who are ten famous people of the same time and field as {person}? Reply with a numbered list "
    "of their full names.",
    "Write a numbered list of ten famous people.",
)
"""What a model is asked for names."""

BULLET = re.compile(r"\s*(?:\d{1,2}\s*[.):]|[-*•–])\s+")
REST = re.compile(r"\s*$|\s*[:(,]|\s+[-–—]\s")
"""What may follow a name in a list."""

NAME = re.compile(
    r"[^\W\d_][^\W\d_]*(?:[-'’.][^\W\d_]+)*\.?(?: [^\W\d_]+(?:[-'’.][^\W\d_]+)*\.?){1,4}"
)
PARTICLES = frozenset((
    "de", "del", "du", "la", "le", "von", "van", "der", "den", "da", "di", "bin", "ibn", "al",
))  # fmt: skip
"""Words of a name without a capital."""

NOT_NAMES = frozenset((
    "the", "a", "an", "and", "of", "for", "in", "on", "with", "here", "these", "famous", "people",
    "name", "names", "list", "university", "institute", "college", "academy", "award", "prize",
    "society", "company",
))  # fmt: skip
"""Words, in lower case, that a person's name does not have."""


def is_name(text: str) -> bool:
    """Whether a text looks like a full name: two to five words with capitals."""
    words = text.split(" ")
    if not NAME.fullmatch(text) or any(word.lower() in NOT_NAMES for word in words):
        return False
    capital = [word[0].isupper() or word in PARTICLES for word in words]
    return all(capital) and words[0][0].isupper() and words[-1][0].isupper()


def names_in(response: str) -> list[str]:
    """The names of a list: one per line, with or without a number, or three and more in a line."""
    found = []
    for line in response.replace("**", "").splitlines():
        bullet = BULLET.match(line)
        text = line[bullet.end() :] if bullet else line
        parts = [part.strip(" .") for part in re.split(r", and |, | and ", text)]
        if len(parts) >= 3 and all(map(is_name, parts)):
            found += parts
            continue
        name = NAME.match(text.strip())
        rest = text.strip()[name.end() :] if name else ""
        if name and is_name(name[0]) and (REST.match(rest) if bullet else not rest.strip()):
            found.append(name[0])
    return list(dict.fromkeys(found))


def name_words(name: str) -> frozenset[str]:
    """The words of a name by which it is recognised."""
    words = words_of(name)
    telling = frozenset(word for word in words if len(word) > 2) - stop_words_of(words) - PARTICLES
    return telling or frozenset(words)


def proposed(responses: Iterable[str], person: str, most: int) -> list[str]:
    """The names that most responses contain; none shares a word with the person's or another one.

    Args:
        responses: what the model answered to `PROPOSALS`.
        most: how many names are wanted.
    """
    counts: Counter[str] = Counter(name for response in responses for name in names_in(response))
    taken = set(name_words(person))
    found: list[str] = []
    for name, _ in counts.most_common():  # ties in the order in which they were met
        if len(found) < most and not name_words(name) & taken:
            found.append(name)
            taken |= name_words(name)
    return found


def given(others: Sequence[str], person: str) -> list[str]:
    """Names that the user gives, each once, without the person's own."""
    own = words_of(person)
    names: dict[tuple[str, ...], str] = {}
    for name in others:
        if words_of(name) and words_of(name) != own:
            names.setdefault(words_of(name), " ".join(name.split()))
    return list(names.values())
