"""PDF documents with a text layer. A child process reads the pages (`pages.py`); `layout.py` joins the lines.

The library is pypdfium2. docs/log.md compares it with pypdf.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from finetale.formatting import plural
from finetale.text.byte_streams import BLOCK_BYTES, COMPRESSED
from finetale.text.documents import FileError
from finetale.text.formats.base import Chapter, Format, SourceFile
from finetale.text.formats.pdf.layout import read_layout
from finetale.text.formats.pdf.paragraphs import Paragraph
from finetale.text.formats.pdf.pieces import Page, Piece

MEMORY_LIMIT = 2 << 30
"""Maximum address space of the child process, in bytes."""
SECONDS_PER_PAGE = 60.0
"""Maximum time for one page, or for opening the file."""
MAX_PAGES = 200_000
MAX_CHARACTERS = 200_000_000
UNKNOWN_SHARE = 0.2
"""From this share of unknown characters a file is refused."""
_MAX_PREFIX, _MAX_LABEL = 12, 40

_PASSWORD, _SECURITY = 4, 5
_PROGRAM = Path(__file__).with_name("pages.py")
_START = (
    "import runpy, sys; sys.path[:] = {path!r}; sys.argv = {argv!r}; runpy.run_path({program!r}, run_name='__main__')"
)
_UNKNOWN = re.compile(
    "[\x00-\x0d\x10-\x1f\x7f-\x9f\ufffd\ue000-\uf8ff\ud800-\udfff\U000f0000-\U0010ffff]"  # not RAISED, LOWERED
)
_UNKNOWN_IN_TEX = re.compile(f"(?![\x10-\x16\x1b-\x1f]){_UNKNOWN.pattern}")
_TEX = re.compile("tex|dvips|dvipdf|ghostscript", re.IGNORECASE)
_DAMAGED_HINT = (
    "Get the file again, or open it in a PDF viewer and print it to a new PDF file; or leave such files out with "
    "--skip-unreadable."
)
_OCR_HINT = "Run OCR first, for example with `ocrmypdf IN.pdf OUT.pdf`; or leave such files out with --skip-unreadable."


def pdf_chapters(file: SourceFile) -> Iterator[Chapter]:
    """Yield the chapters of a PDF file: the entries of its outline, each with its number.

    Raises:
        FileError: the file is damaged or encrypted, has no text, or needs too much memory or time.
    """
    account = file.account
    with _on_disk(file) as path:
        account.bytes = path.stat().st_size
        head, pages, counts = _pages(file.name, path) if account.bytes else ({}, [], {})
    for what, number in counts.items():
        account.leave_out(what, number)
    tex = bool(_TEX.search(head.get("producer", "")))
    _check_text(file, pages, counts, tex=tex)
    yield from _chapters(read_layout(pages, account.leave_out, tex=tex), head.get("outline", ()))


@contextmanager
def _on_disk(file: SourceFile) -> Iterator[Path]:
    """Provide the uncompressed file as a file on disk."""
    if file.path is not None and file.is_whole_file and file.path.suffix.lower() not in COMPRESSED:
        with file.seekable():  # so that a file that can't be opened has the usual error
            pass
        yield file.path
        return
    handle, name = tempfile.mkstemp(suffix=".pdf")
    try:
        with os.fdopen(handle, "wb") as copy, file.seekable() as source:
            while block := source.read(BLOCK_BYTES):
                copy.write(block)
        yield Path(name)
    finally:
        os.unlink(name)


def _pages(name: str, path: Path) -> tuple[dict[str, Any], list[Page], dict[str, int]]:
    """Return the head of the child's output, the pages, and the numbers of pictures, and so on, in them."""
    arguments = [str(_PROGRAM), os.path.abspath(path), str(MEMORY_LIMIT)]
    start = _START.format(path=sys.path, argv=arguments, program=str(_PROGRAM))
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", start],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdout is not None
    watch = _Watch(child)
    head: dict[str, Any] = {}
    pages: list[Page] = []
    counts = {"picture": 0, "rotated character": 0}
    characters = 0
    try:
        for line in child.stdout:
            watch.restart()
            row = json.loads(line)
            if not head:
                head = row
                if "error" in row:
                    raise _not_opened(name, row["error"])
                if not row["pages"]:
                    raise FileError(name, None, "damaged", "has no pages; it is damaged", _DAMAGED_HINT)
                if row["pages"] > MAX_PAGES:
                    reason = f"has {row['pages']:,} pages, and at most {MAX_PAGES:,} are read"
                    raise FileError(name, None, "too_large", reason, "Split it into smaller files.")
                continue
            pieces = [Piece(*piece) for piece in row["pieces"]]
            pages.append(Page(len(pages) + 1, pieces, is_empty=row["empty"], is_damaged=row["damaged"]))
            counts["picture"] += row["pictures"]
            counts["rotated character"] += row["rotated"]
            characters += sum(len(piece.text) for piece in pieces)
            if characters > MAX_CHARACTERS:
                reason = f"has over {MAX_CHARACTERS:,} characters"
                raise FileError(name, None, "too_large", reason, "Split it into smaller files.")
        code = child.wait()
    finally:
        watch.stop()
        child.kill()
        child.wait()
        child.stdout.close()
    if not head or len(pages) < head["pages"]:
        where = f"at page {len(pages) + 1:,}" if head else "when it was opened"
        what = f"took over {SECONDS_PER_PAGE:g} seconds" if watch.fired else f"made the reader fail (exit code {code})"
        reason = f"{what} {where}; it is damaged, or needs over {MEMORY_LIMIT >> 30} GiB of memory"
        raise FileError(name, None, "damaged", reason, _DAMAGED_HINT)
    return head, pages, counts


