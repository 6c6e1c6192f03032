"""Clean one document: count the problems of its text by line, and repair them according to the settings.

Knows nothing of files and encodings. The order is: newlines, lone surrogates, control characters, mojibake, strip.
"""

from __future__ import annotations

import re

from ftfy import fix_encoding
from ftfy.badness import BADNESS_RE

from finetale.config import TextSettings
from finetale.surrogates import SURROGATE, describe_surrogates
from finetale.text.account import MAX_LINES, FileAccount
from finetale.text.decoding import REPLACEMENT
from finetale.text.documents import FileError

SUSPECT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffd\ud800-\udfff]")
SUSPECT_ASCII = bytes(code for code in range(32) if code not in b"\t\n") + b"\x7f"
_ASCII = bytes(range(128))
_CHARACTERS_AT_ONCE = 1 << 20
REPLACEMENT_PATTERN = re.compile(REPLACEMENT)

CONTROL = {
    "nul": re.compile("\x00"),
    "byte_order_mark": re.compile("\ufeff"),
    "control_character": re.compile("[\x01-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]"),
}
# Vertical tab, form feed, information separators, next line, line and paragraph separator. They separate words.
UNUSUAL_SPACE = re.compile("[\x0b\x0c\x1c-\x1f\x85\u2028\u2029]")
_AS_SPACE = {ord(character): "\n" for character in "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"} | {0x1F: " "}

# ftfy's heuristic runs at 8 MB/s, so it only gets text in which this fast pattern finds bytes of UTF-8 that were read
# as Windows-1252, Windows-1251 or Mac Roman.
MAYBE_MOJIBAKE = re.compile(
    "[\xc2-\xf4][\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|вЂ"
    "|[РСВГ][\x80-\xbf‚ѓ„…†‡€‰Љ‹ЊЋ‘’“”•–—™љ›њќћџ]|√[±∂†≠®™´≤≥¥µø]|‚Ä"
)


class Cleaner:
    """Cleans the documents of one file.

    Args:
        account: where to report.
        settings: the clean_… settings, `undecodable` and `strip` are used.
        records: whether documents are records. Their line ends are not line ends of the file.
    """

    def __init__(self, account: FileAccount, settings: TextSettings, *, records: bool) -> None:
        self._account = account
        self._records = records
        self._newlines = settings.clean_newlines
        self._control = settings.clean_control
        self._mojibake = settings.clean_mojibake
        self._replace = settings.undecodable == "replace"
        self._strip = settings.strip

    def clean_all(self, texts: list[str]) -> list[str] | None:
        """Return the cleaned texts of documents without problems. Return None if `clean` must process each document."""
        if not is_clean("\n".join(texts) if len(texts) > 1 else texts[0]):
            return None
        if not self._strip:
            return texts
        stripped = [text.strip() for text in texts]
        if removed := sum(map(len, texts)) - sum(map(len, stripped)):
            self._account.cleaning["stripped_characters"] += removed
        return stripped

    def clean(self, text: str, line: int, *, strip: bool = True) -> str:
        """Return the cleaned text of a document that starts at `line`.

        Args:
            text: the document, or a piece of it.
            line: its first line.
            strip: False keeps the white space at the ends of a piece, whatever the setting.

        Raises:
            FileError: the text has a lone surrogate, and `undecodable` is not "replace".
        """
        if not is_clean(text):
            if SUSPECT.search(text):
                text = self._repair(text, line)
            if MAYBE_MOJIBAKE.search(text):
                text = self._look_for_mojibake(text, line)
        if self._strip and strip:
            stripped = text.strip()
            if len(stripped) != len(text):
                self._account.cleaning["stripped_characters"] += len(text) - len(stripped)
            return stripped
        return text

    def _repair(self, text: str, line: int) -> str:
        if self._newlines and "\r" in text:
            self._account.cleaning["newlines"] += text.count("\r")
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        self._report("replacement_character", REPLACEMENT_PATTERN, text, line)
        if self._report("lone_surrogate", SURROGATE, text, line):
            if not self._replace:
                raise FileError(
                    self._account.file,
                    line,
                    "undecodable",
                    describe_surrogates(text) or "",
                    "Give --undecodable replace to put U+FFFD in their place.",
                )
            text = SURROGATE.sub(REPLACEMENT, text)
        for kind, pattern in CONTROL.items():
            count = self._report(kind, pattern, text, line)
            if count and self._control:
                self._account.cleaning["control_characters"] += count
                text = pattern.sub("", text)
        count = self._report("unusual_space", UNUSUAL_SPACE, text, line)
        if count and self._control:
            self._account.cleaning["unusual_spaces"] += count
            text = text.translate(_AS_SPACE)
        return text

    def _look_for_mojibake(self, text: str, line: int) -> str:
        if self._report("mojibake", BADNESS_RE, text, line) and self._mojibake:
            repaired: str = fix_encoding(text)
            self._account.cleaning["mojibake"] += repaired != text  # counts documents
            return repaired
        return text

    def _report(self, kind: str, pattern: re.Pattern[str], text: str, line: int) -> int:
        """Count the matches of a pattern. Report the lines of the first ones."""
        count = 0
        for count, match in enumerate(pattern.finditer(text), 1):
            if count <= MAX_LINES:
                here = line if self._records else line + text.count("\n", 0, match.start())
                self._account.problem(kind, here)
        if count > MAX_LINES:
            self._account.problem(kind, None, count - MAX_LINES)
        return count


def is_clean(text: str) -> bool:
    """Return whether neither SUSPECT nor MAYBE_MOJIBAKE matches. False may be wrong; True never is.

    Both match only ASCII control characters, single characters outside ASCII, and pairs of these. So it is enough to
    check the characters outside ASCII. They are few in most languages, and quick to extract from UTF-8.
    """
    for start in range(0, len(text), _CHARACTERS_AT_ONCE):
        data = text[start : start + _CHARACTERS_AT_ONCE + 1].encode("utf-8", "surrogatepass")
        if len(data.translate(None, SUSPECT_ASCII)) != len(data):
            return False
        if not data.isascii():
            outside = data.translate(None, _ASCII).decode("utf-8", "surrogatepass")
            if SUSPECT.search(outside) or MAYBE_MOJIBAKE.search(outside):
                return False
    return True
