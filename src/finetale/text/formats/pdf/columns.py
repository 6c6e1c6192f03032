"""From the pieces of text on a page of a PDF file to columns in reading order, and to their lines."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from finetale.text.formats.pdf.pages import COLUMN_GAP, LOWERED, RAISED
from finetale.text.formats.pdf.pieces import SAME_PLACE, Page, Piece

_BINS = 200
_MIN_IN_COLUMN = 3
_FULL = 0.45
"""Share of the width of a column that its lines fill at least. Those of tables fill less."""


def usual_gaps(pages: Iterable[Page]) -> list[float]:
    """Return where the pages of a document have the gap between two columns, in points from the left."""
    found = (_gap_between_columns(page.pieces) for page in pages)
    times = Counter(round(gap) for gap in found if gap is not None)
    return [gap for gap, _ in times.most_common(2)]


def in_order(pieces: list[Piece], usual: Sequence[float] = (), depth: int = 0) -> Iterator[list[Piece]]:
    """Yield groups of pieces in reading order. A piece across the gap of two columns starts a new group below both.

    Args:
        pieces: the pieces of a page, or of a part of it.
        usual: the gaps of other pages. They tell columns of one or two lines from a table.
    """
    gap = _gap_between_columns(pieces) if depth < 4 else None
    if gap is None and not depth:
        gap = next((each for each in usual if _separates(each, pieces)), None)
    if gap is None:
        if pieces:
            yield pieces
        return
    across = [piece for piece in pieces if piece.left < gap - 1 and piece.right > gap + 1]
    rest = [piece for piece in pieces if not (piece.left < gap - 1 and piece.right > gap + 1)]
    group: list[Piece] = []

    def sides(above: float, below: float) -> Iterator[list[Piece]]:
        within = [piece for piece in rest if below < piece.base <= above]
        yield from in_order([piece for piece in within if piece.right <= gap + 1], usual, depth + 1)
        yield from in_order([piece for piece in within if piece.right > gap + 1], usual, depth + 1)

    above = float("inf")
    for piece in sorted(across, key=lambda piece: -piece.base):
        if any(piece.base < each.base <= above for each in rest if each.base < above and abs(each.base - above) > 1):
            if group:
                yield group
            group = []
            yield from sides(above, piece.base)
        group.append(piece)
        above = piece.base
    if group:
        yield group
    yield from sides(above, -float("inf"))


def _separates(gap: float, pieces: list[Piece]) -> bool:
    """Return whether a gap has full columns on both sides, and text across it only above or below them."""
    left = [piece for piece in pieces if piece.right <= gap + 1]
    right = [piece for piece in pieces if piece.left >= gap - 1]
    if not left or not right or min(len(left), len(right)) >= _MIN_IN_COLUMN:
        return False
    beside = any(abs(one.base - other.base) <= SAME_PLACE for one in left for other in right)
    start, end = min(piece.left for piece in pieces), max(piece.right for piece in pieces)
    return beside and all(
        max(piece.right - piece.left for piece in side) >= _FULL * room
        for side, room in ((left, gap - start), (right, end - gap))
    )


def _gap_between_columns(pieces: list[Piece]) -> float | None:
    """Return the middle of the gap between two columns of text. None if there is only one column."""
    if len(pieces) < 2 * _MIN_IN_COLUMN:
        return None
    start, end = min(piece.left for piece in pieces), max(piece.right for piece in pieces)
    width = (end - start) / _BINS
    if width <= 0:
        return None
    changes = [0] * (_BINS + 2)
    for piece in pieces:
        changes[max(0, int((piece.left - start) / width))] += 1
        changes[min(_BINS, int((piece.right - start) / width) + 1)] -= 1
    covers: list[int] = []
    for change in changes[:_BINS]:
        covers.append((covers[-1] if covers else 0) + change)
    inner = range(_BINS * 15 // 100, _BINS * 85 // 100)
    least = min(covers[number] for number in inner)
    if least > len(pieces) // 5:
        return None
    best = min((number for number in inner if covers[number] == least), key=lambda number: abs(number - _BINS / 2))
    first = last = best
    while first > 0 and covers[first - 1] == least:
        first -= 1
    while last < _BINS - 1 and covers[last + 1] == least:
        last += 1
    gap = start + (first + last + 1) / 2 * width
    left = [piece for piece in pieces if piece.right <= gap]
    right = [piece for piece in pieces if piece.left >= gap]
    if len(left) < _MIN_IN_COLUMN or len(right) < _MIN_IN_COLUMN:
        return None
    beside = sum(min(p.base for p in right) - 1 <= piece.base <= max(p.base for p in right) + 1 for piece in left[:200])
    if beside < _MIN_IN_COLUMN:
        return None
    for side, room in ((left, gap - start), (right, end - gap)):  # columns are mostly filled; those of tables are not
        if statistics.median(piece.right - piece.left for piece in side) < _FULL * room:
            return None
    return gap


def lines_of(pieces: list[Piece]) -> list[Piece]:
    """Return the lines of one column, from top to bottom."""
    lines: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: (-piece.base, piece.left)):
        if not piece.text:
            continue
        before = lines[-1] if lines else piece
        larger, smaller = (before, piece) if before.height >= piece.height else (piece, before)
        is_raised = smaller.height < 0.85 * larger.height and smaller.base > larger.base
        if not lines or before.base - piece.base > (0.5 * larger.height if is_raised else 0.3 * smaller.height):
            lines.append(piece)
            continue
        if is_raised and RAISED not in smaller.text:
            smaller.text = f"{RAISED}{smaller.text}{LOWERED}"
        first, second = (before, piece) if before.left <= piece.left else (piece, before)
        gap = second.left - first.right
        lines[-1] = Piece(
            first.text + ("" if gap < 0.15 * larger.height else " ") + second.text,
            first.left,
            max(first.right, second.right),
            larger.base,
            larger.height,
            first.cells + second.cells - (gap <= COLUMN_GAP * larger.height),
        )
    return lines


def join_drop_caps(page: Page, height: float) -> None:
    """Put a large first letter that spans several lines before the first of these lines."""
    for cap in [piece for piece in page.pieces if piece.height > 1.7 * height and re.fullmatch(r"\W?\w", piece.text)]:
        beside = [
            piece
            for piece in page.pieces
            if piece.height < 0.6 * cap.height
            and cap.base - SAME_PLACE <= piece.base <= cap.base + 0.9 * cap.height
            and 0 <= piece.left - cap.left <= cap.right - cap.left + 2 * height
        ]
        if len(beside) > 1:
            first = max(beside, key=lambda piece: piece.base)
            for piece in beside:
                piece.left = cap.left
            first.text = cap.text + first.text
            page.pieces = [piece for piece in page.pieces if piece is not cap]
