"""Hash sources, to detect every change of a byte. Knows nothing of their content."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text.account import TextReport
from finetale.text.byte_streams import STANDARD_INPUT, blocks
from finetale.text.documents import FileError
from finetale.text.hub import PREFIX
from finetale.text.source_names import source_name
from finetale.text.sources import Search, find_inputs

_CHUNK = 1 << 20
_PROGRESS_BYTES = 64 << 20
_known: dict[tuple[str, int, int], str] = {}
"""Hashes by path, size and modification time."""


def fingerprint(
    sources: Sequence[str], settings: TextSettings, progress: Callable[[int, int], None] | None = None
) -> str | None:
    """Return a SHA-256 over the names and bytes of all files: of the sources and of the other text in the settings.

    Args:
        progress: called with (bytes read, bytes of all files) every 64 MB.

    Returns:
        None if a source can't be hashed before it is read: standard input, a dataset, or a missing file.
    """
    files = file_hashes(sources, settings, progress)
    if files is None:
        return None
    digest = hashlib.sha256()
    for (role, name), content in files:
        digest.update(f"{role}\0{name}\0{content}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def is_elsewhere(source: str) -> bool:
    """Return whether a source is not a file on this machine: standard input, or a dataset of the Hub."""
    return source == STANDARD_INPUT or source.startswith(PREFIX)


def file_hashes(
    sources: Sequence[str], settings: TextSettings, progress: Callable[[int, int], None] | None = None
) -> list[tuple[tuple[str, str], str]] | None:
    """Return ((role, name), SHA-256) of each file. The role is train or a setting. None as in `fingerprint`."""
    inputs: list[tuple[str, str, Path]] = []
    mixed = [mix.source for mix in settings.mixes]
    held_out = {"validation": settings.validation, "test": settings.test, "mix": mixed, "watch": settings.watch}
    for role, names in {"train": sources, **held_out}.items():
        for source in names:
            if is_elsewhere(source):
                return None
            try:
                search = Search(TextReport([]))
                archives = set()
                for entry in find_inputs(source, search):
                    assert entry.path is not None
                    if entry.open_member is None:
                        inputs.append((role, entry.name, entry.path))
                    elif entry.path not in archives:  # an archive once, not once per member
                        archives.add(entry.path)
                        inputs.append((role, source_name(str(entry.path)), entry.path))
                if search.unreadable and not settings.skip_unreadable:
                    return None
            except (FileError, OSError):
                return None
    try:
        total = sum(path.stat().st_size for _, _, path in inputs)
        done = 0
        found = []
        for role, name, path in inputs:
            for read, digest in _sha256(path):
                if digest is not None:
                    found.append(((role, name), digest))
                    done += read
                elif progress is not None:
                    progress(done + read, total)
    except OSError:
        return None
    return found


def _sha256(path: Path) -> Iterator[tuple[int, str | None]]:
    """Yield (bytes read so far, None) every 64 MB, and at the end (size, hash).

    Within a process, a file is read again only if its size or modification time has changed.
    """
    facts = path.stat()
    key = (str(path.absolute()), facts.st_size, facts.st_mtime_ns)
    if key not in _known:
        digest = hashlib.sha256()
        read = 0
        with path.open("rb") as file:
            while data := file.read(_CHUNK):
                digest.update(data)
                read += len(data)
                if read % _PROGRESS_BYTES == 0:
                    yield read, None
        _known[key] = digest.hexdigest()
    yield facts.st_size, _known[key]


def suffix_of_records(data: bytes) -> str:
    """Return the suffix for a text without a name: "jsonl" or "json" if it begins with JSON objects, else "txt"."""
    text = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    if re.match(rb"\[\s*\{\s*\"", text):
        return "json"
    first = text.partition(b"\n")[0]
    try:
        is_object = first.startswith(b"{") and isinstance(json.loads(first), dict)
    except ValueError:
        is_object = False
    return "jsonl" if is_object else "txt"


def read_standard_input() -> bytes:
    """Return all of standard input.

    Raises:
        SourceError: it is a terminal, closed or empty.
    """
    data = b"".join(blocks(STANDARD_INPUT, None))
    if not data.strip():
        raise SourceError(
            "Standard input holds no text.", "Send text into it, as in `cat story.txt | finetale check -`."
        )
    return data
