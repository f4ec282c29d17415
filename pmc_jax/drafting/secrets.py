"""The phrase of an answer that answers the question: a suggestion for the field `secret`."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from pmc_jax.drafting.names import PARTICLES
from pmc_jax.drafting.sentences import first_sentence
from pmc_jax.text.facts import Background, facts_of, names_of
from pmc_jax.text.stop_words import stop_words_of
from pmc_jax.text.words import holds, word_spans, words_of

Sort = Literal["name", "time", "words", "any"]
"""What answers a question: a name, a date or year, other words, or any of them."""

WITHIN_NAMES = PARTICLES | {"of", "the"}
"""Words without a capital that stand within a name."""

JOINTS = ("", "-", "'", "’", "&", ".", ". ", "/")
"""What may stand between two words of a phrase, apart from spaces."""


@dataclasses.dataclass(frozen=True)
class Phrase:
    """Consecutive words of an answer.

    Attributes:
        start, end: its position in the answer.
        words: how many words it has.
        dated: whether it has a digit.
        named: whether it has a capital.
    """

    start: int
    end: int
    words: int
    dated: bool
    named: bool


def suggested_secret(
    answer: str, wordings: Sequence[str], background: Background, sort: Sort = "any"
) -> str | None:
    """The phrase of the answer that most likely answers the question.

    It is the first name or date of the answer, for a `sort` that asks for one, or the longest run
    of fact words in its first sentence.

    Returns:
        A part of `answer` that no wording of the question contains; None if the answer has no word
        that the question lacks.
    """
    asked = " ".join(wordings)
    stop = stop_words_of(words_of(answer) + words_of(asked))
    facts = frozenset(facts_of(answer, asked, background).words) - stop - frozenset(words_of(asked))

    def unasked(found: list[Phrase]) -> list[Phrase]:
        texts = {phrase: answer[phrase.start : phrase.end] for phrase in found}
        return [own for own in found if not any(holds(text, texts[own]) for text in wordings)]

    telling: list[Phrase] = []
    if names := names_of(answer) & facts:
        telling = unasked(phrases(answer, frozenset(words_of(answer)) - stop, names))
    if sort in ("time", "name"):
        telling = [own for own in telling if own.dated == (sort == "time")] or telling
    first = len(first_sentence(answer))
    plain = unasked(phrases(answer, facts, frozenset()))
    plain = [own for own in plain if own.end <= first] or plain
    if telling and sort != "words":
        best = telling[0]
    elif plain:
        best = max(plain, key=lambda own: (own.words, own.named))  # the first of the longest
    else:
        return None
    return answer[best.start : best.end]


def phrases(answer: str, members: frozenset[str], names: frozenset[str]) -> list[Phrase]:
    """The longest runs of the words in `members`, in the order of the answer.

    With `names`, only runs that contain one; the other words of such a run have a capital, too,
    except "of" and the like between two of them.
    """
    found: list[Phrase] = []
    run: list[tuple[int, int, str]] = []

    def close() -> None:
        if run and (not names or any(word in names for *_, word in run)):
            start, end = run[0][0], run[-1][1]
            dated, named = (
                any(map(test, answer[start:end])) for test in (str.isdigit, str.isupper)
            )
            found.append(Phrase(start, end, len(run), dated, named))
        run.clear()

    end = 0
    for start, stop, word in word_spans(answer):
        written, before = answer[start:stop], answer[:end].rpartition(" ")[2]
        if not _joined(answer[end:start], before, written):
            close()
        end = stop
        telling = written[:1].isupper() or any(map(str.isdigit, written))
        if word in members and (telling or not names):
            run.append((start, stop, word))
        elif not (names and written in WITHIN_NAMES):  # which end no run, and are no end of one
            close()
    close()
    return found


def _joined(between: str, before: str, after: str) -> bool:
    """Whether two neighbouring words can belong to one phrase: dates have commas, names do not."""
    if between.strip() == ",":
        return any(map(str.isdigit, before)) and any(map(str.isdigit, after))
    if between.strip() == ".":  # of an initial: "J. R. R. Tolkien"
        return len(before) <= 2
    return between.strip() in JOINTS
