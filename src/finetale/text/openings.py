"""The first words of a story by language: the default prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

OPENINGS = {
    "Chinese": "从前",
    "Czech": "Bylo nebylo",
    "Danish": "Der var engang",
    "Dutch": "Er was eens",
    "English": "Once upon a time",
    "French": "Il était une fois",
    "German": "Es war einmal",
    "Greek": "Μια φορά κι έναν καιρό",
    "Hebrew": "היה היה פעם",
    "Italian": "C'era una volta",
    "Japanese": "昔々",
    "Korean": "옛날 옛적에",
    "Polish": "Dawno, dawno temu",
    "Portuguese": "Era uma vez",
    "Russian": "Жили-были",
    "Spanish": "Érase una vez",
    "Swedish": "Det var en gång",
    "Thai": "กาลครั้งหนึ่งนานมาแล้ว",
    "Turkish": "Bir varmış bir yokmuş",
    "Ukrainian": "Жили-були",
}


def opening(languages: Iterable[Mapping[str, Any]]) -> str | None:
    """Return how a story begins in the most frequent language of a text.

    Args:
        languages: the `languages` of a data report, most frequent first.

    Returns:
        None if the language is unknown, or the guess covers several languages ("Arabic script").
    """
    first = next(iter(languages), None)
    return None if first is None else OPENINGS.get(str(first.get("language")))
