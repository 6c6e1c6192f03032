"""The cache of this machine: its entries, their last use and its size limit. Knows nothing of what entries contain.

An entry is a folder or a file: tokenised text, a trained tokenizer, text from standard input or from memory, or a model
that was converted for serving. Folders are sealed with the SHA-256 of each file, which is verified on opening.
When the cache exceeds its limit, the least recently used entries are evicted. A process that uses an entry holds a
shared lock on it. The operating system releases the lock when the process ends. Entries in use are never evicted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetale.errors import ConfigError
from finetale.formatting import parsed_size
from finetale.rundir import is_sealed, recover, sha256_of, temporary_name, verify_folder

LIMIT_VARIABLE = "FINETALE_CACHE_LIMIT"
DEFAULT_LIMIT = 10 * 2**30
"""Default size limit in bytes. Beyond it, the least recently used entries are evicted."""
PATTERNS = {
    "tokens": re.compile(r"(stream-)?[0-9a-f]{32}"),
    "tokenizers": re.compile(r"[0-9a-f]{32}"),
    "stdin": re.compile(r"([0-9a-f]{64})\.(?:txt|jsonl|json)"),
    "in-memory": re.compile(r"(?:texts|records|table)-([0-9a-f]{32})\.(?:jsonl|parquet)"),
    "engines": re.compile(r"openvino-[0-9a-f]{16}"),
}
"""Names of the entries of each kind. Nothing else in the cache's folder is ever deleted."""
INPUTS = ("stdin", "in-memory")
"""Kinds whose entries are files of text. Their names hold the SHA-256 of their content, or its beginning."""
_UNLIMITED = ("none", "off", "unlimited")
_GRACE_SECONDS = 60.0
"""Entries used within this time are not evicted: a process may be about to lock them."""
_ABANDONED_SECONDS = 3600.0
"""Temporary files without a write for this long belong to a process that was killed."""
_WITHOUT_LOCKS_SECONDS = 24 * 3600.0
"""On a file system without locks, an entry that was used within this time counts as in use."""

_verified: dict[Path, tuple[tuple[str, int, int, int], ...]] = {}
"""Sealed folders that this process has verified, with name, size, time and inode of each file then."""


@dataclass(frozen=True)
class Entry:
    """One entry of the cache.

    Attributes:
        kind: a key of PATTERNS.
        path: its folder or file.
        bytes: size of its files.
        freed: bytes that deleting it frees. Files that a run shares by hard links are not counted.
        last_used: seconds since the epoch.
        in_use: whether a live process holds a lock on it.
    """

    kind: str
    path: Path
    bytes: int
    freed: int
    last_used: float
    in_use: bool


class Hold:
    """A shared lock on an entry. It ends with `release`, with the object, or with the process."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._release = weakref.finalize(self, os.close, descriptor) if descriptor is not None else None

    def release(self) -> None:
        """Release the lock."""
        if self._release is not None:
            self._release()
        self._descriptor = None

    def is_of(self, path: Path) -> bool:
        """Return whether the entry at a path is still the one that was locked."""
        return self._descriptor is None or _is_at(path, self._descriptor)


def cache_root(setting: Path | None) -> Path:
    """Return the folder of the cache: the setting, else FINETALE_CACHE, else ~/.cache/finetale."""
    if setting is not None:
        return setting.expanduser()
    return Path(os.environ.get("FINETALE_CACHE") or Path.home() / ".cache" / "finetale")


def size_limit() -> int | None:
    """Return the limit of the cache in bytes from FINETALE_CACHE_LIMIT. None means no limit.

    Raises:
        ConfigError: the variable does not hold a size.
    """
    value = os.environ.get(LIMIT_VARIABLE, "").strip().lower()
    if not value:
        return DEFAULT_LIMIT
    if value in _UNLIMITED:
        return None
    size = parsed_size(value)
    if size is None:
        raise ConfigError(
            f"{LIMIT_VARIABLE} is {os.environ[LIMIT_VARIABLE]!r}, which is not a size.",
            "Set it to a size such as 20GiB or 500MB, or to none for no limit.",
        )
    return size


def hold(path: Path) -> Hold | None:
    """Lock an entry against eviction and record its use. Return None if it does not exist."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except PermissionError:  # Windows can't open folders, and does not delete a folder with open files
            return Hold(None) if path.exists() else None
        except OSError:
            return None
        is_held = False
        try:
            # An entry that is being deleted is locked by its deleter, or is no longer at this path.
            is_held = _lock(descriptor, shared=True) is not False and _is_at(path, descriptor)
        finally:
            if not is_held:
                os.close(descriptor)
        if is_held:
            with contextlib.suppress(OSError):  # the cache may be read-only
                os.utime(path)
            return Hold(descriptor)
        if not path.exists():
            return None
        time.sleep(0.01)