class _Watch(threading.Thread):
    """Kills a child process that prints nothing for `SECONDS_PER_PAGE`."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        super().__init__(daemon=True)
        self.fired = False
        self._child = child
        self._done = threading.Event()
        self.restart()
        self.start()

    def restart(self) -> None:
        self._end = time.monotonic() + SECONDS_PER_PAGE

    def stop(self) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        while not self._done.wait(min(1.0, max(0.05, self._end - time.monotonic()))):
            if time.monotonic() > self._end:
                self.fired = True
                self._child.kill()
                return


def _not_opened(name: str, code: int) -> FileError:
    if code == _PASSWORD:
        hint = "Save a copy without password, for example with `qpdf --decrypt --password=… IN.pdf OUT.pdf`."
        return FileError(name, None, "encrypted", "is encrypted, and opens only with a password", hint)
    if code == _SECURITY:
        hint = "Open it in a PDF viewer and print it to a new PDF file."
        return FileError(name, None, "encrypted", "is encrypted in a way that can't be read", hint)
    return FileError(name, None, "damaged", "is not a PDF document that can be read; it is damaged", _DAMAGED_HINT)


def _check_text(file: SourceFile, pages: Sequence[Page], counts: dict[str, int], *, tex: bool) -> None:
    """Report pages without text and unknown characters, and remove these characters.

    Raises:
        FileError: no page has text, or too many characters are unknown.
    """
    without = [page.number for page in pages if not (page.pieces or page.is_empty or page.is_damaged)]
    with_text = sum(bool(page.pieces) for page in pages)
    damaged = [page.number for page in pages if page.is_damaged]
    if damaged and not with_text:
        raise FileError(file.name, None, "damaged", "has no page that can be read; it is damaged", _DAMAGED_HINT)
    if damaged:
        file.account.problem("damaged_pages", None, len(damaged), f"{_page_list(damaged)} can't be read")
    if without and not with_text:
        verb = "has" if len(without) == 1 else "have"
        reason = f"has no text: {_page_list(without)} {verb} only pictures of it"
        raise FileError(file.name, None, "no_text", reason, _OCR_HINT)
    if without:
        verb = "has" if len(without) == 1 else "have"
        detail = f"{_page_list(without)} {verb} no text; run OCR, for example ocrmypdf"
        file.account.problem("pages_without_text", None, len(without), detail)
    unknown = total = 0
    for page in pages:
        for piece in page.pieces:
            total += len(piece.text)
            if not piece.text.isascii() or not piece.text.isprintable():
                clean, number = (_UNKNOWN_IN_TEX if tex else _UNKNOWN).subn("", piece.text)
                if number:
                    unknown += number
                    piece.text = clean
    if unknown > UNKNOWN_SHARE * total:
        reason = f"does not say which characters its fonts hold: {unknown / total:.0%} of them are unknown"
        hint = "Run OCR on it, for example with `ocrmypdf --force-ocr IN.pdf OUT.pdf`, or use another form of the text."
        raise FileError(file.name, None, "unknown_characters", reason, hint)
    file.account.leave_out("unknown character", unknown)


def _page_list(numbers: Sequence[int]) -> str:
    """Return page numbers as text: "page 3", or "pages 3–40 and 45"."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    named = [f"{first:,}" if first == last else f"{first:,}–{last:,}" for first, last in ranges[:5]]
    if more := sum(last - first + 1 for first, last in ranges[5:]):
        named.append(plural(more, "more"))
    text = f"{', '.join(named[:-1])} and {named[-1]}" if len(named) > 1 else named[0]
    return f"page{'s' * (len(numbers) > 1)} {text}"


def _chapters(paragraphs: Sequence[Paragraph], outline: Sequence[Sequence[Any]]) -> Iterator[Chapter]:
    """Yield the chapters.

    An entry of the outline's first level starts a chapter. If it has only one entry there, the second level counts.
    """
    level = 1 if sum(entry[3] == 0 for entry in outline) == 1 else 0
    entries = [entry for entry in outline if entry[3] == level] or outline
    starts: dict[int, str] = {}
    for title, page, height, _ in entries:
        index = _paragraph_at(paragraphs, title, page + 1, height)
        if index is not None:
            starts.setdefault(index, " ".join(title.split()))
    borders = sorted({0, *starts, len(paragraphs)})
    for number, (start, end) in enumerate(pairwise(borders), 1):
        text = "\n\n".join(paragraph.text for paragraph in paragraphs[start:end])
        yield Chapter(text + ("\n\n" if end < len(paragraphs) else "\n"), starts.get(start, ""), number)


def _paragraph_at(paragraphs: Sequence[Paragraph], title: str, page: int, height: float | None) -> int | None:
    """Return the paragraph at which an entry of the outline leads, None if there is none.

    It is the one that begins with the title, after a number or the like at most. A short paragraph before it belongs to
    it, such as "Chapter 2", if the entry leads there. Without such a paragraph it is the first one below the place that
    the entry names, or the first one on the page.
    """
    here = [index for index, paragraph in enumerate(paragraphs) if paragraph.page == page]
    if not here:
        return None
    below = here[0]
    if height is not None:
        below = next((index for index in here if paragraphs[index].base <= height + 2), here[-1])
    wanted = _letters(title)
    for index in here:
        if wanted and 0 <= _letters(paragraphs[index].text[:500]).find(wanted) <= _MAX_PREFIX:
            return below if below == index - 1 and len(paragraphs[below].text) < _MAX_LABEL else index
    return below


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


FORMATS = (
    Format(
        "pdf",
        "manuscript",
        (".pdf",),
        "chapters",
        pdf_chapters,
        needs=("pypdfium2",),
        magic=(b"%PDF-",),
        is_binary=True,
    ),
)
