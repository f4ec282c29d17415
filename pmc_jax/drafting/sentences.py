"""Where sentences end, by rule."""

import re

END = re.compile(
    r"(?<=[^\W_]{2}[.!?])(?=[\s\"'”’)]|$)"  # not after a single letter: "J. R. R. Tolkien"
    r"|(?<=[)\"'”’][.!?])(?=\s|$)"
    r"|(?<=[。！？])"
)


def whole_sentences(text: str) -> str | None:
    """The text up to its last complete sentence; None if it has none."""
    ends = [found.end() for found in END.finditer(text)]
    return text[: ends[-1]] if ends else None


def first_sentence(text: str) -> str:
    """The first sentence of a text; all of it if none is complete."""
    found = END.search(text)
    return text[: found.end()] if found else text
