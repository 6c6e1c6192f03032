"""Turn the tokens of one sample into text, in pieces that never end within a character or a possible stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

# Prompt tokens that are decoded with the continuation, because some tokenizers drop a space at the start of a text.
CONTEXT_TOKENS = 4
_UNFINISHED = 3
"""Bytes of the longest UTF-8 character, without its last byte."""


class TextStream:
    """Turn tokens into text: hold back unfinished characters and cut at stop strings.

    Args:
        special: whether special tokens are part of the text, as in a prompt that is echoed.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, context: list[int], stop: tuple[str, ...], *, special: bool = False
    ) -> None:
        self.tokenizer = tokenizer
        self._skip = not special
        self.stop = stop
        self.text = ""
        self.stopped = False
        self._taken = 0
        # Only a window is decoded: the last piece of settled text (_settled tokens, _base characters) and what follows;
        # _seen of its characters are in self.text.
        self._window = list(context)
        self._settled = len(context)
        self._base = self._seen = len(self._decode())

    def add(self, token: int) -> None:
        """Add one token."""
        self._window.append(token)
        text = self._decode()
        # The bytes at the end may be the beginning of a character; until they are one they decode as U+FFFD.
        end = len(text.rstrip("\ufffd"))
        if len(self._window) - self._settled > _UNFINISHED:  # more than can belong to one: those before are none
            end = max(end, len(text) - _UNFINISHED)
        if end > self._seen:
            self._append(text[self._seen : end])
            self._seen = end
        if end == len(text) > self._base:
            del self._window[: self._settled]
            self._settled = len(self._window)
            self._base = self._seen = len(self._decode())

    def add_all(self, tokens: Sequence[int]) -> None:
        """Add all tokens in one call; `finish` decodes them. Only for samples without stop strings."""
        self._window.extend(tokens)

    def finish(self) -> None:
        """End the text: an unfinished character becomes part of it."""
        if not self.stopped:
            self._append(self._decode()[self._seen :])

    @property
    def taken(self) -> int:
        """Return the number of characters that `take` has returned."""
        return self._taken

    def take(self, *, final: bool) -> str:
        """Return the new text since the last call, without a possible start of a stop string; if final, all of it."""
        held = 0
        if not final:
            sizes = (size for stop in self.stop for size in range(1, len(stop)) if self.text.endswith(stop[:size]))
            held = max(sizes, default=0)
        start, self._taken = self._taken, len(self.text) - held
        return self.text[start : self._taken]

    def _append(self, piece: str) -> None:
        before = len(self.text)
        self.text += piece
        found = [self.text.find(stop, max(0, before - len(stop) + 1)) for stop in self.stop]
        if places := [place for place in found if place >= 0]:
            self.text = self.text[: min(places)]
            self.stopped = True

    def _decode(self) -> str:
        text: str = self.tokenizer.decode(
            self._window, skip_special_tokens=self._skip, clean_up_tokenization_spaces=False
        )
        return text
