"""Hashes of files and of their content, so that damage is noticed."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pmc_jax.data.files import read_object, to_json, write_json
from pmc_jax.errors import UserError

SEAL = "sha256"
"""The key of the hash, that of all other keys."""

logger = logging.getLogger(__name__)


def seal(content: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object."""
    return hashlib.sha256(to_json(content, ascii=True, sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of every file of a directory by its path there."""
    return {
        path.relative_to(directory).as_posix(): file_hash(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with its hash."""
    write_json(path, {**content, SEAL: seal(content)})


def read_sealed(path: Path, remedy: str) -> dict[str, Any] | None:
    """The JSON object that `write_sealed` wrote; None if there is no file.

    None also if the file is damaged; a warning then names it, and the `remedy`.
    """
    try:
        found = read_object(path, missing_ok=True)
        if found and found.pop(SEAL, None) != seal(found):
            raise UserError(f"{path}: its content is not what was written")
    except UserError as error:
        logger.warning("%s; %s", error, remedy)
        return None
    return found or None
