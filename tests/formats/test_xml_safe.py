"""Test the safe XML parser: no entities, no files, no network, limited depth, and one error sentence for damage."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from finetale.text.documents import FileError
from finetale.text.formats.xml_safe import read_xml, xml_tree

HINT = "Save it again with the program that wrote it, or get the file again."
DECLARED = "a.docx: its part p.xml is XML with declarations in its DOCTYPE, such as entities, which are not read."
LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
BILLION = f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY l0 "lol">{LAUGHS}]><a b="&l9;">&l9;</a>'


class Seen:
    def __init__(self) -> None:
        self.events: list[object] = []

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.events.append((tag, dict(attributes)))

    def data(self, text: str) -> None:
        self.events.append(text)

    def end(self, tag: str) -> None:
        self.events.append(tag)


def as_events(content: bytes, size: int = 7) -> list[object]:
    seen = Seen()
    read_xml("a.docx", (content[at : at + size] for at in range(0, len(content), size)), seen, "p.xml")
    return seen.events


def as_tree(content: bytes) -> list[object]:
    root = xml_tree("a.docx", [content], "p.xml")
    return [(root.tag, dict(root.attrib)), root.text, root.tag]


READERS = pytest.mark.parametrize("read", [as_events, as_tree])


def refusal(read: Callable[[bytes], object], content: bytes) -> FileError:
    started = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(FileError) as caught:
            read(content)
        assert tracemalloc.get_traced_memory()[1] < (4 << 20) + 4 * len(content)
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 5
    return caught.value


@READERS
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings_with_byte_order_marks(read: Callable[[bytes], list[object]], encoding: str) -> None:
    content = "<?xml version='1.0'?>\n<a xmlns='urn:x' b='é'>„Wörter“ &amp; 夜</a>".encode(encoding)
    found = read(content)
    assert found[0] == ("{urn:x}a", {"b": "é"})
    assert "".join(each for each in found[1:-1] if isinstance(each, str)) == "„Wörter“ & 夜"


@READERS
@pytest.mark.parametrize("encoding", ["windows-1251", "GB18030", "koi8-r", "ISO-2022-JP", "utf-7"])
def test_declared_encodings(read: Callable[[bytes], list[object]], encoding: str) -> None:
    text = "ла" if encoding in ("windows-1251", "koi8-r") else "夜"
    found = read(f"<?xml version='1.0' encoding='{encoding}'?><a>{text}</a>".encode(encoding))
    assert "".join(each for each in found[1:-1] if isinstance(each, str)) == text


@READERS
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-7"])
def test_a_billion_laughs(read: Callable[[bytes], object], encoding: str) -> None:
    declared = BILLION.replace('"1.0"', f'"1.0" encoding="{encoding}"')
    head = declared[: declared.index("?>") + 2]
    body = declared[len(head) :]
    if encoding == "utf-7":  # the markup itself is hidden
        body = body.replace("<!", "+ADwAIQ-").replace("&", "+ACY-")
        content = head.encode() + body.encode()
    else:
        content = declared.encode(encoding)
    error = refusal(read, content)
    assert (error.message, error.hint) == (DECLARED, "Save it again without a DTD.")


@READERS
@pytest.mark.parametrize("address", ["file://{}", "{}", "http://127.0.0.1:9/x"])
def test_no_file_and_no_address_is_opened(read: Callable[[bytes], object], address: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("SECRET")
    address = address.format(secret)
    for declarations in (
        f'[<!ENTITY x SYSTEM "{address}">]',
        f'[<!ENTITY % x SYSTEM "{address}"> %x;]',
        f'SYSTEM ">" [<!ENTITY x SYSTEM "{address}">]',
        f"PUBLIC '>' '[' [<!ENTITY x SYSTEM '{address}'>]",
    ):
        assert refusal(read, f"<!DOCTYPE a {declarations}><a>&x;</a>".encode()).message == DECLARED
        padded = f"<!--{'-> ' * 20}--><?x {'y' * 90_000}?>\n<!DOCTYPE a {declarations}><a>&x;</a>"
        assert refusal(read, padded.encode()).message == DECLARED


@READERS
def test_an_external_dtd_is_not_loaded(read: Callable[[bytes], list[object]], tmp_path: Path) -> None:
    dtd = tmp_path / "a.dtd"
    dtd.write_text("<!ELEMENT a ANY><!ATTLIST a secret CDATA 'SECRET'><!ENTITY x 'SECRET'>")
    for identity in (f'SYSTEM "file://{dtd}"', f"PUBLIC '-//x//y' '{dtd}'", ""):
        found = read(f"<!-- c --><!DOCTYPE a {identity}><a>text</a>".encode())
        assert found[0] == ("a", {})
        assert "SECRET" not in str(found)


@READERS
def test_undeclared_entities(read: Callable[[bytes], object]) -> None:
    assert refusal(read, b"<a>one &x; two</a>").message == (
        "a.docx: its part p.xml is not well-formed XML (Entity 'x' not defined; line 1, column 11)."
    )


@READERS
@pytest.mark.parametrize("depth", [300, 100_000])
def test_deep_nesting(read: Callable[[bytes], object], depth: int) -> None:
    error = refusal(read, b"<a>" * depth + b"</a>" * depth)
    assert error.message == "a.docx: its part p.xml is XML with more than 250 elements nested in each other."
    assert (error.hint, error.kind) == (HINT, "bad_xml")


@READERS
def test_wide_documents_are_not_limited(read: Callable[[bytes], list[object]]) -> None:
    assert read(b"<a>" + b"<b/>" * 3000 + b"</a>")


@READERS
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no element found; at its start|Document is empty; line 1, column 1"),
        (b"<a>\n<b>text", "Premature end of data in tag b line 2; line 2, column 8"),
        (b"<a>\n<b></a>", "Opening and ending tag mismatch: b line 2 and a; line 2, column 8"),
        (b"<a>\n\x01</a>", "PCDATA invalid Char value 1; line 2, column 1"),
        (b"<a/>more", "Extra content at the end of the document; line 1, column 5"),
        (b"no XML", "Start tag expected, '<' not found; line 1, column 1"),
    ],
)
def test_errors_for_damage_have_the_place(read: Callable[[bytes], object], content: bytes, reason: str) -> None:
    error = refusal(read, content)
    assert error.message in [f"a.docx: its part p.xml is not well-formed XML ({each})." for each in reason.split("|")]
    assert error.hint == HINT


@READERS
@pytest.mark.parametrize("encoding", ["zlib", "hex", "rot13", "none-such"])
def test_unknown_encodings_are_refused(read: Callable[[bytes], object], encoding: str) -> None:
    error = refusal(read, f"<?xml version='1.0' encoding='{encoding}'?><a/>".encode())
    assert error.message == f"a.docx: its part p.xml is XML in the encoding {encoding}, which is unknown."


@READERS
def test_bytes_that_are_not_in_the_declared_encoding(read: Callable[[bytes], object]) -> None:
    error = refusal(read, "<?xml version='1.0' encoding='gb18030'?><a>\udcff</a>".encode("utf-8", "surrogateescape"))
    assert error.message == (
        "a.docx: its part p.xml is XML that is not gb18030, as it states (illegal multibyte sequence)."
    )
    assert "not well-formed XML" in refusal(read, b"<a>\xff</a>").message


def test_errors_of_a_target_are_passed_on() -> None:
    class Failing(Seen):
        def data(self, text: str) -> None:
            raise KeyError(text)

    with pytest.raises(KeyError, match="text"):
        read_xml("a.docx", [b"<a>text</a>"], Failing())
