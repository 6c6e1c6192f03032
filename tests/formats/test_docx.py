"""Test Word documents: text, omitted content, and chapters. The tests write the documents as XML."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path
from typing import Any

import pytest

from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text.formats.zipped import OLE_MAGIC
from finetale.text.reading import read_parts

SPACES = {
    "w": "http://schemas.openxmlformats.org/wordprocessingml/2006/main",
    "r": "http://schemas.openxmlformats.org/officeDocument/2006/relationships",
    "m": "http://schemas.openxmlformats.org/officeDocument/2006/math",
    "a": "http://schemas.openxmlformats.org/drawingml/2006/main",
    "c": "http://schemas.openxmlformats.org/drawingml/2006/chart",
    "mc": "http://schemas.openxmlformats.org/markup-compatibility/2006",
    "wps": "http://schemas.microsoft.com/office/word/2010/wordprocessingShape",
    "v": "urn:schemas-microsoft-com:vml",
}
STRICT = SPACES | {"w": "http://purl.oclc.org/ooxml/wordprocessingml/main"}
OFFICE_TYPE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
STYLES = """
<w:style w:type="paragraph" w:default="1" w:styleId="Standard"><w:name w:val="Normal"/></w:style>
<w:style w:type="paragraph" w:styleId="berschrift1"><w:name w:val="heading 1"/></w:style>
<w:style w:type="paragraph" w:styleId="berschrift2"><w:name w:val="heading 2"/></w:style>
<w:style w:type="paragraph" w:styleId="Kapitel"><w:name w:val="Mine"/><w:basedOn w:val="berschrift1"/></w:style>
<w:style w:type="paragraph" w:styleId="Titel"><w:name w:val="Title"/></w:style>
<w:style w:type="paragraph" w:styleId="Inhalt"><w:name w:val="TOC Heading"/><w:basedOn w:val="berschrift1"/></w:style>
<w:style w:type="paragraph" w:styleId="Umriss"><w:name w:val="Mine too"/>
  <w:pPr><w:outlineLvl w:val="0"/></w:pPr></w:style>
<w:style w:type="paragraph" w:styleId="Liste"><w:name w:val="List Bullet"/>
  <w:pPr><w:numPr><w:numId w:val="1"/></w:numPr></w:pPr></w:style>
<w:style w:type="character" w:styleId="Geheim"><w:name w:val="Secret"/><w:rPr><w:vanish/></w:rPr></w:style>
<w:style w:type="paragraph" w:styleId="Circle"><w:basedOn w:val="Circle2"/></w:style>
<w:style w:type="paragraph" w:styleId="Circle2"><w:basedOn w:val="Circle"/></w:style>
"""
NUMBERING = """
<w:abstractNum w:abstractNumId="0"><w:lvl w:ilvl="0"><w:numFmt w:val="bullet"/><w:lvlText w:val="\uf0b7"/></w:lvl>
<w:lvl w:ilvl="1"><w:numFmt w:val="bullet"/><w:lvlText w:val="o"/></w:lvl></w:abstractNum>
<w:abstractNum w:abstractNumId="1">
<w:lvl w:ilvl="0"><w:start w:val="1"/><w:numFmt w:val="decimal"/><w:lvlText w:val="%1."/></w:lvl>
<w:lvl w:ilvl="1"><w:start w:val="1"/><w:numFmt w:val="lowerLetter"/><w:lvlText w:val="%2)"/></w:lvl>
<w:lvl w:ilvl="2"><w:start w:val="3"/><w:numFmt w:val="upperRoman"/><w:lvlText w:val="%1.%3"/></w:lvl></w:abstractNum>
<w:abstractNum w:abstractNumId="2">
  <w:lvl w:ilvl="0"><w:numFmt w:val="bullet"/><w:lvlText w:val="—"/></w:lvl></w:abstractNum>
<w:abstractNum w:abstractNumId="3"><w:lvl w:ilvl="0"><w:start w:val="1"/><w:numFmt w:val="decimal"/>
  <w:lvlText w:val="Chapter %1"/></w:lvl></w:abstractNum>
<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num>
<w:num w:numId="2"><w:abstractNumId w:val="1"/></w:num>
<w:num w:numId="3"><w:abstractNumId w:val="1"/>
  <w:lvlOverride w:ilvl="0"><w:startOverride w:val="7"/></w:lvlOverride></w:num>
