"""Text and JSON files that are written whole or not at all, and by process 0 alone."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pmc_jax.processes import is_first


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
    """Write `value` as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path) -> Any:
    """The JSON value in a file, or None if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
