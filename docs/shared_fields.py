"""For griffe: a docstring line such as `top_k, top_p: filters` describes two fields."""

import re
from typing import Any

import griffe

ITEM = re.compile(
    r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+): (?P<text>.*(?:\n(?P=indent) +.*)*)", re.MULTILINE
)


def one_each(text: str) -> str:
    """The docstring with an item of its own for each of the fields that share one."""

    def items(found: re.Match[str]) -> str:
        names = found["names"].split(", ")
        return "\n".join(f"{found['indent']}{name}: {found['text']}" for name in names)

    return ITEM.sub(items, text)


class SharedFields(griffe.Extension):
    """Gives each field its own item before the docstrings are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class or function."""
        if obj.docstring is not None:
            obj.docstring.value = one_each(obj.docstring.value)
