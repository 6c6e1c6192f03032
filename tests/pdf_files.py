"""Small PDF files for tests, written by hand: text at places, an outline, pictures, and damage."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

Placed = tuple[float, float, float, str]
"""Left edge, baseline, size and text, in points from the lower left corner."""


def content(lines: Sequence[Placed]) -> bytes:
    """Return the content stream of a page."""
    shown = []
    for left, base, size, text in lines:
        quoted = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)").encode("cp1252")
        shown.append(b"BT /F1 %.2f Tf 1 0 0 1 %.2f %.2f Tm (%s) Tj ET" % (size, left, base, quoted))
    return b"\n".join(shown)


def stream(data: bytes, more: bytes = b"") -> bytes:
    """Return a compressed stream."""
    packed = zlib.compress(data)
    return b"<< /Length %d /Filter /FlateDecode %s >>\nstream\n%s\nendstream" % (len(packed), more, packed)


def build(objects: Sequence[bytes], *, trailer: bytes = b"") -> bytes:
    """Return a file of numbered objects. The first is the catalogue."""
    out = bytearray(b"%PDF-1.7\n")
    places = []
    for number, each in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer << /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, start)
    return bytes(out)


def pdf(
    pages: Sequence[Sequence[Placed] | bytes],
    *,
    outline: Sequence[tuple[str, int, float | None]] = (),
    pictures: Sequence[int] = (),
    encoding: bytes = b"/Encoding /WinAnsiEncoding",
    producer: str = "",
) -> bytes:
    """Return a PDF file of letter size in Helvetica.

    Args:
        pages: the lines of each page, or its content stream.
        outline: (title, page from 0, height on the page) of each entry.
        pictures: pages from 0 that show a picture.
        encoding: entries of the font.
        producer: name of the program in the file's information.
    """
    font, picture, info, first_page = 3, 4, 5, 6
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica %s >>" % encoding,
        stream(
            b"\x00" * 12,
            b"/Type /XObject /Subtype /Image /Width 2 /Height 2 /ColorSpace /DeviceRGB /BitsPerComponent 8",
        ),
        b"<< /Producer (%s) >>" % producer.encode("latin-1"),
    ]
    kids = []
    for index, page in enumerate(pages):
        data = page if isinstance(page, bytes) else content(page)
        if index in pictures:
            data += b"\nq 400 0 0 400 100 200 cm /P Do Q"
        kids.append(first_page + 2 * index)
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R "
            b"/Resources << /Font << /F1 %d 0 R >> /XObject << /P %d 0 R >> >> >>"
            % (first_page + 2 * index + 1, font, picture)
        )
        objects.append(stream(data))
    objects[1] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(kids), b" ".join(b"%d 0 R" % kid for kid in kids))
    if outline:
        root = len(objects) + 1
        objects[0] = b"<< /Type /Catalog /Pages 2 0 R /Outlines %d 0 R >>" % root
        objects.append(b"<< /First %d 0 R /Last %d 0 R >>" % (root + 1, root + len(outline)))
        for index, (title, page_number, height) in enumerate(outline):
            number = root + 1 + index
            following = b"/Next %d 0 R" % (number + 1) if index + 1 < len(outline) else b""
            place = b"/Fit" if height is None else b"/XYZ 0 %.1f 0" % height
            objects.append(
                b"<< /Title (%s) /Parent %d 0 R /Dest [%d 0 R %s] %s >>"
                % (title.encode("latin-1"), root, first_page + 2 * page_number, place, following)
            )
    return build(objects, trailer=b"/Info %d 0 R" % info)


def flow(text: str, *, left: float = 72, top: float = 700, width: int = 70, indent: float = 18) -> list[Placed]:
    """Return paragraphs set in lines of `width` characters, each with an indent, at a spacing of 14 points."""
    placed: list[Placed] = []
    for paragraph in text.split("\n\n"):
        line = ""
        first = True
        for word in [*paragraph.split(), ""]:
            if word and len(line) + len(word) < width:
                line += f" {word}" if line else word
                continue
            placed.append((left + indent * first, top - 14 * len(placed), 11, line))
            line, first = word, False
    return placed
