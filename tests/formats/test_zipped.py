"""Test zip containers: limits against bombs, and one error sentence for damaged files."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from finetale.text.documents import FileError
from finetale.text.formats.zipped import DOCUMENT_LIMITS, OLE_MAGIC, Container

MEBI = 1 << 20
BOMB_HINT = "No document that a writing program saves is like this. Leave it out, or save the document again."
DAMAGED_HINT = "Get the file again, or unpack the intact part of it and use that."


def packed(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def opened(content: bytes, **limits: int) -> Container:
    return Container("a.docx", io.BytesIO(content), replace(DOCUMENT_LIMITS, **limits))


def refusal(content: bytes, member: str = "a.xml", **limits: int) -> FileError:
    """Read a member that is refused, and check that memory does not grow; return the error."""
    tracemalloc.start()
    try:
        with pytest.raises(FileError) as caught, opened(content, **limits) as container:
            for _ in container.blocks(member):
                pass
        assert tracemalloc.get_traced_memory()[1] < 24 * MEBI + 3 * len(content)
    finally:
        tracemalloc.stop()
    return caught.value


def test_members_are_read_completely() -> None:
    content = packed({"a.xml": b"one" * 100_000, "b/C.xml": b"two", "empty": b""})
    with opened(content) as container:
        assert container.members == ("a.xml", "b/C.xml", "empty")
        assert container.read("a.xml") == b"one" * 100_000
        assert (container.read("B\\c.XML"), container.find("/b/c.xml"), container.find("d")) == (
            b"two",
            "b/C.xml",
            None,
        )
        assert (container.size("b/C.xml"), container.read("empty")) == (3, b"")


def test_closing_a_container_closes_its_file() -> None:
    file = io.BytesIO(packed({"a.xml": b""}))
    with Container("a.docx", file):
        assert not file.closed
    assert file.closed
    file = io.BytesIO(b"PK")
    with pytest.raises(FileError):
        Container("a.docx", file)
    assert file.closed


def test_a_bomb_is_detected_by_its_ratio() -> None:
    error = refusal(packed({"a.xml": b"\0" * (64 * MEBI)}))
    assert error.message == (
        "a.docx: the member a.xml of its zip data grows to more than 200 times its compressed size."
    )
    assert (error.hint, error.kind) == (BOMB_HINT, "zip_bomb")


def test_small_members_can_have_any_ratio() -> None:
    with opened(packed({"a.xml": b" " * (8 * MEBI)})) as container:
        assert len(container.read("a.xml")) == 8 * MEBI


def test_a_declared_size_of_a_gibibyte() -> None:
    content = bytearray(packed({"a.xml": b"text"}))
    directory = content.index(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = struct.pack("<I", 1 << 30)
    assert refusal(bytes(content)).message == (
        "a.docx: the member a.xml of its zip data is larger than 512 MiB uncompressed, the most that is read."
    )


def test_a_declared_size_that_is_too_small() -> None:
    content = bytearray(packed({"a.xml": b"x" * MEBI}))
    directory = content.index(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = struct.pack("<I", 10)
    assert refusal(bytes(content)).message == (
        "a.docx: the member a.xml of its zip data is damaged (Bad CRC-32 for file 'a.xml')."
    )


def test_the_actual_size_is_counted() -> None:
    content = packed({"a.xml": b"ab" * MEBI, "b.xml": b"cd" * MEBI})
    error = refusal(content, member_bytes=2 * MEBI - 1)
    assert error.message.startswith("a.docx: the member a.xml of its zip data is larger than 1 MiB")
    with opened(content, total_bytes=3 * MEBI) as container:
        container.read("a.xml")
        with pytest.raises(FileError) as caught:
            container.read("b.xml")
    assert caught.value.message == ("a.docx: its zip data is larger than 3 MiB uncompressed, the most that is read.")


def test_members_with_shared_data_are_counted_separately() -> None:
    """Many directory entries with the same data are another kind of bomb."""
    content = packed({"a.xml": bytes(range(256)) * 4096})
    start = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06")
    entry = content[start:end]
    directory = entry * 100
    tail = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 100, 100, len(directory), start, 0)
    with opened(content[:start] + directory + tail, total_bytes=20 * MEBI) as container:
        for _ in range(20):
            container.read("a.xml")
        with pytest.raises(FileError) as caught:
            container.read("a.xml")
        assert caught.value.kind == "zip_bomb"


def test_a_container_within_itself_is_read_one_level_deep() -> None:
    content = packed({"a.xml": b"text"})
    for _ in range(50):
        content = packed({"a.xml": content})
    with opened(content) as container:
        assert container.read("a.xml").startswith(b"PK")


def test_too_many_members() -> None:
    error = refusal(packed({f"{number}": b"" for number in range(10_001)}))
    assert error.message == "a.docx: its zip data has 10,001 members, and at most 10,000 are read."


def test_a_large_directory_is_not_loaded() -> None:
    """300,000 entries would take 150 MB of memory."""
    content = packed({"a.xml": b""})
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    directory = content[start:end] * 100_000
    tail = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(directory), start, 0)
    assert refusal(content[:start] + directory + tail).message == (
        "a.docx: the directory of its zip data is larger than 4 MiB uncompressed, the most that is read."
    )


def test_an_encrypted_member() -> None:
    content = bytearray(packed({"a.xml": b"text"}))
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(magic) + offset] |= 1
    error = refusal(bytes(content))
    assert error.message == "a.docx: the member a.xml of its zip data is encrypted."
    assert (error.hint, error.kind) == ("Save it without a password.", "encrypted")


def test_compressions_without_an_output_limit_are_refused() -> None:
    error = refusal(packed({"a.xml": b"text"}, zipfile.ZIP_BZIP2))
    assert (
        error.message == "a.docx: the member a.xml of its zip data is compressed with bzip2, and only deflate is read."
    )


def test_a_missing_member() -> None:
    error = refusal(packed({"b.xml": b"text"}))
    assert (error.message, error.hint) == ("a.docx: its zip data has no member a.xml.", DAMAGED_HINT)


def test_a_truncated_file() -> None:
    whole = packed({"a.xml": bytes(range(256)) * 40})
    error = refusal(whole[:-30])
    assert error.message == "a.docx: its zip data is cut off or damaged (File is not a zip file)."
    assert (error.hint, error.kind) == (DAMAGED_HINT, "damaged")
    assert refusal(b"no zip at all").message == "a.docx: it is not zip data, as its name says (File is not a zip file)."
    assert refusal(b"").kind == "damaged"


def test_damage_at_any_byte_gives_one_error_sentence(tmp_path: Path) -> None:
    whole = packed({"a.xml": b"a story of a lamp " * 20})
    same = 0
    refused = []
    for place in range(len(whole)):
        for value in (0x00, 0xFF, whole[place] ^ 0x55):
            content = bytearray(whole)
            content[place] = value
            try:
                with opened(bytes(content)) as container:
                    same += container.read("a.xml") == b"a story of a lamp " * 20
            except FileError as error:
                refused.append(error.message)
    assert same > 50
    assert len(refused) > 200
    assert all(message.startswith("a.docx: ") for message in refused)


def test_an_encrypted_document_is_a_compound_file() -> None:
    content = OLE_MAGIC + b"\0" * MEBI + "EncryptedPackage".encode("utf-16-le") + b"\0" * 100
    error = refusal(content)
    assert error.message == "a.docx: it is encrypted with a password."
    assert (error.hint, error.kind) == ("Save it without a password.", "encrypted")
    error = refusal(OLE_MAGIC + b"\0" * 512 + "WordDocument".encode("utf-16-le"))
    assert error.message == ("a.docx: it is a file of an old Office version (.doc, .xls or .ppt) with another suffix.")
    assert error.hint == (
        "Save it in the new format, or convert it with `soffice --headless --convert-to docx FILE` (or xlsx)."
    )
