"""Word documents (.docx): WordprocessingML → chapters. docs/formats.md states the rules.

The main part is read as a stream of elements. Styles and numbering are small and are read as trees before it.
"""

from __future__ import annotations

import posixpath
import re
from functools import partial

from finetale.text.account import FileAccount
from finetale.text.documents import FileError
from finetale.text.formats.base import Format
from finetale.text.formats.docx.body import ROOTS, Body
from finetale.text.formats.docx.styles import read_numbering, read_styles
from finetale.text.formats.manuscript import Block, zipped_chapters
from finetale.text.formats.xml_safe import read_xml, xml_tree
from finetale.text.formats.zipped import Container

_MAIN_PART = "word/document.xml"
_HINT = "Open it in Word or LibreOffice and save it as .docx."
_HEADERS = re.compile(r"(?:.*/)?(header|footer)\d*\.xml", re.IGNORECASE)
_TEXT_ELEMENT = re.compile(rb"<(?:\w+:)?t[ >]")


def docx_blocks(container: Container, account: FileAccount) -> list[Block]:
    """Return the paragraphs of a Word document, and count what is left out.

    Raises:
        FileError: the container or its XML is damaged, or holds no Word document.
    """
    name = container.name
    main = _related(container, "", "officeDocument").get("officeDocument", _MAIN_PART)
    if container.find(main) is None:
        kinds = (("xl/", "a spreadsheet"), ("ppt/", "a presentation"), ("mimetype", "an OpenDocument file or e-book"))
        found = next((what for start, what in kinds if any(each.startswith(start) for each in container.members)), None)
        detail = f"it is {found}, not a Word document" if found else f"it is a zip file without {_MAIN_PART}"
        raise FileError(name, None, "not_docx", detail, _HINT)
    parts = _related(container, main, "styles", "numbering")
    styles, default_style = read_styles(container, parts.get("styles"))
    body = Body(account, styles, default_style, read_numbering(container, parts.get("numbering")))
    read_xml(name, container.blocks(main), body, main)
    if body.root not in ROOTS:
        raise FileError(name, None, "not_docx", f"it is not a Word document (its main part is {main})", _HINT)
    for member in container.members:
        match = _HEADERS.fullmatch(member)
        if match and _TEXT_ELEMENT.search(container.read(member)):
            account.leave_out(f"page {match.group(1).lower()}")
    return body.blocks


def _related(container: Container, part: str, *kinds: str) -> dict[str, str]:
    """Return the parts that a part refers to, by the last word of their type."""
    folder, file = posixpath.split(part)
    relations = posixpath.join(folder, "_rels", f"{file}.rels")
    found: dict[str, str] = {}
    if container.find(relations) is not None:
        for each in xml_tree(container.name, container.blocks(relations), relations):
            kind = each.get("Type", "").rpartition("/")[2]
            target = each.get("Target", "")
            if kind in kinds and kind not in found and each.get("TargetMode") != "External":
                path = target.lstrip("/") if target.startswith("/") else posixpath.join(folder, target)
                found[kind] = posixpath.normpath(path)
    for kind in kinds:
        member = posixpath.join(folder or "word", f"{kind}.xml")
        if kind not in found and kind != "officeDocument" and container.find(member) is not None:
            found[kind] = member
    return found


_read = partial(zipped_chapters, blocks_of=docx_blocks)

FORMATS = (
    Format(
        "docx",
        "manuscript",
        (".docx", ".docm", ".dotx", ".dotm"),
        "chapters",
        _read,
        needs=("lxml",),
        is_binary=True,
    ),
)
