"""From the paragraphs and cells of an RTF document to blocks. Knows no control words."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetale.text.formats.manuscript import Block, list_item, table_row

_BULLETS = ("•", "·", "◦", "▪", "o", "-", "*", "§", "–", "—", "―")


@dataclass(slots=True)
class _Paragraph:
    pieces: list[str] = field(default_factory=list)
    marker: str = ""
    boxes: list[Block] = field(default_factory=list)  # text of the text boxes that are anchored in it


class Body:
    """Receives the text of a document, and collects its blocks.

    Attributes:
        blocks: the blocks of the document.
        box_depth: depth of the groups at which the innermost open text box was opened, -1 outside of text boxes.
    """

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.box_depth = -1
        self._paragraph = _Paragraph()
        self._target = self.blocks
        self._around: list[tuple[int, _Paragraph, list[Block]]] = []  # what surrounds each open text box
        self._cells: list[list[Block]] = []
        self._cell: list[Block] = []
        self._num_tables = 0
        self._in_table = False

    @property
    def marker(self) -> str:
        """The mark of the current paragraph, if it is an item of a list."""
        return self._paragraph.marker

    @marker.setter
    def marker(self, marker: str) -> None:
        self._paragraph.marker = marker

    def add(self, text: str) -> None:
        """Add text to the current paragraph."""
        self._paragraph.pieces.append(text)

    def open_box(self, depth: int) -> None:
        """Start a text box, which interrupts the current paragraph."""
        self._around.append((self.box_depth, self._paragraph, self._target))
        self.box_depth, self._paragraph, self._target = depth, _Paragraph(), []

    def close_box(self) -> None:
        """End a text box. Its blocks follow the paragraph that it interrupts."""
        blocks = self._target
        self.box_depth, self._paragraph, self._target = self._around.pop()
        self._paragraph.boxes += blocks

    def end_paragraph(self, level: int | None, depth: int, *, in_table: bool) -> None:
        """End the current paragraph.

        Args:
            level: level of the heading, None for other paragraphs.
            depth: level of the list, from 0.
            in_table: whether it is part of a table.
        """
        paragraph, self._paragraph = self._paragraph, _Paragraph()
        text = "".join(paragraph.pieces).strip()
        if not in_table and not self._around:
            self.end_table()
        target = self._cell if in_table and not self._around else self._target
        if text:
            target.append(Block(text, level) if level is not None else _block(text, paragraph.marker.strip(), depth))
        target += paragraph.boxes

    def end_cell(self) -> None:
        """End a cell of a table."""
        self._in_table = True
        self._cells.append(self._cell)
        self._cell = []

    def end_row(self) -> None:
        """End a row of a table."""
        if self._cell:
            self._cells.append(self._cell)
        self._target += table_row(self._cells, f"table {self._num_tables}") if self._cells else []
        self._cells, self._cell = [], []

    def end_table(self) -> None:
        """End the current table, if there is one."""
        self.end_row()
        if self._in_table:
            self._in_table = False
            self._num_tables += 1


def _block(text: str, marker: str, depth: int) -> Block:
    """Return a paragraph, or an item of a list if it has a marker or starts with one."""
    if not marker and text[:1] in _BULLETS and text[1:2] == "\t":
        marker, text = text[0], text[2:].strip()
    if not marker:
        return Block(text)
    if not any(character.isalnum() for character in marker) or marker == "o":
        marker = marker if marker in ("–", "—", "―") else "-"
    return list_item(text, marker, depth)
