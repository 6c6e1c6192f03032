"""Plain text."""

from __future__ import annotations

from finetale.text.formats.base import Format, SourceFile

FORMATS = (Format("text", (".txt", ".text", ".md", ".markdown"), "text", SourceFile.texts, has_lines=True),)
