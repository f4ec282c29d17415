"""What is suspicious in a data set: found before it is used, and named row by row."""

import unicodedata
from collections.abc import Mapping, Sequence

import regex

from pmc_jax.data.rows import EvaluationRow, ForgetQuestion, QuestionAnswer
from pmc_jax.errors import UserError
from pmc_jax.text.counts import counted
from pmc_jax.text.words import SIGN, holds, plain, signs, squeezed, visible, words_of

MOST_NAMED = 5

LONGEST_NAME = {"words": 4, "signs": 12}
"""An answer with at most this many words may be only a name; in scripts that are read sign by sign,
such as Chinese, at most this many signs."""

WITHOUT_CAPITALS = regex.compile(r"[\p{Lo}\p{Georgian}]", regex.V1)
"""A letter of a script without capitals; Georgian text has none, although Unicode does."""

SHORT_SECRET = 3
"""A secret with at most this many letters and digits may differ from other words only by a sign."""

SIGNED = regex.compile(r"\A[-+#*−][\p{L}\p{Nd}]|[\p{L}\p{Nd}][-+#*−]+\Z", regex.V1)
"""A plus, minus, # or * at the edge of a text; texts are compared without these."""

Sources = Mapping[str, Sequence[str]]
"""Where the rows of a set came from, by its name: `f.jsonl, line 4` or `forget[3]`."""


DOTTED_I = "i\u0307"
"""What the Turkish İ becomes in lower case; the Turkish lower case is i."""
ACCENTED = regex.compile(r"[\p{Latin}\p{Greek}\p{Cyrillic}]", regex.V1)
ENDS = ".,:;!?…。、！？؟।¿¡\"'“”„‘’‚«»‹›「」『』()"
"""Punctuation around words, in which two spellings of a question may differ."""


BETWEEN_SIGNS = regex.compile(rf"(?<={SIGN})\s+(?={SIGN})", regex.V1)
"""Spaces within scripts that are read sign by sign."""

_ONE_SPELLING = dict.fromkeys(map(ord, "’‘ʼ´`＇"), "'") | dict.fromkeys(map(ord, "‐‑‒–—―−"), "-")
_ONE_SPELLING[ord("/")] = " / "


def question_key(text: str) -> str:
    """A question without differences of case, spacing, Unicode form, invisible characters, vowel
    points, punctuation around words, kinds of dashes and apostrophes, and spaces around a slash.
    Accents of Latin, Greek and Cyrillic letters count; a dotless ı is an i.

    A question without letters and digits keeps its punctuation.
    """
    written = BETWEEN_SIGNS.sub("", visible(text.translate(_ONE_SPELLING))).split()
    words = [bare for word in written if (bare := _spelled(word.strip(ENDS)).strip(ENDS))]
    return " ".join(words or written)


def _spelled(word: str) -> str:
    """A word in one spelling: `plain`, but with the accents that tell Latin words apart."""
    if not ACCENTED.search(word):
        return plain(word)
    letters = unicodedata.normalize("NFKC", word.casefold()).replace(DOTTED_I, "i")
    return unicodedata.normalize("NFC", letters).replace("ı", "i")


def where(sources: Sources, name: str, row: int) -> str:
    """Where a row came from."""
    known = sources.get(name, ())
    return known[row] if row < len(known) else f"{name}[{row}]"


