"""Settings as dataclass fields: their bounds and choices stand beside them.

A settings class is a frozen dataclass whose docstring says in one line each, under
`Attributes:`, what its fields mean. `check` refuses values outside the bounds; the command
line's help reads the same docstrings.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from pmc_jax.errors import UserError

BOUNDS = {
    "least": ("at least", lambda value, bound: value >= bound),
    "above": ("more than", lambda value, bound: value > bound),
    "most": ("at most", lambda value, bound: value <= bound),
    "below": ("less than", lambda value, bound: value < bound),
}


def bounded(
    default: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    """A field for a number within bounds: `least` and `most` are allowed, the others are not."""
    bounds = {"least": least, "above": above, "most": most, "below": below}
    return dataclasses.field(
        default=default, metadata={name: b for name, b in bounds.items() if b is not None}
    )


def one_of(default: Any, *choices: str) -> Any:
    """A field for one of a few names; None is allowed where it is the default."""
    return dataclasses.field(default=default, metadata={"choices": choices})


def free_text(default: Any) -> Any:
    """A field for a text that the command line takes as it stands, without Hydra's grammar."""
    return dataclasses.field(default=default, metadata={"free_text": True})


def path_to(default: Any) -> Any:
    """A field for a path: two spellings of the same path are the same setting."""
    return dataclasses.field(default=default, metadata={"path": True})


def flat(settings: Any) -> dict[str, Any]:
    """Dotted keys and values of settings: a dataclass or a nested mapping of them."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        settings = dataclasses.asdict(settings)
    return {".".join(map(str, path)): value for path, value in flatten_dict(settings).items()}


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The nested mapping of dotted keys."""
    return unflatten_dict(dict(settings), sep=".")


def fields_of(settings: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """(dotted key, field, value) of every setting in a dataclass of settings."""
    for field in dataclasses.fields(settings):
        value, key = getattr(settings, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{key}.")
        else:
            yield key, field, value


def check(settings: Any, prefix: str = "") -> None:
    """Check every value against the bounds and choices of its field.

    Raises:
        UserError: naming the key, its value and what was expected.
    """
    for key, field, value in fields_of(settings, prefix):
        if value is None:
            continue
        choices = field.metadata.get("choices", ())
        if choices and value not in choices:
            raise UserError(f"{key}={value}: expected one of {', '.join(choices)}")
        for name, (words, holds) in BOUNDS.items():
            bound = field.metadata.get(name)
            if bound is not None and not holds(value, bound):
                raise UserError(f"{key}={value}: expected {words} {bound:g}")
