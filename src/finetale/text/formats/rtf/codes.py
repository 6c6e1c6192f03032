"""Code pages, characters and groups of RTF, by their names and numbers."""

from __future__ import annotations

import codecs
from functools import cache

CHARACTERS = {
    "tab": "\t", "line": "\n", "lbr": "\n", "page": "\n", "column": "\n", "emdash": "—", "endash": "–",
    "emspace": "\u2003", "enspace": "\u2002", "qmspace": "\u2005", "bullet": "•", "lquote": "‘", "rquote": "’",
    "ldblquote": "“", "rdblquote": "”", "zwj": "\u200d", "zwnj": "\u200c", "ltrmark": "\u200e", "rtlmark": "\u200f",
}  # fmt: skip
"""Control word → its character."""
SYMBOLS = {
    b"~": "\u00a0", b"_": "\N{NON-BREAKING HYPHEN}", b"{": "{", b"}": "}", b"\\": "\\",
}  # fmt: skip
"""Control symbol → its character. Others, such as the optional hyphen, have none."""
HEADERS = {
    **dict.fromkeys(("header", "headerl", "headerr", "headerf"), "page header"),
    **dict.fromkeys(("footer", "footerl", "footerr", "footerf"), "page footer"),
}
"""Groups that are counted if they hold text."""
COUNTED = {"pict": "picture", "object": "embedded object", "annotation": "comment"}
"""Groups that are left out and counted."""
_IGNORED = (
    "info colortbl listtable listoverridetable revtbl rsidtbl generator themedata colorschememapping latentstyles "
    "datastore template nonshppict shprslt xe tc tcn rxe txe bkmkstart bkmkend pn pntext pntxta pntxtb pnseclvl atnid "
    "atnauthor atntime atndate atnref atrfstart atrfend atnparent atnicn falt panose fname ftnsep ftnsepc ftncn "
    "aftnsep aftnsepc aftncn userprops xmlnstbl sp sv sn fchars lchars filetbl private do background"
)
IGNORED = frozenset(_IGNORED.split())
"""Groups that hold no text of the document."""
_KEPT = "fldinst shppict shpinst shptxt shp shpgrp ud fldrslt footnote annotation listtext"
KEPT = frozenset(_KEPT.split())
"""Groups marked with \\* that are not left out unread."""
_CHARSETS = {
    0: "cp1252", 77: "mac_roman", 78: "cp932", 128: "cp932", 129: "cp949", 130: "johab", 134: "gbk", 136: "cp950",
    161: "cp1253", 162: "cp1254", 163: "cp1258", 177: "cp1255", 178: "cp1256", 186: "cp1257", 204: "cp1251",
    222: "cp874", 238: "cp1250", 254: "cp437", 255: "cp437",
}  # fmt: skip
SYMBOL_CHARSET = 2


def encoding_of_charset(number: int) -> str | None:
    """Return the encoding of a font's charset. None if the charset is the document's own, or is unknown."""
    return _CHARSETS.get(number)


@cache
def encoding_of_code_page(number: int) -> str | None:
    """Return the encoding of a code page. None if it is unknown."""
    names = {936: "gbk", 10000: "mac_roman", 54936: "gb18030", 65001: "utf-8", 20866: "koi8-r", 21866: "koi8-u"}
    name = names.get(number, f"cp{number}")
    try:
        b"<".decode(name)
        return codecs.lookup(name).name
    except (LookupError, UnicodeError):
        return None
