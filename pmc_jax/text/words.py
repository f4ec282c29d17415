"""The words of a text in any script, and where a phrase occurs in it.

Two spellings of a word are equal if they differ only in case, width, normal form, invisible
characters, the accents of Latin, Greek and Cyrillic letters, the vowel points of Hebrew and Arabic,
or in letters that keyboards and habits exchange (`_SAME_LETTER`, `_NASAL`). English and Russian
inflections are equal too: Latin and Cyrillic words are stemmed. Scripts that put no spaces between
words, or that attach particles to them as Korean does, are read sign by sign: a sign is a character
with its marks.
"""

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Literal

import regex
from nltk.stem.porter import PorterStemmer
from nltk.stem.snowball import RussianStemmer

_STEMMER, _CYRILLIC_STEMMER = PorterStemmer(), RussianStemmer()
_CYRILLIC = regex.compile(r"\p{Cyrillic}", regex.V1)

# Scripts that are read sign by sign.
_SIGNS = (
    "Han Hiragana Katakana Bopomofo Hangul Yi Nushu Tangut Khitan_Small_Script Thai Lao Khmer "
    "Myanmar Tibetan Tai_Le New_Tai_Lue Tai_Tham Tai_Viet Ahom Balinese Javanese"
)
_SIGN_CLASS = "".join(rf"\p{{Script={name}}}" for name in _SIGNS.split()) + "ー"
_SIGN_LETTER = rf"[{_SIGN_CLASS}]&&[\p{{L}}\p{{Nl}}]"
_HANGUL = (
    r"\p{gcb=L}*(?:\p{gcb=LV}\p{gcb=V}*|\p{gcb=LVT}|\p{gcb=V}+)\p{gcb=T}*|\p{gcb=L}+|\p{gcb=T}+"
)
_OTHER = rf"[\p{{L}}\p{{N}}]--[\p{{Common}}\p{{Inherited}}\p{{Latin}}\p{{Nd}}{_SIGN_CLASS}]"
SIGN = rf"(?:{_HANGUL}|[{_SIGN_LETTER}])\p{{M}}*"
"""A sign of a script that is read sign by sign, with its marks: for `regex`."""
WORD = rf"(?:[{_OTHER}]\p{{M}}*)+"
"""A word of any other script but Latin: for `regex`."""
LETTER = rf"[[{_SIGN_LETTER}]||[{_OTHER}]]"
"""A letter of a `SIGN` or a `WORD`: for `regex`."""
_LATIN = r"[\p{Latin}\p{Nd}][\p{Latin}\p{Nd}\p{M}]*"
_WORDS = regex.compile(rf"{_LATIN}|{SIGN}|{WORD}", regex.V1)
_SIGN = regex.compile(SIGN, regex.V1)

