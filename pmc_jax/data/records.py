"""Rows of text fields, from a file or from memory, with errors that name row and field."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pmc_jax.data.files import kind_of
from pmc_jax.data.tables import read_rows
from pmc_jax.errors import UserError
from pmc_jax.text.words import visible

CHAT_ROLES = {"system": "system", "user": "question", "assistant": "answer"}

OTHER_NAMES = {
    "question": ("prompt", "instruction", "query", "input", "user", "problem", "q"),
    "answer": (
        "answers", "completion", "response", "output", "target", "label", "assistant", "a",
    ),
    "messages": ("conversations", "conversation", "chat"),
}  # fmt: skip
"""What other data sets call a field. Errors suggest these names; rows are not read by them."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One row of a data set.

    Attributes:
        where: what the row is called in errors: `f.jsonl, line 4` or `forget[3]`.
        fields: its values by field name.
        in_memory: whether it comes from Python, not from a file.
    """

    where: str
    fields: Mapping[str, Any]
    in_memory: bool = False

    def error(self, field: str, problem: str) -> UserError:
        """An error about one field of this row."""
        return UserError(f"{self.where}: field '{field}' {problem}")

    def text(self, field: str) -> str:
        """The field's text.

        Raises:
            UserError: if it is missing, not a string, blank, or not valid Unicode.
        """
        if field not in self.fields:
            names = ", ".join(f"'{name}'" for name in self.fields) or "no fields"
            raise self.error(field, f"is missing; the row has {names}{self._suggestion(field)}")
        return self._check_text(field, self.fields[field])

    def optional_text(self, field: str) -> str | None:
        """Like `text`, but None if the field is absent or null."""
        return None if self.fields.get(field) is None else self.text(field)

    def texts(self, field: str) -> tuple[str, ...]:
        """The field's list of texts, or its single text; empty if it is absent or null."""
        value = self.fields.get(field)
        if value is None:
            return ()
        several = isinstance(value, Iterable) and not isinstance(value, str | Mapping)
        return tuple(self._check_text(field, item) for item in (value if several else [value]))

    def _suggestion(self, field: str) -> str:
        """Which of the row's columns may hold a missing field, and how to have it read."""
        known = {name.casefold().strip(): name for name in self.fields}
        for name in (field, *OTHER_NAMES.get(field, ())):
            if name in known and self.in_memory:
                return f"; rename '{known[name]}' to '{field}' if it is the {field}"
            if name in known:
                setting = f"data.fields.{field}={known[name]}"
                argument = f"fields={{'{field}': {known[name]!r}}}"
                return f"; {setting} (in Python, {argument}) reads the {field} from there"
        return ""

    def answers(self) -> tuple[str, ...]:
        """The right answers: the field "answer" is a text, or a list of them, the main one first.

        Raises:
            UserError: if it is missing, or one of them is not a text.
        """
        value = self.fields.get("answer")
        if isinstance(value, Iterable) and not isinstance(value, str | Mapping):
            found = self.texts("answer")
            if not found:
                raise self.error("answer", "is an empty list; expected at least one answer")
            return tuple(dict.fromkeys(found))
        return (self.text("answer"),)

    def optional_answers(self) -> tuple[str, ...]:
        """Like `answers`, but empty if the field is absent or null."""
        return () if self.fields.get("answer") is None else self.answers()

    def _check_text(self, field: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self.error(field, f"must be a string, but is {kind_of(value)}")
        if not visible(value).strip():
            raise self.error(field, "is empty; expected some text")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.error(field, "contains half a surrogate pair; expected Unicode") from None
        return value


def read_records(path: Path, fields: Mapping[str, str] | None = None) -> list[Record]:
    """The rows of a file or directory, which `read_rows` reads.

    `fields` names the columns that are not called like their fields, as in `FileReader`.

    Rows in chat form, `{"messages": [{"role", "content"}, …]}`, get the fields "system",
    "question" and "answer".

    Raises:
        UserError: if the file cannot be read, a row is not an object, there are no rows, or the
            file lacks a column that `fields` names.
    """
    reader = FileReader(fields or {})
    found = reader.records(path)
    reader.check()
    return found


@dataclasses.dataclass
class FileReader:
    """Reads files whose columns are not named like the fields.

    Attributes:
        fields: the column that holds a field, by field. "a.b" is the key b of column a.
        found: those of the fields whose column was in a file read so far.
    """

    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    found: set[str] = dataclasses.field(default_factory=set)

    def records(self, path: Path) -> list[Record]:
        """As `read_records`."""
        records = []
        for where, row in read_rows(path):
            moved = {
                field: value
                for field, name in self.fields.items()
                if (value := value_at(row, name)) is not None
            }
            self.found.update(moved)
            others = {k: v for k, v in row.items() if k not in {self.fields[f] for f in moved}}
            records.append(_record(Record(where, others | moved)))
        if not records:
            raise UserError(f"{path}: no rows; expected at least one")
        return records

    def check(self) -> None:
        """Check that the column of every field was found.

        Raises:
            UserError: naming those that no file has.
        """
        for field, name in self.fields.items():
            if field not in self.found:
                raise UserError(f"data.fields.{field}={name}: no file has this column")


def value_at(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or of a key within it ("a.b"); None if there is none."""
    if name in row or "." not in name:
        return row.get(name)
    outer, _, inner = name.partition(".")
    value = row.get(outer)
    return value_at(value, inner) if isinstance(value, Mapping) else None


def make_records(
    name: str, rows: Iterable[Mapping[str, Any] | str], *, allow_questions: bool = False
) -> list[Record]:
    """Rows in memory, each a mapping of fields.

    Args:
        name: what the rows are for ("forget", "retain", …): row 3 is called `forget[3]`.
        allow_questions: whether a row may be a string, its question.

    Raises:
        UserError: if these are not rows, a row is not a mapping, or there are none.
    """
    if isinstance(rows, str | Path):
        raise UserError(
            f"{name}={str(rows)!r}: found {'a text' if isinstance(rows, str) else 'a path'}; "
            "expected a list of rows (Dataset.from_files reads files)"
        )
    if isinstance(rows, Mapping):
        keys = ", ".join(map(str, rows))
        raise UserError(
            f"{name}: found a mapping with the keys {keys}; expected a list of rows or one split "
            "of a data set"
        )
    if not isinstance(rows, Iterable):
        raise UserError(f"{name}: found {kind_of(rows)}; expected a list of rows")
    records = []
    for i, row in enumerate(rows):
        where = f"{name}[{i}]"
        fields = {"question": row} if allow_questions and isinstance(row, str) else row
        if not isinstance(fields, Mapping):
            raise UserError(f"{where}: found {kind_of(row)}; expected a mapping of fields")
        records.append(_record(Record(where, fields, in_memory=True)))
    if not records:
        raise UserError(f"{name}: no rows; expected at least one")
    return records


def _record(record: Record) -> Record:
    """The record, with the fields of its chat if it has one."""
    return record if record.fields.get("messages") is None else _from_messages(record)


def _from_messages(record: Record) -> Record:
    """Turn `messages` into question, answer and system prompt; single turn only."""
    messages = record.fields["messages"]
    if not isinstance(messages, list | tuple):
        raise record.error("messages", f"must be a list, but is {kind_of(messages)}")
    fields = {name: value for name, value in record.fields.items() if name != "messages"}
    roles = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise record.error(f"messages[{i}]", f"must be an object, but is {kind_of(message)}")
        role = message.get("role")
        roles.append(role)
        if isinstance(role, str) and role in CHAT_ROLES:
            content = record._check_text(f"messages[{i}].content", message.get("content"))
            fields[CHAT_ROLES[role]] = content
    turn = roles[1:] if roles[:1] == ["system"] else roles
    if turn not in (["user"], ["user", "assistant"]):
        raise record.error(
            "messages",
            f"has the roles {roles}; expected one turn: system (optional), user, assistant",
        )
    return dataclasses.replace(record, fields=fields)
