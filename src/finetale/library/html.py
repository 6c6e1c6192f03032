"""HTML that notebooks show for results. Its few colours are readable on light and on dark pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_STYLE = "max-width:60em;--rule:#8886;--chart-training:#858b99;--chart-validation:#5585d0;--chart-rate:#b08a2e"
"""The page of a notebook does not define the colours of the report's charts."""


def block(title: str, sentence: str, content: str = "") -> str:
    """Return a title, a sentence, and HTML below them."""
    return f'<div style="{_STYLE}"><b>{escape(title)}</b><p>{escape(sentence)}</p>{content}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the first column is aligned left, the others right."""
    cells = "".join(f'<th style="{_cell(at)}">{escape(cell)}</th>' for at, cell in enumerate(head))
    lines = [f"<tr>{cells}</tr>"]
    for row in rows:
        cells = "".join(f'<td style="{_cell(at)}">{escape(cell)}</td>' for at, cell in enumerate(row))
        lines.append(f"<tr>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _cell(column: int) -> str:
    return f"padding:0.1em 0.6em;text-align:{'right' if column else 'left'}"
