"""OpenDocument text (.odt, .fodt): its elements → chapters. docs/formats.md states the rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain

from finetale.text.account import FileAccount
from finetale.text.documents import FileError
from finetale.text.formats.base import Chapter, Format, SourceFile
from finetale.text.formats.manuscript import Block, chapters_of, zipped_chapters
from finetale.text.formats.odt.body import Body
from finetale.text.formats.odt.styles import Styles
from finetale.text.formats.xml_safe import read_xml
from finetale.text.formats.zipped import Container

_HINT = "Open it in LibreOffice or Word and save it as .odt."
_MANIFEST = "META-INF/manifest.xml"
_KINDS = {"spreadsheet": "an OpenDocument spreadsheet", "presentation": "an OpenDocument presentation"}


def odt_blocks(container: Container, account: FileAccount) -> list[Block]:
    """Return the paragraphs of an OpenDocument text, and count what is left out.

    Raises:
        FileError: the container or its XML is damaged, is encrypted, or holds no text document.
    """
    name = container.name
    if container.find(_MANIFEST) is not None and b"encryption-data" in container.read(_MANIFEST):
        raise FileError(name, None, "encrypted", "it is encrypted with a password", "Save it without a password.")
    if container.find("content.xml") is None:
        raise FileError(name, None, "not_odt", "it is a zip file without content.xml, not an OpenDocument file", _HINT)
    styles = Styles()
    if container.find("styles.xml") is not None:
        read_xml(name, container.blocks("styles.xml"), Body(account, styles), "styles.xml")
    return _blocks(name, container.blocks("content.xml"), account, styles, "content.xml")


def _blocks(name: str, content: Iterable[bytes], account: FileAccount, styles: Styles, part: str) -> list[Block]:
    body = Body(account, styles)
    read_xml(name, content, body, part)
    if body.kind != "text":
        what = _KINDS.get(body.kind or "", "XML of another kind")
        raise FileError(name, None, "not_odt", f"it is {what}, not an OpenDocument text", _HINT)
    return body.blocks


def _read_flat(file: SourceFile) -> Iterator[Chapter]:
    content = file.counted()
    first = next(content, None)
    if first is not None:
        yield from chapters_of(_blocks(file.name, chain((first,), content), file.account, Styles(), ""))


_read = partial(zipped_chapters, blocks_of=odt_blocks)

FORMATS = (
    Format(
        "odt",
        "manuscript",
        (".odt", ".ott"),
        "chapters",
        _read,
        needs=("lxml",),
        is_binary=True,
    ),
    Format("fodt", "manuscript", (".fodt",), "chapters", _read_flat, needs=("lxml",)),
)
