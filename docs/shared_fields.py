"""For griffe: settings classes are documented with all their fields, and with plain defaults."""

import re
from typing import Any

import griffe

ITEM = re.compile(
    r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+): (?P<text>.*(?:\n(?P=indent) +.*)*)", re.MULTILINE
)
SECTION = re.compile(r"\nAttributes:\n(?P<items>(?:    .*(?:\n|\Z))+)")
FIELDS = ("bounded", "free_text", "one_of", "path_to", "switch")
"""What makes a field with bounds or choices in `pmc_jax.settings`."""

NAME = re.compile(r"^    (\w+): .*(?:\n {5,}.*)*\n?", re.MULTILINE)


def one_each(text: str) -> str:
    """The docstring with an item of its own for each of the fields that share one.

    `top_k, top_p: filters` describes two.
    """

    def items(found: re.Match[str]) -> str:
        names = found["names"].split(", ")
        return "\n".join(f"{found['indent']}{name}: {found['text']}" for name in names)

    return ITEM.sub(items, text)


def described(text: str) -> dict[str, str]:
    """The items under `Attributes:` by name."""
    found = SECTION.search(text)
    items = NAME.finditer(found["items"]) if found else ()
    return {item[1]: item[0].rstrip() for item in items}


def with_inherited(text: str, bases: list[griffe.Class]) -> str:
    """The docstring with the attributes that the docstrings of base classes describe."""
    own = described(text)
    items = dict(own)
    for base in bases:
        if base.docstring is not None:
            items = {**described(base.docstring.value), **items}
    if items.keys() == own.keys():
        return text
    section = "\nAttributes:\n" + "\n".join(items.values()) + "\n"
    if own:
        return SECTION.sub(lambda _: section, text)
    return f"{text.rstrip()}\n{section}"


def is_dataclass(kind: griffe.Class) -> bool:
    """Whether a class has the decorator of a dataclass."""
    return any("dataclass" in str(decorator.value) for decorator in kind.decorators)


def plain_default(value: Any) -> Any:
    """The default of a field such as `bounded(0.1, above=0)`: its first argument."""
    if isinstance(value, griffe.ExprCall) and str(value.function) in FIELDS and value.arguments:
        return value.arguments[0]
    return value


class SharedFields(griffe.Extension):
    """Completes docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Give each field of a docstring its own item."""
        if obj.docstring is not None:
            obj.docstring.value = one_each(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Add inherited settings to the docstrings of dataclasses, and show plain defaults."""
        for kind in classes(pkg):
            for attribute in kind.attributes.values():
                if isinstance(attribute, griffe.Attribute):
                    attribute.value = plain_default(attribute.value)
            bases = [base for base in kind.resolved_bases if isinstance(base, griffe.Class)]
            mro = [*bases, *(further for base in bases for further in base.mro())]
            if not mro or not is_dataclass(kind):
                continue
            if kind.docstring is None and mro[0].docstring is not None:  # `__doc__ = Base.__doc__`
                kind.docstring = griffe.Docstring(mro[0].docstring.value, parent=kind)
            if kind.docstring is not None:
                kind.docstring.value = with_inherited(kind.docstring.value, mro)


def classes(module: griffe.Module) -> list[griffe.Class]:
    """The classes of a module and of its submodules."""
    found = list(module.classes.values())
    for child in module.modules.values():
        found += classes(child)
    return [kind for kind in found if isinstance(kind, griffe.Class) and not kind.is_alias]
