"""Rows of data files: JSON, JSON lines, CSV, TSV, plain text, Parquet, and `datasets` directories.

A reader yields where each row comes from, as errors name it, and the row's fields. An empty cell
and a null are absent fields.
"""

import contextlib
import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pmc_jax.data.files import check_object, numbered_lines, parse_json, read_text
from pmc_jax.errors import UserError

Rows = Iterator[tuple[str, Mapping[str, Any]]]

TABLES = {".csv": (",", ";"), ".tsv": ("\t",), ".tab": ("\t",)}
"""The delimiters that a file may have, by its suffix."""
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
"""The files that `datasets` writes into a directory: of one data set, or of several splits."""


def read_rows(path: Path) -> Rows:
    """The rows of a file or directory; its suffix says how it is read.

    - `.csv`, `.tsv`: the first line names the columns. A CSV file may be separated by semicolons.
      A cell with a JSON list of strings is a list.
    - `.txt`: one question a line.
    - `.parquet`, and directories that `datasets` has written with `save_to_disk`.
    - any other suffix: one JSON object a line, or one JSON array of objects.

    Raises:
        UserError: if the file cannot be read, or has another format than its suffix says.
    """
    if path.is_dir():
        return _saved_dataset(path)
    match path.suffix.lower():
        case suffix if suffix in TABLES:
            return _table(path, TABLES[suffix])
        case ".txt":
            return _questions(path)
        case ".parquet":
            return _parquet(path)
    return _json(path)


def _json(path: Path) -> Rows:
    text = read_text(path, expected="a JSON-lines file")
    if text.lstrip().startswith("["):
        elements = parse_json(text, path, expected="a JSON array of objects")
        rows = [(f"{path}, element {number}", row) for number, row in enumerate(elements, 1)]
    else:
        rows = [
            (f"{path}, line {number}", parse_json(line, path, number))
            for number, line in numbered_lines(text)
        ]
    for where, row in rows:
        yield where, check_object(row, where)


def _questions(path: Path) -> Rows:
    for number, line in numbered_lines(read_text(path)):
        yield f"{path}, line {number}", {"question": line.strip()}


def _table(path: Path, delimiters: tuple[str, ...]) -> Rows:
    text = read_text(path, expected="a table with a line of column names")
    first = text.partition("\n")[0]
    delimiter = max(delimiters, key=first.count)
    lines = csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter, strict=True)
    try:
        columns = next(lines, [])
        _check_columns(path, columns)
        for cells in lines:
            where = f"{path}, line {lines.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(columns):
                raise UserError(
                    f"{where}: found {len(cells)} cells; expected {len(columns)}, one for each of "
                    f"{', '.join(columns)} (a cell that contains {delimiter!r} is in quotes)"
                )
            row = zip(columns, map(_cell, cells), strict=True)
            yield where, {name: cell for name, cell in row if cell is not None}
    except csv.Error as error:
        raise UserError(f"{path}, line {lines.line_num}: not a valid table ({error})") from None


def _check_columns(path: Path, columns: list[str]) -> None:
    if not any(name.strip() for name in columns):
        raise UserError(f"{path}, line 1: no column names; expected question, answer, …")
    twice = [name for i, name in enumerate(columns) if name in columns[:i]]
    if twice:
        raise UserError(f"{path}, line 1: the column {twice[0]!r} occurs twice")


def _cell(text: str) -> str | list[str] | None:
    """The value of a table's cell: None if it is blank."""
    if text.startswith("[") and text.endswith("]"):
        try:
            value = json.loads(text)
        except ValueError:
            return text
        return value if value and all(isinstance(item, str) for item in value) else text
    return text if text.strip() else None


def _parquet(path: Path) -> Rows:
    with _needs("pyarrow", path):
        import pyarrow
        from pyarrow import parquet
    if not path.is_file():
        read_text(path, expected="a Parquet file")  # which says why
    try:
        rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be read as Parquet ({reason})") from None
    yield from _columns(path, rows)


def _saved_dataset(path: Path) -> Rows:
    if not (path / SAVED).is_file() and not (path / SAVED_SPLITS).is_file():
        raise UserError(
            f"{path}: is a directory; expected a file, or a directory that save_to_disk of the "
            "package datasets has written"
        )
    with _needs("datasets", path):
        import datasets
    with _read_by_datasets(path):
        found = datasets.load_from_disk(str(path))
    if isinstance(found, datasets.DatasetDict):
        splits = list(found)
        if len(splits) != 1:
            raise UserError(
                f"{path}: has the splits {', '.join(splits)}; expected one of them, such as "
                f"{path / splits[0] if splits else path}"
            )
        found = found[splits[0]]
    with _read_by_datasets(path):
        rows = found.to_list()
    yield from _columns(path, rows)


@contextlib.contextmanager
def _read_by_datasets(path: Path) -> Iterator[None]:
    """Say in one line that a directory cannot be read."""
    try:
        yield
    except Exception as error:  # broken files raise errors of many libraries
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be read by datasets ({reason})") from None


def _columns(path: Path, rows: Any) -> Rows:
    for number, row in enumerate(rows, 1):
        yield f"{path}, row {number}", {k: v for k, v in row.items() if v is not None}


@contextlib.contextmanager
def _needs(package: str, path: Path) -> Iterator[None]:
    """Say how to install a package if importing it fails."""
    try:
        yield
    except ImportError:
        raise UserError(
            f"{path}: reading it needs the package {package}; pip install 'pmc_jax[data]'"
        ) from None
