"""The bytes that each token of a vocabulary stands for. Knows no grammars and no requests."""

from __future__ import annotations

import random
import re
from functools import cache

from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_NUM_PROBES = 300
"""Number of sequences of tokens for which `token_bytes` compares the text with the bytes."""


class InexactTokens(Exception):
    """The tokenizer changes the text of a token depending on its neighbours."""


@cache
def byte_table() -> dict[str, int]:
    """Return the byte for each character that byte-level tokenizers use for it (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + at): value for at, value in enumerate(others)}


class TokenBytes:
    """The bytes of the tokens of a tokenizer, within a text.

    Args:
        tokenizer: the tokenizer.
        size: number of ids.

    Attributes:
        bytes: for each id; empty for special tokens and for ids without a token.
        special: ids of special tokens.
        anchor: a token with a visible text. Some tokenizers drop a space at the start of a text; with this token before
            them, all tokens have the bytes that they have within a text.

    Raises:
        InexactTokens: the text of some tokens is not their bytes, one after the other.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
        self._tokenizer = tokenizer
        known = tokenizer.get_vocab()
        added = tokenizer.added_tokens_decoder
        self.special = sorted(
            {*tokenizer.all_special_ids, *(token for token, entry in added.items() if entry.special)} & set(range(size))
        )
        skipped = {*self.special, *(set(range(size)) - set(known.values()))}
        ids = [token for token in range(size) if token not in skipped]
        names = dict(zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True))
        self.anchor = self._find_anchor(names)
        self.bytes = [b""] * size
        lead = self._decode([self.anchor])
        for token, text in zip(ids, self._decode_all([[self.anchor, token] for token in ids]), strict=True):
            self.bytes[token] = _bytes_of(names[token], text.removeprefix(lead))
        self._by_bytes = {data: token for token, data in reversed(list(enumerate(self.bytes))) if data}
        self._longest = max(map(len, self._by_bytes), default=0)
        self._check(ids)

    def encode(self, text: str) -> list[int]:
        """Return ids whose bytes are exactly those of a text; empty if the vocabulary cannot write it.

        The ids are those of the tokenizer, unless it changes the text. Then they are the longest that fit.
        """
        data = text.encode()
        with_specials = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = [int(token) for token in with_specials]
        if all(token < len(self.bytes) for token in ids) and b"".join(self.bytes[token] for token in ids) == data:
            return ids
        found, at = [], 0
        while at < len(data):
            for end in range(min(len(data), at + self._longest), at, -1):
                if (token := self._by_bytes.get(data[at:end])) is not None:
                    found.append(token)
                    at = end
                    break
            else:
                return []
        return found

    def _find_anchor(self, names: dict[int, str]) -> int:
        """Return a token whose text is a letter or digit, or, without such a token, the first one with a text."""
        found = None
        for token in names:
            text = self._decode([token])
            if len(text) == 1 and text.isascii() and text.isalnum():
                return token
            if found is None and text.strip() and "\ufffd" not in text:
                found = token
        if found is None:
            raise InexactTokens("no token has a text")
        return found

    def _check(self, ids: list[int]) -> None:
        """Compare the texts of random sequences of tokens with their bytes."""
        chance = random.Random(0)
        usable = [token for token in ids if self.bytes[token]]
        if not usable:
            raise InexactTokens("no token has a text")
        probes = [chance.choices(usable, k=3) for _ in range(_NUM_PROBES)]
        lead = self._decode([self.anchor])
        for probe, text in zip(probes, self._decode_all([[self.anchor, *probe] for probe in probes]), strict=True):
            data = b"".join(self.bytes[token] for token in probe)
            try:
                expected = data.decode()
            except UnicodeDecodeError:  # how a part of a character is shown depends on the decoder
                continue
            if text != lead + expected:
                raise InexactTokens(
                    f"it changes the text of a token depending on its neighbours ({text!r} for {lead + expected!r})"
                )

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _decode_all(self, lists: list[list[int]]) -> list[str]:
        return [self._decode(ids) for ids in lists]


def _bytes_of(name: str, text: str) -> bytes:
    """Return the bytes of a token, from its name in the vocabulary and its text after another token."""
    if text and "\ufffd" not in text:
        return text.encode()
    if match := _BYTE.fullmatch(name):
        return bytes([int(match[1], 16)])
    data = [byte_table().get(character) for character in name]
    if name and None not in data:
        return bytes(value for value in data if value is not None)
    return bytes([ord(name)]) if len(name) == 1 and ord(name) < 256 else b""  # ByT5's name for a byte
