"""The directory of a run: begun once, continued by the same command, never overwritten unasked."""

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import yaml

from pmc_jax.data.files import read_object, write_json, write_text
from pmc_jax.errors import UserError
from pmc_jax.runtime.locks import LOCK, locked
from pmc_jax.runtime.processes import from_first, is_first
from pmc_jax.settings import flat, nested

CONFIG, INPUTS, SUMMARY, LOG = "config.yaml", "inputs.json", "summary.json", "log.txt"

EARLY = (LOCK, INPUTS, LOG)
"""What a directory may hold that is not a run yet, because a run has just begun in it."""

ELSEWHERE = "choose another name=… (in Python, another out)"
"""What to do about a directory that cannot be used."""

PARTIAL = ".partial"
"""The ending of files and directories that are being written."""

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
    check_directory(directory)
    check_outside(directory, read)
    return directory


def check_directory(directory: Path) -> None:
    """Check that files can go to a directory: that neither it nor one above it is a file.

    Raises:
        UserError: naming the file.
    """
    for path in (directory, *directory.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file; expected a directory")


def check_outside(directory: Path, read: Iterable[tuple[str, str | None]]) -> None:
    """Check that nothing a run reads lies in its own directory, which it may replace.

    Raises:
        UserError: naming the setting whose file lies there.
    """
    for key, value in read:
        if value and Path(value).expanduser().resolve().is_relative_to(directory.resolve()):
            raise UserError(f"{key}={value} lies in {directory}; {ELSEWHERE}")


def holds_run(directory: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> bool:
    """Whether `directory` contains a run with these `settings` (dotted keys) to continue.

    With `overwrite` there is none: any run that is there will be replaced.

    Raises:
        UserError: if it holds a run with other settings or of another version's layout, or
            something that is not a run.
    """
    found = stored_settings(directory, settings)
    if not found:
        if not is_new(directory):
            raise UserError(f"{directory} is not empty and holds no run; {ELSEWHERE}")
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
            f"{ELSEWHERE} or give overwrite=true"
        )
    return True


def is_new(directory: Path) -> bool:
    """Whether there is no directory, or one that holds nothing."""
    return not directory.exists() or all(
        path.name in EARLY or path.name.endswith(PARTIAL) for path in directory.iterdir()
    )


def check_layout(directory: Path) -> None:
    """Check that the run in `directory` was written by this version of the layout.

    Raises:
        UserError: if an older or a newer version of pmc_jax wrote it.
    """
    layout = stored_inputs(directory).get("layout", 1)
    if layout != LAYOUT:
        age = "an older" if layout < LAYOUT else "a newer"
        raise UserError(
            f"{directory} holds a run of {age} version of pmc_jax (layout {layout}; this version "
            f"reads and writes layout {LAYOUT}); {ELSEWHERE} or give overwrite=true"
        )


def stored_inputs(directory: Path) -> dict[str, Any]:
    """What the run in `directory` began with: `layout`, and hashes by name.

    Raises:
        UserError: if the file is missing or damaged, with what to do.
    """
    path = directory / INPUTS
    try:
        found = read_object(path, expected="what the run began with")
        if not isinstance(found.get("layout", 1), int):
            raise UserError(f"{path}: layout is {found['layout']!r}; expected a number")
    except UserError as error:
        raise UserError(f"{error}; restore the file, {ELSEWHERE}, or give overwrite=true") from None
    return found


def stored_settings(directory: Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """The settings (dotted keys) of the run in `directory`; empty if there is no run.

    A run has settings of the same kind as `like`: one command never continues or overwrites
    what another left.

    Raises:
        UserError: if the directory holds a run, whose settings are damaged.
    """
    path = directory / CONFIG
    reason = "there is no such file"
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        stored, reason = None, " ".join(str(error).split())[:200]
    found = flat(stored) if isinstance(stored, dict) else {}
    kinds = [kind for kind in KINDS if kind & found.keys()]
    if not kinds and (directory / "checkpoints").is_dir() and (directory / INPUTS).is_file():
        if path.is_file() and stored is not None:
            reason = "these are not the settings of a run"
        raise UserError(
            f"{path}: cannot be read ({reason}), but {directory} holds a run; restore the file, "
            f"delete the directory, or {ELSEWHERE}"
        )
    return found if any(kind & set(like) for kind in kinds) else {}


@contextmanager
def running(
    directory: Path, settings: Mapping[str, Any], inputs: Mapping[str, str], *, overwrite: bool
) -> Iterator[None]:
    """Begin a run, or continue the one that is there; of several processes, the first does.

    No other run can use the directory until the end of the block. `inputs` are hashes by name of
    what the run reads: a run continues only with the same ones. What a killed run has left half
    written is removed.

    Raises:
        UserError: as `holds_run`, if an input has changed, if another run uses the directory, or
            if process 0 has read another input or has another directory.
    """
    first = from_first(lambda: dict(inputs))
    if unlike := [name for name in inputs if first[name] != inputs[name]]:
        raise UserError(f"this process reads other {' and '.join(unlike)} than process 0")
    from_first(lambda: holds_run(directory, settings, overwrite=overwrite))
    with locked(directory) if is_first() else nullcontext():
        from_first(lambda: _begin(directory, settings, inputs, overwrite=overwrite))
        wait_for(directory)
        yield


def wait_for(directory: Path) -> None:
    """Wait until this process sees the run that process 0 has begun.

    Raises:
        UserError: if it does not within `SHARED_SECONDS`.
    """
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
    goes_on = holds_run(directory, settings, overwrite=overwrite)
    for path in list(directory.iterdir()) if not goes_on else leftovers(directory):
        if path.name != LOCK:
            remove(path)
    if not goes_on:
        write_json(directory / INPUTS, {"layout": LAYOUT, **inputs})
        # Last, since this file is what makes the directory a run.
        text = yaml.safe_dump(nested(settings), sort_keys=False, allow_unicode=True)
        write_text(directory / CONFIG, text)
        return
    stored = stored_inputs(directory)
    changed = [name for name in inputs if stored.get(name) != inputs[name]]
    if changed:
        raise UserError(
            f"{directory} holds a run that began with other {' and '.join(changed)}; "
            f"{ELSEWHERE} or give overwrite=true"
        )


def leftovers(directory: Path) -> list[Path]:
    """What a run that was killed has left half written."""
    half = [*directory.glob(f"*{PARTIAL}"), *directory.glob(f"evaluation/*{PARTIAL}")]
    half += directory.glob(f"models/*/*{PARTIAL}")
    return [*half, *directory.glob("checkpoints/*.orbax-checkpoint-tmp")]


def remove(path: Path) -> None:
    """Remove a file, or a directory with what it holds."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
