"""Files and folders that are written whole or not at all.

Whatever is written here is written to a temporary name beside its place, flushed to disk and renamed, so that a reader
never sees half of it. Replacing a folder takes two renames; what a crash leaves between them `recover` puts right.
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
    """Write a folder atomically: fill a temporary one, fsync every file, finish, rename.

    Args:
        path: where the folder shall stand; a folder already there is replaced.
        fill: writes the files into the folder it is given.
        finish: called with the folder and its files once they are on disk.
        keep: leave a folder that is already there, for caches, in which another process may have written the same meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    temporary.mkdir()
    # As the umask has it, which the folder shows: safetensors keeps its files from everybody else.
    mode = temporary.stat().st_mode & 0o666
    try:
        fill(temporary)
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        for file in files:
            _sync_file(file)
            with contextlib.suppress(OSError):  # some volumes know no modes
                file.chmod(mode)
        if finish is not None:
            finish(temporary, files)
        sync_folder(temporary)
        _swap(temporary, path, keep)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(path.parent)


def recover(parent: Path, *, untouched: float = 0.0) -> None:
    """Put back folders that a crash caught between their two renames, and delete what dead writers left in `parent`.

    Args:
        untouched: seconds for which nothing was written to it, where others may be writing in `parent` just now.
    """

    def dead(leftover: Path) -> bool:
        return not untouched or time.time() - _last_written(leftover) > untouched

    for leftover in filter(dead, sorted(parent.glob(".*.*.old"))):
        place = parent / leftover.name[1:].rsplit(".", 2)[0]
        if not place.exists():
            leftover.replace(place)
    for leftover in filter(dead, [*parent.glob(".*.*.old"), *parent.glob(".*.*.tmp")]):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _last_written(path: Path) -> float:
    """When anything of a file or folder was written last, in seconds; now, if it is gone meanwhile."""
    try:
        return max(part.stat().st_mtime for part in (path, *path.rglob("*")))
    except OSError:
        return time.time()


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_file(path: Path) -> None:
    with path.open("r+b") as file:  # Windows flushes only what is open for writing
        os.fsync(file.fileno())


def temporary_name(path: Path, ending: str = "tmp") -> Path:
    """Return a hidden name beside `path` that `recover` knows.

    The random part matters: two containers that share a volume can have processes with the same PID.
    """
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.{ending}")


def _swap(new: Path, place: Path, keep: bool = False) -> None:
    """Put `new` at `place`. If a folder is there it stays, or is moved aside first and deleted afterwards."""
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
