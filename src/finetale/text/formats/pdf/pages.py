"""The program that reads a PDF file in a separate process: it prints the pieces of text of each page as JSON lines.

Usage: python pages.py FILE MEMORY_LIMIT. The package starts it, because a damaged file can make PDFium crash, run for
hours, or take all memory. It imports nothing of Finetale, so that it starts fast.

The first line printed is {"pages": number, "producer": text, "outline": [[title, page, height or null, level], …]}, or
{"error": code of FPDF_GetLastError}. Each further line is a page:

    pieces      [text, left, right, baseline, height] of each piece of a line, in points from the lower left corner.
                Raised small characters are between \\x0e and \\x0f.
    pictures    number of pictures
    empty       whether nothing is drawn on the page
    damaged     whether the page can't be read
    rotated     number of characters in another direction than the others
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

RAISED, LOWERED = "\x0e", "\x0f"
"""Marks around raised small characters, such as the number of a footnote."""
COLUMN_GAP = 1.5
"""Gap that separates two pieces of a line, in heights."""
_WORD_GAP = 0.2
_MAX_OUTLINE = 10_000
_MAX_OBJECTS = 100_000
_PICTURE, _FORM = 3, 5
_SKIPPED = {0, 10, 13, 0xFEFF, 0xFFFF}
_HYPHEN = 0x02
"""PDFium returns this for a hyphen at the end of a line. Some versions return U+FFFE."""

Char = tuple[float, float, float, float, str]
"""Left, right, baseline, height, character."""


def main(path: str, memory_limit: int) -> None:
    """Print the pages of a file."""
    _limit_memory(memory_limit)
    import pypdfium2  # noqa: F401 - initialises the library
    import pypdfium2.raw as pdfium

    document = pdfium.FPDF_LoadDocument(os.fsencode(path) + b"\0", None)
    if not document:
        _print({"error": pdfium.FPDF_GetLastError()})
        return
    num_pages = pdfium.FPDF_GetPageCount(document)
    producer = _text_of(lambda buffer, size: pdfium.FPDF_GetMetaText(document, b"Producer\0", buffer, size))
    _print({"pages": num_pages, "producer": producer, "outline": list(_outline(pdfium, document))})
    for index in range(num_pages):
        page = pdfium.FPDF_LoadPage(document, index)
        if not page:
            _print({"pieces": [], "pictures": 0, "empty": True, "damaged": True, "rotated": 0})
            continue
        text = pdfium.FPDFText_LoadPage(page)
        pieces, rotated = _pieces(pdfium, text) if text else ([], 0)
        pictures, objects = _pictures(pdfium, page)
        _print({"pieces": pieces, "pictures": pictures, "empty": not objects, "damaged": not text, "rotated": rotated})
        if text:
            pdfium.FPDFText_ClosePage(text)
        pdfium.FPDF_ClosePage(page)


def _print(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def _limit_memory(limit: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))


def _text_of(call: Any) -> str:
    """Return the text of a function that fills a buffer with UTF-16."""
    size = min(call(None, 0), 1 << 16)
    buffer = ctypes.create_string_buffer(size)
    call(buffer, size)
    return buffer.raw[: max(0, size - 2)].decode("utf-16-le", "replace").replace("\x00", "")


def _outline(pdfium: Any, document: Any) -> Iterator[tuple[str, int, float | None, int]]:
    """Yield (title, page from 0, height on the page, level from 0) of the entries of the first two levels."""
    number = 0
    entry = pdfium.FPDFBookmark_GetFirstChild(document, None)
    while entry and number < _MAX_OUTLINE:
        number += 1
        yield _entry(pdfium, document, entry, 0)
        child = pdfium.FPDFBookmark_GetFirstChild(document, entry)
        while child and number < _MAX_OUTLINE:
            number += 1
            yield _entry(pdfium, document, child, 1)
            child = pdfium.FPDFBookmark_GetNextSibling(document, child)
        entry = pdfium.FPDFBookmark_GetNextSibling(document, entry)


def _entry(pdfium: Any, document: Any, entry: Any, level: int) -> tuple[str, int, float | None, int]:
    title = _text_of(lambda buffer, size: pdfium.FPDFBookmark_GetTitle(entry, buffer, size))
    place = pdfium.FPDFBookmark_GetDest(document, entry)
    if not place and (action := pdfium.FPDFBookmark_GetAction(entry)):
        place = pdfium.FPDFAction_GetDest(document, action)
    if not place:
        return title, -1, None, level
    has_x, has_y, has_zoom = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    x, y, zoom = ctypes.c_float(), ctypes.c_float(), ctypes.c_float()
    pdfium.FPDFDest_GetLocationInPage(place, has_x, has_y, has_zoom, x, y, zoom)
    height = y.value if has_y.value and math.isfinite(y.value) else None
    return title, pdfium.FPDFDest_GetDestPageIndex(document, place), height, level


def _pictures(pdfium: Any, page: Any) -> tuple[int, int]:
    """Return the numbers of pictures and of objects of a page. Pictures in forms within forms are not counted."""
    pictures = 0
    objects = pdfium.FPDFPage_CountObjects(page)
    for number in range(min(objects, _MAX_OBJECTS)):
        each = pdfium.FPDFPage_GetObject(page, number)
        kind = pdfium.FPDFPageObj_GetType(each)
        pictures += kind == _PICTURE
        if kind == _FORM:
            for inner in range(min(pdfium.FPDFFormObj_CountObjects(each), _MAX_OBJECTS)):
                pictures += pdfium.FPDFPageObj_GetType(pdfium.FPDFFormObj_GetObject(each, inner)) == _PICTURE
    return pictures, objects


def _pieces(pdfium: Any, text: Any) -> tuple[list[tuple[str, float, float, float, float]], int]:
    """Return the pieces of a page, and the number of characters that were left out because they are rotated."""
    count = pdfium.FPDFText_CountChars(text)
    turn = _direction(pdfium, text, count)
    x, y, box = ctypes.c_double(), ctypes.c_double(), pdfium.FS_RECTF()
    to_x, to_y, to_box = ctypes.byref(x), ctypes.byref(y), ctypes.byref(box)
    unicode_of, origin_of, box_of = (
        pdfium.FPDFText_GetUnicode, pdfium.FPDFText_GetCharOrigin, pdfium.FPDFText_GetLooseCharBox,
    )  # fmt: skip
    pieces: list[tuple[str, float, float, float, float]] = []
    run: list[Char] = []
    rotated = 0
    base = height = last = here = size = 0.0
    above, below = math.nan, math.nan
    made: set[int] = set()  # positions in the run of spaces that PDFium added
    for index in range(count):
        code = unicode_of(text, index)
        if code in _SKIPPED:
            if code in (10, 13):
                pieces += _cut(run, made)
                run, made = [], set()
            continue
        if code == 32 and pdfium.FPDFText_IsGenerated(text, index):
            if run:
                made.add(len(run))
                run.append((last, last, base, 0.0, " "))
            continue
        box_of(text, index, to_box)
        left, right = box.left, box.right
        if turn or box.bottom != below or box.top != above:  # else the baseline is that of the character before
            below, above = box.bottom, box.top
            origin_of(text, index, to_x, to_y)
            here, size = y.value, above - below
            if turn:
                left, right, here, low, high = _turned(turn, left, right, x.value, here, below, above)
                size = high - low
            if not math.isfinite(left + right + here + size):
                below = math.nan
                continue
            if not run or abs(here - base) > 0.45 * max(height, size):
                if _turn_of(pdfium, text, index) != turn:
                    rotated += code != 32
                    below = math.nan
                    continue
                pieces += _cut(run, made)
                run, made = [], set()
                base, height = here, size
            elif size > height:
                base, height = here, size
        elif not run:
            base, height = here, size
        character = "\xad" if code in (_HYPHEN, 0xFFFE) else chr(code) if code <= 0x10FFFF else "\ufffd"
        run.append((left, right, here, size, character))
        last = right
    pieces += _cut(run, made)
    return pieces, rotated


def _turn_of(pdfium: Any, text: Any, index: int) -> int:
    """Return the direction of a character in quarter turns: 0 is left to right."""
    angle = pdfium.FPDFText_GetCharAngle(text, index)
    return round(angle / (math.pi / 2)) % 4 if angle >= 0 else 0


def _direction(pdfium: Any, text: Any, count: int) -> int:
    """Return the most common direction of the characters of a page, from a sample."""
    sample = range(0, count, max(1, count // 50))
    turns = Counter(_turn_of(pdfium, text, index) for index in sample if pdfium.FPDFText_GetUnicode(text, index) > 32)
    return turns.most_common(1)[0][0] if turns else 0


def _turned(
    turn: int, left: float, right: float, x: float, y: float, low: float, high: float
) -> tuple[float, float, float, float, float]:
    """Return left, right, baseline, bottom and top of a character, seen in the direction of its text."""
    if turn == 2:
        return -right, -left, -y, -high, -low
    if turn == 1:
        return -high, -low, x, left, right
    return low, high, -x, -right, -left


def _cut(run: list[Char], made: set[int]) -> Iterator[tuple[str, float, float, float, float]]:
    """Yield the pieces of characters that share a baseline. A wide gap separates two pieces."""
    while run and run[-1][4] == " ":
        run.pop()
    if not run:
        return
    lefts = [char[0] for char in run]
    if any(b < a - 0.1 for a, b in pairwise(lefts)):
        # The characters are not drawn from left to right, so the added spaces are wrong.
        run = sorted((char for index, char in enumerate(run) if index not in made), key=lambda char: char[0])
        made = set()
    height = max(char[3] for char in run)
    base = Counter(round(char[2], 1) for char in run if char[3] >= 0.9 * height).most_common(1)[0][0]
    text: list[str] = []
    start, last, raised, added = run[0][0], run[0][0], False, False
    for left, right, here, size, character in run:
        if character == " ":
            if size:
                last = max(last, left)
            if text and text[-1] != " ":
                text.append(" ")
                added = not size
            continue
        if added and left - last < 0.15 * height and text[-1] == " " and _is_wide(character, text[-2]):
            text.pop()  # PDFium adds spaces between Chinese marks too
        added = False
        if text and left - last > COLUMN_GAP * height:
            yield "".join([*text, LOWERED if raised else ""]).strip(" "), start, last, base, height
            text, start, raised = [], left, False
        elif text and text[-1] != " " and left - last > _WORD_GAP * height and not _is_wide(character, text[-1]):
            text.append(" ")
        is_raised = size < 0.85 * height and here - base > 0.15 * height
        if is_raised != raised:
            text.append(RAISED if is_raised else LOWERED)
            raised = is_raised
        text.append(character)
        last = max(last, right)
    yield "".join([*text, LOWERED if raised else ""]).strip(" "), start, last, base, height


def _is_wide(*characters: str) -> bool:
    return any("\u2e80" <= each <= "\u9fff" or "\uf900" <= each <= "\uffef" for each in characters)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
