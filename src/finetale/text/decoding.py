"""Decode the bytes of one file: encoding, binary data, invalid bytes. Knows nothing of line ends and documents.

Strict UTF-8 is tried first. At the first invalid byte, the bytes around it decide. If they are mostly well-formed
UTF-8, the file is UTF-8 with some damaged bytes. Otherwise the encoding is guessed and reported.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from itertools import chain

from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text.account import FileAccount
from finetale.text.documents import FileError
from finetale.text.encodings import (
    SAMPLE_BYTES,
    binary_kind,
    byte_order_mark,
    guess_encoding,
    is_single_byte,
    utf8_share,
    utf16_without_mark,
)

UTF8_SHARE = 0.5  # below this share of well-formed UTF-8 the text is in another encoding (see encodings.utf8_share)
JUDGED_BYTES = 4 * SAMPLE_BYTES
REPLACEMENT = "\ufffd"

# Number of characters that prove that a line is UTF-8 in a file of another encoding. Four do not occur by chance
# (p < 0.001 in GB18030). In a single-byte encoding, one accented letter or typographic mark is enough.
SURE_CHARACTERS = 4
SURE_IN_SINGLE_BYTE = re.compile("[\u00c0-\u00ff\u2010-\u2026]")

BINARY_HINT = (
    "Give plain text (txt, md) or jsonl, json, csv, tsv, parquet; save documents as plain text first; or leave such "
    "files out with --skip-unreadable."
)
UNDECODABLE_HINT = "Name the encoding with --encoding, or give --undecodable replace to put U+FFFD in its place."
MIXED_HINT = "Convert the file to one encoding, or name the one to read it in with --encoding."


class LineCounter:
    """Counts the line of the next character. \\n, \\r\\n and \\r end a line."""

    def __init__(self) -> None:
        self.line = 1
        self._after_return = False

    def advance(self, text: str) -> None:
        """Count the line ends of the next piece of text."""
        self.line += text.count("\n")
        if self._after_return or "\r" in text:
            self.line += text.count("\r") - text.count("\r\n") - (self._after_return and text.startswith("\n"))
            self._after_return = text.endswith("\r")

    def at(self, text: str, position: int) -> int:
        """Return the line of a position in the next text. The text is not counted."""
        ahead = LineCounter()
        ahead.line, ahead._after_return = self.line, self._after_return
        ahead.advance(text[:position])
        return ahead.line


def check_encoding(name: str | None) -> None:
    """Check the name of a text encoding.

    Raises:
        SourceError: there is no such encoding.
    """
    if name is None:
        return
    try:
        "".encode(name)
    except (LookupError, ValueError):
        raise SourceError(
            f"There is no text encoding named {name!r}.",
            "Names are, for example, utf-8, utf-16, cp1252, gb18030, big5, shift-jis.",
        ) from None


class Decoder:
    """Decodes one file. The account receives its encoding, its size and its undecodable bytes by line.

    Args:
        raw: the file's bytes in blocks that are not empty.
        account: where to report.
        settings: `encoding` and `undecodable` are used.
    """

    def __init__(self, raw: Iterator[bytes], account: FileAccount, settings: TextSettings) -> None:
        self._raw = self._counted(raw)
        self._account = account
        self._given = settings.encoding
        self._replace = settings.undecodable == "replace"
        self._encoding = "utf-8"
        self._by_nuls = False  # UTF-16 is assumed because of NUL bytes
        self._may_switch = False  # UTF-8 is assumed, and only ASCII has been seen
        self._watch: Watch | None = None
        self._lines = LineCounter()

    def blocks(self) -> Iterator[str]:
        """Yield the text in blocks that are not empty.

        Raises:
            FileError: the data is binary, bytes are invalid, the file has two encodings, or its encoding is unknown.
        """
        head = next(self._raw, b"")
        while 0 < len(head) < 512 and (more := next(self._raw, b"")):  # a pipe may give a few bytes at a time
            head += more
        head = self._begin(head, whole=len(head) < 512)
        decoder = codecs.getincrementaldecoder(self._encoding)("strict")
        ended = False
        while not ended:
            block, head = head or next(self._raw, b""), b""
            ended = not block
            state = decoder.getstate()
            if self._watch:
                self._watch.look(block)
            try:
                text = decoder.decode(block, ended)
            except UnicodeDecodeError as error:
                if self._may_switch and (encoding := self._other_encoding(error.object)):
                    self._switch(encoding)
                    decoder = codecs.getincrementaldecoder(encoding)("strict")
                    head = error.object
                    ended = False
                    continue
                if not self._replace:
                    raise self._undecodable(error) from None
                replacing = codecs.getincrementaldecoder(self._encoding)("replace")
                replacing.setstate(state)
                text = replacing.decode(block, ended)
                decoder.setstate(replacing.getstate())
                self._count_replaced(block, text)
            if text:
                self._may_switch = self._may_switch and text.isascii()
                self._lines.advance(text)
                yield text

    def _counted(self, raw: Iterator[bytes]) -> Iterator[bytes]:
        for block in raw:
            self._account.bytes += len(block)
            yield block

    def _begin(self, head: bytes, *, whole: bool) -> bytes:
        """Choose the encoding to start with; return the first block without its byte order mark.

        Args:
            whole: whether the block is the whole file.
        """
        mark = byte_order_mark(head)
        if self._given:
            self._encoding = codecs.lookup(self._given).name
            if mark and mark[0] == self._encoding:
                head = head[mark[1] :]
        elif mark:
            self._encoding = mark[0]
            head = head[mark[1] :]
        elif not (whole and len(head) % 2) and (encoding := utf16_without_mark(head[:SAMPLE_BYTES])):
            self._encoding, self._by_nuls = encoding, True
        else:
            self._may_switch = True
        wide = self._encoding.startswith(("utf-16", "utf-32"))
        if not wide and (kind := binary_kind(head)):
            raise FileError(self._account.file, None, "binary", f"is {kind}, not text", BINARY_HINT)
        self._account.encoding = (
            f"{self._encoding} with byte order mark" if mark and not self._given else self._encoding
        )
        return head

    def _other_encoding(self, data: bytes) -> str | None:
        """Return the encoding to continue with after UTF-8 failed in `data` and only ASCII came before. None: UTF-8."""
        if len(data) < SAMPLE_BYTES and (more := next(self._raw, b"")):
            self._raw = chain([more], self._raw)
            data += more
        if utf8_share(data[:JUDGED_BYTES]) >= UTF8_SHARE:
            return None
        first = re.search(rb"[\x80-\xff]", data)
        # The sample starts with a line, because it must not start within a character of an East Asian encoding.
        # UTF-16 is possible only at the start of the file.
        start = data.rfind(b"\n", 0, first.start()) + 1 if first and self._lines.line > 1 else 0
        sample = data[start : start + SAMPLE_BYTES] if first and first.start() < start + SAMPLE_BYTES else b""
        encoding = guess_encoding(sample or data[first.start() if first else 0 :])
        if encoding is None:
            raise FileError(
                self._account.file,
                self._lines.at(data[: first.start()].decode("ascii") if first else "", len(data)),
                "unknown_encoding",
                "is not UTF-8 from here on, and its encoding is not recognised",
                UNDECODABLE_HINT,
            )
        return encoding

    def _switch(self, encoding: str) -> None:
        self._encoding = encoding
        self._account.encoding = encoding
        self._may_switch = False
        if not encoding.startswith("utf-16"):
            self._watch = Watch(self._account.file, encoding, self._lines.line)

    def _undecodable(self, error: UnicodeDecodeError) -> FileError:
        if self._by_nuls:
            what = "has NUL bytes, so it is binary data or damaged text"
            return FileError(
                self._account.file, None, "binary", f"{what}; it is not {self._encoding} either", BINARY_HINT
            )
        before = bytes(error.object[: error.start]).decode(self._encoding, "replace")
        return FileError(
            self._account.file,
            self._lines.at(before, len(before)),
            "undecodable",
            f"byte 0x{error.object[error.start]:02x} is not text in {self._encoding} ({error.reason})",
            UNDECODABLE_HINT,
        )

    def _count_replaced(self, block: bytes, text: str) -> None:
        try:
            genuine = block.count(REPLACEMENT.encode(self._encoding))
        except UnicodeEncodeError:
            genuine = 0
        count = text.count(REPLACEMENT) - genuine
        lines = LineCounter()
        lines.line = self._lines.line
        for number, line in enumerate(text.split("\n")):
            here = min(count, line.count(REPLACEMENT))
            if here > 0:
                self._account.problem("undecodable", lines.line + number, here, "replaced by U+FFFD")
                count -= here


class Watch:
    """Finds lines in UTF-8 in a file that is read in another encoding, where they would become mojibake."""

    def __init__(self, file: str, encoding: str, line: int) -> None:
        self._file = file
        self._encoding = encoding
        self._single_byte = is_single_byte(encoding)
        self._line = line
        self._tail = b""

    def look(self, block: bytes) -> None:
        """Check the next bytes. An empty block ends the file.

        Raises:
            FileError: a line is certainly in UTF-8.
        """
        lines = (self._tail + block).split(b"\n")
        self._tail = lines.pop() if block else b""
        for line in lines:
            if not line.isascii() and self._is_utf8(line):
                raise FileError(
                    self._file,
                    self._line,
                    "mixed_encodings",
                    f"this line is in UTF-8, but other text in the file is in {self._encoding}",
                    MIXED_HINT,
                )
            self._line += 1

    def _is_utf8(self, line: bytes) -> bool:
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            return False
        num_outside = sum(1 for character in text if not character.isascii())
        return num_outside >= SURE_CHARACTERS or (self._single_byte and bool(SURE_IN_SINGLE_BYTE.search(text)))
