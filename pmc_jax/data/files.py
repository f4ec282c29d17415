"""Text, JSON and JSON-lines files: read with one style of error, written whole or not at all.

All JSON is written here. It is valid: NaN and infinities, which JSON lacks, become null.

An error is one line: `PATH[, line N]: what is wrong; what was expected`.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pmc_jax.errors import UserError

KINDS = (
    (str, "a string"),
    (Mapping, "an object"),
    (list | tuple, "a list"),
    (bool, "a boolean"),
    (int | float, "a number"),
)


def read_text(path: Path, *, expected: str = "a text file", missing_ok: bool = False) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Args:
        expected: what the file should be, for the error.
        missing_ok: a missing file counts as an empty one.

    Raises:
        UserError: if the file is missing, a directory, not a regular file (reading a pipe could
            take for ever), unreadable, too large for the memory, or not UTF-8.
    """
    try:
        if not (path.is_file() or path.is_dir()) and path.exists():
            raise UserError(f"{path}: not a regular file; expected {expected}")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        if missing_ok:
            return ""
        raise UserError(f"{path}: no such file; expected {expected}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a directory; expected {expected}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 (byte {error.start}); expected {expected}"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected {expected}") from None
    except MemoryError:
        raise UserError(f"{path}: does not fit into memory; expected {expected}") from None


def read_text_lines(path: Path, *, expected: str = "a text file") -> list[str]:
    """The lines of a text file, stripped; blank lines are left out.

    Raises:
        UserError: as `read_text`.
    """
    lines = (line.strip() for line in read_text(path, expected=expected).splitlines())
    return [line for line in lines if line]


def read_json(
    path: Path,
    *,
    expected: str = "a JSON file",
    missing_ok: bool = False,
    finite: bool = False,
) -> Any:
    """The JSON value in a file.

    Args:
        expected: what the file should be, for the error.
        missing_ok: the value of a missing file is None.
        finite: read NaN and infinities, which are not JSON, as None.

    Raises:
        UserError: as `read_text`, or if the file is not JSON.
    """
    if missing_ok and not os.path.exists(path):
        return None
    return parse_json(read_text(path, expected=expected), path, expected=expected, finite=finite)


def read_object(
    path: Path,
    *,
    expected: str = "a JSON object",
    missing_ok: bool = False,
    finite: bool = False,
) -> dict[str, Any]:
    """Like `read_json`, for a file that must hold a JSON object; a missing file is an empty one."""
    if missing_ok and not os.path.exists(path):
        return {}
    return check_object(read_json(path, expected=expected, finite=finite), str(path), expected)


def read_objects(
    path: Path, *, missing_ok: bool = False, finite: bool = False
) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a missing file has none.

    Args and errors: as `read_json`, and an error if a line is not an object.
    """
    found = []
    text = read_text(path, expected="a JSON-lines file", missing_ok=missing_ok)
    for number, line in numbered_lines(text):
        value = parse_json(line, path, number, finite=finite)
        found.append(check_object(value, f"{path}, line {number}"))
    return found


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a JSON-lines text with their numbers from 1; blank lines are left out."""
    # Not `splitlines`: a JSON string may contain the other line separators of Unicode.
    lines = enumerate(text.split("\n"), 1)
    return ((number, line) for number, line in lines if line.strip())


def parse_json(
    text: str,
    path: Path,
    line: int | None = None,
    *,
    expected: str = "a JSON object",
    finite: bool = False,
) -> Any:
    """The JSON value of a file's text, or of one `line` of the file.

    Raises:
        UserError: naming the line, if the text is not JSON.
    """

    def constant(name: str) -> None:
        if not finite:
            raise ValueError(f"{name} is no JSON value")

    try:
        return json.loads(text, parse_constant=constant)
    except json.JSONDecodeError as error:
        where, reason = f"{path}, line {line or error.lineno}", error.msg
    except ValueError as error:  # a very long number, or one that is no JSON
        where, reason = f"{path}, line {line}" if line else str(path), str(error)
    except RecursionError:
        where, reason = f"{path}, line {line}" if line else str(path), "nested too deeply"
    raise UserError(f"{where}: not valid JSON ({reason}); expected {expected}")


def check_object(value: Any, where: str, expected: str = "a JSON object") -> dict[str, Any]:
    """Check that a JSON value is an object.

    Raises:
        UserError: if it is not; `where` names it.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where}: found {kind_of(value)}; expected {expected}")
    return value


def kind_of(value: Any) -> str:
    """What a value is, in JSON's words."""
    if value is None:
        return "null"
    for kind, name in KINDS:
        if isinstance(value, kind):
            return name
    return f"a value of type {type(value).__name__}"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file that cannot be written, and why.

    Raises:
        UserError: in place of the OSError of the block.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"{path}: cannot be written ({reason})") from error


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing; the directory is made if absent.

    Only process 0 writes.

    Raises:
        UserError: if the file cannot be written.
    """
    # Not above: who only reads files need not import JAX.
    from pmc_jax.runtime.processes import is_first

    if not is_first():
        return
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def to_json(
    value: Any,
    *,
    indent: int | None = None,
    ascii: bool = False,
    sort_keys: bool = False,
    finite: bool = False,
) -> str:
    """`value` as JSON text, in which NaN and infinities are null.

    Args:
        indent: spaces of each level; None: all on one line.
        ascii: escape all other characters.
        sort_keys: sort the keys of objects.
        finite: refuse NaN and infinities instead.

    Raises:
        ValueError: if a number is refused.
    """
    encoder = json.JSONEncoder(
        indent=indent, ensure_ascii=ascii, sort_keys=sort_keys, allow_nan=False
    )
    try:
        return encoder.encode(value)
    except ValueError:  # a number that JSON lacks
        if finite:
            raise
        return encoder.encode(without_constants(value))


def without_constants(value: Any) -> Any:
    """`value` with None for every NaN and infinity."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: without_constants(own) for key, own in value.items()}
        case list() | tuple():
            return [without_constants(own) for own in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; a list of numbers is on one line."""
    text = to_json(value, indent=2)
    # A JSON string contains no line break, and the lists that match contain no string.
    text = re.sub(r'\[\n([^][{}"]*)\]', lambda found: f"[{' '.join(found[1].split())}]", text)
    write_text(path, text + "\n")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line."""
    write_text(path, "".join(to_json(row) + "\n" for row in rows))
