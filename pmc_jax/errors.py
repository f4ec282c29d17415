"""What ends a command early: mistakes that the user can correct, and a request to stop."""

import errno

SHORT_OF_MEMORY = (
    "resource_exhausted", "out of memory", "cannot allocate memory", "failed to map segment",
    "can't start new thread", "bad_alloc", "unable to allocate",
    "error return without exception set",
)  # fmt: skip
"""What JAX, NumPy, Python and the system say if there is too little memory, in lower case.

The last one is Python's, if there is no memory even for an exception.
"""


FULL_DISK = "no space left", "disk quota exceeded"
"""What the system says if a disk is full, in lower case; storage layers call it a shortage, too."""


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and what was expected.

    Entry points print the message and exit with status 2, without a traceback.
    """


class NotFinite(UserError):
    """Logits that are NaN or infinite, from which no token can be chosen and nothing be measured.

    Attributes:
        index: of the prompt, among those that the model was given.
    """

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


class Stopped(Exception):
    """The process was asked to end (SIGTERM), and has saved its state.

    Entry points print the message and exit with status 143, without a traceback.
    """


def short_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it follows from, says that there is too little memory."""
    found: BaseException | None = error
    short = False
    while found is not None:
        said = str(found).lower()
        if any(words in said for words in FULL_DISK):
            return False
        short |= isinstance(found, MemoryError) or getattr(found, "errno", None) == errno.ENOMEM
        short |= any(words in said for words in SHORT_OF_MEMORY)
        found = found.__cause__
    return short


def memory_text(error: BaseException) -> str:
    """What to say of an error for which there is too little memory."""
    said = " ".join(str(error).split())[:300]
    return f"out of memory ({said})" if said else "out of memory"
