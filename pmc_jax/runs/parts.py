"""The files that the parts of an evaluation write."""

from pathlib import Path
from typing import Any

from pmc_jax.data.files import read_object
from pmc_jax.errors import UserError


def read_part(path: Path) -> dict[str, Any]:
    """What a part of an evaluation has written: its numbers, or the reason they are `lacking`.

    Raises:
        UserError: if the file is missing or damaged; the message says what to do.
    """
    expected = "what a part of an evaluation writes"
    if not path.exists():
        raise UserError(f"{path}: no such file; the same command measures it again")
    try:
        part = read_object(path, expected=expected)
        if not {"seconds", "lacking"} & part.keys():
            raise UserError(f"{path}: neither 'seconds' nor 'lacking'; expected {expected}")
    except UserError as error:
        raise UserError(
            f"{error}; delete the file and repeat the command to measure it again, or give "
            "overwrite=true to measure everything again"
        ) from None
    return part
