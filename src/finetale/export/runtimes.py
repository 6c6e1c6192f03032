"""The interface to a program that runs models, and what those share that read an exported folder with its tokenizer.

Knows nothing of formats and imports no such program.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]


class Runtime(Protocol):
    """A program that holds a model and one text.

    Attributes:
        name: name and version.
    """

    name: str

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens."""

    def reset(self) -> None:
        """Forget the text."""

    def read(self, ids: Sequence[int]) -> Scores:
        """Append tokens to the text.

        Returns:
            The scores of the next token after each of them, (tokens, vocabulary). They may be those of the softmax or
            their logarithms up to a constant.
        """

    def close(self) -> None:
        """Free what the program holds."""


class FolderRuntime:
    """The part of a Runtime that reads a folder with a tokenizer and tells its program each token's position."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        self._seen = 0

    def encode(self, text: str) -> list[int]:
        """See Runtime."""
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return found

    def inputs_of(self, ids: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Return the inputs for the next tokens of the text, (1, tokens); the mask covers the earlier ones too."""
        positions = np.arange(self._seen, self._seen + len(ids), dtype=np.int64)
        self._seen += len(ids)
        return {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, self._seen), np.int64),
            "position_ids": positions[None],
        }
