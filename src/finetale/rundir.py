"""Names of the files in a run directory, atomic writes, checksums, the manifest. Knows nothing of torch.

The run directory is the only contract between stages. Whatever is written here is written to a temporary name beside
its place, flushed to disk and renamed, so that a reader never sees half of it. Replacing a folder takes two renames; what a crash
leaves between them `recover` puts right.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetale.errors import RunError

SCHEMA_VERSION = 1
CHECKPOINT_PATTERN = re.compile(r"^step-(\d{8})$")


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

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint after `step` optimizer steps."""
        return self.checkpoints / f"step-{step:08d}"

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
        """Content of run.json."""
        return read_json(self.manifest)

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
                if match and (folder / "manifest.json").is_file():
                    found.append((int(match.group(1)), folder))
        yield from sorted(found, reverse=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        RunError: the file is missing, damaged or no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} is missing.", "The run may have been stopped before it was written.") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} can't be read: {error}.", "Restore the file or start the run again.") from None
    if not isinstance(value, dict):
        raise RunError(f"{path} does not hold a JSON object.", "Restore the file or start the run again.")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. NaN and infinities are refused: they are not JSON."""
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: temporary name, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_folder(path: Path, fill: Callable[[Path], None], *, manifest: bool = False) -> None:
    """Write a folder atomically: fill a temporary one, fsync every file, write a manifest last, rename.

    Args:
        path: where the folder shall stand; a folder already there is replaced.
        fill: writes the files into the folder it is given.
        manifest: write manifest.json with the SHA-256 and size of each file, after the files are on disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        fill(temporary)
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        for file in files:
            _sync_file(file)
        if manifest:
            entries = {
                file.relative_to(temporary).as_posix(): {"sha256": sha256_of(file), "bytes": file.stat().st_size}
                for file in files
            }
            write_json(temporary / "manifest.json", {"schema_version": SCHEMA_VERSION, "files": entries})
        sync_folder(temporary)
        _swap(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(path.parent)


def recover(parent: Path) -> None:
    """Put back folders that a crash caught between their two renames, and delete what dead writers left in `parent`."""
    for leftover in sorted(parent.glob(".*.*.old")):
        place = parent / leftover.name[1:].rsplit(".", 2)[0]
        if not place.exists():
            leftover.replace(place)
    for leftover in [*parent.glob(".*.*.old"), *parent.glob(".*.*.tmp")]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def verify_folder(path: Path) -> list[str]:
    """What is wrong with a folder that has a manifest; empty when all is well."""
    try:
        entries = read_json(path / "manifest.json")["files"]
    except (RunError, KeyError) as error:
        return [f"manifest.json: {error}"]
    problems = []
    for name, entry in entries.items():
        file = path / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            problems.append(f"{name}: is outside the folder")
        elif not file.is_file():
            problems.append(f"{name}: missing")
        elif file.stat().st_size != entry["bytes"] or sha256_of(file) != entry["sha256"]:
            problems.append(f"{name}: content differs from its SHA-256")
    return problems


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
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _swap(new: Path, place: Path) -> None:
    """Put `new` at `place`. If a folder is there it is moved aside first and deleted afterwards."""
    if not place.exists():
        new.replace(place)
        return
    aside = place.with_name(f".{place.name}.{os.getpid()}.old")
    shutil.rmtree(aside, ignore_errors=True)
    place.replace(aside)
    new.replace(place)
    shutil.rmtree(aside, ignore_errors=True)
