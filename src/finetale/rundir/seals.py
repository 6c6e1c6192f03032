"""Write and verify sealed folders, whose manifest.json contains the SHA-256 and size of each file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finetale.errors import RunError
from finetale.rundir.atomic import write_bytes, write_folder
from finetale.rundir.jsonfiles import json_bytes, read_json

SEAL_VERSION = 1
"""Version of `manifest.json`."""
MANIFEST_NAME = "manifest.json"


def write_sealed_folder(path: Path, fill: Callable[[Path], None], *, keep: bool = False) -> None:
    """Write a folder atomically, as `write_folder` does, and seal it with a manifest."""

    def seal(folder: Path, files: list[Path]) -> None:
        _seal(folder, {file.relative_to(folder).as_posix(): _entry(file) for file in files})

    write_folder(path, fill, finish=seal, keep=keep)


def add_file(folder: Path, name: str, data: bytes) -> None:
    """Add a file to a sealed folder, or replace it. The seal is valid at every moment."""
    entries = _entries(folder)
    if entries.pop(name, None) is not None:
        _seal(folder, entries)
    write_bytes(folder / name, data)
    _seal(folder, entries | {name: _entry(folder / name)})


def sealed_sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a sealed folder, read from its manifest.

    Raises:
        RunError: the manifest is missing or corrupted.
    """
    return {name: str(entry["sha256"]) for name, entry in _entries(folder).items()}


def is_sealed(path: Path) -> bool:
    """Return whether a folder has a manifest of `write_sealed_folder`, valid or corrupted."""
    try:
        return b'"sha256"' in (path / MANIFEST_NAME).read_bytes()
    except OSError:
        return False


def verify_folder(path: Path, *, links: bool = False) -> list[str]:
    """Return the problems of a sealed folder, none if it is intact. Files that the manifest lacks are ignored.

    Args:
        links: whether files may be symbolic links, as in the Hub's cache.
    """
    try:
        entries = _entries(path)
    except RunError as error:
        return [f"{MANIFEST_NAME}: {error.message}"]
    problems = []
    for name, entry in entries.items():
        file = path / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            problems.append(f"{name}: is outside the folder")
        elif not file.is_file() or (file.is_symlink() and not links):
            problems.append(f"{name}: missing")
        elif _entry(file) != entry:
            problems.append(f"{name}: content differs from its SHA-256")
    return problems


def _entries(folder: Path) -> dict[str, Any]:
    """Return the entries of a manifest by file name.

    Raises:
        RunError: the manifest is missing, or differs by a single byte from what `_seal` writes.
    """
    path = folder / MANIFEST_NAME
    manifest = read_json(path)
    entries = manifest.get("files")
    if not isinstance(entries, dict) or path.read_bytes() != _sealed(entries):
        raise RunError(f"{path} is corrupted.", "Restore the file or start the run again.")
    return entries


def _entry(file: Path) -> dict[str, Any]:
    return {"sha256": sha256_of(file), "bytes": file.stat().st_size}


def _seal(folder: Path, entries: Mapping[str, Any]) -> None:
    write_bytes(folder / MANIFEST_NAME, _sealed(entries))


def _sealed(entries: Mapping[str, Any]) -> bytes:
    return json_bytes({"schema_version": SEAL_VERSION, "files": dict(entries)})


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
