"""Arguments as people type them, and what Hydra's grammar makes of them.

Hydra reads `name=1.10` as the number 1.1 and rejects `model.path=lr=1e-5`. A value of a setting
that is a text is therefore put in quotes first: it is taken literally. In a sweep, commas separate
values. A value that is in quotes already is left as it is.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import GrammarParseError
from omegaconf.grammar_parser import parse as parse_interpolations

from pmc_jax.errors import UserError
from pmc_jax.signatures import WORDS
from pmc_jax.terminal import short

QUOTED = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
"""One text in quotes; a quote in it has a backslash before it."""

SWEPT = re.compile(r"(?:choice|range|interval|glob|shuffle|sort|tag)\(.*\)", re.DOTALL)
"""Functions of Hydra that stand for several values."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the command line has to know of a setting.

    Attributes:
        kind: bool, int, float, str or dict; Any for a text or a list of texts.
        optional: whether it may be null.
        several: whether it is a list of `kind`.
        free_text: whether all of a value is text, also in a sweep, interpolations included.
    """

    kind: Any
    optional: bool = False
    several: bool = False
    free_text: bool = False

    @property
    def is_text(self) -> bool:
        """Whether a value is taken literally."""
        return self.kind in (str, Any) and not self.several

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        words = WORDS.get(self.kind, "a mapping")
        if self.several:
            words = f"a list such as [1,2], each {words}"
        return f"{words} or null" if self.optional else words


def setting_of(field: dataclasses.Field[Any], kind: Any) -> Setting:
    """The setting of a dataclass field of type `kind`."""
    optional = kind is Any
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        kinds = typing.get_args(kind)
        kind, optional = kinds[0], type(None) in kinds
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return Setting(inner[0], optional, several=True)
    return Setting(origin or kind, optional, free_text=bool(field.metadata.get("free_text")))


def settings_of(schema: type, prefix: str = "") -> Iterator[tuple[str, Setting]]:
    """(dotted key, setting) of every setting of a schema, groups of settings included."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        kind, key = hints[field.name], f"{prefix}{field.name}"
        inner = [one for one in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(one)]
        if inner:
            yield from settings_of(typing.cast(type, inner[0]), f"{key}.")
        else:
            yield key, setting_of(field, kind)


def split(argument: str) -> tuple[str, str, str | None]:
    """`+key=value` as "+", "key" and "value", which is None without an equals sign."""
    key, equals, value = argument.partition("=")
    bare = key.lstrip("+~")
    return key[: len(key) - len(bare)], bare, value if equals else None


def literal(argument: str, settings: Mapping[str, Setting], *, sweep: bool) -> str:
    """An argument in Hydra's grammar: the value of a text is put in quotes.

    Args:
        sweep: whether commas separate values.
    """
    sign, key, value = split(argument)
    setting = settings.get(key)
    if setting is None or not setting.is_text or value is None:
        return argument

    def one(text: str) -> str:
        if re.fullmatch(QUOTED, text, re.DOTALL) or (setting.optional and text == "null"):
            return text
        if setting.kind is Any and text[:1] == "[" and text[-1:] == "]":
            return f"[{','.join(map(one, items(text[1:-1])))}]"
        return in_quotes(text, free_text=setting.free_text)

    swept = sweep and not setting.free_text
    if swept and SWEPT.fullmatch(value):
        return argument
    return f"{sign}{key}={','.join(map(one, items(value))) if swept else one(value)}"


def items(text: str) -> list[str]:
    """The items of a text with commas; one in quotes or brackets, or an interpolation, is whole."""
    item = re.compile(rf"\s*(?:{QUOTED}|\[[^\]]*\])\s*(?=,|\Z)|(?:\$\{{[^}}]*\}}|[^,])*", re.DOTALL)
    found, first = [], 0
    while first <= len(text):
        match = item.match(text, first)
        assert match  # the second alternative matches any text
        found.append(match[0].strip())
        first = match.end() + 1
    return found


def in_quotes(text: str, *, free_text: bool) -> str:
    """A text in quotes, as Hydra's grammar wants it.

    An interpolation such as `${seed}` stays one, except in free text.
    """
    # Backslashes are literal except before a quote or an interpolation.
    if free_text or not has_interpolations(text):
        text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    escaped = re.sub(r'(\\*)("|\Z)', r"\1\1\2", text).replace('"', '\\"')
    return f'"{escaped}"'


def has_interpolations(text: str) -> bool:
    """Whether OmegaConf can read the interpolations of a text."""
    try:
        parse_interpolations(text)
    except GrammarParseError:
        return False
    return True


def check_arguments(
    arguments: Sequence[str],
    settings: Mapping[str, Setting],
    groups: Mapping[str, Sequence[str]],
    *,
    sweep: bool,
) -> None:
    """Check each `key=value` by itself, before Hydra composes them.

    Args:
        groups: the names that each of Hydra's groups can have.
        sweep: whether an argument may stand for several values.

    Raises:
        UserError: naming the argument and what was expected.
    """
    parser = OverridesParser.create()
    for argument in arguments:
        sign, key, value = split(argument)
        if value is None or not key:
            raise UserError(f"{short(argument)}: expected KEY=VALUE")
        if "~" in sign:
            raise UserError(f"{short(argument)}: a setting cannot be removed; expected KEY=VALUE")
        if key in groups and not is_choice(value, groups[key]):
            raise UserError(f"{key}={short(value)}: expected one of {', '.join(groups[key])}")
        below = [own for own in settings if own.startswith(f"{key}.")]
        if key not in groups and below and value[:1] != "{":
            raise UserError(f"{key}={short(value)}: expected {key}.KEY=VALUE, such as {below[0]}=…")
        wanted = settings[key].expected if key in settings else "a value as Hydra reads it"
        if key in groups:
            wanted = f"one of {', '.join(groups[key])}"
        try:
            found = parser.parse_override(argument)
        except (HydraException, ValueError, RecursionError):  # ValueError: a very long number
            raise UserError(f"{key}={short(value)}: expected {wanted}") from None
        if found.is_sweep_override() and not sweep:
            raise UserError(f"{key}={short(value)}: expected {wanted}; several values need -m")


def is_choice(value: str, names: Sequence[str]) -> bool:
    """Whether a value is one of a group's names or, in a sweep, several of them.

    A method from outside the package, `package.module:Name`, has a colon.
    """
    if "${" in value or value.startswith("glob("):
        return True
    if SWEPT.fullmatch(value):
        function, _, inner = value[:-1].partition("(")
        if function not in ("choice", "shuffle", "sort"):
            return False  # numbers
        return is_choice(inner, names)
    return all(item.strip("\"'") in names or ":" in item for item in items(value))
