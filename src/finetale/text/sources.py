"""What a source names: a file, the files of a folder, standard input. Opens nothing and knows nothing of content."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from finetale.text.account import TextReport
from finetale.text.byte_streams import COMPRESSED, STANDARD_INPUT
from finetale.text.documents import FileError

Kind = Literal["text", "jsonl", "json", "csv", "tsv", "parquet", "dataset"]

BUNDLED_SOURCE = "bundled:tales"
"""The source that comes with the package: the tales of Tarrowside."""
_FILES_OF_A_RUN = {"run.json", "config.yaml"}
_BUNDLED_FOLDER = Path(__file__).parents[1] / "bundled" / "tales"

KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}


@dataclass(frozen=True)
class Input:
    """One thing to read.

    Attributes:
        name: how messages and the report call it.
        kind: what it holds.
        path: where it is; None for standard input and datasets.
        rows: the rows of a dataset's split (a Dataset or IterableDataset), else None.
    """

    name: str
    kind: Kind
    path: Path | None = None
    rows: Any = None


def kind_of(path: Path) -> Kind | None:
    """The kind that a file's name tells, a .gz or .zst at its end aside; None when it tells nothing."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return KINDS.get(suffixes[-1]) if suffixes else None


def find_inputs(source: str, report: TextReport, held_out: frozenset[Path] = frozenset()) -> list[Input]:
    """What a source other than hf:… stands for.

    Args:
        source: path of a file or folder, `-` or `bundled:tales`. A file of unknown kind that is named is read as plain text.
        report: gets the counts of what was passed over in folders.
        held_out: resolved paths of validation and test files; a folder's files among them are passed over.

    Raises:
        FileError: there is no such file or folder, a folder can't be listed, or holds nothing that can be read.
    """
    if source == STANDARD_INPUT:
        return [Input(source, "text")]
    if source == BUNDLED_SOURCE:
        if not _BUNDLED_FOLDER.is_dir():
            raise FileError(
                source, None, "missing", "the tales are missing from the installation", "Install Finetale again."
            )
        found = _find_in_folder(source, _BUNDLED_FOLDER, report, held_out)
        return [replace(each, name=f"{source}/{Path(each.name).name}") for each in found]
    try:
        path = Path(source).expanduser()
    except RuntimeError:
        path = Path(source)
    try:
        is_folder = path.is_dir()
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise FileError(source, None, "unreadable", f"can't be looked at ({error})", "Check the path.") from None
    if not exists:
        package = source.partition(":")[0] == BUNDLED_SOURCE.partition(":")[0]
        hint = f"The text of the package is called {BUNDLED_SOURCE}." if package else _nearest(path)
        raise FileError(source, None, "missing", "there is no such file or folder", hint)
    if not is_folder:
        return [Input(source, kind_of(path) or "text", path)]
    return _find_in_folder(source, path, report, held_out)


def _find_in_folder(source: str, folder: Path, report: TextReport, held_out: frozenset[Path]) -> list[Input]:
    found: list[Path] = []
    num_others = num_held_out = 0
    for path in _walk(source, folder, report):
        kind = kind_of(path)
        if kind is None:
            num_others += 1
            report.other_suffixes["".join(path.suffixes[-1:]).lower() or "(no suffix)"] += 1
        elif held_out and path.resolve() in held_out:
            num_held_out += 1
        else:
            found.append(path)
    report.held_out_files += num_held_out
    if not found:
        what = f"holds no file that can be read ({num_others} of other kinds)"
        if num_held_out:
            what = "holds only files that are validation or test text"
        elif not num_others:
            what = "holds no file that can be read"
        known = ", ".join(suffix.removeprefix(".") for suffix in KINDS)
        raise FileError(
            source, None, "empty_folder", what, f"Put files of these kinds there: {known}, or these as .gz or .zst."
        )
    found.sort(key=lambda path: path.relative_to(folder).parts)
    return [Input(str(path), kind_of(path) or "text", path) for path in found]


def _walk(source: str, folder: Path, report: TextReport, *, is_source: bool = True) -> Iterator[Path]:
    """Every file below a folder.

    Linked folders are not entered: they may lead outside, or in a circle; nor are run directories, which come to be in
    the folder one works in and hold no text of its own.
    """
    try:
        with os.scandir(folder) as entries:
            listed = list(entries)
    except OSError as error:
        reason = f"the folder {folder} can't be listed ({error.strerror or error})"
        raise FileError(source, None, "unreadable", reason, "Check the folder's permissions.") from None
    names = {entry.name for entry in listed}
    if not is_source and names >= _FILES_OF_A_RUN:
        report.run_directories += 1
        return
    for entry in listed:
        if entry.name.startswith("."):
            report.hidden += 1
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(source, Path(entry.path), report, is_source=False)
        elif entry.is_dir():
            report.linked_folders += 1
        else:
            yield Path(entry.path)


def _nearest(path: Path) -> str:
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        parent, path = parent.parent, parent
    try:
        names = [entry.name for entry in os.scandir(parent)]
    except OSError:
        names = []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {parent / near[0]}?"
    return f"Check the path: {parent} holds nothing of a similar name."
