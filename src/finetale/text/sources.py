"""Find the files that a source names: a file, a folder, standard input. Opens nothing and knows nothing of content."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from finetale.extras import EXTRA_OF, install_hint, is_installed
from finetale.text.account import TextReport
from finetale.text.byte_streams import STANDARD_INPUT, UNREADABLE_HINT
from finetale.text.documents import FileError, one_line
from finetale.text.encodings import binary_kind
from finetale.text.formats import HEAD_BYTES, Format, format_named, format_of, formats, known_suffixes, suffix_of
from finetale.text.formats.refused import REFUSED
from finetale.text.source_names import source_name

BUNDLED_SOURCE = "bundled:tales"
"""The source that is part of the package: the tales of Tarrowside."""
_SAVED_DATASETS = ({"state.json", "dataset_info.json"}, {"dataset_dict.json"})
"""Files of a folder that `save_to_disk` of the package `datasets` wrote. Its text is in .arrow files."""
_FILES_OF_A_RUN = {"run.json", "config.yaml"}
_BUNDLED_FOLDER = Path(__file__).parents[1] / "bundled" / "tales"

_SPECIAL = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True)
class Input:
    """One file or dataset split to read.

    Attributes:
        name: name for messages and the report, valid Unicode on one line.
        format: format of the content.
        path: path of the file. None for standard input and datasets.
        open_member: opens the bytes of a member of the archive `path`, else None.
        rows: the rows of a dataset's split (a Dataset or IterableDataset), else None.
        source: the source that it belongs to.
    """

    name: str
    format: Format
    path: Path | None = None
    open_member: Callable[[], IO[bytes]] | None = None
    rows: Any = None
    source: str = ""


@dataclass
class Search:
    """The options of a search for files, and its errors.

    Attributes:
        report: receives the counts of files that were left out.
        held_out: resolved paths of validation and test files. They are left out of folders.
        unreadable: receives an error for each file or folder that can't be opened.
    """

    report: TextReport
    held_out: frozenset[Path] = frozenset()
    unreadable: list[FileError] = field(default_factory=list)


def find_inputs(source: str, search: Search) -> list[Input]:
    """Return the inputs of a source other than hf:….

    Args:
        source: path of a file or folder, `-` or `bundled:tales`. A named file with an unknown suffix is read as plain
            text, unless the suffix belongs to a format that is not plain text.
        search: receives the files that were left out or can't be read.

    Raises:
        FileError: the file or folder does not exist, the file is not a regular file or not plain text, or the folder
            holds nothing that can be read.
    """
    if source == STANDARD_INPUT:
        return [Input(source, format_named("text"), source=source)]
    if source == BUNDLED_SOURCE:
        if not _BUNDLED_FOLDER.is_dir():
            raise FileError(
                source, None, "missing", "the tales are missing from the installation", "Install Finetale again."
            )
        found = _find_in_folder(source, _BUNDLED_FOLDER, search)
        return [replace(each, name=f"{source}/{Path(each.name).name}") for each in found]
    if not source.strip():  # a path of no characters would be the current folder
        raise FileError(
            source, None, "missing", "the name of a source is empty", "Name a file or folder; . is this folder."
        )
    try:
        path = Path(source).expanduser()
    except RuntimeError:
        path = Path(source)
    try:
        facts = path.stat()
    except FileNotFoundError:
        facts = None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileError(source, None, "unreadable", f"can't be read ({reason})", UNREADABLE_HINT) from None
    if facts is None:
        if path.is_symlink():
            raise _dangling(source, path)
        package = source.partition(":")[0] == BUNDLED_SOURCE.partition(":")[0]
        hint = f"The text of the package is called {BUNDLED_SOURCE}." if package else _nearest(path)
        raise FileError(source, None, "missing", "there is no such file or folder", hint)
    if stat.S_ISDIR(facts.st_mode):
        return _find_in_folder(source, path, search)
    if not stat.S_ISREG(facts.st_mode):
        what = _special_kind(facts.st_mode)
        hint = f"Read it through standard input: `finetale … - < {one_line(source)}`, or save the text as a file."
        raise FileError(source, None, "special", f"is {what}, not a regular file, and is not opened", hint)
    if (refused := REFUSED.get(suffix_of(path))) is not None:
        what, hint = refused
        raise FileError(source, None, "not_text_yet", f"is {what}, and Finetale does not read these", hint)
    if not os.access(path, os.R_OK):
        search.unreadable.append(_denied(source))
        return []
    return _inputs_of(path, format_of(path) or _by_first_bytes(path) or format_named("text"), source, search)


def _inputs_of(path: Path, form: Format, source: str, search: Search) -> list[Input]:
    """Return the inputs of one readable file. If its format needs a package that is missing, it is unreadable."""
    missing = [package for package in form.needs if not is_installed(package)]
    if missing:
        reason = f"can't be read (the package {missing[0]} is not installed)"
        hint = f"{install_hint(EXTRA_OF[missing[0]])} Or leave such files out with --skip-unreadable."
        search.unreadable.append(FileError(str(path), None, "unreadable", reason, hint))
        return []
    return [Input(source_name(str(path)), form, path, source=source)]


def _by_first_bytes(path: Path) -> Format | None:
    """Return the format of a file without a known suffix. None if its first bytes identify none and are not text."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return None
    for form in formats():
        if any(head.startswith(magic) for magic in form.magic):
            return form
    is_script = head.startswith(b"#!")
    return None if is_script or not head.strip() or binary_kind(head) else format_named("text")


