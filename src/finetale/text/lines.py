"""Count line ends, normalise them, and cut text into lines. Knows nothing of bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from finetale.text.account import FileAccount
from finetale.text.decoding import LineCounter

ENDS = {"\\n": re.compile("(?<!\r)\n"), "\\r\\n": re.compile("\r\n"), "\\r": re.compile("\r(?!\n)")}


def even_line_ends(
    texts: Iterator[str], account: FileAccount, *, translate: bool, mixture_matters: bool = True
) -> Iterator[str]:
    """Count the line ends of a file, report a mixture and, with `translate`, turn \\r\\n and \\r into \\n.

    Args:
        texts: the file's text in blocks that are not empty. The yielded blocks are not empty either.
        account: receives the problem "mixed_newlines" and, with `translate`, the cleaning count "newlines".
        translate: whether to change line ends.
        mixture_matters: whether to report a mixture.
    """
    counts = dict.fromkeys(ENDS, 0)
    first: dict[str, int] = {}
    lines = LineCounter()
    for text in _whole_ends(texts):
        if "\r" in text:
            both = text.count("\r\n")
            here = {"\\n": text.count("\n") - both, "\\r\\n": both, "\\r": text.count("\r") - both}
        else:
            here = {"\\n": text.count("\n")}
        for end, count in here.items():
            if count and end not in first:
                match = ENDS[end].search(text)
                first[end] = lines.at(text, match.start() if match else 0)
            counts[end] += count
        lines.advance(text)
        if translate and "\r" in text:
            account.cleaning["newlines"] += here["\\r\\n"] + here["\\r"]
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        yield text
    if mixture_matters and len(first) > 1:
        detail = ", ".join(f"{count} end with {end}" for end, count in counts.items() if count)
        rare = sum(counts.values()) - max(counts.values())
        account.problem("mixed_newlines", sorted(first.values())[1], rare, detail)


def cut_lines(texts: Iterator[str], first: int = 1, *, keep_ends: bool = False) -> Iterator[tuple[int, str]]:
    """Yield (line number from `first`, line), without \\n unless `keep_ends`. A last line without \\n counts too."""
    number = first
    pending: list[str] = []
    end = "\n" if keep_ends else ""
    for text in texts:
        pieces = text.split("\n")
        if len(pieces) > 1:
            pieces[0] = "".join(pending) + pieces[0]
            pending.clear()
        tail = pieces.pop()
        for number, piece in enumerate(pieces, number):  # noqa: B020 - continues from the last block
            yield number, piece + end
        number += bool(pieces)
        if tail:
            pending.append(tail)
    if pending:
        yield number, "".join(pending)


def _whole_ends(texts: Iterator[str]) -> Iterator[str]:
    """Move a \\r at the end of a block to the next block, so that each \\r\\n is in one block."""
    held = ""
    for text in texts:
        text = held + text
        held = "\r" if text.endswith("\r") else ""
        if text := text.removesuffix("\r"):
            yield text
    if held:
        yield held
