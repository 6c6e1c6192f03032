"""Names of the files in a run directory, atomic writes, checksums, the manifest. Knows nothing of torch.

The run directory is the only contract between stages. Whatever is written here is written to a temporary name beside
its place, flushed to disk and renamed, so that a reader never sees half of it. Replacing a folder takes two renames; what a crash
leaves between them `recover` puts right.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from finetale.errors import RunError

SCHEMA_VERSION = 1
LOCK_NAME, MANIFEST_NAME = ".lock", "manifest.json"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_MOST_JSON_BYTES = 256 * 2**20
CHECKPOINT_PATTERN = re.compile(r"^step-(\d{8})$")


_TEXT = dict.fromkeys(("status", "name", "created", "finished", "error", "data_sha256", "command"), str)
_WHOLE = dict.fromkeys(("steps", "total_steps", "best_step", "targets", "seed", "schema_version"), int)
_PARTS = dict.fromkeys(("base", "process", "config", "speed", "versions", "hardware"), dict)
_NUMBERS = dict.fromkeys(("seconds", "train_seconds", "tokens_per_second", "best_loss"), (int, float))
_KINDS: dict[str, Any] = {**_TEXT, **_WHOLE, **_PARTS, **_NUMBERS, "changes": list}
_BASE: dict[str, Any] = {"name": str, "kind": str, "sha256": str, "revision": str, "parameters": int}
_PROCESS: dict[str, Any] = {"pid": int, "host": str}
"""Kinds of what stands in run.json, where it stands there; a run's manifest may come from anywhere."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths inside one run directory."""

    root: Path

    @property
    def manifest(self) -> Path:
        return self.root / "run.json"

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def data(self) -> Path:
        return self.root / "data.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def comparison(self) -> Path:
        return self.root / "comparison.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def engines(self) -> Path:
        return self.root / "engines"

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint after `step` optimizer steps."""
        return self.checkpoints / f"step-{step:08d}"

    def holds_anything(self) -> bool:
        """Whether there is something at this path besides a lock, and what a run that was killed before it began left beside it."""
        if not self.root.is_dir():
            return self.root.exists()
        names = {item.name for item in self.root.iterdir()}
        begun = {name for name in names if name in (self.config.name, self.data.name) or name.endswith(".tmp")}
        return bool(names - {LOCK_NAME} - (begun if LOCK_NAME in names else set()))

    def refuse_links(self) -> None:
        """Refuse a run directory in which what would be written to leads somewhere else.

        Raises:
            RunError: names the link.
        """
        for path in (self.checkpoints, self.model, self.tensorboard, self.root / LOCK_NAME):
            if path.is_symlink():
                raise RunError(
                    f"{path} is a link, and a run keeps its files in its own directory.", "Put the folder itself there."
                )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing here. The system lets the lock go when its holder dies, however it dies.

        Raises:
            RunError: another process is at work here.
        """
        self.refuse_links()
        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / LOCK_NAME)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"{self.root} is in use: another process is working on this run{self._holder()}.",
                "Wait until it is done, or stop it.",
            ) from None
        except (NotImplementedError, OSError) as error:  # a file system without locks
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            yield
            return
        try:
            yield
        finally:
            lock.release()

    def _holder(self) -> str:
        try:
            process = self.read_manifest().get("process") or {}
        except RunError:
            return ""
        return f" (process {process['pid']} on {process['host']})" if {"pid", "host"} <= set(process) else ""

    def is_run(self) -> bool:
        """Whether a manifest stands here."""
        return self.manifest.is_file()

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """An existing run.

        Raises:
            RunError: there is no run here.
        """
        run = cls(Path(path))
        if not run.is_run():
            what = "does not exist" if not run.root.exists() else "is no run directory (it has no run.json)"
            raise RunError(f"{path} {what}.", "`finetale runs` lists the runs below the current folder.")
        return run

    def read_manifest(self) -> dict[str, Any]:
        """Content of run.json.

        Raises:
            RunError: it is missing or damaged, or one of its entries is of another kind than Finetale writes.
        """
        manifest = read_json(self.manifest)
        for part, kinds in (
            (manifest, _KINDS),
            (manifest.get("base") or {}, _BASE),
            (manifest.get("process") or {}, _PROCESS),
        ):
            for key, kind in kinds.items() if isinstance(part, dict) else ():
                value = part.get(key)
                if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                    raise RunError(
                        f"{self.manifest} is damaged: {key} is {str(value)[:40]!r}.",
                        "Restore the file or start the run again.",
                    )
        return manifest

    def update_manifest(self, **values: Any) -> None:
        """Set keys of run.json."""
        manifest = self.read_manifest() if self.is_run() else {"schema_version": SCHEMA_VERSION}
        write_json(self.manifest, manifest | values)

    def saved_checkpoints(self) -> Iterator[tuple[int, Path]]:
        """Complete-looking checkpoints as (step, folder), newest first. Their checksums are not yet verified."""
        found = []
        if self.checkpoints.is_dir():
            for folder in self.checkpoints.iterdir():
                match = CHECKPOINT_PATTERN.match(folder.name)
                if match and (folder / MANIFEST_NAME).is_file() and not folder.is_symlink():
                    found.append((int(match.group(1)), folder))
        yield from sorted(found, reverse=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        RunError: the file is missing, damaged or no object.
    """
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise ValueError(f"it has more than {_MOST_JSON_BYTES:,} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} is missing.", "The run may have been stopped before it was written.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} can't be read: {error}.", "Restore the file or start the run again.") from None
    if not isinstance(value, dict):
        raise RunError(f"{path} does not hold a JSON object.", "Restore the file or start the run again.")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. NaN and infinities are refused: they are not JSON."""
    write_bytes(path, _json_bytes(value))


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode("utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: temporary name, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_folder(path: Path, fill: Callable[[Path], None], *, manifest: bool = False, keep: bool = False) -> None:
    """Write a folder atomically: fill a temporary one, fsync every file, write a manifest last, rename.

    Args:
        path: where the folder shall stand; a folder already there is replaced.
        fill: writes the files into the folder it is given.
        manifest: seal the folder, after the files are on disk, with a manifest.json of their SHA-256 and size.
        keep: leave a folder that is already there, for caches, in which another process may have written the same meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "tmp")
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
        if manifest:
            _seal(temporary, {file.relative_to(temporary).as_posix(): _entry(file) for file in files})
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


def add_file(folder: Path, name: str, data: bytes) -> None:
    """Write a file into a sealed folder, in place of one of that name; the seal holds at every moment."""
    entries = _entries(folder)
    if entries.pop(name, None) is not None:
        _seal(folder, entries)
    write_bytes(folder / name, data)
    _seal(folder, entries | {name: _entry(folder / name)})


def sealed_sums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file, as a sealed folder's manifest has them.

    Raises:
        RunError: the manifest is missing or damaged.
    """
    return {name: str(entry["sha256"]) for name, entry in _entries(folder).items()}


def is_sealed(path: Path) -> bool:
    """Whether a folder has a manifest of `write_folder`, whole or damaged."""
    try:
        return b'"sha256"' in (path / MANIFEST_NAME).read_bytes()
    except OSError:
        return False


def verify_folder(path: Path) -> list[str]:
    """What is wrong with a sealed folder; empty when all is well. Files that were added to it do not matter."""
    try:
        entries = _entries(path)
    except RunError as error:
        return [f"{MANIFEST_NAME}: {error.message}"]
    problems = []
    for name, entry in entries.items():
        file = path / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            problems.append(f"{name}: is outside the folder")
        elif not file.is_file() or file.is_symlink():
            problems.append(f"{name}: missing")
        elif _entry(file) != entry:
            problems.append(f"{name}: content differs from its SHA-256")
    return problems


def _entries(folder: Path) -> dict[str, Any]:
    """What a manifest says of each file.

    Raises:
        RunError: it is missing, or not to the letter what `_seal` writes.
    """
    path = folder / MANIFEST_NAME
    manifest = read_json(path)
    entries = manifest.get("files")
    if not isinstance(entries, dict) or path.read_bytes() != _sealed(entries):
        raise RunError(f"{path} is damaged.", "Restore the file or start the run again.")
    return entries


def _entry(file: Path) -> dict[str, Any]:
    return {"sha256": sha256_of(file), "bytes": file.stat().st_size}


def _seal(folder: Path, entries: Mapping[str, Any]) -> None:
    write_bytes(folder / MANIFEST_NAME, _sealed(entries))


def _sealed(entries: Mapping[str, Any]) -> bytes:
    return _json_bytes({"schema_version": SCHEMA_VERSION, "files": dict(entries)})


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def _beside(path: Path, ending: str) -> Path:
    """A hidden name that `recover` knows. Processes of two containers that share a volume may have one number."""
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
    aside = _beside(place, "old")
    place.replace(aside)
    new.replace(place)
    shutil.rmtree(aside, ignore_errors=True)