def problems(folder: Path) -> list[str]:
    """Return the problems of a sealed folder. A process reads each folder once, unless its files change."""
    if not is_sealed(folder):
        return ["it has no manifest.json with the SHA-256 of its files"]
    facts = _facts(folder)
    if _verified.get(folder) == facts:
        return []
    found = verify_folder(folder)
    if not found:
        _verified[folder] = facts
    return found


def is_damaged_input(path: Path) -> bool:
    """Return whether a path is a file of text in a cache whose SHA-256 differs from the one in its name."""
    pattern = PATTERNS[path.parent.name] if path.parent.name in INPUTS else None
    match = pattern.fullmatch(path.name) if pattern is not None else None
    return match is not None and path.is_file() and not sha256_of(path).startswith(match[1])


def is_input(path: Path) -> bool:
    """Return whether a path is a file of text in a cache."""
    return path.parent.name in INPUTS and PATTERNS[path.parent.name].fullmatch(path.name) is not None


def remove(path: Path) -> None:
    """Delete an entry: rename it in one step, then delete its files."""
    aside = temporary_name(path)
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if aside.is_dir():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.unlink(missing_ok=True)


def entries(root: Path) -> list[Entry]:
    """Return all entries, least recently used first."""
    found = []
    for kind, path in _paths(root):
        try:
            files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
            facts = [file.stat(follow_symlinks=False) for file in files]
            used = path.stat().st_mtime
        except OSError:  # it was deleted meanwhile
            continue
        size = sum(each.st_size for each in facts)
        freed = sum(each.st_size for each in facts if each.st_nlink <= 1)
        found.append(Entry(kind, path, size, freed, used, _is_in_use(path, used)))
    return sorted(found, key=lambda entry: entry.last_used)


def evict(root: Path, limit: int | None) -> list[Entry]:
    """Evict the least recently used entries until the cache fits its limit. Delete temporary files of dead processes.

    Keep entries in use, and those used within the last minute.

    Returns:
        The evicted entries.
    """
    _clean(root, _ABANDONED_SECONDS)
    if limit is None:
        return []
    found = entries(root)
    size = sum(entry.bytes for entry in found)
    gone = []
    for entry in found:
        if size <= limit:
            break
        if time.time() - entry.last_used > _GRACE_SECONDS and _remove_unused(entry):
            size -= entry.bytes
            gone.append(entry)
    return gone


def empty(root: Path) -> tuple[list[Entry], list[Entry]]:
    """Delete all entries that no live process uses.

    Returns:
        (deleted entries, entries that are in use).
    """
    _clean(root, _ABANDONED_SECONDS)
    found = entries(root)
    gone = [entry for entry in found if _remove_unused(entry)]
    return gone, [entry for entry in found if entry not in gone and entry.path.exists()]


def _paths(root: Path) -> Iterator[tuple[str, Path]]:
    for kind, pattern in PATTERNS.items():
        folder = root / kind
        if not folder.is_dir() or folder.is_symlink():
            continue
        for path in sorted(folder.iterdir()):
            if pattern.fullmatch(path.name) and not path.is_symlink() and path.is_file() == (kind in INPUTS):
                yield kind, path


def _clean(root: Path, untouched: float) -> None:
    for kind in PATTERNS:
        if (root / kind).is_dir() and not (root / kind).is_symlink():
            with contextlib.suppress(OSError):
                recover(root / kind, untouched=untouched)


def _remove_unused(entry: Entry) -> bool:
    """Delete an entry unless a live process holds it. Return whether it is gone."""
    with _locked(entry.path, entry.last_used) as is_free:
        if is_free:
            with contextlib.suppress(OSError):  # no permission, or open on Windows
                remove(entry.path)
    return not entry.path.exists()


def _is_in_use(path: Path, last_used: float) -> bool:
    with _locked(path, last_used) as is_free:
        return not is_free


@contextlib.contextmanager
def _locked(path: Path, last_used: float) -> Iterator[bool]:
    """Lock an entry for its deletion. Yield whether no process holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # it is gone, not readable, or a folder on Windows
        yield True
        return
    try:
        is_locked = _lock(descriptor, shared=False)
        yield time.time() - last_used > _WITHOUT_LOCKS_SECONDS if is_locked is None else is_locked
    finally:
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _lock(descriptor: int, *, shared: bool) -> bool | None:
    """Lock an open file or folder without waiting. Return whether it succeeded. None if locks are not supported."""
    try:
        import fcntl
    except ImportError:  # Windows: files that are open there can't be deleted
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EACCES) else None
    return True


def _facts(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    found = []
    for file in sorted(folder.rglob("*")):
        facts = file.stat(follow_symlinks=False)
        if stat.S_ISREG(facts.st_mode):
            found.append((file.relative_to(folder).as_posix(), facts.st_size, facts.st_mtime_ns, facts.st_ino))
    return tuple(found)