# Symbols that stand for letters or digits but are no spelling of them, such as ™, ², ½ or ①;
# and the invisible space.
_SYMBOL = regex.compile(
    r"[\p{dt=super}\p{dt=sub}\p{dt=circle}\p{dt=square}\p{dt=fraction}\u200b"
    r"[[\p{S}\p{No}]&&\p{dt=compat}]]",
    regex.V1,
)
# Invisible characters, and the Arabic tatweel, which only stretches a word.
_INVISIBLE = regex.compile(r"[\p{Default_Ignorable_Code_Point}\u0640]+", regex.V1)
_DIGIT = regex.compile(r"[\p{Nd}--[0-9]]", regex.V1)
_MARKS = regex.compile(r"\p{M}+", regex.V1)
_MARKS_ARE_OPTIONAL = regex.compile(
    r"[\p{Latin}\p{Greek}\p{Cyrillic}\p{Hebrew}\p{Arabic}\p{Syriac}\p{Nd}]", regex.V1
)
# Latin letters that Unicode does not take apart, as people write them without the sign.
_PLAIN = str.maketrans({
    "ł": "l", "ø": "o", "đ": "d", "ħ": "h", "ı": "i", "ŧ": "t", "æ": "ae", "œ": "oe", "ð": "d",
    "þ": "th",
})  # fmt: skip
# Letters that stand for each other: of the Arabic and Persian keyboards, and at the end of Arabic
# words; the Devanagari nukta and candrabindu, which are often left out; and the Malayalam chillus.
_SAME_LETTER = str.maketrans({
    "ٱ": "ا", "ى": "ي", "ی": "ي", "ې": "ي", "ک": "ك", "ة": "ه", "ە": "ه", "ہ": "ه", "ھ": "ه",
    "\u093c": "", "ँ": "ं",
    "ൺ": "ണ്", "ൻ": "ന്", "ർ": "ര്", "ൽ": "ല്", "ൾ": "ള്", "ൿ": "ക്",
})  # fmt: skip
# A Thai or Lao vowel sign before a tone mark, in whichever order they are typed.
_TONE = regex.compile("([ํໍ])([่-๋່-໋])")
# A Devanagari nasal before a consonant of its own kind, which is also written as anusvara.
_NASAL = regex.compile(r"ङ्(?=[क-घ])|ञ्(?=[च-झ])|ण्(?=[ट-ढ])|न्(?=[त-ध])|म्(?=[प-भ])", regex.V1)
_SHORT_I = "и\u0306"
# The two ways to write the letters of the Armenian ligature և.
_YEV = ("եվ", "եւ")
# Particles that Hebrew and Arabic write together with the next word, such as "in" and "and".
_ATTACHED = regex.compile(r"[ושהבכלמ]{1,4}|[وف]?(?:لل|[بكلس]?(?:ال)?)")
_ARTICLE = "ال"

# What may stand within a phrase that is cut otherwise: quotes, marks of emphasis, hyphens (also at
# the end of a line), points and commas within a number or an abbreviation, or a space.
_JOINT = regex.compile(r"[\p{P}\p{Sk}\u02b9-\u02bf]{0,5}|\p{Pd}\s{1,3}|[^\S\n]{1,2}|\n", regex.V1)
_POINT = regex.compile(r"\.\s", regex.V1)
# The ending of an English ordinal number.
_ORDINAL = re.compile(r"(?<=\d)(?:st|nd|rd|th)\Z")
SHORTEST = 3
"""Letters and digits of the shortest phrase that is found if it is cut otherwise."""
SPREAD = 6
"""Letters and digits of the shortest phrase that is found with spaces in its words."""

Reading = Literal["apart", "joined"]
"""How symbols such as ™ are read: as words of their own, or as part of the word beside them."""


@lru_cache(maxsize=1 << 18)
def stem(word: str) -> str:
    """The stem of a word in lower case: Porter's if it has more than 3 letters."""
    return _STEMMER.stem(word) if len(word) > 3 else word


@lru_cache(maxsize=1 << 18)
def plain(word: str) -> str:
    """The letters of a word: the same for all its spellings, without regard to inflection."""
    letters = unicodedata.normalize("NFKD", word.upper().casefold())
    if _MARKS_ARE_OPTIONAL.match(letters):
        letters = _MARKS.sub("", letters.replace(_SHORT_I, "й")).translate(_PLAIN)
    letters = _NASAL.sub("ं", letters.translate(_SAME_LETTER).replace(*_YEV))
    letters = _TONE.sub(r"\2\1", letters)
    return unicodedata.normalize("NFC", with_ascii_digits(letters))


def comparable(word: str) -> str:
    """What a word is compared by: `plain`, and stemmed if it is Latin or Cyrillic."""
    return stemmed(plain(word))


@lru_cache(maxsize=1 << 18)
def stemmed(letters: str) -> str:
    """The stem of a word's `plain` letters; an ordinal number without its ending."""
    if letters.isascii():
        return stem(_ORDINAL.sub("", letters))
    if _CYRILLIC.match(letters):
        return str(_CYRILLIC_STEMMER.stem(letters))
    return letters


def with_ascii_digits(text: str) -> str:
    """The text with the digits of all scripts as 0 to 9."""
    return _DIGIT.sub(lambda found: str(unicodedata.digit(found[0], found[0])), text)


