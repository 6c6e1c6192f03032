"""The interface to a program that runs models. Knows nothing of formats and imports no such program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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
