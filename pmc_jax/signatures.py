"""Arguments and settings of the wrong type: one line that names them.

`checked` compares the arguments of a public function with its annotations when it is called, and
`settings.check` the values of settings with those of their fields. What needs more than a type,
such as bounds or the shape of an array, is checked elsewhere.
"""

import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pmc_jax.errors import UserError
from pmc_jax.terminal import escaped, short

WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
"""What a value is, by its type."""

F = TypeVar("F", bound=Callable[..., Any])

Hint = Callable[[Any], str | None]
"""What is expected in place of a value of the wrong type, in words; None: what its type says."""


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type; types that are not known here fit everything."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, one) for one in inner)
    if kind is Any:
        return True
    if kind is None or kind is type(None):
        return value is None
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind in (int, float):
        return isinstance(value, numbers.Integral if kind is int else numbers.Real)
    if origin in (list, Sequence):
        return is_list(value) and all(fits(item, inner[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    if origin is Callable:
        return callable(value)
    return isinstance(value, kind) if origin is None and inspect.isclass(kind) else True


def is_list(value: Any) -> bool:
    """Whether a value has items that can be read twice, and is neither a text nor a mapping."""
    several = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return several and not isinstance(value, str | bytes | Mapping)


def words_of(kind: Any) -> str:
    """A type in words: "an integer or None"."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(map(words_of, inner)))
    if kind is None or kind is type(None):
        return "None"
    if origin in (list, Sequence):
        items = inner[0] if inner else Any
        return {str: "a list of texts", int: "a list of integers"}.get(items, "a list")
    if origin in (dict, Mapping):
        return "a mapping"
    if kind is Path:
        return "a path"
    return WORDS.get(kind) or with_article(getattr(kind, "__name__", str(kind)))


def with_article(name: str) -> str:
    """`a str`, `an int`."""
    return f"{'an' if name[:1] in 'AEIOaeio' else 'a'} {name}"


def found(value: Any) -> str:
    """What a value is: the name of its type, or of the class that it is."""
    if value is None:
        return "None"
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    return with_article(type(value).__name__)


def wrong_type(name: str, value: Any, kind: Any, expected: str | None = None) -> UserError:
    """The error for the argument or setting `name`."""
    shown = ""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        shown = f"={short(escaped(repr(value)))}"
    return UserError(f"{name}{shown}: found {found(value)}; expected {expected or words_of(kind)}")


@functools.cache
def hints_of(described: Any) -> Mapping[str, Any]:
    """The annotations of a function or a class; none if they name what cannot be imported."""
    try:
        return typing.get_type_hints(described)
    except NameError:
        return {}


def arguments_of(function: Callable[..., Any], values: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, value, annotation) of the arguments of a call that have one."""
    hints = hints_of(function)
    for name, value in values.arguments.items():
        if name in hints:
            yield name, value, hints[name]


def checked(**expected: Hint) -> Callable[[F], F]:
    """A function that compares its arguments with its annotations first.

    Args:
        expected: by argument, more to say than its type.

    Raises:
        UserError: from the function that is returned, for an argument of another type.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            bound = signature.bind(*args, **given)
            for name, value, kind in arguments_of(function, bound):
                if not fits(value, kind):
                    more = expected.get(name)
                    raise wrong_type(name, value, kind, more(value) if more else None)
            return function(*args, **given)

        return typing.cast(F, call)

    return decorate
