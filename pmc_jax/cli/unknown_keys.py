"""Error messages for configuration keys that are unknown or missing."""

import dataclasses
import difflib
import operator
from collections.abc import Sequence

from pmc_jax.model.trainable import LoRA
from pmc_jax.settings import descriptions, flat
from pmc_jax.unlearning.method import methods, resolve

ALIKE = 0.6
"""Least similarity, by difflib's ratio, of a key that is suggested for a mistyped one."""


def unknown_key(key: str, schema: type, method: str | None) -> str:
    """The message for a key that is not in `schema` with this `method`."""
    own = adapter_keys(schema)
    valid = [each for name in flat(schema()) for each in (own if name == "adapter" else [name])]
    if key in own:
        return f"{key} is a key of adapter=lora, which is not chosen; give adapter=lora, too"
    if method:
        valid = [name for name in valid if not name.startswith("method.")]
        valid += [f"method.{field.name}" for field in dataclasses.fields(resolve(method))]
    if key.startswith("method."):
        valid = [name for name in valid if name.startswith("method.")] or valid
    near = nearest_key(key, valid)
    hint = keys_beside(key, valid) if near is None else f"the nearest valid key is {near}"
    owners = [
        name
        for name, kind in methods().items()
        if key in {f"method.{field.name}" for field in dataclasses.fields(kind)}
    ]
    if method and owners:
        return f"{key} is a key of method={', '.join(owners)}, not of method={method}; {hint}"
    return f"unknown configuration key {key}; {hint}"


def adapter_keys(schema: type) -> list[str]:
    """The keys of an adapter, which only a command with one has."""
    if "adapter" not in {field.name for field in dataclasses.fields(schema)}:
        return []
    return [f"adapter.{field.name}" for field in dataclasses.fields(LoRA)]


def missing_key(key: str, schema: type) -> str:
    """The message for a key of `schema` that has no default and no value."""
    group, _, name = key.rpartition(".")
    kind = type(operator.attrgetter(group)(schema())) if group else schema
    meaning = descriptions(kind).get(name, "").replace("`", "")
    return f"{key} is missing; give {key}=… ({meaning.partition('. ')[0].rstrip('.')})"


def nearest_key(key: str, valid: Sequence[str]) -> str | None:
    """The key or group most like `key`, if their last words are alike; None if none is.

    A key that has the whole last word of `key` among its own comes first.
    """
    groups = dict.fromkeys(f"{name.partition('.')[0]}.…" for name in valid if "." in name)

    def alike(one: str, other: str) -> float:
        return difflib.SequenceMatcher(None, one, other).ratio()

    word = key.rpartition(".")[2]
    near = [
        name for name in [*valid, *groups]
        if alike(word, name.removesuffix(".…").rpartition(".")[2]) >= ALIKE
    ]  # fmt: skip

    def rank(name: str) -> tuple[bool, float]:
        return word in name.rpartition(".")[2].split("_"), alike(key, name.removesuffix(".…"))

    return max(near, key=rank, default=None)


def keys_beside(key: str, valid: Sequence[str]) -> str:
    """The `valid` keys in the group of `key`, or else at the top, as part of a sentence."""
    group, _, _ = key.rpartition(".")
    prefix = f"{group}." if any(name.startswith(f"{group}.") for name in valid) else ""
    rest = [name.removeprefix(prefix) for name in valid if name.startswith(prefix)]
    names = dict.fromkeys(
        name if not rest else f"{name}.…" for name, _, rest in (r.partition(".") for r in rest)
    )
    return f"{f'{group} has' if prefix else 'there are'} {', '.join(names)}"