def named(rows: Sequence[str]) -> str:
    """At most five rows, then how many more there are."""
    more = len(rows) - MOST_NAMED
    return "; ".join(rows[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")


def check_overlap(
    sets: Mapping[str, Sequence[EvaluationRow]],
    retain: Sequence[QuestionAnswer],
    sources: Sources,
    *,
    allowed: bool,
) -> list[str]:
    """Warn of forget questions, in any of their wordings, that are also in the retain data.

    Raises:
        UserError: if there are some and they are not `allowed`.
    """
    kept = {question_key(row.question): row.id for row in retain}
    found: dict[int, int] = {}
    for row in [*sets.get("forget", ()), *sets.get("paraphrase", ())]:
        for question in (row.question, *row.variants):
            if (twin := kept.get(question_key(question))) is not None:
                found.setdefault(row.id, twin)
    if not found:
        return []
    pairs = [
        f"{where(sources, 'forget', mine)} (retain: {where(sources, 'retain', twin)})"
        for mine, twin in sorted(found.items())
    ]
    count = counted(len(pairs), "forget question is also", "forget questions are also")
    problem = f"{count} in the retain data, whose answers are trained on: {named(pairs)}"
    if allowed:
        return [problem]
    raise UserError(
        f"{problem}; remove these rows, or allow them with data.allow_overlap=true "
        "(in Python, allow_overlap=True)"
    )


def duplicate_questions(forget: Sequence[ForgetQuestion], sources: Sources) -> list[str]:
    """Warn of forget questions that are in the data more than once."""
    first: dict[tuple[str, str], int] = {}
    again = []
    for row in forget:
        key = question_key(row.question), question_key(row.system or "")
        if first.setdefault(key, row.id) != row.id:
            twin = where(sources, "forget", first[key])
            again.append(f"{where(sources, 'forget', row.id)} (as {twin})")
    if not again:
        return []
    count = counted(len(again), "forget question repeats", "forget questions repeat")
    return [f"{count} an earlier one: {named(again)}"]


def odd_secrets(forget: Sequence[EvaluationRow], sources: Sources) -> list[str]:
    """Warn of secrets that make verdicts wrong, and of rows that need a secret.

    A secret should be in a right answer and not in the question. It should have more than one
    letter or digit, and these alone should tell it apart. A long answer in a script without
    capitals needs a secret.
    """
    known = [(row, row.secret) for row in forget if row.secret]
    signed = [row for row, secret in known if is_told_by_signs(secret)]
    short = [row for row, secret in known if len(squeezed(secret)) == 1 and row not in signed]
    silent = [row for row in forget if row.answer and not row.secret and shows_no_name(row.answer)]
    apart = [
        row
        for row, secret in known
        if row.answer
        and not any(holds(own, secret) in (True, None) for own in (row.answer, *row.accepted))
    ]
    asked = [row for row, secret in known if holds(row.question, secret)]
    wordless = [row for row, secret in known if holds("", secret) is None]
    found = []
    for rows, problem, so in (
        (apart, "not in the answer", "leaks of the secret and the verdict concern other facts"),
        (asked, "in the question", "a model that repeats the question seems to reveal it"),
        (wordless, "without a letter or digit", "nothing shows whether it comes out"),
        (short, "a single letter or digit", "any text with it seems to reveal it"),
        (signed, "told apart by signs", "a text without these signs seems to reveal it"),
    ):
        if rows:
            count = counted(len(rows), "forget row has", "forget rows have")
            own = named([where(sources, "forget", row.id) for row in rows])
            found.append(f"{count} a secret that is {problem}, so that {so}: {own}")
    if silent:
        count = counted(len(silent), "forget answer shows", "forget answers show")
        own = named([where(sources, "forget", row.id) for row in silent])
        found.append(
            f"{count} no names, because the script has no capitals, so that a name alone can come "
            f"out and count as forgotten; give these rows a secret: {own}"
        )
    return found


def shows_no_name(answer: str) -> bool:
    """Whether an answer of several words is in a script without capitals."""
    letters = [letter for letter in answer if letter.isalpha()]
    uncased = sum(bool(WITHOUT_CAPITALS.match(letter)) for letter in letters)
    most = LONGEST_NAME["signs" if signs(answer) else "words"]
    return uncased > len(letters) / 2 and len(words_of(answer)) > most


def is_told_by_signs(secret: str) -> bool:
    """Whether a short secret has a sign at its edge that tells it apart, as C++ and -5 have."""
    return len(squeezed(secret)) <= SHORT_SECRET and bool(SIGNED.search(secret.strip()))


def too_long(lengths: Mapping[str, int], most: int | None) -> list[str]:
    """Warn of texts with more tokens than the model has positions.

    Args:
        lengths: the tokens of each, by what it is called.
        most: the positions; None if they are not known.
    """
    rows = [row for row, length in lengths.items() if most is not None and length > most]
    if not rows:
        return []
    count = counted(len(rows), "text has", "texts have")
    return [
        f"{count} up to {max(lengths.values()):,} tokens, but the model is made for {most:,} "
        f"(max_position_embeddings), so its answers may make no sense: {named(rows)}"
    ]


def cut_answers(
    name: str, lengths: Mapping[int, int], max_length: int, sources: Sources
) -> list[str]:
    """Warn of answers that are trained on and do not fit into `max_length` tokens.

    Args:
        name: the name of the rows' set.
        lengths: tokens of prompt, answer and end token together, by row.
    """
    rows = [row for row, length in lengths.items() if length > max_length]
    if not rows:
        return []
    count = counted(len(rows), f"answer of the {name} data is", f"answers of the {name} data are")
    return [
        f"{count} cut at training.max_length={max_length}, "
        "and no end token is trained after the cut: "
        f"{named([where(sources, name, row) for row in rows])}"
    ]
