"""Read sources that hold examples, and show what of them is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetale.chat import chat_renderer
from finetale.config import TextSettings
from finetale.text import Part, read_parts


def read(path: Path, template: str | None = None, **settings: Any) -> tuple[list[Part], dict[str, Any]]:
    """Return all parts of a source, for training unless the settings hold some out, and the data report."""
    defaults = {"validation_fraction": 0, "test_fraction": 0, "screen": False, "template": template}
    resolved = TextSettings.resolve(defaults | settings)
    parts, report = read_parts([str(path)], resolved, renderer=chat_renderer(None, resolved.loss))
    return list(parts), report.to_dict()


def marked(part: Part) -> str:
    """Return the text of a part, with its context in brackets."""
    text = part.text
    for start, stop in reversed(part.context):
        text = text[:start] + "[" + text[start:stop] + "]" + text[stop:]
    return text