def visible(text: str) -> str:
    """The compatibility decomposition of a text without invisible characters."""
    return _INVISIBLE.sub("", unicodedata.normalize("NFKD", text))


@lru_cache(maxsize=1 << 10)
def normalised(text: str) -> str:
    """The text in normal form NFKC and lower case, with ASCII digits and without symbols.

    Invisible characters are removed. Symbols such as ™, ² and ① become spaces.
    """
    if text.isascii():
        return text.lower()
    letters = visible(_SYMBOL.sub(" ", text))
    return unicodedata.normalize("NFC", with_ascii_digits(letters)).lower()


def signs(text: str) -> int:
    """How many signs a text has in scripts that are read sign by sign."""
    return 0 if text.isascii() else len(_SIGN.findall(normalised(text)))


def word_spans(text: str) -> list[tuple[int, int, str]]:
    """The words of a text in order, each with its position.

    Returns:
        (start, end, word) for each word: `text[start:end]` is the word with its marks, and two
        words are the same if the strings `word` are equal. Positions are disjoint: the words of a
        single character, such as ½, are one string with spaces.
    """
    words: list[tuple[int, int, str]] = []
    for start, end, word in _spans(text, "apart"):
        if words and start < words[-1][1]:
            first, _, earlier = words.pop()
            words.append((first, end, f"{earlier} {word}"))
        else:
            words.append((start, end, word))
    return words


@lru_cache(maxsize=1 << 15)
def words_of(text: str) -> tuple[str, ...]:
    """The words of a text in order, each as the string that it is compared by."""
    return tuple(word for _, _, word in _spans(text, "apart"))


def holds(text: str, phrase: str) -> bool | None:
    """Whether a text contains the words of a phrase in sequence.

    Returns:
        None if the phrase has no word and cannot be compared.
    """
    return bool(found(text, phrase)) if any(_phrases(phrase)) else None


def found(text: str, phrase: str) -> list[tuple[int, int]]:
    """Where a phrase occurs in a text: (start, end) of each position, in order and disjoint.

    Positions cover whole words and signs of `text`. There are none if the phrase has no word. Words
    may be written together or cut otherwise, as in "JeanPaul", "Lis-bon" or "10,000".
    """
    positions = {
        position
        for reading in _readings(text)
        for wanted in _phrases(phrase)
        for position in _positions(_spans(text, reading), wanted)
    }
    return list(_disjoint(sorted(positions | set(_cut_otherwise(text, phrase)))))


def _readings(text: str) -> tuple[Reading, ...]:
    """The readings in which the words of a text can differ."""
    return ("apart", "joined") if not text.isascii() and _SYMBOL.search(text) else ("apart",)


def _phrases(phrase: str) -> list[tuple[str, ...]]:
    """The words of a phrase in each reading; none without words."""
    readings = (tuple(word for _, _, word in _spans(phrase, how)) for how in _readings(phrase))
    return [words for words in readings if words]


def _positions(
    spans: tuple[tuple[int, int, str], ...], wanted: tuple[str, ...]
) -> Iterator[tuple[int, int]]:
    """Where the wanted words occur in sequence."""
    count = len(wanted)
    for first in range(len(spans) - count + 1):
        if _begins(spans[first][2], wanted[0]) and all(
            spans[first + i][2] == wanted[i] for i in range(1, count)
        ):
            yield spans[first][0], spans[first + count - 1][1]


def _cut_otherwise(text: str, phrase: str) -> Iterator[tuple[int, int]]:
    """Where the letters of a phrase stand in a text, however they are cut into words.

    Within a word they may begin or end between letters and digits only, as in "in1942".
    """
    wanted, (letters, begins, ends) = squeezed(phrase), _letters(text)
    spans = _plain_spans(text, "apart")
    mixed = any(map(str.isdigit, wanted)) and not wanted.isdigit()
    at = letters.find(wanted) if len(wanted) >= SHORTEST else -1
    while at >= 0:
        stop = at + len(wanted)
        (first, begun), (last, ended) = begins.get(at, (0, None)), ends.get(stop, (0, None))
        whole = (begun and ended) or (not mixed and begun is not None and ended is not None)
        if whole and _is_one(text, spans[first : last + 1], len(wanted)):
            yield spans[first][0], spans[last][1]
        at = letters.find(wanted, at + 1)


