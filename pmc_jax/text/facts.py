"""The words of an answer that carry its facts, and how many of them another text has.

Most words of an answer belong to its sentence pattern or repeat the question. In "The full name
of the female author born in Santiago, Chile in 1977 is Carmen Montenegro", only the last two
words answer the question.
"""

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from pmc_jax.text.stop_words import ANSWERS_ALONE, stop_words_of
from pmc_jax.text.words import comparable, found, squeezed, word_spans, words_of

COMMON_SHARE, COMMON_COUNT = 0.1, 3
"""A word is common if at least this share and this number of the kept answers have it."""

PATTERN_SHARE, PATTERN_COUNT = 0.5, 20
"""With at least this many forget answers, a word is also common if more than this share has it."""

SENTENCE_ENDS = frozenset(".!?:;…。！？")
QUOTES = " \t\n\"'“”„«»‘’‚(["
PIECE = re.compile(r"\b\d{1,3}(?:\s\d{3})+\b|\S+")
"""What stands between spaces, or a number in groups of three digits."""

_IN_WORDS = (
    "two three four five six seven eight nine eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
)
_IN_DIGITS = [*range(2, 10), *range(11, 21), *range(30, 100, 10)]
_WRITTEN = [(comparable(a), str(b)) for a, b in zip(_IN_WORDS.split(), _IN_DIGITS, strict=True)]
NUMBERS = dict(_WRITTEN) | {digits: word for word, digits in _WRITTEN}
"""The other spelling of a number: English words by digits, and digits by words. "One" often stands
for no number, and "ten" is a common word in other languages."""

MOST_WORDS_OF_A_NUMBER = 2
"""The other spelling of a number counts only in answers with at most this many fact words. In
longer ones, it would match other numbers by chance."""


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
        perhaps_names: words that are telling if a text writes them as names: those that begin a
            sentence of the answer with a capital, or all of an answer without capitals.
        pieces: the pieces of the answer that have these words, each with its words. A text may
            divide a piece into other words: "10,000" and "10000".
    """

    words: tuple[str, ...]
    names: frozenset[str] = frozenset()
    perhaps_names: frozenset[str] = frozenset()
    pieces: tuple[tuple[str, frozenset[str]], ...] = ()


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

    If no word remains, common words count, too; then words of the question; then the stop words
    that can be an answer, such as "no"; then all. So an answer with words always has facts.
    """
    own, asked = words_of(answer), frozenset(words_of(question))
    asked |= {NUMBERS[word] for word in asked & NUMBERS.keys()}
    stop = stop_words_of(own + words_of(question))
    words: tuple[str, ...] = ()
    left_outs: tuple[frozenset[str], ...] = (
        asked | stop | background.common, asked | stop, stop, stop - ANSWERS_ALONE, frozenset(),
    )  # fmt: skip
    for left_out in left_outs:
        words = tuple(dict.fromkeys(word for word in own if word not in left_out))
        if words:
            break
    telling = frozenset(words) - background.kept - stop
    pieces = (
        (piece, frozenset(words_of(piece)) & frozenset(words)) for piece in PIECE.findall(answer)
    )
    return Facts(
        words,
        names_of(answer) & telling,
        perhaps_names_of(answer) & telling,
        tuple(dict.fromkeys((piece, own) for piece, own in pieces if own)),
    )


def capitals(text: str) -> Iterator[tuple[str, str, bool]]:
    """The words of a text, each as it is compared and as it is written, and whether it begins a
    sentence.
    """
    end = 0
    for start, stop, word in word_spans(text):
        between = text[end:start].strip(QUOTES)
        yield word, text[start:stop], end == 0 or bool(between and between[-1] in SENTENCE_ENDS)
        end = stop


def names_of(text: str) -> frozenset[str]:
    """Words with a digit, and words with a capital that do not begin a sentence."""
    return frozenset(
        word
        for word, written, begins in capitals(text)
        if any(map(str.isdigit, written)) or (written[:1].isupper() and not begins)
    )


def perhaps_names_of(text: str) -> frozenset[str]:
    """Words that may be names, but nothing shows it: all of a text without capitals, or those that
    begin a sentence with one.
    """
    return frozenset(
        word
        for word, written, begins in capitals(text)
        if text.islower() or (written[:1].isupper() and begins)
    )


def numbers_left(facts: Facts, text: str) -> frozenset[str]:
    """The fact words that are numbers and that `text` has in their other spelling.

    A part of a number such as twenty-three is no number.
    """
    if len(facts.words) > MOST_WORDS_OF_A_NUMBER:
        return frozenset()
    pieces = (comparable(piece.strip("([{\"'“”’.,:;!?)]}")) for piece in text.split())
    return frozenset(NUMBERS.get(piece, "") for piece in pieces) & frozenset(facts.words)


def facts_left(facts: Facts, text: str) -> tuple[str, ...]:
    """The fact words that `text` has."""
    present = {*words_of(text), *numbers_left(facts, text)}
    letters = squeezed(text)
    for piece, words in facts.pieces:
        if not words <= present and squeezed(piece) in letters and found(text, piece):
            present |= words
    return tuple(word for word in facts.words if word in present)


def telling_left(facts: Facts, text: str) -> bool:
    """Whether `text` has a telling word of the answer."""
    left = frozenset(facts_left(facts, text))
    return bool(left & facts.names or left & facts.perhaps_names & names_of(text))


def fact_recall(facts: Facts, text: str) -> float | None:
    """The share of the fact words that `text` has, 0 to 1; None without fact words."""
    return len(facts_left(facts, text)) / len(facts.words) if facts.words else None


def fact_spans(facts: Facts, text: str) -> list[tuple[int, int]]:
    """Where the fact words occur in `text`: (start, end) of each, in order and disjoint."""
    wanted, said = frozenset(facts.words), frozenset(words_of(text))
    numbers = numbers_left(facts, text)
    spans = [
        (start, end)
        for start, end, word in word_spans(text)
        if word in wanted or NUMBERS.get(word) in numbers
    ]
    for piece, words in facts.pieces:
        if not words <= said:
            spans += [
                (start, end)
                for start, end in found(text, piece)
                if all(end <= first or last <= start for first, last in spans)
            ]
    return sorted(spans)
