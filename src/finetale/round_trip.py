"""How a tokenizer changes a text: encode a sample, decode it, and compare. Knows nothing of models.

Some tokenizers lower-case the text, remove accents, repeated spaces or line ends, or put spaces between Chinese
characters. A model then learns and writes the changed text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNIT = re.compile(r"[\s\S]{1,500}(?:(?=\s)|$)|[\s\S]{500}")
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_ITEMS = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+|\s+|[^\w\s]")
"""Words, single characters of Chinese and Japanese, white space, and marks."""
_UNKNOWN = "\ue000"
"""Stands for an unknown token in decoded text; a character of private use."""
_COMPARED_CHARACTERS = 100_000
_NEAR = 2
"""Number of items (words, spaces, marks) that an example shows on each side of a change."""
_MAX_EXAMPLE = 60


class TextSample:
    """A sample of a text in pieces of up to 500 characters, evenly spread, in bounded memory.

    Args:
        most: maximum number of characters. When they are reached, every second piece is dropped, and from then on only
            half as many are taken.
    """

    def __init__(self, most: int = _COMPARED_CHARACTERS) -> None:
        self._most = most
        self._every = 1
        self._count = self._size = 0
        self._units: list[str] = []

    def add(self, text: str) -> None:
        """Add a text."""
        for unit in _units(text):
            if self._count % self._every == 0:
                self._units.append(unit)
                self._size += len(unit)
                if self._size > self._most and len(self._units) > 1:
                    self._units = self._units[::2]
                    self._size = sum(map(len, self._units))
                    self._every *= 2
            self._count += 1

    @property
    def units(self) -> list[str]:
        """The pieces, in the order of the text."""
        return self._units


@dataclass(frozen=True)
class Changes:
    """What is different after encoding and decoding a sample.

    Attributes:
        share: characters in changed words, or spaces, divided by all characters.
        before: a passage with the first change.
        after: what it becomes.
        only_spaces: whether nothing but white space changes.
    """

    share: float
    before: str
    after: str
    only_spaces: bool

    def sentence(self) -> str:
        """Return the change as a sentence."""
        what = "spaces and line ends" if self.only_spaces else "text"
        return (
            f"The tokenizer changes the {what}: “{self.before}” becomes “{self.after}” ({self.share:.2%} of a sample "
            "is changed). The model learns and writes the changed form."
        )


def changes(tokenizer: PreTrainedTokenizerBase, units: Sequence[str]) -> Changes | None:
    """Return how a tokenizer changes a sample; None if it comes back exactly.

    A space before the first word of a piece is ignored: some tokenizers add one there and remove it. Unknown tokens are
    ignored too; they are counted elsewhere.
    """
    total = changed = 0
    example: tuple[str, str] | None = None
    only_spaces = True
    for unit in units:
        ids = tokenizer.encode(unit, add_special_tokens=False, verbose=False)
        back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if tokenizer.unk_token:
            back = back.replace(tokenizer.unk_token, _UNKNOWN)
        total += len(unit)
        if back == unit or back.strip(" ") == unit.strip(" "):
            continue
        before, after = _ITEMS.findall(unit.strip(" ")), _ITEMS.findall(back.strip(" "))
        for kind, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
            if kind == "equal":
                continue
            old, new = "".join(before[a:b]), "".join(after[c:d])
            if new.strip().strip(_UNKNOWN) == "" and _UNKNOWN in new:
                continue
            changed += max(len(old), len(new))
            is_space = not (old + new).strip()
            if example is None or (only_spaces and not is_space):
                example = (
                    _shown(before[max(0, a - _NEAR) : b + _NEAR]),
                    _shown(after[max(0, c - _NEAR) : d + _NEAR]),
                )
            only_spaces = only_spaces and is_space
    return None if example is None else Changes(min(1.0, changed / max(1, total)), *example, only_spaces)


def _shown(items: Sequence[str]) -> str:
    """Return items as a passage on one line."""
    text = "".join(items)[:_MAX_EXAMPLE].replace(_UNKNOWN, "?")
    return text.replace("\n", "\\n").replace("\t", "\\t")


def _units(text: str) -> Iterator[str]:
    """Cut a text into pieces of up to 500 characters, before white space where there is some."""
    return (match[0] for match in _UNIT.finditer(text))