def _find_in_folder(source: str, folder: Path, search: Search) -> list[Input]:
    report = search.report
    found: list[tuple[Path, Format]] = []
    num_others = num_held_out = 0
    num_unreadable = len(search.unreadable)
    for path in _walk(folder, search):
        form = format_of(path)
        if form is None and not suffix_of(path) and os.access(path, os.R_OK):  # such as README
            form = _by_first_bytes(path)
        if form is None:
            num_others += 1
            suffix = one_line("".join(path.suffixes[-1:]).lower())
            report.leave_out("other", one_line(str(path)), suffix or "(no suffix)")
        elif search.held_out and path.resolve() in search.held_out:
            num_held_out += 1
            report.leave_out("held_out_files", one_line(str(path)))
        elif not os.access(path, os.R_OK):
            search.unreadable.append(_dangling(str(path), path) if not os.path.exists(path) else _denied(str(path)))
        else:
            found.append((path, form))
    found.sort(key=lambda entry: entry[0].relative_to(folder).parts)
    inputs = [each for path, form in found for each in _inputs_of(path, form, source, search)]
    if not inputs and len(search.unreadable) == num_unreadable:
        what = f"holds no file that can be read ({num_others} of other kinds)"
        if num_held_out:
            what = "holds only files that are validation or test text"
        elif not num_others:
            what = "holds no file that can be read"
        known = ", ".join(suffix.removeprefix(".") for suffix in known_suffixes())
        raise FileError(
            source, None, "empty_folder", what, f"Put files of these kinds there: {known}, or these as .gz or .zst."
        )
    return inputs


def _walk(folder: Path, search: Search, *, is_source: bool = True) -> Iterator[Path]:
    """Yield every regular file below a folder, and broken links.

    Linked folders are not entered, because they may lead outside or in a circle. Run directories are not entered,
    because Finetale creates them in the working folder, and they hold no new text. Pipes, sockets and devices are never
    opened.
    """
    report = search.report
    try:
        with os.scandir(folder) as entries:
            listed = list(entries)
    except OSError as error:
        reason = f"can't be listed ({error.strerror or error})"
        search.unreadable.append(
            FileError(str(folder), None, "unreadable", reason, "Check the folder's permissions, or --skip-unreadable.")
        )
        return
    names = {entry.name for entry in listed}
    if not is_source and names >= _FILES_OF_A_RUN:
        report.leave_out("run_directories", one_line(str(folder)))
        return
    if any(names >= files for files in _SAVED_DATASETS):
        hint = "Load it in Python, `ft.train(datasets.load_from_disk(FOLDER))`, or write it with `to_parquet`."
        reason = "can't be read (a data set that save_to_disk wrote, in .arrow files)"
        search.unreadable.append(FileError(str(folder), None, "unreadable", reason, hint))
        return
    for entry in listed:
        if entry.name.startswith("."):
            report.leave_out("hidden", one_line(entry.path))
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), search, is_source=False)
        elif entry.is_file(follow_symlinks=False):
            yield Path(entry.path)
        else:
            try:
                mode = entry.stat().st_mode
            except OSError:  # a broken link, or a circle of links
                yield Path(entry.path)
                continue
            if stat.S_ISREG(mode):
                yield Path(entry.path)
            elif stat.S_ISDIR(mode):
                report.leave_out("linked_folders", one_line(entry.path))
            else:
                report.leave_out("special", one_line(entry.path))


def _special_kind(mode: int) -> str:
    return next((name for test, name in _SPECIAL if test(mode)), "a special file")


def _dangling(name: str, path: Path) -> FileError:
    try:
        path.stat()
        reason = "it disappeared"
    except OSError as error:
        reason = error.strerror or str(error)
    return FileError(
        name, None, "unreadable", f"can't be read: it is a link that leads nowhere ({reason})", UNREADABLE_HINT
    )


def _denied(name: str) -> FileError:
    return FileError(name, None, "unreadable", "can't be read (Permission denied)", UNREADABLE_HINT)


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
    where = "the current folder" if parent == Path() else one_line(str(parent))
    return f"Check the path: {where} holds nothing of a similar name."