def _is_one(text: str, pieces: Sequence[tuple[int, int, str]], letters: int) -> bool:
    """Whether what stands between the pieces of a phrase can be left out.

    A space can if the phrase has enough letters, is spelled out, or is a number in groups of three
    digits: "is a" is not the name Isa. A point and a space can after an initial.
    """
    words = [word for _, _, word in pieces]
    spaced = (
        letters >= SPREAD
        or all(len(word) == 1 for word in words)
        or ("".join(words).isdigit() and all(len(word) == 3 for word in words[1:]))
    )
    for (_, end, word), (start, _, _) in itertools.pairwise(pieces):
        between = text[end:start]
        if len(word) == 1 and text[end - 1].isupper() and _POINT.fullmatch(between):
            continue
        if not _JOINT.fullmatch(between) or (between.isspace() and not spaced):
            return False
    return True


def squeezed(text: str) -> str:
    """The letters and digits of all words of a text, one after the other."""
    return _letters(text)[0]


Edges = dict[int, tuple[int, bool]]


@lru_cache(maxsize=1 << 13)
def _letters(text: str) -> tuple[str, Edges, Edges]:
    """The letters of a text, and where among them pieces begin and end.

    Each edge has the number of its word, and whether the word itself begins or ends there;
    otherwise letters and digits meet.
    """
    words = [word for _, _, word in _plain_spans(text, "apart")]
    begins: Edges = {}
    ends: Edges = {}
    at = 0
    for number, word in enumerate(words):
        for i in range(1, len(word)):
            if word[i - 1].isdigit() != word[i].isdigit():
                begins[at + i] = ends[at + i] = number, False
        begins[at] = number, True
        at += len(word)
        ends[at] = number, True
    return "".join(words), begins, ends


def _begins(word: str, wanted: str) -> bool:
    """Whether a word is the wanted one, perhaps after particles that are written with it."""
    if word == wanted or wanted.isascii() or len(wanted) < 3:
        return word == wanted
    bare = wanted.removeprefix(_ARTICLE)
    return word.endswith(bare) and bool(_ATTACHED.fullmatch(word.removesuffix(bare)))


def _disjoint(positions: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Sorted positions, in which those that overlap are joined."""
    start, end = -1, -1
    for next_start, next_end in positions:
        if next_start >= end:
            if end > start:
                yield start, end
            start = next_start
        end = max(end, next_end)
    if end > start:
        yield start, end


@lru_cache(maxsize=1 << 13)
def _spans(text: str, reading: Reading) -> tuple[tuple[int, int, str], ...]:
    """Words with their positions in one reading, each as the string that it is compared by."""
    return tuple((start, end, stemmed(word)) for start, end, word in _plain_spans(text, reading))


@lru_cache(maxsize=1 << 13)
def _plain_spans(text: str, reading: Reading) -> tuple[tuple[int, int, str], ...]:
    """Words with their positions in one reading, each as its `plain` letters."""
    if text.isascii():
        words = re.finditer(r"[A-Za-z0-9]+", text)
        return tuple((word.start(), word.end(), plain(word[0])) for word in words)
    spell: Callable[[str], str] = _apart if reading == "apart" else visible
    spelled = [spell(character) for character in text]
    positions = [index for index, letters in enumerate(spelled) for _ in letters]
    return tuple(
        (positions[word.start()], positions[word.end() - 1] + 1, plain(word[0]))
        for word in _WORDS.finditer("".join(spelled))
    )


@lru_cache(maxsize=1 << 12)
def _apart(character: str) -> str:
    """A character's `visible` letters; those of a symbol get spaces around them."""
    letters = visible(character)
    return f" {letters} " if _SYMBOL.match(character) else letters
