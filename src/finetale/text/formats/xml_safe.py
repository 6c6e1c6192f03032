"""Parse XML from unknown people with lxml: no entities, no DTD, no network, limited depth.

An entity can grow without limit and can read files, so a file whose DOCTYPE holds declarations is refused before it is
parsed. They are looked for in the bytes that the parser reads: XML in another encoding is first converted to UTF-8.
Knows nothing of any format.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from finetale.text.documents import FileError

if TYPE_CHECKING:
    from lxml import etree

MAX_DEPTH = 250
"""Maximum depth of nested elements; libxml2's own limit is 256."""
_PROLOG_BYTES = 1 << 16
_HINT = "Save it again with the program that wrote it, or get the file again."
_DECLARED = re.compile(rb"""\s*<\?xml\s[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")
_BEFORE_ROOT = re.compile(r"\s*(?:<!--.*?-->|<\?.*?\?>)", re.DOTALL)
_DOCTYPE = re.compile(
    r"""<!DOCTYPE\s+[^\s>\["']+(?:\s+(?:SYSTEM|PUBLIC\s*(?:"[^"]*"|'[^']*'))\s*(?:"[^"]*"|'[^']*')?)?\s*>"""
)
"""A document type without internal declarations. The files that it names are not loaded."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (b"<\x00", "utf-16-le"),
    (b"\x00<", "utf-16-be"),
)


class XmlTarget(Protocol):
    """Receives the elements and texts of a file in their order. Tags are in Clark notation: {namespace}name."""

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Receive a start tag."""

    def data(self, text: str) -> None:
        """Receive text. Adjacent text may come in several calls."""

    def end(self, tag: str) -> None:
        """Receive an end tag."""


def read_xml(file: str, blocks: Iterable[bytes], target: XmlTarget, part: str = "") -> None:
    """Parse XML in blocks and send it to a target. No tree is built, so memory does not grow with the file.

    Args:
        file: name of the file, for messages.
        blocks: the bytes.
        target: receives the elements. Its exceptions are passed on.
        part: name of the part of the file that holds this XML, for messages; "" if it is the whole file.

    Raises:
        FileError: the XML is not well-formed, has declarations, has an unknown encoding, or is nested too deeply.
    """
    for _ in xml_steps(file, blocks, target, part):
        pass


def xml_steps(file: str, blocks: Iterable[bytes], target: XmlTarget, part: str = "") -> Iterator[None]:
    """Do what `read_xml` does, and yield after each block, so that the caller can take what the target collected."""
    parser = _parser(_Receiver(file, part, target))
    with _one_sentence(file, part, parser):
        for block in _checked(file, blocks, part):
            parser.feed(block)
            yield
        parser.close()


def xml_tree(file: str, blocks: Iterable[bytes], part: str = "") -> etree._Element:
    """Parse XML and return its root element. For small parts: a tree takes several times the size of its XML.

    Raises:
        FileError: as for `read_xml`.
    """
    parser = _parser(None)
    with _one_sentence(file, part, parser):
        for block in _checked(file, blocks, part):
            parser.feed(block)
        return parser.close()


def _parser(target: Any) -> etree.XMLParser:
    from lxml import etree

    return etree.XMLParser(
        target=target,
        encoding="utf-8",
        resolve_entities=False,
        load_dtd=False,
        dtd_validation=False,
        attribute_defaults=False,
        no_network=True,
        huge_tree=False,
        recover=False,
        collect_ids=False,
        remove_comments=True,
        remove_pis=True,
    )


@contextmanager
def _one_sentence(file: str, part: str, parser: etree.XMLParser) -> Iterator[None]:
    """Turn the errors of the parser into a FileError."""
    from lxml import etree

    try:
        yield
    except etree.XMLSyntaxError as error:
        line, column = error.position
        message = re.sub(r", line \d+, column \d+.*", "", str(error.msg), flags=re.DOTALL) or "it is empty"
        if not line and (logged := parser.feed_error_log.filter_from_errors()):
            line, column, message = logged[0].line, logged[0].column, logged[0].message
        if "depth" in message.lower():
            raise _too_deep(file, part) from None
        place = f"line {line:,}, column {column:,}" if line else "at its start"
        detail = f"{_subject(part)} is not well-formed XML ({message.rstrip('.')}; {place})"
        raise FileError(file, None, "bad_xml", detail, _HINT) from None


class _Receiver:
    """Limits the depth, and passes everything on to a target."""

    def __init__(self, file: str, part: str, target: XmlTarget) -> None:
        self._file, self._part = file, part
        self._start, self._end = target.start, target.end
        self.data = target.data
        self._depth = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _too_deep(self._file, self._part)
        self._start(tag, attributes)

    def end(self, tag: str) -> None:
        self._depth -= 1
        self._end(tag)

    def close(self) -> None:
        pass


def _checked(file: str, blocks: Iterable[bytes], part: str) -> Iterator[bytes]:
    """Yield XML in UTF-8 whose declarations were looked through."""
    iterator = iter(blocks)
    start = b""
    for block in iterator:
        start += block
        if len(start) >= _PROLOG_BYTES:
            break
    encoding = _encoding(start)
    pieces = chain((start,), iterator)
    try:
        b"<".decode(encoding, "replace")  # raises LookupError for codecs that are not text encodings, such as zlib
        if codecs.lookup(encoding).name != "utf-8":
            pieces = chain.from_iterable(_in_utf8(pieces, encoding))
        first = next(pieces, b"")
    except LookupError:
        detail = f"{_subject(part)} is XML in the encoding {encoding}, which is unknown"
        raise FileError(file, None, "bad_xml", detail, "Save it again in UTF-8.") from None
    except UnicodeError as error:
        raise _undecodable(file, part, encoding, error) from None
    if _has_declarations(first):
        detail = f"{_subject(part)} is XML with declarations in its DOCTYPE, such as entities, which are not read"
        raise FileError(file, None, "xml_declarations", detail, "Save it again without a DTD.")
    yield first
    try:
        yield from pieces
    except UnicodeError as error:
        raise _undecodable(file, part, encoding, error) from None


def _encoding(start: bytes) -> str:
    marked = next((name for mark, name in _MARKS if start.startswith(mark)), None)
    if marked is not None:
        return marked
    declared = _DECLARED.match(start)
    return "utf-8" if declared is None else declared.group(1).decode("ascii")


def _in_utf8(blocks: Iterable[bytes], encoding: str) -> Iterator[tuple[bytes, ...]]:
    decoder = codecs.getincrementaldecoder(encoding)()
    for block in blocks:
        if text := decoder.decode(block):
            yield (text.encode(),)
    if text := decoder.decode(b"", final=True):
        yield (text.encode(),)


def _has_declarations(start: bytes) -> bool:
    """Return whether a file's document type holds declarations, or may hold them beyond the bytes that were read."""
    text = start.decode("utf-8", "replace").removeprefix("\ufeff")
    position = 0
    while match := _BEFORE_ROOT.match(text, position):
        position = match.end()
    rest = text[position:].lstrip()
    if rest.startswith("<!DOCTYPE"):
        return _DOCTYPE.match(rest) is None
    return len(start) >= _PROLOG_BYTES and (rest.startswith(("<!", "<?")) or len(rest) < len("<!DOCTYPE"))


def _subject(part: str) -> str:
    return f"its part {part}" if part else "it"


def _too_deep(file: str, part: str) -> FileError:
    detail = f"{_subject(part)} is XML with more than {MAX_DEPTH} elements nested in each other"
    return FileError(file, None, "bad_xml", detail, _HINT)


def _undecodable(file: str, part: str, encoding: str, error: UnicodeError) -> FileError:
    reason = error.reason if isinstance(error, UnicodeDecodeError) else str(error)
    detail = f"{_subject(part)} is XML that is not {encoding}, as it states ({reason})"
    return FileError(file, None, "bad_xml", detail, _HINT)
