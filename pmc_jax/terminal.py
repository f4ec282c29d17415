"""Text for a terminal: one line where one is meant, and nothing that the terminal would obey."""

import sys
import unicodedata
from typing import Any

LONGEST_MESSAGE = 1000
"""Characters of an error message; a longer one loses its middle."""

HIDDEN = ("Cc", "Cs", "Zl", "Zp")
"""Categories of Unicode: control characters, half surrogate pairs, separators of lines."""

DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that turn the direction of the text around them."""


def escaped(text: str, keep: str = "") -> str:
    """`text` with control characters written out, such as `\\x1b`, except those in `keep`.

    A terminal would obey them: they move the cursor, change colours, or hide what was printed.
    """

    def obeyed(character: str) -> bool:
        return unicodedata.category(character) in HIDDEN or character in DIRECTIONS

    return "".join(
        character.encode("unicode_escape").decode()
        if obeyed(character) and character not in keep
        else character
        for character in text
    )


def short(value: Any, most: int = 80) -> str:
    """A value as text, without its middle if it has more than `most` characters."""
    text = str(value)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2) :]}"


def message_of(error: BaseException) -> str:
    """What is wrong, as one line: the message, or the file and the reason of an `OSError`."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return short(escaped(text.strip()), LONGEST_MESSAGE)


def print_error(error: BaseException | str) -> None:
    """Print `error: …`, one line, to stderr."""
    message = message_of(error if isinstance(error, BaseException) else Exception(error))
    print(f"error: {message}", file=sys.stderr)


def print_everything() -> None:
    """Let `print` write characters that the encoding of stdout lacks as escapes: `\\xfc`, not an
    error."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # a test's stdout may have none
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
