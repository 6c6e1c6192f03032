"""Paths in a run directory, its lock and its manifest. Knows nothing of torch.

The run directory is the only contract between stages.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from finetale.errors import RunError
from finetale.rundir.jsonfiles import read_record, write_record
from finetale.rundir.seals import MANIFEST_NAME
from finetale.schema import SCHEMA_VERSION, ComparisonFile, DataFile, Event, RunManifest, parse_events

LOCK_NAME = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
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
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def comparison(self) -> Path:
        return self.root / "comparison.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def tokens(self) -> Path:
        return self.root / "tokens"

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer"

    @property
    def engines(self) -> Path:
        return self.root / "engines"

    @property
    def exports(self) -> Path:
        return self.root / "exports"

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint after `step` optimizer steps."""
        return self.checkpoints / f"step-{step:08d}"

    def holds_anything(self) -> bool:
        """Return whether this path has content besides a lock and the leftovers of a run killed before it started."""
        if not self.root.is_dir():
            return self.root.exists()
        names = {item.name for item in self.root.iterdir()}
        first = {path.name for path in (self.config, self.data, self.tokens, self.tokenizer)} | {"stdin", "in-memory"}
        leftovers = {name for name in names if name in first or name.endswith(".tmp")}
        return bool(names - {LOCK_NAME} - (leftovers if LOCK_NAME in names else set()))

    def refuse_links(self) -> None:
        """Check that nothing that a run writes to is a symbolic link.

        Raises:
            RunError: names the first link.
        """
        for path in (
            self.checkpoints,
            self.model,
            self.adapter,
            self.tokens,
            self.tokenizer,
            self.tensorboard,
            self.root / LOCK_NAME,
        ):
            if path.is_symlink():
                raise RunError(
                    f"{path} is a symbolic link. A run writes only to its own directory.",
                    "Replace the link by the folder or file itself.",
                )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run directory against other processes. The system releases the lock when its holder ends in any way.

        Raises:
            RunError: another process holds the lock.
        """
        self.refuse_links()
        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / LOCK_NAME)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"{self.root} is in use: another process is working on this run{self._holder()}.",
                "Wait until it ends, or stop it.",
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
            process = self.read_manifest().process
        except RunError:
            return ""
        return f" (process {process.pid} on {process.host})" if process is not None else ""

    def is_run(self) -> bool:
        """Return whether there is a manifest."""
        return self.manifest.is_file()

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """Return the run directory at `path`.

        Raises:
            RunError: there is no run.
        """
        run = cls(Path(path))
        if not run.is_run():
            what = "does not exist" if not run.root.exists() else "is not a run directory (it has no run.json)"
            raise RunError(f"{path} {what}.", "`finetale runs` lists the runs below the current folder.")
        return run

    def read_manifest(self) -> RunManifest:
        """Return the content of run.json.

        Raises:
            RunError: it is missing or corrupted, or one of its values is of another type than Finetale writes.
        """
        return read_record(self.manifest, RunManifest)

    def update_manifest(self, **values: Any) -> None:
        """Set fields of run.json; create the file if there is none.

        Args:
            values: new values by the name of the field in `RunManifest`.

        Raises:
            TypeError: a name is not one of its fields.
            ValidationError: a value has another type.
        """
        unknown = values.keys() - RunManifest.model_fields.keys()
        if unknown:
            raise TypeError(f"run.json has no field {', '.join(sorted(unknown))}")
        manifest = self.read_manifest() if self.is_run() else RunManifest()
        newest = max(SCHEMA_VERSION, manifest.schema_version)
        whole = manifest.to_dict() | {"schema_version": newest} | values
        write_record(self.manifest, RunManifest.model_validate(whole))

    def read_data(self) -> DataFile:
        """Return the content of data.json.

        Raises:
            RunError: it is missing or corrupted.
        """
        return read_record(self.data, DataFile)

    def read_comparison(self) -> ComparisonFile:
        """Return the content of comparison.json.

        Raises:
            RunError: it is missing or corrupted.
        """
        return read_record(self.comparison, ComparisonFile)

    def read_events(self) -> list[Event]:
        """Return the events in `metrics.jsonl`; none when there is no such file."""
        if not self.metrics.is_file():
            return []
        return parse_events(self.metrics.read_text(encoding="utf-8", errors="replace"))

    def saved_checkpoints(self) -> Iterator[tuple[int, Path]]:
        """Yield the sealed checkpoints as (step, folder), newest first. Their checksums are not verified here."""
        found = []
        if self.checkpoints.is_dir():
            for folder in self.checkpoints.iterdir():
                match = CHECKPOINT_PATTERN.match(folder.name)
                if match and (folder / MANIFEST_NAME).is_file() and not folder.is_symlink():
                    found.append((int(match.group(1)), folder))
        yield from sorted(found, reverse=True)
