"""What the reader of PDF pages and the rules of layout exchange: pages and their pieces of text."""

from __future__ import annotations

from dataclasses import dataclass, field

SAME_PLACE = 2.0
"""Points by which two baselines or edges may differ and count as the same."""


@dataclass(slots=True)
class Piece:
    """A piece of a line, or a line: its text, left edge, right edge, baseline and height in points, number of cells."""

    text: str
    left: float
    right: float
    base: float
    height: float
    cells: int = 1


@dataclass(slots=True)
class Page:
    """A page.

    Attributes:
        number: from 1.
        pieces: its pieces of text.
        is_empty: whether nothing is drawn on it.
        is_damaged: whether it can't be read.
        columns: its lines, by column in reading order; set by `read_layout`.
    """

    number: int
    pieces: list[Piece]
    is_empty: bool = False
    is_damaged: bool = False
    columns: list[list[Piece]] = field(default_factory=list)
