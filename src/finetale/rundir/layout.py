"""Names of the files in a run directory, its lock and its manifest. Knows nothing of torch.

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
from finetale.rundir.jsonfiles import SCHEMA_VERSION, read_json, write_json
from finetale.rundir.seals import MANIFEST_NAME
from finetale.schema import Event, parse_events

LOCK_NAME = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
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

    def read_events(self) -> list[Event]:
        """Return the events in `metrics.jsonl`; none when there is no such file."""
        if not self.metrics.is_file():
            return []
        return parse_events(self.metrics.read_text(encoding="utf-8", errors="replace"))

    def saved_checkpoints(self) -> Iterator[tuple[int, Path]]:
        """Complete-looking checkpoints as (step, folder), newest first. Their checksums are not yet verified."""
        found = []
        if self.checkpoints.is_dir():
            for folder in self.checkpoints.iterdir():
                match = CHECKPOINT_PATTERN.match(folder.name)
                if match and (folder / MANIFEST_NAME).is_file() and not folder.is_symlink():
                    found.append((int(match.group(1)), folder))
        yield from sorted(found, reverse=True)
