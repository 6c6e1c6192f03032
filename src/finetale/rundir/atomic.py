"""Write files and folders atomically.

Data goes to a temporary name in the same folder, is flushed to disk and renamed. A reader sees the old content or the
new content, never a part. Replacing a folder takes two renames; `recover` repairs what a crash between them leaves.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: temporary name, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_folder(
    path: Path,
    fill: Callable[[Path], None],
    *,
    finish: Callable[[Path, list[Path]], None] | None = None,
    keep: bool = False,
) -> None:
    """Write a folder atomically: fill a temporary folder, fsync every file, call `finish`, rename.

    Args:
        path: path of the folder. An existing folder is replaced.
        fill: callback; writes the files into the folder that it receives.
        finish: callback; receives the folder and its files after the files are on disk.
        keep: keep an existing folder. For caches, where another process may have written the same content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    temporary.mkdir()
    # The umask decides the mode, and the new folder shows it. safetensors makes its files private.
    mode = temporary.stat().st_mode & 0o666
    try:
        fill(temporary)
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        for file in files:
            _sync_file(file)
            with contextlib.suppress(OSError):  # some volumes have no modes
                file.chmod(mode)
        if finish is not None:
            finish(temporary, files)
        sync_folder(temporary)
        _swap(temporary, path, keep)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(path.parent)


def recover(parent: Path, *, untouched: float = 0.0) -> None:
    """Finish interrupted replacements of folders in `parent`, and delete leftover temporary files.

    Args:
        untouched: skip what was written to within this many seconds. 0 skips nothing; use it only when no other
            process can be writing in `parent`.
    """

    def is_abandoned(leftover: Path) -> bool:
        return not untouched or time.time() - _last_written(leftover) > untouched

    for leftover in filter(is_abandoned, sorted(parent.glob(".*.*.old"))):
        place = parent / leftover.name[1:].rsplit(".", 2)[0]
        if not place.exists():
            leftover.replace(place)
    for leftover in filter(is_abandoned, [*parent.glob(".*.*.old"), *parent.glob(".*.*.tmp")]):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _last_written(path: Path) -> float:
    """Return the latest modification time in a file or folder, in seconds; now, if it no longer exists."""
    try:
        return max(part.stat().st_mtime for part in (path, *path.rglob("*")))
    except OSError:
        return time.time()


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk, where the system supports it."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_file(path: Path) -> None:
    with path.open("r+b") as file:  # Windows flushes only files that are open for writing
        os.fsync(file.fileno())


def temporary_name(path: Path, ending: str = "tmp") -> Path:
    """Return a hidden name beside `path` that `recover` knows.

    The random part matters: two containers that share a volume can have processes with the same PID.
    """
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.{ending}")


def _swap(new: Path, place: Path, keep: bool = False) -> None:
    """Rename `new` to `place`. An existing folder is kept, or moved aside first and deleted afterwards."""
    if keep:
        try:
            new.replace(place)
        except OSError:
            if not place.is_dir():
                raise
        return
    if not place.exists():
        new.replace(place)
        return
    aside = temporary_name(place, "old")
    place.replace(aside)
    new.replace(place)
    shutil.rmtree(aside, ignore_errors=True)
