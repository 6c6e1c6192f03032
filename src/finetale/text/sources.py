"""Find the files that a source names: a file, a folder, an archive, standard input. Knows nothing of content.

Opens files to identify them by their first bytes, and archives, to list them.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

from finetale.extras import EXTRA_OF, install_hint, is_installed
from finetale.text.account import BesideAccount, TextReport
from finetale.text.archives import Member, archive_suffix, document_format, list_archive
from finetale.text.byte_streams import COMPRESSED, STANDARD_INPUT, UNREADABLE_HINT
from finetale.text.documents import FileError, one_line
from finetale.text.encodings import binary_kind
from finetale.text.formats import HEAD_BYTES, Format, format_named, format_of, formats, known_kinds, suffix_of
from finetale.text.formats.refused import OFTEN_WRONG, REFUSED
from finetale.text.source_names import source_name

BUNDLED_SOURCE = "bundled:tales"
"""The source that is part of the package: the tales of Tarrowside."""
_SAVED_DATASETS = ({"state.json", "dataset_info.json"}, {"dataset_dict.json"})
"""Files of a folder that `save_to_disk` of the package `datasets` wrote. Its text is in .arrow files."""
_HIDDEN = (".", "~$")
"""First characters of hidden names. Word and Excel write a file `~$NAME` while a document is open."""
_MAC_FOLDER = "__MACOSX"
"""Folder of hidden copies in the zip archives that macOS makes."""
_FILES_OF_A_RUN = {"run.json", "config.yaml"}
_CONVERSATIONS = re.compile(r"conversations(?:-\d+)?\.json")
_SURE_OF_AN_EXPORT = {"chat.html", "user.json", "users.json"}
_BESIDE_CONVERSATIONS = _SURE_OF_AN_EXPORT | {
    "export_manifest.json", "group_chats.json", "memories.json", "message_feedback.json", "model_comparisons.json",
    "projects.json", "shared_conversations.json", "shopping.json", "sora.json", "user_settings.json",
}  # fmt: skip
"""Files beside the conversations in an export of ChatGPT or Claude: the same once more, settings, the account."""
_BUNDLED_FOLDER = Path(__file__).parents[1] / "bundled" / "tales"

_ZIP_MAGIC = b"PK\x03\x04"
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
        notice: what to report about the file, as the end of a sentence. Empty if there is nothing.
        beside: the account of its source if it is mixed or watched text, else None.
    """

    name: str
    format: Format
    path: Path | None = None
    open_member: Callable[[], IO[bytes]] | None = None
    rows: Any = None
    source: str = ""
    notice: str = ""
    beside: BesideAccount | None = None


@dataclass
class Search:
    """The options of a search for files, and its errors.

    Attributes:
        report: receives the counts of files that were left out.
        held_out: resolved paths of validation, test, watched and mixed files. They are left out of folders.
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
    if not archive_suffix(path) and (refused := REFUSED.get(suffix_of(path))) is not None and not _is_other(path):
        detail = f"is {refused.what}, and Finetale does not read these"
        raise FileError(source, None, "not_text_yet", detail, refused.hint)
    if not os.access(path, os.R_OK):
        search.unreadable.append(_denied(source))
        return []
    if suffix := archive_suffix(path):
        counts = _Counts(len(search.unreadable))
        inputs = _inputs_of_archive(path, suffix, source, search, counts)
        if not inputs and len(search.unreadable) == counts.num_unreadable:
            raise _nothing_in(source, counts)
        return _without_account_files(inputs, search.report)
    return _inputs_of(path, format_of(path) or _by_first_bytes(path) or format_named("text"), source, search)


@dataclass
class _Counts:
    """What a folder or archive holds that is not read."""

    num_unreadable: int
    num_others: int = 0
    num_held_out: int = 0


def _inputs_of(path: Path, form: Format, source: str, search: Search, member: Member | None = None) -> list[Input]:
    """Return the inputs of one readable file, or of a member of the archive `path`.

    If its format needs a package that is missing, it is unreadable.
    """
    name = str(path) if member is None else f"{path}/{member.path}"
    notice = ""
    if member is None:
        other = _other_format(path, form)
        form = other or form
        if other is not None or suffix_of(path) in OFTEN_WRONG:
            notice = f"the first bytes are those of {form.name}, so it is read as {form.name} despite its name"
    missing = [package for package in form.needs if not is_installed(package)]
    if missing:
        reason = f"can't be read (the package {missing[0]} is not installed)"
        hint = f"{install_hint(EXTRA_OF[missing[0]])} Or leave such files out with --skip-unreadable."
        search.unreadable.append(FileError(name, None, "unreadable", reason, hint))
        return []
    open_member = member.open if member is not None else None
    return [Input(source_name(name), form, path, open_member, source=source, notice=notice)]


def _inputs_of_archive(path: Path, suffix: str, source: str, search: Search, counts: _Counts) -> list[Input]:
    """Return the inputs of the members that a folder would read, and count the others as a folder's."""
    try:
        listing = list_archive(path, suffix)
    except FileError as error:
        search.unreadable.append(error)
        return []
    if (form := document_format(listing)) is not None:
        return _inputs_of(path, form, source, search)
    report = search.report
    inputs: list[Input] = []
    locked: list[Member] = []
    for special in listing.special:
        report.leave_out("special", one_line(f"{path}/{special}"))
    for member in _without_hidden(path, listing.members, search):
        inside = Path(member.path)
        found = format_of(inside) or (None if suffix_of(inside) else _by_head(member.head))
        if found is None or archive_suffix(inside):
            counts.num_others += 1
            _leave_out_other(report, f"{path}/{inside}", inside)
        elif member.locked:
            locked.append(member)
        else:
            inputs += _inputs_of(path, found, source, search, member)
    if locked:
        what = f"{locked[0].path} in it is {locked[0].locked}"
        if more := len(locked) - 1:
            what += f", and {more:,} more"
        hint = "Unpack it with the program that made it, and name the folder."
        search.unreadable.append(FileError(str(path), None, "unreadable", f"can't be read ({what})", hint))
    return inputs


