"""Read the licence in the card of a model folder. Knows nothing else of cards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

CARD_NAME = "README.md"
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}", re.ASCII)
_UNCLEAR = ("other", "unknown")
"""Licences that need a name or text of their own."""
_MAX_CHARACTERS = 65_536


def read_license(folder: Path) -> str | None:
    """Return the licence that the front matter of a folder's card states; None if it states none, or unclearly."""
    try:
        with (folder / CARD_NAME).open(encoding="utf-8") as file:
            text = file.read(_MAX_CHARACTERS)
        front_matter = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        values = yaml.safe_load(front_matter[1]) if front_matter else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    return as_license(values.get("license")) if isinstance(values, dict) else None


def as_license(value: Any) -> str | None:
    """Return the Hub's identifier of a licence if the value is one, and clear."""
    if isinstance(value, str) and _LICENSE.fullmatch(value) and value not in _UNCLEAR:
        return value
    return None
