"""Decode HTML: byte order mark, UTF-8, the encoding that the page declares, then the project's own detection."""

from __future__ import annotations

import codecs
import re

from finetale.config import TextSettings
from finetale.text.account import FileAccount
from finetale.text.decoding import Decoder
from finetale.text.encodings import byte_order_mark

DECLARED_WITHIN_BYTES = 1024
_DECLARATIONS = (
    re.compile(rb"""^\s*<\?xml[^>]{0,200}?\sencoding\s*=\s*["']([\w.:+-]{1,40})""", re.IGNORECASE),
    re.compile(rb"""<meta\s[^>]{0,400}?charset\s*=\s*["']?\s*([\w.:+-]{1,40})""", re.IGNORECASE),
)
_MEANT = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "x-gbk": "gb18030",
    "iso-8859-1": "cp1252",
    "ascii": "cp1252",
    "iso-8859-9": "cp1254",
    "iso-8859-11": "cp874",
    "tis-620": "cp874",
    "big5": "big5hkscs",
    "x-x-big5": "big5hkscs",
    "shift_jis": "cp932",
    "x-sjis": "cp932",
    "windows-31j": "cp932",
    "euc_kr": "cp949",
    "ks_c_5601-1987": "cp949",
    "iso-8859-8-i": "iso-8859-8",
    "macintosh": "mac-roman",
    "x-mac-roman": "mac-roman",
    "x-user-defined": "cp1252",
}
"""Declared encoding → the larger encoding that browsers read it in, because pages use its further characters."""
_TWO_BYTES = frozenset(("gb18030", "big5hkscs", "cp932", "cp949", "euc_jp", "johab"))
_THREE_BYTES = re.compile(rb"[\xe0-\xf4]")


def decode_page(data: bytes, account: FileAccount, settings: TextSettings, declared: str | None = None) -> str:
    """Return the text of a page. The account receives its encoding.

    UTF-8 comes before a declaration, because text in another encoding is hardly ever valid UTF-8.

    Args:
        data: the page.
        account: receives the encoding and undecodable bytes.
        settings: `encoding` comes before everything.
        declared: the encoding that the place of the page declares, such as the header of a mail.

    Raises:
        FileError: the page is binary data or not in the encoding that was found.
    """
    encoding = None
    if settings.encoding is None and byte_order_mark(data) is None:
        encoding = known_encoding(declared) or _declared_in(data)
        if encoding == "utf-8" or is_utf8(data, encoding):
            encoding = None  # the detection begins with UTF-8, and finds out where a declaration of it is wrong
    size = account.bytes
    if encoding is not None:
        settings = settings.model_copy(update={"encoding": encoding})
    text = "".join(Decoder(iter((data,) if data else ()), account, settings).blocks())
    account.bytes = size
    return text.replace("\r\n", "\n").replace("\r", "\n")


def known_encoding(name: str | None) -> str | None:
    """Return the encoding that a declaration means. None if there is none or Python doesn't know it."""
    if not name:
        return None
    name = name.strip().strip("\"'").lower()
    if name in _MEANT:
        return _MEANT[name]
    try:
        found = codecs.lookup(name)
        b"<".decode(found.name)  # raises LookupError for codecs that are not text encodings, such as zlib
    except (LookupError, UnicodeError, ValueError):
        return None
    if found.name.startswith(("utf-16", "utf-32")):
        return "utf-8"  # the declaration could not have been read in these
    return _MEANT.get(found.name.replace("iso8859", "iso-8859"), found.name)


def _declared_in(data: bytes) -> str | None:
    head = data[:DECLARED_WITHIN_BYTES]
    for pattern in _DECLARATIONS:
        for match in pattern.finditer(head):
            if encoding := known_encoding(match.group(1).decode("ascii", "replace")):
                return encoding
    return None


def is_utf8(data: bytes, declared: str | None) -> bool:
    """Return whether bytes are UTF-8 with characters outside ASCII, with any declared encoding.

    A few characters of East Asian encodings, two bytes each, may be valid UTF-8 by chance. UTF-8 has three for theirs.
    """
    if data.isascii() or (declared in _TWO_BYTES and not _THREE_BYTES.search(data)):
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
