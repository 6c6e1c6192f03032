"""Web pages: .html, and .mhtml, which a browser saves as one file. The rules are in docs/formats.md."""

from __future__ import annotations

import re
from collections.abc import Iterator

from finetale.text.documents import FileError
from finetale.text.formats.base import Chapter, Format, SourceFile
from finetale.text.formats.html.encoding import decode_page
from finetale.text.formats.html.text import Page, read_page

MAX_PAGE_BYTES = 64 << 20


def html_chapters(source: SourceFile) -> Iterator[Chapter]:
    """Yield the sections of a page that start with a heading 1.

    Raises:
        FileError: the page is too large, is in an unknown encoding, or exceeds a limit of `read_page`.
    """
    data = read_whole(source, MAX_PAGE_BYTES)
    yield from chapters_of_page(read_page(decode_page(data, source.account, source.settings), source.account))


def mhtml_chapters(source: SourceFile) -> Iterator[Chapter]:
    """Yield the sections of the page in an .mhtml file. Raises the errors of `html_chapters`."""
    from email import message_from_bytes, policy

    message = message_from_bytes(read_whole(source, MAX_PAGE_BYTES), policy=policy.compat32)
    for part in message.walk():
        if part.get_content_type() in ("text/html", "application/xhtml+xml"):
            data = part.get_payload(decode=True)
            assert isinstance(data, bytes)
            page = decode_page(data, source.account, source.settings, part.get_content_charset())
            yield from chapters_of_page(read_page(page, source.account))
            return
    hint = "Save the page again with a browser, as HTML."
    raise FileError(
        source.name, None, "damaged", "is not a saved web page (it has no part of the type text/html)", hint
    )


def chapters_of_page(page: Page) -> Iterator[Chapter]:
    """Yield the sections of a page as chapters."""
    sections = list(page.sections())
    for number, (title, text) in enumerate(sections, 1):
        yield Chapter(text + "\n\n" * (number < len(sections)), title, number)


def read_whole(source: SourceFile, limit: int) -> bytes:
    """Return the bytes of a file. The account counts them.

    Raises:
        FileError: the file is larger than `limit` bytes.
    """
    pieces: list[bytes] = []
    for block in source.counted():
        pieces.append(block)
        if source.account.bytes > limit:
            detail = f"is a page of more than {limit >> 20:,} MiB, the most that is read"
            hint = "Split it into several files, or save its text as plain text (.txt)."
            raise FileError(source.name, None, "page_limit", detail, hint)
    return b"".join(pieces)


FORMATS = (
    Format(
        "html",
        "page",
        (".html", ".htm", ".xhtml"),
        "chapters",
        html_chapters,
        needs=("lxml",),
        magic=(re.compile(rb"\s*<(!doctype )?html", re.IGNORECASE),),
    ),
    Format("mhtml", "page", (".mhtml", ".mht"), "chapters", mhtml_chapters, needs=("lxml",)),
)
