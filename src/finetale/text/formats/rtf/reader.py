"""From the bytes of an RTF document to its text, with the properties of the text.

RTF is a stream of tokens: groups in braces, control words, control symbols, and text in the code page of the current
font. The properties of text belong to the innermost group.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from finetale.text.account import FileAccount
from finetale.text.documents import FileError
from finetale.text.encodings import binary_kind
from finetale.text.formats.manuscript import TITLE_LEVEL
from finetale.text.formats.rtf.body import Body
from finetale.text.formats.rtf.codes import (
    CHARACTERS,
    COUNTED,
    HEADERS,
    IGNORED,
    KEPT,
    SYMBOL_CHARSET,
    SYMBOLS,
    encoding_of_charset,
    encoding_of_code_page,
)
from finetale.text.formats.symbols import symbol

MAX_DEPTH = 1000
_HEAD_BYTES = 4096
_HINT = "Open it in Word or LibreOffice and save it again, best as .docx."
_TOKEN = re.compile(
    rb"([^\\{}\r\n]+)|\\([A-Za-z]{1,40})(-?[0-9]{1,10})? ?|\\'([0-9A-Fa-f]{2})|([{}])|[\r\n]+|\\([^A-Za-z])|\\",
    re.DOTALL,
)
_BRACE = re.compile(rb"[{}]|\\bin([0-9]{1,10}) ?|\\[^b]|\\b(?!in[0-9])")
_NO_TEXT = re.compile(rb"\\[A-Za-z]+-?[0-9]* ?|\\.|[{}\s]", re.DOTALL)
_HEADING = re.compile(r"heading ([1-9])")
_PAGE_FIELDS = ("PAGE", "NUMPAGES", "SECTIONPAGES")
_INDEX_FIELDS = {"TOC": "table of contents", "INDEX": "index"}


@dataclass(slots=True)
class _State:
    """The properties of the text of a group."""

    font: int | None = None
    fallback: int = 1  # number of characters that replace a Unicode character for old readers
    hidden: bool = False
    deleted: bool = False
    level: int | None = None
    style: int = 0
    in_table: bool = False
    depth: int = 0  # level of a list, from 0
    place: str = "text"  # what the text is for: "text", "marker", "font", "style"
    left_out: str | None = None  # of a field: its result, by this name
    is_first: bool = True  # no control word was read in this group
    is_optional: bool = False  # the group starts with \*
    skips_child: bool = False

    def of_child(self) -> _State:
        """Return the properties with which a group within this one starts."""
        return _State(
            self.font, self.fallback, self.hidden, self.deleted, self.level, self.style, self.in_table, self.depth,
            self.place,
        )  # fmt: skip


@dataclass(slots=True)
class _Font:
    encoding: str | None = None
    name: str = ""
    is_symbol: bool = False


@dataclass(slots=True)
class _Style:
    name: str = ""
    level: int | None = None
    based_on: int | None = None


class Reader:
    """Reads the tokens of one document, and gives its text to a `Body`."""

    def __init__(self, name: str, data: bytes, account: FileAccount) -> None:
        self.body = Body()
        self._name, self._data, self._account = name, data, account
        self._state = _State()
        self._stack: list[_State] = []
        self._fonts: dict[int, _Font] = {}
        self._styles: dict[int, _Style] = {}
        self._encoding = "cp1252"
        self._default_font: int | None = None
        self._font, self._style_entry = _Font(), _Style()
        self._style_number: int | None = None
        self._bytes = bytearray()
        self._to_skip = 0  # characters that replace a Unicode character
        self._half: int | None = None  # first half of a surrogate pair
        self._was_hidden = self._was_deleted = False

    def read(self) -> None:
        """Read the document.

        Raises:
            FileError: it is no RTF, is cut off, or its groups are nested too deeply.
        """
        data, match = self._data, _TOKEN.match
        at = len(data) - len(data.lstrip(b"\xef\xbb\xbf \t\r\n"))
        if not data.startswith(b"{\\rtf", at):
            other = binary_kind(data[:_HEAD_BYTES])
            detail = f"it is {other}, not RTF" if other else "it does not start as RTF does"
            raise FileError(self._name, None, "not_rtf", detail, _HINT)
        end = len(data)
        while at < end:
            token = match(data, at)
            assert token is not None
            at = token.end()
            kind = token.lastindex
            if kind == 1:
                self._add_bytes(token.group())
            elif kind == 2 or kind == 3:
                word, number = token.group(2).decode("ascii"), token.group(3)
                at = self._control(word, None if number is None else int(number), at)
            elif kind == 4:
                self._add_hex(int(token.group(4), 16))
            elif kind == 5:
                if token.group() == b"{":
                    at = self._open(at)
                else:
                    self._close()
                    if not self._stack:
                        break
            elif kind == 6:
                at = self._symbol(token.group(6), at)
        if self._stack:
            detail = f"it is cut off: the groups of its RTF are {len(self._stack)} deep at its end"
            raise FileError(self._name, None, "damaged", detail, _HINT)
        self._end_paragraph()
        self.body.end_table()

    # -- groups

    def _open(self, at: int) -> int:
        """Start a group. Return the position after it."""
        self._flush()
        self._to_skip = 0
        if len(self._stack) >= MAX_DEPTH:
            detail = f"the groups of its RTF are more than {MAX_DEPTH:,} deep"
            raise FileError(self._name, None, "bad_rtf", detail, _HINT)
        self._stack.append(self._state)
        outer = self._state
        self._state = outer.of_child()
        if outer.skips_child:
            outer.skips_child = False
            return self._skip(at)
        return at

    def _close(self) -> None:
        self._flush()
        self._to_skip, self._half = 0, None
        if not self._stack:
            return
        place = self._state.place
        if len(self._stack) == self.body.box_depth:
            self._end_paragraph()
            self.body.close_box()
        self._state = self._stack.pop()
        if place == "style" and self._state.place == "styles" and self._style_number is not None:
            self._styles[self._style_number] = self._style_entry

    def _skip(self, at: int) -> int:
        """Return the position of the end of the current group, which is left out."""
        depth, data = 1, self._data
        while depth:
            token = _BRACE.search(data, at)
            if token is None:
                return len(data)
            at = token.end()
            if token.group() == b"{":
                depth += 1
            elif token.group() == b"}":
                depth -= 1
            elif token.group(1) is not None:
                at += int(token.group(1))
        return at - 1

    def _outer(self) -> _State:
        return self._stack[-1] if self._stack else self._state

    # -- control words

    def _control(self, word: str, number: int | None, at: int) -> int:
        """Apply a control word. Return the position after it."""
        state = self._state
        if word == "bin":
            return at + max(0, number or 0)
        if word == "u":
            self._add_unicode(number or 0)
            return at
        self._flush()
        self._to_skip = 0
        if state.is_first:
            state.is_first = False
            skipped = self._destination(word, state, at)
            if skipped is not None:
                return skipped
        if word in CHARACTERS:
            self._add(CHARACTERS[word])
        elif word in _ACTIONS:
            getattr(self, _ACTIONS[word])(number)
        elif word == "pard":
            state.level, state.style, state.in_table, state.depth = None, 0, False, 0
        return at

    def _destination(self, word: str, state: _State, at: int) -> int | None:
        """Handle the first control word of a group. Return the end of the group if it is left out."""
        outer = self._outer()
        if outer.place == "fonts":
            state.place, self._font = "font", _Font()
        elif outer.place == "styles":
            state.place, self._style_entry, self._style_number = "style", _Style(), None
        elif word == "fonttbl":
            state.place, self._font = "fonts", _Font()
        elif word == "stylesheet":
            state.place = "styles"
        elif word == "upr":
            state.skips_child = True
        elif word == "listtext":
            state.place = "marker"
            self.body.marker = ""
        elif word == "shptxt":
            self.body.open_box(len(self._stack))
        elif word in ("fldinst", "fldrslt"):
            return self._field(word, outer, at)
        elif word in HEADERS:
            end = self._skip(at)
            if _NO_TEXT.sub(b"", self._data[at:end]):
                self._account.leave_out(HEADERS[word])
            return end
        elif word == "footnote":
            end = self._skip(at)
            is_endnote = re.match(rb"\s*\\ftnalt", self._data[at : at + 20]) is not None
            self._account.leave_out("endnote" if is_endnote else "footnote")
            return end
        elif word in COUNTED:
            self._account.leave_out(COUNTED[word])
            return self._skip(at)
        elif word in IGNORED or (state.is_optional and word not in KEPT):
            return self._skip(at)
        return None

    def _field(self, word: str, outer: _State, at: int) -> int | None:
        if word == "fldinst":
            end = self._skip(at)
            words = _NO_TEXT.sub(b" ", self._data[at:end][:200]).split(maxsplit=1)
            kind = words[0].decode("ascii", "replace").upper() if words else ""
            outer.left_out = "page number" if kind in _PAGE_FIELDS else _INDEX_FIELDS.get(kind)
            if outer.left_out is not None:
                self._account.leave_out(outer.left_out)
            return end
        return None if outer.left_out is None else self._skip(at)

    def _symbol(self, mark: bytes, at: int) -> int:
        if mark == b"*":
            self._state.is_optional = True
            return at
        self._flush()
        self._to_skip = 0
        if mark in b"\r\n":
            self._end_paragraph()
        elif mark in SYMBOLS:
            self._add(SYMBOLS[mark])
        return at

    def _set_font(self, number: int | None) -> None:
        self._state.font = number
        if self._state.place in ("font", "fonts") and number is not None:
            self._font = self._fonts.setdefault(number, _Font())

    def _set_charset(self, number: int | None) -> None:
        self._font.is_symbol = number == SYMBOL_CHARSET
        self._font.encoding = self._font.encoding or encoding_of_charset(number or 0)

    def _set_font_code_page(self, number: int | None) -> None:
        if self._state.place in ("font", "fonts"):
            self._font.encoding = encoding_of_code_page(number or 0) or self._font.encoding

    def _set_code_page(self, number: int | None) -> None:
        self._encoding = encoding_of_code_page(number or 0) or self._encoding

    def _set_mac(self, number: int | None) -> None:
        self._encoding = "mac_roman"

    def _set_pc(self, number: int | None) -> None:
        self._encoding = "cp437"

    def _set_default_font(self, number: int | None) -> None:
        self._default_font = number

    def _set_fallback(self, number: int | None) -> None:
        self._state.fallback = max(0, 1 if number is None else number)

    def _set_hidden(self, number: int | None) -> None:
        self._state.hidden = number != 0

    def _set_deleted(self, number: int | None) -> None:
        self._state.deleted = number != 0

    def _set_plain(self, number: int | None) -> None:
        self._state.hidden = self._state.deleted = False
        self._state.font = self._default_font

    def _set_style(self, number: int | None) -> None:
        if self._state.place == "style":
            self._style_number = number or 0
        else:
            self._state.style = number or 0

    def _set_based_on(self, number: int | None) -> None:
        if self._state.place == "style":
            self._style_entry.based_on = number

    def _set_outline(self, number: int | None) -> None:
        level = number + 1 if number is not None and 0 <= number < 9 else None
        if self._state.place == "style":
            self._style_entry.level = level
        else:
            self._state.level = level

    def _set_in_table(self, number: int | None) -> None:
        self._state.in_table = number != 0

    def _set_list_level(self, number: int | None) -> None:
        self._state.depth = min(max(number or 0, 0), 8)

    def _leave_out_page_number(self, number: int | None) -> None:
        if self._state.place == "text":
            self._account.leave_out("page number")

    # -- text

    def _add_bytes(self, text: bytes) -> None:
        if self._to_skip:
            skipped = min(self._to_skip, len(text))
            self._to_skip -= skipped
            text = text[skipped:]
        self._state.is_first = False
        self._bytes += text

    def _add_hex(self, byte: int) -> None:
        if self._to_skip:
            self._to_skip -= 1
        else:
            self._bytes.append(byte)

    def _add_unicode(self, number: int) -> None:
        self._flush()
        number &= 0xFFFF
        self._to_skip = self._state.fallback
        if 0xD800 <= number < 0xDC00:
            self._half = number
        elif 0xDC00 <= number < 0xE000:
            if self._half is not None:
                self._add(chr(0x10000 + ((self._half - 0xD800) << 10) + number - 0xDC00))
            self._half = None
        elif 0xF000 <= number <= 0xF0FF and (font := self._current_font()) is not None:
            self._add_symbol(number, font.name)
        else:
            self._add(chr(number))

    def _current_font(self) -> _Font | None:
        number = self._state.font if self._state.font is not None else self._default_font
        return None if number is None else self._fonts.get(number)

    def _flush(self) -> None:
        """Decode the bytes that were read, in the code page of the current font."""
        if not self._bytes:
            return
        data = bytes(self._bytes)
        self._bytes.clear()
        if self._state.place in ("font", "fonts"):
            name, _, _ = data.partition(b";")
            self._font.name += name.decode("latin-1").strip()
            return
        font = self._current_font()
        if font is not None and font.is_symbol:
            for byte in data:
                if byte <= 0x20:
                    self._add(chr(byte))
                else:
                    self._add_symbol(byte, font.name)
            return
        encoding = self._encoding if font is None or font.encoding is None else font.encoding
        text = data.decode(encoding, "replace")
        if "\ufffd" in text and encoding != self._encoding:
            other = data.decode(self._encoding, "replace")
            text = other if other.count("\ufffd") < text.count("\ufffd") else text
        if encoding == "cp1252" and "\ufffd" in text:
            text = data.decode("latin-1")
        self._add(text)

    def _add_symbol(self, code: int, font: str) -> None:
        character = symbol(code, "Symbol" if font.lower().startswith("symbol") else font)
        if character is None:
            self._account.leave_out("symbol")
        else:
            self._add(character)

    def _add(self, text: str) -> None:
        state = self._state
        if state.place == "text":
            if state.deleted or state.hidden:
                self._count_hidden(text, state)
            else:
                self._was_hidden = self._was_deleted = False
                self.body.add(text)
        elif state.place == "marker":
            self.body.marker += text
        elif state.place == "style":
            self._style_entry.name += text

    def _count_hidden(self, text: str, state: _State) -> None:
        if text.isspace():
            return
        if state.deleted:
            if not self._was_deleted:
                self._account.leave_out("tracked deletion")
            self._was_deleted = True
        elif not self._was_hidden:
            self._account.leave_out("hidden passage")
            self._was_hidden = True

    # -- paragraphs and tables

    def _end_paragraph(self, number: int | None = None) -> None:
        self._flush()
        state = self._state
        if state.place == "text" and not state.deleted:  # a mark that is deleted joins two paragraphs
            self.body.end_paragraph(self._level_of(state), state.depth, in_table=state.in_table)

    def _level_of(self, state: _State) -> int | None:
        if state.level is not None:
            return state.level
        number: int | None = state.style
        for _ in range(20):
            style = None if number is None else self._styles.get(number)
            if style is None:
                return None
            name = style.name.partition(";")[0].strip().lower()
            if match := _HEADING.fullmatch(name):
                return int(match.group(1))
            if name == "title":
                return TITLE_LEVEL
            if style.level is not None:
                return style.level
            number = style.based_on
        return None

    def _end_cell(self, number: int | None) -> None:
        if self._state.place == "text":
            self._flush()
            self._state.in_table = True
            self._end_paragraph()
            self.body.end_cell()

    def _end_row(self, number: int | None) -> None:
        self.body.end_row()


_ACTIONS = {
    "par": "_end_paragraph",
    "sect": "_end_paragraph",
    "cell": "_end_cell",
    "nestcell": "_end_paragraph",
    "nestrow": "_end_paragraph",
    "row": "_end_row",
    "intbl": "_set_in_table",
    "f": "_set_font",
    "deff": "_set_default_font",
    "fcharset": "_set_charset",
    "cpg": "_set_font_code_page",
    "ansicpg": "_set_code_page",
    "mac": "_set_mac",
    "pc": "_set_pc",
    "uc": "_set_fallback",
    "v": "_set_hidden",
    "deleted": "_set_deleted",
    "plain": "_set_plain",
    "s": "_set_style",
    "sbasedon": "_set_based_on",
    "outlinelevel": "_set_outline",
    "ilvl": "_set_list_level",
    "chpgn": "_leave_out_page_number",
}
"""Control word → the method that applies it."""
