"""The `--help` of commands that Hydra configures: every key that applies, with its value."""

import dataclasses
import re
import textwrap
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pmc_jax.cli.arguments import introduction, usage, wrapped_call
from pmc_jax.cli.commands import COMMANDS, WIDTH, Command, called
from pmc_jax.cli.config import group_names
from pmc_jax.data.files import to_json
from pmc_jax.settings import descriptions
from pmc_jax.unlearning.method import resolve

LEFT = 35
"""Columns of keys and values; descriptions stand to the right of them."""

GROUPS = {
    "experiment": "a model, its data and its training",
    "method": "the unlearning method",
    "adapter": "an adapter to train in place of the weights",
    "model": "a model and its dtype",
    "data": "a data set",
    "evaluation": "how models are evaluated",
    "sweep": "values to try, with one run for each combination",
}

Settings = Mapping[str, Any]


def help_page(
    name: str, schema: type, composed: Settings, choices: Mapping[str, str | None]
) -> str:
    """The help of a command for composed settings and the choices of Hydra's groups."""
    command = COMMANDS[name]
    parts = [[f"usage: {usage(name)}"], [introduction(name)]]
    if command.groups:
        parts.append(list(group_lines(command, choices)))
        parts.append(list(note_on_values(name, command, choices)))
    parts += sections(command, schema, composed, choices)
    parts.append(list(option_lines(command)))
    return "\n\n".join("\n".join(part) for part in parts)


def group_lines(command: Command, choices: Mapping[str, str | None]) -> Iterator[str]:
    """Hydra's groups and the names that each can have."""
    yield "groups (a name stands for many settings):"
    for group in command.groups:
        required = any(text.startswith(f"{group}=") for text in command.defaults)
        yield f"  {group}={'…' if required else shown(choices.get(group))}"
        text = command.group_texts.get(group, GROUPS[group])
        yield from indented(f"{text}: {', '.join(group_names(group))}", 6)


def note_on_values(name: str, command: Command, choices: Mapping[str, str | None]) -> Iterator[str]:
    """Which values the page shows."""
    left_out = ("adapter", "evaluation", "sweep")
    groups = [group for group in command.groups if group not in left_out]
    now = ", ".join(f"{group}={choices[group]}" for group in groups)
    others = " ".join(f"{group}=NAME" for group in groups)
    yield from indented(f"The values below are those of {now}. For others:", 0)
    yield from wrapped_call(f"{called(name)} --help {others}")


def sections(
    command: Command, schema: type, composed: Settings, choices: Mapping[str, str | None]
) -> Iterator[list[str]]:
    """The settings that apply: those without a group, and then group by group."""
    fields = [field for field in dataclasses.fields(schema) if field.name not in command.unused]
    method = resolve(str(choices["method"])) if "method" in composed else None
    kinds = {field.name: group_of(schema, field) for field in fields}
    single = [field for field in fields if kinds[field.name] is None]
    yield ["general:", *entries(schema, "", single, composed)]
    for field in fields:
        if kinds[field.name] is None or composed[field.name] is None:
            continue
        kind: Any = method if field.name == "method" else kinds[field.name]
        title = f"method={composed['method']['name']}" if kind is method else field.name
        settings = [
            setting
            for setting in dataclasses.fields(kind)
            if f"{field.name}.{setting.name}" not in ("method.name", *command.unused)
            and has_effect(setting, method)
        ]
        lines = entries(kind, f"{field.name}.", settings, composed[field.name], command.unused)
        yield [*indented(f"{title}: {summary(kind)}", 0), *lines]


def group_of(schema: type, field: dataclasses.Field[Any]) -> type | None:
    """The class of a field that holds a group of settings, which may be null; else None."""
    kind = typing.get_type_hints(schema)[field.name]
    inner = [one for one in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(one)]
    return typing.cast(type, inner[0]) if inner else None


def has_effect(setting: dataclasses.Field[Any], method: type | None) -> bool:
    """Whether the method has the setting that this one needs, if any."""
    known = {field.name for field in dataclasses.fields(method)} if method else set()
    return setting.metadata.get("needs") in (None, *known)


def entries(
    kind: type,
    prefix: str,
    fields: Collection[dataclasses.Field[Any]],
    values: Settings,
    unused: Collection[str] = (),
) -> Iterator[str]:
    """Lines for the settings `fields` of `kind`, without those whose keys are `unused`."""
    known = descriptions(kind)
    for field in fields:
        value = values[field.name]
        inner: Any = field.default_factory
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            own = f"{prefix}{field.name}."
            used = [one for one in dataclasses.fields(inner) if f"{own}{one.name}" not in unused]
            yield from entries(inner, own, used, value)
            continue
        text = known.get(field.name, "")
        choices = field.metadata.get("choices", ())
        if not all(f'"{choice}"' in text for choice in choices):
            text += f" One of {', '.join(choices)}."
        if value == "???":
            text = f"required: {text}"
        yield from entry(f"{prefix}{field.name}={'…' if value == '???' else shown(value)}", text)


def entry(left: str, text: str) -> Iterator[str]:
    """A key with its value, and what it means."""
    lines = textwrap.wrap(as_typed(text), WIDTH - LEFT, break_on_hyphens=False) or [""]
    left = f"  {left}"
    if len(left) > LEFT - 2:
        yield left
        left = ""
    yield f"{left:<{LEFT}}{lines[0]}"
    for line in lines[1:]:
        yield " " * LEFT + line


def option_lines(command: Command) -> Iterator[str]:
    """The options."""
    yield "options:"
    yield from entry("-h, --help", "print this page")
    if command.sweeps:
        yield from entry("-m, --multirun", "run every combination of values, as in seed=0,1,2")
    yield from entry("--cfg job", "print the settings as YAML and stop")


def indented(text: str, columns: int) -> Iterator[str]:
    """A paragraph with a margin."""
    margin = " " * columns
    yield from textwrap.wrap(
        text, WIDTH, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False
    )


def summary(kind: type) -> str:
    """The first sentence of a class's docstring, to stand after a colon."""
    text = as_typed((kind.__doc__ or "").strip().partition("\n\n")[0])
    return " ".join(text.split()).partition(". ")[0].rstrip(".")


def as_typed(text: str) -> str:
    """A docstring's text in the command line's words: null for None, no backquotes."""
    text = re.sub(r"\bNone\b", "null", text.replace("`", ""))
    return text[:-1] if text.endswith(".") and ". " not in text else text


def shown(value: Any) -> str:
    """A value as the command line takes it, cut if it is long."""
    if isinstance(value, dict):
        return "{…}"
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if value is None or isinstance(value, bool):
        return to_json(value, ascii=True)
    text = str(value)
    if not re.fullmatch(r"\S+", text):
        text = to_json(text)
    return text if len(text) <= WIDTH // 2 + 8 else f'{text[: WIDTH // 2]}…"'
