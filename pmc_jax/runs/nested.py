"""Nested settings and their dotted keys."""

import dataclasses
from collections.abc import Mapping
from typing import Any


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and values of a nested mapping or dataclass."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    if not isinstance(config, dict):
        return {prefix: config}
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The nested mapping of dotted keys."""
    nested: dict[str, Any] = {}
    for dotted, value in settings.items():
        *groups, key = dotted.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[key] = value
    return nested
