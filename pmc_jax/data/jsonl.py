"""JSON lines and JSON arrays of objects, read with errors that name file, row and field."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pmc_jax.errors import UserError

CHAT_ROLES = {"system": "system", "user": "question", "assistant": "answer"}


@dataclasses.dataclass(frozen=True)
class Record:
    """One object of a data file; `where` says which, for error messages."""

    where: str
    fields: Mapping[str, Any]

    def error(self, field: str, problem: str) -> UserError:
        """An error about one field of this record."""
        return UserError(f"{self.where}: field '{field}' {problem}")

    def text(self, field: str) -> str:
        """The field's text.

        Raises:
            UserError: when it is missing, not a string, blank, or not valid Unicode.
        """
        if field not in self.fields:
            raise self.error(field, f"is missing; the row has {_names(self.fields)}")
        return self._check_text(field, self.fields[field])

    def optional_text(self, field: str) -> str | None:
        """Like `text`, but None where the field is absent or null."""
        return None if self.fields.get(field) is None else self.text(field)

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of texts (or a single one); empty where the field is absent or null."""
        value = self.fields.get(field)
        if value is None:
            return ()
        values = value if isinstance(value, list) else [value]
        return tuple(self._check_text(field, item) for item in values)

    def _check_text(self, field: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self.error(field, f"must be a string, but is {_kind(value)}")
        if not value.strip():
            raise self.error(field, "is empty; expected some text")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.error(field, "holds half a surrogate pair, which is not text") from None
        return value


def read_records(path: Path) -> list[Record]:
    """All objects of a JSON-lines file (blank lines skipped) or of a JSON array.

    Rows in chat form, `{"messages": [{"role", "content"}, …]}`, come out with the fields
    "system", "question" and "answer".

    Raises:
        UserError: no such file, not UTF-8, not JSON, not objects, or no rows at all.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        rows = enumerate(_parse(str(path), text), 1)
        numbered = [(f"{path}, element {number}", row) for number, row in rows]
    else:
        lines = ((f"{path}, line {i}", line) for i, line in enumerate(text.split("\n"), 1))
        numbered = [(where, _parse(where, line)) for where, line in lines if line.strip()]
    if not numbered:
        raise UserError(f"{path}: no rows; expected one JSON object a line")
    return [_record(where, row) for where, row in numbered]


def read_text(path: Path) -> str:
    """The text of a data file.

    Raises:
        UserError: no such file, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a directory; expected a file") from None
    except UnicodeDecodeError as e:
        line = e.object[: e.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 (byte {e.start})") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror}") from None


def _parse(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        reason = getattr(e, "msg", str(e))
        raise UserError(f"{where}: not valid JSON: {reason}; expected a JSON object") from None


def _record(where: str, row: Any) -> Record:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, found {_kind(row)}")
    record = Record(where, row)
    return _from_messages(record) if "messages" in row else record


def _from_messages(record: Record) -> Record:
    """Turn `messages` into question, answer and system prompt; single turn only."""
    messages = record.fields["messages"]
    if not isinstance(messages, list):
        raise record.error("messages", f"must be a list, but is {_kind(messages)}")
    fields = {name: value for name, value in record.fields.items() if name != "messages"}
    roles = []
    for i, message in enumerate(messages):
        item = Record(record.where, message) if isinstance(message, dict) else None
        if item is None:
            raise record.error(f"messages[{i}]", f"must be an object, but is {_kind(message)}")
        roles.append(item.fields.get("role"))
        content = item.fields.get("content")
        if roles[-1] in CHAT_ROLES:
            fields[CHAT_ROLES[roles[-1]]] = record._check_text(f"messages[{i}].content", content)
    turn = roles[1:] if roles[:1] == ["system"] else roles
    if turn not in (["user"], ["user", "assistant"]):
        raise record.error(
            "messages",
            f"has the roles {roles}; expected one turn: system (optional), user, assistant",
        )
    return Record(record.where, fields)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def _names(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in fields) or "no fields"
