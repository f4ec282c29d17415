"""Text and JSON files that are written whole or not at all, and by process 0 alone."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pmc_jax.errors import UserError
from pmc_jax.runtime.processes import is_first


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing; the directory is made if absent.

    Processes other than the first write nothing.
    """
    if not is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, a list of numbers on one line."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # No string in JSON has a line break in it, and none of these lists has a string.
    text = re.sub(r'\[\n([^][{}"]*)\]', lambda found: f"[{' '.join(found[1].split())}]", text)
    write_text(path, text + "\n")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path) -> Any:
    """The JSON value in a file, or None if there is no such file.

    Raises:
        UserError: if it is not JSON.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error.msg}, line {error.lineno})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not JSON (not UTF-8 text)") from None


def read_part(path: Path) -> dict[str, Any]:
    """What a part of an evaluation has left: its numbers, or why it is `lacking`.

    Raises:
        UserError: if the file is missing or damaged, with what to do.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; the same command measures it again")
    try:
        part = read_json(path)
        if not isinstance(part, dict) or not {"seconds", "lacking"} & part.keys():
            raise UserError(f"{path}: not what a part of an evaluation leaves")
    except UserError as error:
        raise UserError(
            f"{error}; delete it and give the same command again to measure it again, or "
            "overwrite=true to measure everything again"
        ) from None
    return part
