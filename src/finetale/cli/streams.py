"""Make stdout and stderr print every character in any encoding.

Consoles and pipes in ASCII, Latin-1 or a Windows code page lack characters of messages and texts. Python raises an
error there; the handler below prints a replacement. It prints lone surrogates, which no encoding has, as escapes.
"""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata
from typing import TextIO

_HANDLER = "finetale.printable"
_REPLACEMENTS = {
    "–": "-", "—": "-", "‒": "-", "‐": "-", "‑": "-", "−": "-", "⁻": "-",
    "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": "'", "’": "'", "‚": "'", "‹": "'", "›": "'",
    "…": "...", "·": "*", "•": "*", "×": "x", "÷": "/", "±": "+/-", "≤": "<=", "≥": ">=", "≈": "~",
    "→": "->", "←": "<-", "↔": "<->", "✓": "+", "✕": "x", "ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE",
    "ø": "o", "Ø": "O", "đ": "d", "ð": "d", "ł": "l", "Ł": "L", "€": "EUR",
}  # fmt: skip
"""Readable ASCII for characters that have no decomposition in Unicode."""


def accept_all_characters() -> None:
    """Let `sys.stdout` and `sys.stderr` replace characters that their encoding lacks."""
    codecs.register_error(_HANDLER, _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def is_unicode(stream: TextIO) -> bool:
    """Return whether a stream can write every character; one without an encoding, as in memory, can."""
    return (stream.encoding or "utf-8").lower().replace("_", "-").startswith("utf")


def _replace(error: UnicodeError) -> tuple[str, int]:
    """Handle an encoding error; see `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_ascii, error.object[error.start : error.end])), error.end


def _ascii(character: str) -> str:
    """Return readable ASCII for one character: its replacement, its letter without accents, an escape, or `?`."""
    if character in _REPLACEMENTS:
        return _REPLACEMENTS[character]
    if "\ud800" <= character <= "\udfff":
        return f"\\u{ord(character):04x}"
    if "\u2500" <= character <= "\u257f":  # box drawing
        return "|" if character in "│┃║" else "-" if character in "─━═" else "+"
    if "\u2580" <= character <= "\u259f":  # blocks, as in bars
        return "#"
    if "\u2800" <= character <= "\u28ff":  # Braille patterns, as in spinners
        return "*"
    plain = "".join(part for part in unicodedata.normalize("NFKD", character) if part.isascii())
    return plain or ("" if unicodedata.combining(character) else "?")
