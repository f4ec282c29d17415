"""Settings as dataclass fields: each field declares its bounds, choices and documentation.

A settings class is a frozen dataclass. Its docstring has a line for each field under
`Attributes:`, which `--help` prints. Its fields carry their bounds as metadata:

    @dataclasses.dataclass(frozen=True)
    class Sampling:
        '''How responses are sampled.

        Attributes:
            samples: responses per question.
            mode: how they are drawn.
        '''

        samples: int = bounded(5, least=1)
        mode: str = one_of("nucleus", "nucleus", "greedy")

`check` compares values with the metadata.
"""

import dataclasses
import inspect
import operator
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from pmc_jax.errors import UserError
from pmc_jax.signatures import fits, hints_of, wrong_type
from pmc_jax.terminal import short

MOST = 2**20
"""The upper bound of a number without one of its own: more than any run uses."""

BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "least": ("at least", operator.ge),
    "above": ("more than", operator.gt),
    "most": ("at most", operator.le),
    "below": ("less than", operator.lt),
}


def bounded(
    default: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    needs: str | None = None,
) -> Any:
    """A field for a number, or a list of numbers, with bounds.

    `least` and `most` themselves are allowed. Without `most` and `below`, `MOST` is the bound.
    """
    if most is None and below is None:
        most = MOST
    return _field(default, least=least, above=above, most=most, below=below, needs=needs)


SEED: dict[str, Any] = {"least": 0, "below": 2**32}
"""The bounds of a seed of random numbers."""


def random_seed(default: int = 0) -> Any:
    """A field for the seed of all random numbers."""
    return bounded(default, **SEED)


AUTO = "auto"
"""The value of a number that follows from the memory of the devices."""


def automatic(*, least: int = 1, needs: str | None = None) -> Any:
    """A field for a whole number, or "auto", its default."""
    return _field(AUTO, least=least, most=MOST, needs=needs, auto=True)


def one_of(default: Any, *choices: str) -> Any:
    """A field for one of a few names; None is allowed where it is the default."""
    return _field(default, choices=choices)


def switch(default: bool, *, needs: str | None = None) -> Any:
    """A field that is true or false.

    `needs`, here and in `bounded`, names a setting of the method, like `samples`. The field has
    no effect with methods that lack it, and help leaves it out for them.
    """
    return _field(default, needs=needs)


def free_text(default: Any) -> Any:
    """A field for text that the command line takes literally, outside Hydra's grammar."""
    return _field(default, free_text=True)


def path_to(default: Any) -> Any:
    """A field for a path, or a list of paths: `runs/a` and `runs/./a/` are the same setting."""
    return _field(default, path=True)


def _field(default: Any, **metadata: Any) -> Any:
    given = {name: value for name, value in metadata.items() if value is not None}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=given)
    return dataclasses.field(default=default, metadata=given)


def flat(settings: Any) -> dict[str, Any]:
    """Dotted keys and values of settings: a dataclass or a nested mapping of them."""
    from flax.traverse_util import flatten_dict  # which imports JAX; reading data needs none

    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        settings = dataclasses.asdict(settings)
    return {".".join(map(str, path)): value for path, value in flatten_dict(settings).items()}


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The nested mapping of dotted keys."""
    from flax.traverse_util import unflatten_dict

    return unflatten_dict(dict(settings), sep=".")


def fields_of(settings: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """(dotted key, field, value) of every setting in a dataclass of settings."""
    for field in dataclasses.fields(settings):
        value, key = getattr(settings, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{key}.")
        else:
            yield key, field, value


def recorded(settings: Any, without: Collection[str] = ()) -> dict[str, Any]:
    """Dotted keys and values as a run records them: two spellings of a path become one.

    Settings of a single process, `distributed.*`, are left out, and so are those in `without`.
    """
    paths = {key for key, field, _ in fields_of(settings) if field.metadata.get("path")}
    return {
        key: _normal_path(value) if key in paths else _as_stored(value)
        for key, value in flat(settings).items()
        if key not in without and not key.startswith("distributed.")
    }


def _as_stored(value: Any) -> Any:
    """A value as YAML gives it back."""
    return list(value) if isinstance(value, tuple) else value


def _normal_path(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_normal_path(item) for item in value]
    return os.path.normpath(value) if isinstance(value, str) and value else value


def descriptions(kind: type) -> dict[str, str]:
    """What the docstrings of a settings class and its base classes say about each field."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        names: list[str] = []
        inside = False
        for line in inspect.cleandoc(base.__doc__ or "").splitlines():
            if not line.startswith(" "):
                inside = line == "Attributes:" or (inside and not line)
            elif inside and (entry := re.fullmatch(r" {4}(\w+(?:, \w+)*): (.*)", line)):
                names = entry[1].split(", ")
                found |= dict.fromkeys(names, entry[2])
            elif inside:
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def kinds_of(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, type) of every setting in a dataclass of settings, those with settings too."""
    hints = hints_of(settings.__class__)
    for field in dataclasses.fields(settings):
        value, key = getattr(settings, field.name), f"{prefix}{field.name}"
        yield key, hints.get(field.name, Any)
        if dataclasses.is_dataclass(value):
            yield from kinds_of(value, f"{key}.")


def check(settings: Any, prefix: str = "") -> None:
    """Check every value against the bounds, choices and type of its field.

    Raises:
        UserError: naming the key, its value and what was expected.
    """
    kinds = dict(kinds_of(settings, prefix))
    for key, field, value in fields_of(settings, prefix):
        automatic = field.metadata.get("auto", False)
        if (value is None and fits(None, kinds[key])) or (automatic and value == AUTO):
            continue
        if automatic and (isinstance(value, bool) or not isinstance(value, int)):
            raise UserError(f"{key}={value}: expected {AUTO} or a whole number")
        choices = field.metadata.get("choices", ())
        if choices and value not in choices:
            raise UserError(f"{key}={short(value)}: expected one of {', '.join(choices)}")
        for item in value if isinstance(value, list | tuple) else [value]:
            if problem := out_of_bounds(item, field.metadata):
                raise UserError(f"{key}={short(value)}: expected {problem}")
        if not fits(value, kinds[key]):
            raise wrong_type(key, value, kinds[key])


def check_number(name: str, value: Any, bounds: Mapping[str, float]) -> None:
    """Check a number that is an argument rather than a field.

    Raises:
        UserError: naming the argument, its value and what was expected.
    """
    if problem := out_of_bounds(value, bounds):
        raise UserError(f"{name}={short(value)}: expected {problem}")


def out_of_bounds(value: Any, metadata: Mapping[str, Any]) -> str | None:
    """What is expected in place of a number; None if it keeps the bounds of a field."""
    bounds = {name: metadata[name] for name in BOUNDS if name in metadata}
    if bounds and (isinstance(value, bool) or not isinstance(value, int | float)):
        return "a number"
    for name, bound in bounds.items():
        words, holds = BOUNDS[name]
        if not holds(value, bound):
            return f"{words} {_short(bound)}"
    return None


def _short(bound: float) -> str:
    """A bound as a person writes it: 0.75, 2, 2**32."""
    if isinstance(bound, int) and bound > 2**16 and bound & (bound - 1) == 0:
        return f"2**{bound.bit_length() - 1}"
    return f"{bound:g}"
