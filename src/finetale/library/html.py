"""HTML that notebooks show for results. Styles nothing but sizes, so that it reads well on light and dark pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def block(title: str, sentence: str, content: str = "") -> str:
    """Return a title, a sentence, and HTML below them."""
    return f'<div style="max-width:60em"><b>{escape(title)}</b><p>{escape(sentence)}</p>{content}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the first column is aligned left, the others right."""
    cells = "".join(f'<th style="text-align:{_side(at)}">{escape(cell)}</th>' for at, cell in enumerate(head))
    lines = [f"<tr>{cells}</tr>"]
    for row in rows:
        cells = "".join(f'<td style="text-align:{_side(at)}">{escape(cell)}</td>' for at, cell in enumerate(row))
        lines.append(f"<tr>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _side(column: int) -> str:
    return "right" if column else "left"
