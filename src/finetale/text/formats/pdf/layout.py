"""From the pieces of text on the pages of a PDF file to paragraphs in reading order. Knows no PDF and no files.

The rules are stated in docs/formats.md.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable

from finetale.text.formats.pdf.columns import in_order, join_drop_caps, lines_of, usual_gaps
from finetale.text.formats.pdf.footnotes import remove_footnotes
from finetale.text.formats.pdf.heads import remove_heads
from finetale.text.formats.pdf.paragraphs import Paragraph, paragraphs_of
from finetale.text.formats.pdf.pieces import Page

_LIGATURES = {
    "ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st",
}  # fmt: skip
_TEX = {
    "\x10": "“", "\x11": "”", "\x12": "„", "\x13": "«", "\x14": "»", "\x15": "–", "\x16": "—",
    "\x1b": "ff", "\x1c": "fi", "\x1d": "fl", "\x1e": "ffi", "\x1f": "ffl",
}  # fmt: skip
"""Control characters that stand for these in TeX's T1 encoding. Its bitmap fonts don't say what they hold."""
_ACCENTS = dict(zip("`´ˆ˜¨˙˚ˇ˘¯˝", "\u0300\u0301\u0302\u0303\u0308\u0307\u030a\u030c\u0306\u0304\u030b", strict=True))
_ACCENT = re.compile(f"([{''.join(_ACCENTS)}]) ?([A-Za-zıȷ])|([cCsStT]) ?¸")
"""An accent that TeX draws as a separate character, before its letter, or a cedilla after it."""
_AS_TEXT = str.maketrans(_LIGATURES | {"\u00a0": " "})
_AS_TEX_TEXT = _AS_TEXT | str.maketrans(_TEX)


def read_layout(pages: list[Page], leave_out: Callable[[str, int], None], *, tex: bool = False) -> list[Paragraph]:
    """Return the paragraphs of a document.

    Args:
        pages: all pages. They are changed.
        leave_out: receives kinds and numbers of what is left out: "running head", "page number", "footnote".
        tex: whether TeX made the document. Its bitmap fonts have control characters for ligatures and quotes.
    """
    heights: Counter[float] = Counter()
    for page in pages:
        for piece in page.pieces:
            piece.text = piece.text.translate(_AS_TEXT)
            if tex:
                piece.text = _ACCENT.sub(_accented, piece.text.translate(_AS_TEX_TEXT))
            heights[round(piece.height, 1)] += len(piece.text)
    if not heights:
        return []
    height = heights.most_common(1)[0][0] or 1.0
    remove_heads(pages, height, leave_out)
    usual = usual_gaps(pages)
    for page in pages:
        join_drop_caps(page, height)
        page.columns = [lines_of(group) for group in in_order(page.pieces, usual)]
        page.pieces = []
    remove_footnotes(pages, height, leave_out)
    return list(paragraphs_of(pages, height))


def _accented(match: re.Match[str]) -> str:
    accent, letter, before = match.groups()
    dotted = {"ı": "i", "ȷ": "j"}.get(letter, letter)
    composed = unicodedata.normalize("NFC", before + "\u0327" if before else dotted + _ACCENTS[accent])
    return composed if len(composed) == 1 else match[0]
