"""Plain text, and markup that is read as written."""

from __future__ import annotations

from finetale.text.formats.base import Format, SourceFile

_SUFFIXES = (".txt", ".text", ".rst", ".rest", ".adoc", ".asciidoc", ".org", ".wiki", ".mediawiki")

FORMATS = (Format("text", "text", _SUFFIXES, "text", SourceFile.texts, has_lines=True),)