<w:num w:numId="4"><w:abstractNumId w:val="2"/></w:num>
<w:num w:numId="5"><w:abstractNumId w:val="3"/></w:num>
"""


def element(name: str, content: str, spaces: dict[str, str] = SPACES) -> str:
    declared = " ".join(f'xmlns:{prefix}="{space}"' for prefix, space in spaces.items())
    return f'<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n<w:{name} {declared}>{content}</w:{name}>'


def relations(**targets: str) -> str:
    entries = "".join(
        f'<Relationship Id="r{kind}" Type="{OFFICE_TYPE}/{kind}" Target="{target}"/>'
        for kind, target in targets.items()
    )
    return (
        f'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{entries}</Relationships>'
    )


def write(
    path: Path, body: str, spaces: dict[str, str] = SPACES, main: str = "word/document.xml", **parts: str
) -> Path:
    """Write a document with this body. `parts` are more members: `_` stands for `/`, and the suffix .xml is implied."""
    folder, _, name = main.rpartition("/")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("_rels/.rels", relations(officeDocument=main))
        archive.writestr(f"{folder}/_rels/{name}.rels", relations(styles="styles.xml", numbering="/word/numbering.xml"))
        archive.writestr(f"{folder}/styles.xml", element("styles", STYLES, spaces))
        archive.writestr("word/numbering.xml", element("numbering", NUMBERING, spaces))
        archive.writestr(main, element("document", f"<w:body>{body}<w:sectPr/></w:body>", spaces))
        for member, content in parts.items():
            archive.writestr(f"word/{member}.xml", content)
    return path


def read(path: Path, documents: str = "auto") -> tuple[list[str], dict[str, Any]]:
    settings = TextSettings(documents=documents, validation_fraction=0, test_fraction=0)
    parts, report = read_parts([str(path)], settings)
    return [part.text for part in parts], report.to_dict()


@pytest.fixture
def text_of(tmp_path: Path) -> Any:
    """Return the text of a body and the counts of omitted content."""

    def of(body: str, **options: Any) -> tuple[str, dict[str, int]]:
        (text,), report = read(write(tmp_path / "a.docx", body + p(t("END")), **options))
        assert text.endswith("\n\nEND")
        return text.removesuffix("\n\nEND"), report["files"][0].get("left_out", {})

    return of


def t(text: str, properties: str = "") -> str:
    return f'<w:r><w:rPr>{properties}</w:rPr><w:t xml:space="preserve">{text}</w:t></w:r>'


def p(*runs: str, style: str = "", properties: str = "") -> str:
    style = f'<w:pStyle w:val="{style}"/>' if style else ""
    return f"<w:p><w:pPr>{style}{properties}</w:pPr>{''.join(runs)}</w:p>"


def item(text: str, number: int, level: int = 0) -> str:
    return p(t(text), properties=f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="{number}"/></w:numPr>')


def field(instruction: str, result: str) -> str:
    mark = '<w:r><w:fldChar w:fldCharType="{}"/></w:r>'
    text = f"<w:r><w:instrText>{instruction}</w:instrText></w:r>"
    return mark.format("begin") + text + mark.format("separate") + result + mark.format("end")


def test_paragraphs_and_special_characters(text_of: Any) -> None:
    body = p(t("“One” "), t("two"), "<w:r><w:tab/><w:t>three</w:t><w:br/><w:t>four</w:t><w:cr/></w:r>")
    body += p() + p(t("  "), properties='<w:tabs><w:tab w:val="left" w:pos="720"/></w:tabs>')
    body += p(
        "<w:r><w:t>soft</w:t><w:softHyphen/><w:t>ly</w:t><w:noBreakHyphen/><w:t> no\nspace </w:t></w:r>", t("— é")
    )
    assert text_of(body) == ("“One” two\tthree\nfour\n\nsoftly‑no space— é", {})


def test_symbols(text_of: Any) -> None:
    symbols = (("Wingdings", "F04A"), ("Wingdings", "F0E0"), ("Symbol", "F061"), ("Arial", "2014"), ("Symbol", "F0AE"))
    body = "".join(f'<w:r><w:sym w:font="{font}" w:char="{char}"/></w:r>' for font, char in symbols)
    unknown = '<w:r><w:sym w:font="Webdings" w:char="F04A"/></w:r><w:r><w:sym w:font="x" w:char="D800"/><w:sym/></w:r>'
    assert text_of(p(body, unknown)) == ("☺→α—→", {"symbol": 3})


def test_strict_namespaces_and_a_main_part_with_another_name(text_of: Any) -> None:
    body = p(t("One"), style="berschrift1") + p(t("two")) + item("three", 2)
    expected = "One\n\ntwo\n\n1. three"
    assert text_of(body, spaces=STRICT)[0] == expected
    assert text_of(body, main="other/main2.xml")[0] == expected


def test_lists_have_markers(text_of: Any) -> None:
    body = p(t("Before")) + item("dot", 1) + item("circle", 1, 1) + p(t("styled"), style="Liste") + p(t("Between"))
    body += item("one", 2) + item("a", 2, 1) + item("b", 2, 1) + item("two", 2) + item("c", 2, 1) + item("deep", 2, 2)
    body += p(t("After")) + item("seven", 3) + item("eight", 3) + item("", 3) + item("no list", 0) + item("unknown", 99)
    assert text_of(body)[0] == (
        "Before\n\n- dot\n  - circle\n- styled\n\nBetween\n\n"
        "1. one\n  a) a\n  b) b\n2. two\n  a) c\n    2.III deep\n\nAfter\n\n"
        "7. seven\n8. eight\n\nno list\n\n- unknown"
    )


def test_a_list_of_dashes_is_speech(text_of: Any) -> None:
    assert text_of(item("Bonjour.", 4) + item("Bonsoir.", 4))[0] == "— Bonjour.\n\n— Bonsoir."


def test_tables_are_lines_with_cells(text_of: Any) -> None:
    def table(*rows: tuple[str, ...]) -> str:
        cells = ["".join(f"<w:tc><w:tcPr/>{cell}</w:tc>" for cell in row) for row in rows]
        return "<w:tbl><w:tblPr/>" + "".join(f"<w:tr>{row}</w:tr>" for row in cells) + "</w:tbl>"

    inner = table((p(t("x")), p(t("y"))))
    body = p(t("Before")) + table(
        (p(t("Year")), p(t("Remark"))), (p(t("1861")) + p(t("new")), p("<w:r><w:t>a</w:t><w:br/><w:t>b</w:t></w:r>"))
    )
    body += table((p(), p(t("right"))), (p(), p()), (inner + p(), p(t("z")))) + table((p(t("only")) + p(t("cell")),))
    assert text_of(body)[0] == ("Before\n\nYear | Remark\n1861 new | a b\n\n| right\nx | y | z\n\nonly\n\ncell")


def test_tracked_changes_are_read_as_accepted(text_of: Any) -> None:
    def mark(kind: str) -> str:
        return f"<w:rPr><w:{kind}/></w:rPr>"

    body = p(t("a "), "<w:ins>", t("new "), "</w:ins><w:del><w:r><w:delText>old</w:delText></w:r></w:del>", t("end"))
    body += p("<w:moveTo>", t("moved"), "</w:moveTo>") + p(
        "<w:moveFrom>", t("moved"), "</w:moveFrom>", properties=mark("moveFrom")
    )
    body += p(t("first half"), style="berschrift2", properties=mark("del")) + p(t(", second half"))
    body += p("<w:del><w:r><w:delText>gone</w:delText></w:r></w:del>", properties=mark("del")) + p(t("stays"))
    body += p(
        t("kept"), properties=mark("ins") + "<w:pPrChange><w:pPr><w:pStyle w:val='berschrift1'/></w:pPr></w:pPrChange>"
    )
    body += p(t("shown", "<w:rPrChange><w:rPr><w:vanish/></w:rPr></w:rPrChange>"))
    body += (
        "<w:tbl><w:tr><w:trPr><w:del/></w:trPr><w:tc>"
        + p(t("x"))
        + "</w:tc></w:tr></w:tbl><w:p><w:del><w:r/></w:del></w:p>"
    )
    assert text_of(body) == (
        "a new end\n\nmoved\n\nfirst half, second half\n\nstays\n\nkept\n\nshown",
        {"tracked deletion": 3},
    )


def test_hidden_text_is_omitted(text_of: Any) -> None:
    body = p(t("a"), t(" secret", "<w:vanish/>"), t(" too", "<w:rStyle w:val='Geheim'/>"), t(" b"))
    body += p(t("c", "<w:vanish w:val='0'/>"), t(" gone", "<w:specVanish/>"), properties="<w:rPr><w:vanish/></w:rPr>")
    assert text_of(body) == ("a b\n\nc", {"hidden passage": 2})


def test_fields_keep_their_results(text_of: Any) -> None:
    link = "<w:hyperlink r:id='r1'>" + t("a link") + "</w:hyperlink>"
    body = p(
        t("See "), link, t(", "), field(' HYPERLINK "x" ', t("another")), t(" and "), field(" PAGE ", t("7")), t(".")
    )
    body += p(
        "<w:fldSimple w:instr=' DATE '>",
        t("today"),
        "</w:fldSimple><w:fldSimple w:instr='NUMPAGES'>",
        t("9"),
        "</w:fldSimple>",
    )
    nested = field("IF " + field("DOCPROPERTY x", t("hidden")) + " = 1", t("shown"))
    body += p(nested) + p('<w:r><w:fldChar w:fldCharType="begin"/></w:r>', t("lost")) + p(t("found"))
    assert text_of(body) == ("See a link, another and .\n\ntoday\n\nshown\n\nfound", {"page number": 2})


def test_a_table_of_contents_is_omitted(text_of: Any) -> None:
    mark = '<w:r><w:fldChar w:fldCharType="{}"/></w:r>'
    begin = mark.format("begin") + "<w:r><w:instrText> TOC \\h </w:instrText></w:r>" + mark.format("separate")
    entries = p(begin, t("One"), field("PAGEREF x", t("3"))) + p(t("Two"), field("PAGEREF y", t("9")))
    body = "<w:sdt><w:sdtContent>" + entries + p(mark.format("end")) + "</w:sdtContent></w:sdt>" + p(t("text"))
    assert text_of(body) == ("text", {"table of contents": 1})
    title = p(t("Inhaltsverzeichnis"), style="Inhalt")
    assert text_of(title + body) == ("text", {"title of a table of contents": 1, "table of contents": 1})
    assert text_of(entries + p(t("One"), style="berschrift1")) == (
        "One",
        {"table of contents": 1},
    )  # the field has no end


def test_content_other_than_running_text_is_counted(text_of: Any) -> None:
    body = (
        p(
            t("a"),
            "<w:r><w:footnoteReference w:id='1'/></w:r><w:r><w:endnoteReference w:id='1'/></w:r>",
            "<w:r><w:commentReference w:id='1'/></w:r><w:r><w:drawing><a:blip/></w:drawing></w:r>",
            "<w:r><w:pict><v:imagedata/></w:pict></w:r><w:r><w:object><v:imagedata/></w:object></w:r>",
            "<w:r><w:drawing><c:chart/></w:drawing></w:r><w:r><w:pgNum/></w:r>",
        )
        + "<w:altChunk r:id='r1'/>"
    )
    header = element("hdr", p(t("My Book")))
    options = {"header1": header, "header2": element("hdr", p()), "footer1": header, "comments": header}
    assert text_of(body, **options) == (
        "a",
        {
            "chart": 1, "comment": 1, "embedded document": 1, "embedded object": 1, "endnote": 1, "footnote": 1,
            "page footer": 1, "page header": 1, "page number": 1, "picture": 2,
        },
    )  # fmt: skip


def test_alternatives_are_read_once_and_boxes_after_their_paragraph(text_of: Any) -> None:
    box = "<w:txbxContent>" + p(t("boxed")) + p(t("twice")) + "</w:txbxContent>"
    choice = f"<mc:Choice Requires='wps'><w:drawing><wps:txbx>{box}</wps:txbx></w:drawing></mc:Choice>"
    fallback = f"<mc:Fallback><w:pict><v:textbox>{box}</v:textbox></w:pict></mc:Fallback>"
    for content in (choice + fallback, fallback, choice + choice):
        body = p(t("be"), f"<w:r><mc:AlternateContent>{content}</mc:AlternateContent></w:r>", t("fore")) + p(t("after"))
        assert text_of(body) == ("before\n\nboxed\n\ntwice\n\nafter", {})


def test_content_controls_ruby_and_formulas(text_of: Any) -> None:
    control = "<w:sdt><w:sdtPr/><w:sdtContent>" + t("kept ") + "</w:sdtContent></w:sdt>"
    empty = "<w:sdt><w:sdtPr><w:showingPlcHdr/></w:sdtPr><w:sdtContent>" + t("Click here") + "</w:sdtContent></w:sdt>"
    ruby = "<w:r><w:ruby><w:rt>" + t("かん") + "</w:rt><w:rubyBase>" + t("漢") + "</w:rubyBase></w:ruby></w:r>"
    body = p(
        control, empty, ruby, "<m:oMath><m:r><m:t>x = 2</m:t></m:r></m:oMath>", "<w:smartTag>", t("!"), "</w:smartTag>"
    )
    assert text_of(body) == ("kept 漢x = 2!", {"placeholder": 1, "ruby annotation": 1})


@pytest.mark.parametrize(
    ("headings", "chapters"),
    [
        ("-", ["-"]),
        ("1-1-", ["1-", "1-"]),
        ("-1-2-1-", ["-", "1-2-", "1-"]),
        ("0-1-1-", ["0-", "1-", "1-"]),
        ("011-1-", ["011-", "1-"]),
        ("1-2-2-", ["1-", "2-", "2-"]),  # the only heading 1 is the title of the book
        ("2-2-3-3-", ["2-", "2-3-3-"]),
        ("0-0-", ["0-", "0-"]),
        ("12-2-12-2-", ["12-2-", "12-2-"]),  # parts
        ("-1-", ["-", "1-"]),
        ("1-1", ["1-", "1"]),
    ],
)
def test_chapters_start_at_headings_of_one_level(tmp_path: Path, headings: str, chapters: list[str]) -> None:
    styles = {"0": "Titel", "1": "Kapitel", "2": "berschrift2", "-": ""}
    body = "".join(
        p(t(mark), style=styles[mark]) if mark in styles else p(t(mark), properties='<w:outlineLvl w:val="2"/>')
        for mark in headings
    )
    texts, report = read(write(tmp_path / "a.docx", body), "chapter")
    assert [text.replace("\n\n", "") for text in texts] == chapters
    assert read(tmp_path / "a.docx")[0] == ["\n\n".join(texts)]
    assert report["documents"] == len(chapters)


def test_headings_are_read_without_numbers(text_of: Any) -> None:
    number = '<w:numPr><w:ilvl w:val="0"/><w:numId w:val="5"/></w:numPr>'
    body = p(t("Named"), style="Umriss", properties=number) + p(t("x")) + p(style="berschrift1", properties=number)
    body += p(t("y")) + p(style="berschrift1") + p(t("z"), style="Circle")
    assert text_of(body)[0] == "Named\n\nx\n\nChapter 2\n\ny\n\nz"


@pytest.mark.parametrize("suffix", ["docx", "docm", "dotx", "dotm", "DOCX", "docx.gz"])
def test_suffixes(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / "a", p(t("text")))
    content = path.read_bytes()
    (tmp_path / f"a.{suffix}").write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    texts, report = read(tmp_path / f"a.{suffix}")
    assert (texts, report["files"][0]["kind"], report["files"][0]["bytes"]) == (["text"], "docx", len(content))


def refusal(path: Path) -> tuple[str, str]:
    with pytest.raises(SourceError) as caught:
        read(path)
    return caught.value.message.removeprefix(f"{path}: "), caught.value.hint


def test_invalid_documents_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.docx"
    path.write_bytes(OLE_MAGIC + "EncryptedPackage".encode("utf-16-le"))
    assert refusal(path) == ("it is encrypted with a password.", "Save it without a password.")
    write(path, p(t("text")) * 100)
    path.write_bytes(path.read_bytes()[:-100])
    assert refusal(path)[0] == "its zip data is cut off or damaged (File is not a zip file)."
    write(path, "<w:p>")
    assert refusal(path)[0].startswith("its part word/document.xml is not well-formed XML (Opening and ending tag")
    for member, what in (("xl/workbook.xml", "a spreadsheet"), ("ppt/a.xml", "a presentation")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, "")
        assert refusal(path) == (
            f"it is {what}, not a Word document.",
            "Open it in Word or LibreOffice and save it as .docx.",
        )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<other/>")
    assert refusal(path)[0] == "it is not a Word document (its main part is word/document.xml)."


def test_deeply_nested_tables_are_limited(tmp_path: Path) -> None:
    body = "<w:tbl><w:tr><w:tc>" * 100 + p(t("x")) + "</w:tc></w:tr></w:tbl>" * 100
    assert "more than 250 elements nested" in refusal(write(tmp_path / "a.docx", body))[0]


def test_elements_without_their_surroundings(text_of: Any) -> None:
    body = "<w:tr><w:tc/></w:tr><w:r><w:t>x</w:t></w:r>"
    body += "<w:r><w:fldChar w:fldCharType='end'/><w:instrText>A</w:instrText></w:r>"
    body += "<mc:Choice/><w:tbl><w:p/></w:tbl><w:ilvl w:val='x'/><w:numId/>" + p(t("y"), properties="<w:outlineLvl/>")
    assert text_of(body)[0] == "y"
