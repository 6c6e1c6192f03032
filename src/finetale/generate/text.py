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
        keeps_stop: whether a stop string is part of the text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        context: list[int],
        stop: tuple[str, ...],
        *,
        special: bool = False,
        keeps_stop: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self._keeps_stop = keeps_stop
        self._skip = not special
        self._stops = [_StopString(words) for words in stop]
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
        held = 0 if final else max((stop.matched for stop in self._stops), default=0)
        start, self._taken = self._taken, len(self.text) - held
        return self.text[start : self._taken]

    def _append(self, piece: str) -> None:
        if self.stopped:
            return
        found = [(end - len(stop.words), end) for stop in self._stops if (end := stop.read(piece)) is not None]
        before = len(self.text)
        self.text += piece
        if found:
            start, end = min(found)
            self.text = self.text[: before + (end if self._keeps_stop else start)]
            self.stopped = True

    def _decode(self) -> str:
        text: str = self.tokenizer.decode(
            self._window, skip_special_tokens=self._skip, clean_up_tokenization_spaces=False
        )
        return text


class _StopString:
    """Finds a stop string in a text that arrives in pieces, in constant time per character (Knuth, Morris, Pratt 1977).

    Attributes:
        words: the stop string.
        matched: length of the longest beginning of it that the text ends with.
    """

    def __init__(self, words: str) -> None:
        self.words = words
        self.matched = 0
        # For each length of a match, the next shorter beginning of the stop string that is also its end.
        self._shorter = [0, 0]
        length = 0
        for character in words[1:]:
            while length and words[length] != character:
                length = self._shorter[length]
            length += words[length] == character
            self._shorter.append(length)

    def read(self, piece: str) -> int | None:
        """Read more text; return where in it the stop string ends first, None if it does not."""
        words, matched = self.words, self.matched
        for at, character in enumerate(piece, start=1):
            while matched and words[matched] != character:
                matched = self._shorter[matched]
            matched += words[matched] == character
            if matched == len(words):
                self.matched = matched
                return at
        self.matched = matched
        return None
