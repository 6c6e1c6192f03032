"""Test RTF: text, omitted content, code pages, chapters, and invalid documents."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text.reading import read_parts

FONTS = (
    r"{\fonttbl{\f0\froman\fcharset0 Times New Roman{\*\falt Times};}{\f1\fnil\fcharset134 SimSun;}"
    r"{\f2\fnil\fcharset204 Arial Cyr;}{\f3\ftech\fcharset2 Symbol;}{\f4\fnil\fcharset128 MS Mincho;}"
    r"{\f5\fnil\fcharset2 Wingdings;}{\f6\fnil\cpg950 Ming;}}"
)
STYLES = (
    r"{\stylesheet{\ql Normal;}{\s1\outlinelevel0\b heading 1;}{\s2\sbasedon1 Mine;}{\s3 Title;}{\*\cs10 heading 1;}"
    r"{\s4\sbasedon5 A;}{\s5\sbasedon4 B;}{\s6\outlinelevel1 Outlined;}}"
)


def read(path: Path, documents: str = "auto") -> tuple[list[str], dict[str, Any]]:
    settings = TextSettings(documents=documents, validation_fraction=0, test_fraction=0)
    parts, report = read_parts([str(path)], settings)
    return [part.text for part in parts], report.to_dict()


@pytest.fixture
def text_of(tmp_path: Path) -> Any:
    """Return the text of a body and the counts of omitted content."""

    def of(body: str | bytes, head: str = r"\ansi\ansicpg1252\deff0") -> tuple[str, dict[str, int]]:
        content = body if isinstance(body, bytes) else body.encode("latin-1")
        start = rf"{{\rtf1{head}{FONTS}{STYLES}".encode()
        (tmp_path / "a.rtf").write_bytes(start + b"\n" + content + b"\\pard\\plain\\par END\\par}\0")
        (text,), report = read(tmp_path / "a.rtf")
        assert text.endswith("\n\nEND")
        return text.removesuffix("\n\nEND"), report["files"][0].get("left_out", {})

    return of


def test_paragraphs_and_special_characters(text_of: Any) -> None:
    body = r"One\par\pard two\tab three\line four\par\par {\b five} \i six\i0 \~seven\_eight\-nine\par" + "\r\n"
    body += "spl\r\nit \\{\\}\\\\ a\\\nb\\\r\nc"
    body += r"\sect d\emdash e\endash f\bullet g\lquote h\rquote  \ldblquote i\rdblquote\par"
    assert text_of(body) == (
        "One\n\ntwo\tthree\nfour\n\nfive six\u00a0seven\u2011eightnine\n\nsplit {}\\ a\n\nb\n\nc\n\nd—e–f•g‘h’ “i”",
        {},
    )


def test_unicode_characters_with_a_fallback(text_of: Any) -> None:
    body = r"a\u8217'b\u8217\'92c\uc0\u8212d\uc2\u20013\'d6\'d0e\uc1\u8220 \u8221 {\u233}f\u-3913?\u20320 "
    assert text_of(body + r"\u55357?\u56832?g\u8217") == ("a’b’c—d中e“”éf你😀g’", {"symbol": 1})
    assert text_of(r"\uc3 \u233\'e9\'e9\'e9x\u233 abcy{\uc0\u233 z}\u233 \par w")[0] == "éxéyéz\n\nw".replace(
        "z\n", "zé\n"
    )


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (r"caf\'e9 \'93x\'94 \'85", "café “x” …"),
        (r"\f1 \'d6\'d0\'b9\'fa\plain  \'e9", "中国 é"),
        (r"\f2 \'cf\'f0\'e8\'e2\'e5\'f2", "Привет"),
        (r"\f4 \'82\'a0\'83\'5c\'83\{x", None),
        (r"\f4 \'82\'a0\'83\'5c", "あソ"),
        (r"\f6 \'a4\'a4", "中"),
        (r"{\f1 \'d6\'d0}\'d6\'d0", "中ÖÐ"),
        (r"\f3 abg\'b7\'ae\f0 abg", "αβγ•→abg"),
        (r"\f5 J\'e0\f0 J", "☺→J"),
        (r"\f99 \'e9", "é"),
    ],
)
def test_bytes_are_decoded_with_the_code_page_of_the_font(text_of: Any, body: str, text: str | None) -> None:
    found = text_of(body)[0]
    assert text is None or found == text


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (r"\ansi\ansicpg1251", "Привет"),
        (r"\mac", "œåžõĺň"),
        (r"\ansi\ansicpg936", "橡栳"),
        (r"\ansi\ansicpg99999", "Ïðèâåò"),
        (r"\ansi", "Ïðèâåò"),
    ],
)
def test_the_code_page_of_the_document(text_of: Any, head: str, text: str) -> None:
    found = text_of(r"\'cf\'f0\'e8\'e2\'e5\'f2", head)[0]
    if head == r"\mac":
        text = bytes.fromhex("cff0e8e2e5f2").decode("mac_roman")
    elif "936" in head:
        text = bytes.fromhex("cff0e8e2e5f2").decode("gbk")
    assert found == text


def test_unescaped_bytes(text_of: Any) -> None:
    assert text_of("caf\xe9 \x93x\x94")[0] == "café “x”"
    assert text_of(b"\\f1 " + "中国".encode("gbk"))[0] == "中国"


def test_content_other_than_running_text_is_counted(text_of: Any) -> None:
    body = (
        r"{\info{\title x}}{\*\generator y;}{\header My Book\par}{\headerr\pard\par}{\footer\'e9\par}{\*\unknown{x} y}"
        r"a{\super\chftn{\footnote\pard\chftn x\par}}b{\*\footnote\ftnalt x}{\*\footnote\pard x}"
        r"{\*\shppict{\pict\pngblip 00ff}}{\nonshppict{\pict 00}}{\pict{\*\blipuid 0}\bin5 }}{{{}c"
        r"{\object\objemb{\*\objdata 00}{\result x}}{\*\atnid A}\chatn{\*\annotation{\*\atnref 1}x}"
        r"{\*\bkmkstart x}{\xe x}{\tc x}{\listtable x}\chpgn "
        r"{\upr{x}{\*\ud{d}}}{\*\pn{\pntxtb x}}"
    )
    assert text_of(body) == (
        "abcd",
        {
            "comment": 1, "embedded object": 1, "endnote": 1, "footnote": 2, "page footer": 1, "page header": 1,
            "page number": 1, "picture": 2,
        },
    )  # fmt: skip


def test_fields_keep_their_results(text_of: Any) -> None:
    def field(instruction: str, result: str) -> str:
        return rf"{{\field\flddirty{{\*\fldinst {{\rtlch {instruction}}}}}{{\fldrslt {{{result}}}}}}}"

    body = "See " + field(r'HYPERLINK "x"', "a " + field("REF y", "link")) + " on " + field("PAGE", "7") + ". "
    body += field(r"TOC \\o", r"One\tab 1\par Two\tab 2\par ") + "End"
    assert text_of(body) == ("See a link on . End", {"page number": 1, "table of contents": 1})


def test_hidden_and_deleted_text(text_of: Any) -> None:
    body = r"a{\v  secret {\b too}} b{\deleted  old}{\revised  new}\v  x\v0  c\v y\plain  d{\deleted 1{\b 2}}"
    body += r"\par e{\deleted\par }f"
    assert text_of(body) == ("a b new c d\n\nef", {"hidden passage": 3, "tracked deletion": 2})


def test_text_boxes_follow_their_paragraph(text_of: Any) -> None:
    shape = r"{\shp{\*\shpinst\shpleft0{\sp{\sn x}{\sv y}}{\shptxt \pard boxed\par twice\par}}{\shprslt{\*\do x}}}"
    assert text_of(rf"be{shape}fore\par after") == ("before\n\nboxed\n\ntwice\n\nafter", {})


def test_lists_have_markers(text_of: Any) -> None:
    bullet, number = r"{\listtext\pard\plain\f3 \'b7\tab}", r"{\listtext\pard\plain %s\tab}"
    body = rf"{bullet}\ls1\ilvl0 dot\par {bullet}\pard\ls1\ilvl1 deep\par\pard Between\par"
    body += rf"{number % '1.'}one\par{number % 'b)'}\ilvl1 two\par\pard\par " + r"\bullet\tab typed\par after\par"
    body += r"{\listtext\u8212\'97\tab}Bonjour.\par{\listtext\tab}plain\par{\pntext\f3\'b7\tab}{\*\pn\pnlvlblt}old"
    assert text_of(body)[0] == (
        "- dot\n  - deep\n\nBetween\n\n1. one\n  b) two\n- typed\n\nafter\n\n— Bonjour.\n\nplain\n\nold"
    )


def test_tables_are_lines_with_cells(text_of: Any) -> None:
    row = r"\trowd\cellx100\cellx200\pard\intbl {}\cell {}\cell\row" + "\n"
    body = "Before\\par" + row.format("Year", "Remark") + row.format(r"1861\par new", r"a\line b") + row.format("", "")
    body += r"\pard between\par" + row.format("", "x") + r"\trowd\pard\intbl only\par cell\cell\row"
    body += r"\pard\intbl\itap2 x\nestcell y\nestcell{\*\nesttableprops\trowd\nestrow}"
    body += r"\pard\intbl z\cell w\cell\row\pard after"
    assert text_of(body)[0] == (
        "Before\n\nYear | Remark\n1861 new | a b\n\nbetween\n\n| x\n\nonly\n\ncell\n\nx y z | w\n\nafter"
    )


def test_chapters_start_at_headings(tmp_path: Path) -> None:
    body = r"\pard\s3 My Book\par\pard\s1 One\par\pard 1\par{\pard\s6 Part\par}\pard 2\par\pard\s2 Two\par"
    body += r"\pard\s4 3\par{\pard\outlinelevel0 Three\par}{\pard 4\par}"
    (tmp_path / "a.rtf").write_text(rf"{{\rtf1\ansi{FONTS}{STYLES}{body}}}")
    texts, report = read(tmp_path / "a.rtf", "chapter")
    assert texts == ["My Book\n\nOne\n\n1\n\nPart\n\n2", "Two\n\n3", "Three\n\n4"]
    assert report["files"][0]["kind"] == "rtf"
    assert report["files"][0]["bytes"] == (tmp_path / "a.rtf").stat().st_size


def refusal(path: Path, content: bytes) -> tuple[str, str]:
    path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        read(path)
    return caught.value.message.removeprefix(f"{path}: "), caught.value.hint


def test_invalid_documents_are_refused(tmp_path: Path) -> None:
    hint = "Open it in Word or LibreOffice and save it again, best as .docx."
    path = tmp_path / "a.rtf"
    assert refusal(path, b"Once upon a time") == ("it does not start as RTF does.", hint)
    assert refusal(path, rb"{\rtf1 {\b text") == ("it is cut off: the groups of its RTF are 2 deep at its end.", hint)
    assert refusal(path, rb"{\rtf1 {\pict 00")[0] == "it is cut off: the groups of its RTF are 2 deep at its end."
    assert refusal(path, b"{\\rtf1 " + b"{" * 1_000_000) == ("the groups of its RTF are more than 1,000 deep.", hint)
    assert refusal(path, b"{\\rtf1 {\\pict " + b"{" * 1_000_000)[0].startswith("it is cut off")
    assert refusal(path, rb"{\rtf1 \bin2000000000 x")[0].startswith("it is cut off")


@pytest.mark.parametrize(
    "body",
    [rb"\'4", rb"\u", rb"\u99999999?", rb"\u-1?", rb"\u56832?", rb"\u55357?x", b"\\", rb"\f-1\'e9", rb"\bin-5 x",
     rb"\*\*", rb"{\*}", rb"\cell\cell\row\row", rb"\nestcell\nestrow", rb"{\upr}", rb"{\field}", rb"{\fldinst}",
     rb"{\listtext}", rb"\uc99999\u233 x", rb"\outlinelevel99", rb"\s", rb"\fcharset134\cpg0", rb"{\shptxt x}"],
)  # fmt: skip
def test_unusual_control_words_do_not_crash(text_of: Any, body: bytes) -> None:
    text_of(b"a " + body + b" b\\uc0 ")


def test_large_documents_take_linear_time(tmp_path: Path) -> None:
    def seconds(times: int) -> float:
        paragraph = rb"\pard\plain {\b One} night the tower\u8217\'92s clock ate salt \emdash  politely.\par" + b"\r\n"
        picture = b"{\\pict\\pngblip " + b"00ff\n" * 20_000 + b"}"
        (tmp_path / "a.rtf").write_bytes(b"{\\rtf1 " + (paragraph * 1000 + picture) * times + b"}")
        started = time.process_time()
        (text,), _ = read(tmp_path / "a.rtf")
        assert text.count("\n\n") == 1000 * times - 1
        return time.process_time() - started

    seconds(1)
    assert seconds(8) < 8 * 4 * max(seconds(2) / 2, 0.02)
