"""The words of an answer that carry its facts, and how many of them another text has.

Most words of an answer belong to its sentence pattern or repeat the question. In "The full name
of the female author born in Santiago, Chile in 1977 is Carmen Montenegro", only the last two
words answer the question.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable

from pmc_jax.text.stop_words import stop_words_of
from pmc_jax.text.words import word_spans, words_of

COMMON_SHARE, COMMON_COUNT = 0.1, 3
"""A word is common if at least this share and this number of the kept answers have it."""

PATTERN_SHARE, PATTERN_COUNT = 0.5, 20
"""With at least this many forget answers, a word is also common if more than this share has it."""

SENTENCE_ENDS = frozenset(".!?:;…。！？")
QUOTES = " \t\n\"'“”„«»‘’‚(["


@dataclasses.dataclass(frozen=True)
class Background:
    """What a data set says about words.

    Attributes:
        common: words that occur in too many answers to carry a fact.
        kept: all words of the answers to be kept.
    """

    common: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Facts:
    """The words that carry the facts of an answer, in the form in which texts are compared.

    Attributes:
        words: without repetitions, in the order of the answer.
        names: the telling ones: numbers, and names (words with a capital within a sentence), that
            no answer to be kept has. A single one of them reveals a part of the answer.
    """

    words: tuple[str, ...]
    names: frozenset[str] = frozenset()


def background_of(forget: Iterable[str], kept: Iterable[str]) -> Background:
    """The background of a data set, from its distinct answers to forget and to keep."""
    forget, kept = dict.fromkeys(forget), dict.fromkeys(kept)
    in_forget, in_kept = (
        Counter(word for answer in answers for word in set(words_of(answer)))
        for answers in (forget, kept)
    )
    least = max(COMMON_COUNT, COMMON_SHARE * len(kept))
    common = {word for word, count in in_kept.items() if count >= least}
    if len(forget) >= PATTERN_COUNT:
        most = PATTERN_SHARE * len(forget)
        common |= {word for word, count in in_forget.items() if count > most}
    return Background(frozenset(common), frozenset(in_kept))


@functools.lru_cache(maxsize=1 << 14)
def facts_of(answer: str, question: str, background: Background) -> Facts:
    """The facts of `answer`: its words that are not in the question and not common.

    If no word remains, common words count, too; then words of the question; then stop words. So
    an answer with words always has facts.
    """
    own, asked = words_of(answer), frozenset(words_of(question))
    stop = stop_words_of(own + words_of(question))
    words: tuple[str, ...] = ()
    for left_out in (asked | stop | background.common, asked | stop, stop, frozenset()):
        words = tuple(dict.fromkeys(word for word in own if word not in left_out))
        if words:
            break
    names = names_of(answer) & frozenset(words) - background.kept - stop
    return Facts(words, names)


def names_of(text: str) -> frozenset[str]:
    """Words with a digit, and words with a capital that do not begin a sentence."""
    found, end = set(), 0
    for start, stop, word in word_spans(text):
        between, written = text[end:start].strip(QUOTES), text[start:stop]
        begins = end == 0 or bool(between and between[-1] in SENTENCE_ENDS)
        if any(map(str.isdigit, written)) or (written[:1].isupper() and not begins):
            found.add(word)
        end = stop
    return frozenset(found)


def facts_left(facts: Facts, text: str) -> tuple[str, ...]:
    """The fact words that `text` has."""
    present = frozenset(words_of(text))
    return tuple(word for word in facts.words if word in present)


def fact_recall(facts: Facts, text: str) -> float | None:
    """The share of the fact words that `text` has, 0 to 1; None without fact words."""
    return len(facts_left(facts, text)) / len(facts.words) if facts.words else None


def fact_spans(facts: Facts, text: str) -> list[tuple[int, int]]:
    """Where the fact words occur in `text`."""
    wanted = frozenset(facts.words)
    return [(start, end) for start, end, word in word_spans(text) if word in wanted]
