"""The files of a run: written atomically, never over another run's."""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pmc_jax.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, all or none."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path) -> Any:
    """The JSON value in a file, or None if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def open_run(directory: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Begin a run in `directory`, or go on with the one that is there.

    `settings` (dotted keys) are what must agree for a run to be continued; they are kept
    in `config.yaml`.

    Raises:
        UserError: if the directory holds a run with other settings, or something else.
    """
    config = directory / "config.yaml"
    found: dict[str, Any] = {}
    if config.is_file():
        stored = yaml.safe_load(config.read_text(encoding="utf-8"))
        found = flatten(stored if isinstance(stored, dict) else {})
    is_run = "method.samples" in found
    if overwrite and is_run:
        shutil.rmtree(directory)
    elif is_run:
        differing = [
            f"{key} (there {found.get(key)!r}, now {settings.get(key)!r})"
            for key in sorted({*found, *settings})
            if found.get(key) != settings.get(key)
        ]
        if differing:
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise UserError(
                f"{directory} holds a run with other settings: {', '.join(differing[:3])}{more}; "
                "choose another name=… or give overwrite=true"
            )
        return
    elif directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} is not empty and holds no run; choose another name=…")
    write_text(config, yaml.safe_dump(nest(settings), sort_keys=False, allow_unicode=True))


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
