"""Lone surrogates: halves of a character, which JSON can hold, or bytes of a command line that are not UTF-8.

They are not text, and no encoding has them: a tokenizer raises a TypeError. Knows nothing else of the package.
"""

from __future__ import annotations

import re

SURROGATE = re.compile("[\ud800-\udfff]")


def describe_surrogates(text: str, *, from_bytes: bool = False) -> str | None:
    """Say what of a text is not text, as the end of a sentence without its subject; None if all of it is.

    Args:
        from_bytes: the text comes from a command line, where Python has put a surrogate in place of each invalid byte.
    """
    found = SURROGATE.findall(text)
    if not found:
        return None
    if from_bytes and all("\udc80" <= item <= "\udcff" for item in found):
        count = f"{len(found)} bytes that are" if len(found) > 1 else "a byte that is"
        return f"holds {count} not UTF-8 (0x{ord(found[0]) - 0xDC00:02X} after {text.index(found[0])} characters)"
    if len(found) > 1:
        return f"holds {len(found)} lone surrogates (halves of a character), which are not text"
    return "holds a lone surrogate (half of a character), which is not text"


def escape_surrogates(text: str) -> str:
    """Return text without surrogates. Bytes of a file name that are not UTF-8 become \\xNN, others \\uNNNN."""
    return text if text.isascii() else SURROGATE.sub(lambda match: escape(match.group()), text)


def escape(character: str) -> str:
    """Return the escape of a control character or a surrogate: \\xNN if it is one byte, else \\uNNNN."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def quoted(text: str, most: int = 60) -> str:
    """Return a text in quotes for a message: on one line, its surrogates escaped, cut after `most` characters."""
    return repr(text if len(text) <= most else text[: most - 1] + "…")
