"""Refusals for IDK and DPO: from a file, the data set, or the only one that always fits."""

from pathlib import Path

from pmc_jax.data.batches import refusal_draw
from pmc_jax.data.files import read_text_lines
from pmc_jax.errors import UserError
from pmc_jax.unlearning.method import Example, Task

DEFAULT_REFUSAL = "I don't know."


def read_refusals(path: str) -> list[str]:
    """The refusals in a text file, one a line.

    Raises:
        UserError: if it cannot be read or has none.
    """
    file = Path(path).expanduser()
    try:
        found = read_text_lines(file)
    except UserError as error:
        raise UserError(f"method.refusals={error}") from None
    if found:
        return found
    raise UserError(f"method.refusals={file}: no refusals; expected one a line")


def drawn_refusals(task: Task, path: str | None) -> list[Example]:
    """One refusal for each forget question, the same in the whole run.

    They come from the file `path`, or else from the data set, or else are "I don't know.".
    """
    texts = read_refusals(path) if path else list(task.refusals) or [DEFAULT_REFUSAL]
    drawn = refusal_draw(task.seed, len(task.prompts), len(texts))
    return task.answered(task.questions, [texts[i] for i in drawn])
