"""Test encodings: they are detected and reported, and text is never decoded wrongly without a message."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text import Part, TextReport, read_parts
from finetale.text.encodings import guess_encoding

ENGLISH = (
    "“It’s a long way,” said the old man — “and you’ll be tired.” The café was closed; naïve as he was, he’d come. "
)
GERMAN = (
    "Es war einmal eine süße kleine Dirne, die hatte jedermann lieb, "
    "am liebsten aber ihre Großmutter. „Groß“ – rief er. "
)
FRENCH = (
    "Il était une fois une petite fille, la plus jolie qu'on eût su voir : sa mère en était folle. "
    "« Où vas-tu ? » dit-il. "
)
POLISH = "Dawno temu, za siedmioma górami, żyła piękna królewna, która każdego dnia spoglądała w źródło. "
RUSSIAN = (
    "Жили-были старик со старухой у самого синего моря; они жили в ветхой землянке ровно тридцать лет и три года. "
)
SIMPLIFIED = (
    "从前有座山，山里有座庙，庙里有个老和尚给小和尚讲故事。一个农夫救了一条冻僵的蛇，那条蛇醒来以后却咬了他一口。"
)
TRADITIONAL = (
    "從前有座山，山裡有座廟，廟裡有個老和尚給小和尚講故事。一個農夫救了一條凍僵的蛇，那條蛇醒來以後卻咬了他一口。"
)
JAPANESE = (
    "昔々あるところに、おじいさんとおばあさんがいました。おじいさんは山へ柴刈りに、おばあさんは川へ洗濯に行きました。"
)
KOREAN = "옛날 옛적에 어느 마을에 할머니와 할아버지가 살고 있었습니다. 할아버지는 산으로 나무를 하러 갔습니다. "

CASES = [
    (ENGLISH, "cp1252"),
    (GERMAN, "cp1252"),
    (FRENCH, "cp1252"),
    (POLISH, "cp1250"),
    (RUSSIAN, "cp1251"),
    (RUSSIAN, "koi8-r"),
    (RUSSIAN, "utf-16-le"),
    (SIMPLIFIED, "gb18030"),
    (SIMPLIFIED, "utf-16-le"),
    (SIMPLIFIED, "utf-16-be"),
    (TRADITIONAL, "big5"),
    (JAPANESE, "cp932"),
    (JAPANESE, "euc-jp"),
    (KOREAN, "cp949"),
]


def read(path: Path, **settings: object) -> tuple[list[Part], TextReport]:
    parts, report = read_parts(
        [str(path)], TextSettings.resolve({"validation_fraction": 0, "test_fraction": 0, **settings})
    )
    return list(parts), report


@pytest.mark.parametrize("repeats", [1, 50])
@pytest.mark.parametrize(("text", "encoding"), CASES)
def test_an_encoding_is_detected_and_reported(tmp_path: Path, text: str, encoding: str, repeats: int) -> None:
    path = tmp_path / "story.txt"
    path.write_bytes((text * repeats).encode(encoding))
    parts, report = read(path, strip=False)
    assert [part.text for part in parts] == [text * repeats]
    assert report.to_dict()["files"][0]["encoding"] == encoding


@pytest.mark.parametrize(("text", "encoding"), [case for case in CASES if not case[1].startswith("utf")])
def test_non_ascii_text_after_megabytes_of_ascii_is_detected(tmp_path: Path, text: str, encoding: str) -> None:
    ascii_text = "Once upon a time there was a tale.\n" * 35_000
    path = tmp_path / "story.txt.gz"
    path.write_bytes(gzip.compress((ascii_text + text).encode(encoding), 1))
    parts, _ = read(path, strip=False)
    assert parts[0].text == ascii_text + text


@pytest.mark.parametrize(
    ("encoding", "mark", "reported"),
    [
        ("utf-8", b"\xef\xbb\xbf", "utf-8 with byte order mark"),
        ("utf-16-le", b"\xff\xfe", "utf-16-le with byte order mark"),
        ("utf-16-be", b"\xfe\xff", "utf-16-be with byte order mark"),
        ("utf-16-le", b"", "utf-16-le"),
        ("utf-16-be", b"", "utf-16-be"),
        ("utf-8", b"", "utf-8"),
    ],
)
def test_unicode_with_and_without_a_byte_order_mark(tmp_path: Path, encoding: str, mark: bytes, reported: str) -> None:
    path = tmp_path / "story.txt"
    path.write_bytes(mark + ENGLISH.strip().encode(encoding))
    parts, report = read(path)
    assert parts[0].text == ENGLISH.strip()
    assert report.to_dict()["files"][0]["encoding"] == reported
    assert report.to_dict()["problems"] == []


@pytest.mark.parametrize("text", ["café", "É", "Érase", "groß", "It’s", "naïve – “so”"])
def test_a_single_word_of_windows_1252(tmp_path: Path, text: str) -> None:
    path = tmp_path / "story.txt"
    path.write_bytes(text.encode("cp1252"))
    assert read(path)[0][0].text == text


def test_a_given_encoding_is_used(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_bytes("Ünique čas".encode("iso-8859-2", "replace"))
    assert read(path, encoding="iso-8859-2")[0][0].text == "Ünique čas"
    path.write_bytes(b"\xef\xbb\xbfmark")
    assert read(path, encoding="utf-8")[0][0].text == "mark"


@pytest.mark.parametrize("name", ["klingon", "base64", ""])
def test_an_unknown_encoding_is_refused_before_reading(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match="no text encoding"):
        read(tmp_path / "none.txt", encoding=name)


def test_the_error_for_invalid_utf8_has_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_bytes(b"caf\xc3\xa9 \xe2\x80\x9cone\xe2\x80\x9d\nna\xc3\xafve \xff here\n")
    with pytest.raises(SourceError, match=r"story\.txt:2: byte 0xff") as caught:
        read(path)
    assert "--undecodable replace" in caught.value.hint
    assert "--encoding" in caught.value.hint


def test_invalid_utf8_can_be_replaced_and_is_counted_by_line(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_bytes("café “one” \ufffd\n".encode() + b"\xff\nfine\n" + "naïve – ".encode() + b"\xff\xfe")
    parts, report = read(path, undecodable="replace")
    assert parts[0].text == "café “one” \ufffd\n\ufffd\nfine\nnaïve – \ufffd\ufffd"
    counts = report.to_dict()["files"][0]["problems"]
    assert counts == {"undecodable": 3, "replacement_character": 1}


def test_a_character_cut_off_at_the_end_is_found(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_bytes("café “one”".encode() + b"\nend \xe2\x80")
    with pytest.raises(SourceError, match=r":2: byte 0xe2"):
        read(path)


@pytest.mark.parametrize("utf8_first", [True, False])
@pytest.mark.parametrize(("text", "encoding"), [(FRENCH, "cp1252"), (SIMPLIFIED, "gb18030"), (RUSSIAN, "cp1251")])
@pytest.mark.parametrize("undecodable", ["error", "replace"])
def test_two_encodings_in_one_file_are_reported(
    tmp_path: Path, text: str, encoding: str, utf8_first: bool, undecodable: str
) -> None:
    halves = [(text + "\n").encode() * 3, (text + "\n").encode(encoding) * 30]
    path = tmp_path / "story.txt"
    path.write_bytes(b"".join(halves if utf8_first else reversed(halves)))
    with pytest.raises(SourceError, match=r"story\.txt:\d+: ") as caught:
        read(path, undecodable=undecodable)
    assert "--encoding" in caught.value.hint


def test_an_undetectable_encoding_is_an_error(tmp_path: Path) -> None:
    assert guess_encoding("雾气散".encode("gb18030")) is None
    path = tmp_path / "story.txt"
    path.write_bytes(b"one\ntwo " + "雾气散".encode("gb18030"))
    with pytest.raises(SourceError, match=r"story\.txt:2: .*encoding is not recognised"):
        read(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "PNG"),
        (b"PK\x03\x04" + bytes(30), "docx"),
        (b"\x7fELF\x02\x01\x01" + bytes(60), "ELF"),
        (b"\x1f\x8b\x08" + bytes(30), "gzip"),
        (bytes(range(256)) * 20, "control characters"),
        (b"text" + bytes(500), "NUL"),
    ],
)
def test_binary_files_are_refused(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "story.txt"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=rf"story\.txt: is .*{what}") as caught:
        read(path)
    assert "plain text" in caught.value.hint


def test_a_damaged_pdf_with_another_suffix_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_bytes(b"%PDF-1.7\nstream")
    with pytest.raises(SourceError, match=r"story\.txt: is not a PDF document that can be read") as caught:
        read(path)
    assert "print it to a new PDF file" in caught.value.hint


@pytest.mark.parametrize(
    "content",
    [
        b"abc\x00" * 300,
        b"ab\x00" * 300,
        b"one two\x00three four five\x00" * 50,
        b"The quick brown fox jumps over" + bytes(400),
        bytes(300),
    ],
)
def test_nul_bytes_are_reported_and_not_mistaken_for_utf16(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "story.txt"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"story\.txt: is binary data \(full of NUL bytes\)") as caught:
        read(path)
    assert "utf-16" not in caught.value.message


def test_invalid_utf16_is_reported_by_its_nul_bytes(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_bytes(("Once upon a time. " * 4000).encode("utf-16-le") + b"\x00\xdc\x00\xdcx")
    with pytest.raises(SourceError, match=r"has NUL bytes, so it is binary data or damaged text"):
        read(path)


@pytest.mark.parametrize("content", [b"a\x00b\x00c", b"hello\x00", b"one\x00two three four five six seven"])
def test_a_few_nul_bytes_are_removed_and_counted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "story.txt"
    path.write_bytes(content)
    parts, report = read(path)
    assert parts[0].text == content.replace(b"\x00", b"").decode()
    assert report.to_dict()["files"][0]["problems"] == {"nul": content.count(0)}
