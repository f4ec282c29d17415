"""The directory of a run: begun once, continued by the same command, never overwritten unasked."""

import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from pmc_jax.data.files import read_object, write_json, write_text
from pmc_jax.errors import UserError
from pmc_jax.runtime.processes import from_first
from pmc_jax.settings import flat, nested

CONFIG, INPUTS, SUMMARY = "config.yaml", "inputs.json", "summary.json"

LAYOUT = 3
"""The version of what a run's directory holds; runs before 0.2.0 have none."""

SHARED_SECONDS = 60
"""How long a network's file system may take to show to one machine what another wrote."""

KINDS = ({"method.name", "method.samples"}, {"suite"})
"""Settings that tell the commands apart: a run of training has one of the first set, an
evaluation one of the second."""


def directory_of(parent: str, name: str, read: Iterable[tuple[str, str | None]]) -> Path:
    """The directory of the run `name`. It must not contain anything that the run reads.

    Args:
        read: settings that name files, with their values.

    Raises:
        UserError: if the name is not a plain directory name, or a file lies in the directory.
    """
    if Path(name).name != name or name in ("", ".", ".."):
        raise UserError(f"name={name}: expected a plain directory name")
    directory = Path(parent) / name
    check_outside(directory, read)
    return directory


def check_outside(directory: Path, read: Iterable[tuple[str, str | None]]) -> None:
    """Check that nothing a run reads lies in its own directory, which it may replace.

    Raises:
        UserError: naming the setting whose file lies there.
    """
    for key, value in read:
        if value and Path(value).expanduser().resolve().is_relative_to(directory.resolve()):
            raise UserError(f"{key}={value} lies in {directory}; choose another name=…")


def holds_run(directory: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> bool:
    """Whether `directory` contains a run with these `settings` (dotted keys) to continue.

    With `overwrite` there is none: any run that is there will be replaced.

    Raises:
        UserError: if it holds a run with other settings or of another version's layout, or
            something that is not a run.
    """
    found = stored_settings(directory, settings)
    if not found:
        if directory.exists() and any(directory.iterdir()):
            raise UserError(f"{directory} is not empty and holds no run; choose another name=…")
        return False
    if overwrite:
        return False
    check_layout(directory)
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
    return True


def check_layout(directory: Path) -> None:
    """Check that the run in `directory` was written by this version of the layout.

    Raises:
        UserError: if an older or a newer version of pmc_jax wrote it.
    """
    layout = read_object(directory / INPUTS, missing_ok=True).get("layout", 1)
    if layout != LAYOUT:
        age = "an older" if layout < LAYOUT else "a newer"
        raise UserError(
            f"{directory} holds a run of {age} version of pmc_jax (layout {layout}; this version "
            f"reads and writes layout {LAYOUT}); choose another name=… or give overwrite=true"
        )


def stored_settings(directory: Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """The settings (dotted keys) of the run in `directory`; empty if there is no run.

    A run has settings of the same kind as `like`: one command never continues or overwrites
    what another left.
    """
    path = directory / CONFIG
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (yaml.YAMLError, UnicodeDecodeError):
        stored = None
    found = flat(stored) if isinstance(stored, dict) else {}
    return found if any(kind & found.keys() and kind & set(like) for kind in KINDS) else {}


def begin_run(
    directory: Path, settings: Mapping[str, Any], inputs: Mapping[str, str], *, overwrite: bool
) -> None:
    """Begin a run, or continue the one that is there; of several processes, the first does.

    `inputs` are hashes by name of what the run reads. A run continues only with the same ones.

    Raises:
        UserError: as `holds_run`, if an input has changed, or if process 0 has read another one
            or has another directory.
    """
    first = from_first(lambda: dict(inputs))
    if unlike := [name for name in inputs if first[name] != inputs[name]]:
        raise UserError(f"this process reads other {' and '.join(unlike)} than process 0")
    from_first(lambda: _begin(directory, settings, inputs, overwrite=overwrite))
    for _ in range(SHARED_SECONDS):
        if (directory / CONFIG).is_file():
            return
        time.sleep(1)
    raise UserError(
        f"{directory}: process 0 has begun a run there, which this process does not see; "
        "expected a directory that all of them share"
    )


def _begin(
    directory: Path, settings: Mapping[str, Any], inputs: Mapping[str, str], *, overwrite: bool
) -> None:
    if not holds_run(directory, settings, overwrite=overwrite):
        if stored_settings(directory, settings):
            shutil.rmtree(directory)
        write_json(directory / INPUTS, {"layout": LAYOUT, **inputs})
        # Last, since this file is what makes the directory a run.
        text = yaml.safe_dump(nested(settings), sort_keys=False, allow_unicode=True)
        write_text(directory / CONFIG, text)
        return
    stored = read_object(directory / INPUTS, missing_ok=True)
    changed = [name for name in inputs if stored.get(name) != inputs[name]]
    if changed:
        raise UserError(
            f"{directory} holds a run that began with other {' and '.join(changed)}; "
            "choose another name=… or give overwrite=true"
        )
