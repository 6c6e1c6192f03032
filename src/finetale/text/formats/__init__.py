"""The registry of file formats: suffix and first bytes → reader.

A new format is one new module with `FORMATS`, or one package of modules if it needs several.

Knows no folders and no documents.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path

from finetale.text.byte_streams import COMPRESSED
from finetale.text.formats.base import Chapter, Format, Kind, SourceFile

__all__ = [
    "Chapter",
    "Format",
    "SourceFile",
    "format_named",
    "format_of",
    "formats",
    "known_kinds",
    "suffix_of",
]

_KINDS: dict[Kind, str] = {
    "text": "plain text and markup",
    "manuscript": "manuscripts",
    "book": "e-books",
    "page": "web pages",
    "mail": "mails",
    "table": "tables and records",
    "subtitles": "subtitles",
}
"""Kind of formats with suffixes → its noun. The order is that of messages."""
HEAD_BYTES = 4096
"""Number of first bytes by which a file without a suffix is identified."""


@cache
def formats() -> tuple[Format, ...]:
    """Return all formats, in the order of their modules' names."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = (importlib.import_module(f"{__name__}.{name}") for name in modules)
    return tuple(each for module in found for each in getattr(module, "FORMATS", ()))


@cache
def _by_suffix() -> dict[str, Format]:
    table: dict[str, Format] = {}
    for each in formats():
        for suffix in each.suffixes:
            assert suffix not in table, f"{suffix} belongs to {table[suffix].name} and {each.name}"
            table[suffix] = each
    return table


def format_named(name: str) -> Format:
    """Return the format with this name."""
    return next(each for each in formats() if each.name == name)


def suffix_of(path: Path) -> str:
    """Return the last suffix in lower case, without .gz and .zst. Empty if there is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def format_of(path: Path) -> Format | None:
    """Return the format for a file's suffix, without a final .gz or .zst. None for unknown suffixes."""
    return _by_suffix().get(suffix_of(path))


def known_kinds() -> str:
    """Return the kinds of files that can be read, each with the usual suffixes of its formats, for messages."""
    usual = {kind: [each.suffixes[0] for each in formats() if each.kind == kind and each.suffixes] for kind in _KINDS}
    return ", ".join(f"{noun} ({' '.join(usual[kind])})" for kind, noun in _KINDS.items())