def _without_hidden(path: Path, members: list[Member], search: Search) -> Iterator[Member]:
    """Yield the members that a folder would not leave out as hidden or as part of a run directory. Count the others."""
    names: dict[PurePosixPath, set[str]] = {}
    for member in members:
        names.setdefault(member.path.parent, set()).add(member.path.name)
    runs = {folder for folder, files in names.items() if folder.name and files >= _FILES_OF_A_RUN}
    counted: set[PurePosixPath] = set()
    for member in members:
        for top in (*reversed(member.path.parents[:-1]), member.path):
            is_hidden = top.name.startswith(_HIDDEN) or top.name == _MAC_FOLDER
            if is_hidden or top in runs:
                if top not in counted:
                    counted.add(top)
                    search.report.leave_out("hidden" if is_hidden else "run_directories", one_line(f"{path}/{top}"))
                break
        else:
            yield member


def _leave_out_other(report: TextReport, name: str, path: Path) -> None:
    suffix = one_line("".join(path.suffixes[-1:]).lower())
    report.leave_out("other", one_line(name), suffix or "(no suffix)")


def _by_first_bytes(path: Path) -> Format | None:
    """Return the format of a file without a known suffix. None if its first bytes identify none and are not text."""
    head = _head_of(path)
    if head.startswith(_ZIP_MAGIC):
        return _zipped_document(path)
    return _by_head(head)


def _by_head(head: bytes) -> Format | None:
    if (form := _by_magic(head)) is not None:
        return form
    is_script = head.startswith(b"#!")
    return None if is_script or not head.strip() or binary_kind(head) else format_named("text")


def _other_format(path: Path, form: Format) -> Format | None:
    """Return the format that the first bytes of a file identify, if it is not the one of its suffix.

    Text may start with the markup of another format, such as HTML in a .txt file, and is then read as its suffix says.
    """
    if path.suffix.lower() in COMPRESSED:
        return None
    head = _head_of(path)
    if not (form.is_binary or binary_kind(head)) or form.begins(head):
        return None
    found = _zipped_document(path) if head.startswith(_ZIP_MAGIC) else _by_magic(head)
    return None if found is None or found.name == form.name else found


def _is_other(path: Path) -> bool:
    """Return whether a file is of a format that is read, although its suffix is of one that is not: RTF as .doc."""
    return suffix_of(path) in OFTEN_WRONG and os.access(path, os.R_OK) and _by_first_bytes(path) is not None


def _head_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def _by_magic(head: bytes) -> Format | None:
    return next((form for form in formats() if form.begins(head)), None)


def _zipped_document(path: Path) -> Format | None:
    try:
        return document_format(list_archive(path, ".zip"))
    except FileError:
        return None


def _find_in_folder(source: str, folder: Path, search: Search) -> list[Input]:
    report = search.report
    found: list[tuple[Path, Format | None]] = []  # None for archives
    counts = _Counts(len(search.unreadable))
    for path in _walk(folder, search):
        is_archive = bool(archive_suffix(path))
        form = None if is_archive else format_of(path)
        may_be_any = not suffix_of(path) or suffix_of(path) in OFTEN_WRONG  # such as README
        if form is None and not is_archive and may_be_any and os.access(path, os.R_OK):
            form = _by_first_bytes(path)
        if form is None and not is_archive:
            counts.num_others += 1
            _leave_out_other(report, str(path), path)
        elif search.held_out and path.resolve() in search.held_out:
            counts.num_held_out += 1
            report.leave_out("held_out_files", one_line(str(path)))
        elif not os.access(path, os.R_OK):
            search.unreadable.append(_dangling(str(path), path) if not os.path.exists(path) else _denied(str(path)))
        else:
            found.append((path, form))
    found.sort(key=lambda entry: entry[0].relative_to(folder).parts)
    inputs = []
    for path, form in found:
        if form is not None:
            inputs += _inputs_of(path, form, source, search)
        else:
            inputs += _inputs_of_archive(path, archive_suffix(path), source, search, counts)
    if not inputs and len(search.unreadable) == counts.num_unreadable:
        raise _nothing_in(source, counts)
    return _without_account_files(inputs, report)


def _without_account_files(inputs: list[Input], report: TextReport) -> list[Input]:
    """Return inputs without the files beside the conversations in an export of ChatGPT or Claude."""
    names: dict[str, set[str]] = {}
    for each in inputs:
        folder, name = os.path.split(each.name)
        names.setdefault(folder, set()).add(name)
    exports = {
        folder
        for folder, inside in names.items()
        if inside & _SURE_OF_AN_EXPORT and any(map(_CONVERSATIONS.fullmatch, inside))
    }
    kept = []
    for each in inputs:
        folder, name = os.path.split(each.name)
        if folder in exports and name in _BESIDE_CONVERSATIONS:
            report.leave_out("other", each.name, "beside the conversations")
        else:
            kept.append(each)
    return kept


def _nothing_in(source: str, counts: _Counts) -> FileError:
    what = f"holds no file that can be read ({counts.num_others} of other kinds)"
    if counts.num_held_out:
        what = "holds only files that are validation, test, mixed or watched text"
    elif not counts.num_others:
        what = "holds no file that can be read"
    hint = f"Put files with text there: {known_kinds()}; as they are, as .gz or .zst, or in a .zip or .tar archive."
    return FileError(source, None, "empty_folder", what, hint)


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
        if entry.name.startswith(_HIDDEN):
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
