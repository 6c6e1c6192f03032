"""Test OpenDocument texts: text, omitted content, and chapters. The tests write the documents as XML."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest

from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text.reading import read_parts

NAMES = "office style text table draw svg xlink manifest"
SPACES = {name: f"urn:oasis:names:tc:opendocument:xmlns:{name}:1.0" for name in NAMES.split()} | {
    "draw": "urn:oasis:names:tc:opendocument:xmlns:drawing:1.0",
    "svg": "urn:oasis:names:tc:opendocument:xmlns:svg-compatible:1.0",
    "fo": "urn:oasis:names:tc:opendocument:xmlns:xsl-fo-compatible:1.0",
    "dc": "http://purl.org/dc/elements/1.1/",
    "math": "http://www.w3.org/1998/Math/MathML",
}
STYLES = """<office:automatic-styles>
<style:style style:name="P1" style:family="paragraph" style:parent-style-name="Title"/>
<style:style style:name="T1" style:family="text"><style:text-properties text:display="none"/></style:style>
<style:style style:name="P2" style:family="paragraph"><style:text-properties text:display="none"/></style:style>
<style:style style:name="T2" style:family="text" style:parent-style-name="T1"/>
<style:style style:name="C1" style:family="paragraph" style:parent-style-name="C2"/>
<style:style style:name="C2" style:family="paragraph" style:parent-style-name="C1"/>
<text:list-style style:name="L1"><text:list-level-style-bullet text:level="1" text:bullet-char="•"/></text:list-style>
<text:list-style style:name="L2">
<text:list-level-style-number text:level="1" style:num-format="1" style:num-suffix="."/>
<text:list-level-style-number text:level="2" style:num-format="a" style:num-prefix="(" style:num-suffix=")"/>
<text:list-level-style-number text:level="3" style:num-format="I" text:start-value="3" text:display-levels="3"/>
</text:list-style>
<text:list-style style:name="L3"><text:list-level-style-bullet text:level="1" text:bullet-char="–"/></text:list-style>
<text:list-style style:name="L4"><text:list-level-style-number text:level="1" style:num-format=""/></text:list-style>
</office:automatic-styles>"""
MASTER = """<office:master-styles><style:master-page><style:header><text:p>My <text:span>Book</text:span></text:p>
</style:header><style:footer><text:p> </text:p></style:footer></style:master-page></office:master-styles>"""


def element(name: str, content: str) -> str:
    declared = " ".join(f'xmlns:{prefix}="{space}"' for prefix, space in SPACES.items())
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{name} {declared}>{content}</{name}>'


def flat(body: str, before: str = "", kind: str = "text") -> str:
    return element(
        "office:document", f"{STYLES}{before}<office:body><office:{kind}>{body}</office:{kind}></office:body>"
    )


def read(path: Path, documents: str = "auto") -> tuple[list[str], dict[str, Any]]:
    settings = TextSettings(documents=documents, validation_fraction=0, test_fraction=0)
    parts, report = read_parts([str(path)], settings)
    return [part.text for part in parts], report.to_dict()


@pytest.fixture
def text_of(tmp_path: Path) -> Any:
    """Return the text of a body and the counts of omitted content."""

    def of(body: str, before: str = "") -> tuple[str, dict[str, int]]:
        (tmp_path / "a.fodt").write_text(flat(body + p("END"), before), encoding="utf-8")
        (text,), report = read(tmp_path / "a.fodt")
        assert text.endswith("\n\nEND")
        return text.removesuffix("\n\nEND"), report["files"][0].get("left_out", {})

    return of


def p(content: str, style: str = "Standard") -> str:
    return f'<text:p text:style-name="{style}">{content}</text:p>'


def h(content: str, level: int = 1) -> str:
    return f'<text:h text:outline-level="{level}">{content}</text:h>'


def test_white_space_is_collapsed_within_a_paragraph(text_of: Any) -> None:
    body = p("\n  One\n   <text:span> two </text:span> three<text:s/><text:s text:c='2'/> four<text:tab/>five ")
    body += "\n" + p(" ") + p("a<text:line-break/>b<text:soft-page-break/>c<text:s text:c='x'/>") + p("“é—”‑")
    assert text_of(body) == ("One two three    four\tfive\n\na\nbc\n\n“é—”‑", {})


def test_lists_have_markers(text_of: Any) -> None:
    def items(*contents: str, style: str = "", more: str = "") -> str:
        style = f' text:style-name="{style}"' if style else ""
        inner = "".join(f"<text:list-item>{content}</text:list-item>" for content in contents)
        return f"<text:list{style} {more}>{inner}</text:list>"

    deep = items(p("deep"), p("deeper"))
    body = items(p("dot") + p("more"), p("two"), style="L1") + p("Between")
    body += items(p("one") + items(p("a"), p("b") + deep), p("two"), style="L2") + p("After")
    body += items(p("three"), style="L2", more='text:continue-numbering="true"')
    body += items(p("Bonjour."), p("Bonsoir."), style="L3") + items(p("no marker"), style="L4") + items(h("Heading"))
    body += "<text:list text:style-name='L2'><text:list-header><text:p>head</text:p></text:list-header>"
    body += "<text:list-item text:start-value='7'><text:p>seven</text:p></text:list-item></text:list>"
    assert text_of(body)[0] == (
        "- dot\n  more\n- two\n\nBetween\n\n1. one\n  (a) a\n  (b) b\n    1.b.III deep\n    1.b.IV deeper\n2. two\n\n"
        "After\n\n3. three\n\n– Bonjour.\n\n– Bonsoir.\n\nno marker\n\nHeading\n\nhead\n\n7. seven"
    )


def test_tables_are_lines_with_cells(text_of: Any) -> None:
    def table(*rows: str) -> str:
        inner = "".join(f"<table:table-row>{row}</table:table-row>" for row in rows)
        return f"<table:table><table:table-column/>{inner}</table:table>"

    def cell(content: str) -> str:
        return f"<table:table-cell>{content}</table:table-cell>"

    covered = f"<table:covered-table-cell>{p('covered')}</table:covered-table-cell>"
    body = p("Before") + table(cell(p("Year")) + cell(p("Remark")), cell(p("1861") + p("new")) + cell(p("b")) + covered)
    body += table("<table:table-cell table:number-columns-repeated='2'/>" + cell(p("x")))
    body += table(cell(p("only") + p("cell"))) + table(cell(table(cell(p("x")) + cell(p("y")))) + cell(p("z")))
    assert text_of(body)[0] == "Before\n\nYear | Remark\n1861 new | b\n\n|  | x\n\nonly\n\ncell\n\nx | y | z"


def test_tracked_changes_are_read_as_accepted(text_of: Any) -> None:
    region = "<text:changed-region><text:{0}><office:change-info>x</office:change-info>{1}</text:{0}>"
    region += "</text:changed-region>"
    body = "<text:tracked-changes>" + region.format("deletion", p("old")) + region.format("insertion", "")
    body += region.format("deletion", p("older")) + "</text:tracked-changes>"
    body += p("a <text:change-start/>new<text:change-end/> b<text:change/> c")
    assert text_of(body) == ("a new b c", {"tracked deletion": 2})


def test_hidden_text_is_omitted(text_of: Any) -> None:
    body = p("a<text:span text:style-name='T1'> secret <text:span>in</text:span></text:span> b")
    body += p("c<text:span text:style-name='T2'>secret</text:span>") + p("gone", "P2") + p("d", "C1")
    body += (
        "<text:section text:display='none'>" + p("gone") + "</text:section><text:section>" + p("e") + "</text:section>"
    )
    body += p("f<text:hidden-text text:is-hidden='true'>x</text:hidden-text><text:hidden-text>g</text:hidden-text>")
    body += p("h<text:variable-set text:display='none'>x</text:variable-set>")
    assert text_of(body) == ("a b\n\nc\n\nd\n\ne\n\nfg\n\nh", {"hidden passage": 4})


def test_frames(text_of: Any) -> None:
    picture = "<draw:image><office:binary-data>AAAA</office:binary-data><text:p>x</text:p></draw:image>"
    inner = p("boxed<draw:frame>" + picture + "</draw:frame>") + p("twice")
    body = p(f"be<draw:frame><draw:text-box>{inner}</draw:text-box><svg:title>alt</svg:title></draw:frame>fore")
    body += p(f"<draw:frame>{picture}{picture}<svg:desc>alt</svg:desc></draw:frame>")
    body += p(f"a <text:span text:style-name='T1'><draw:frame>{picture}</draw:frame></text:span>")
    body += p(
        f"<draw:frame><draw:object><math:math><math:mi>x</math:mi></math:math></draw:object>{picture}</draw:frame>"
    )
    body += "<draw:custom-shape>" + p("shape") + "</draw:custom-shape>"
    assert text_of(body) == ("before\n\nboxed\n\ntwice\n\na\n\nshape", {"embedded object": 1, "picture": 3})


def test_content_other_than_running_text_is_counted(text_of: Any) -> None:
    note = "<text:note text:note-class='{}'><text:note-citation>1</text:note-citation><text:note-body>" + p("x")
    note += "</text:note-body></text:note>"
    body = "<office:forms>x</office:forms><text:sequence-decls/>" + p(
        "a" + note.format("footnote") + note.format("endnote") + note.format("footnote")
        + "<office:annotation><dc:creator>A</dc:creator>" + p("x") + "</office:annotation><office:annotation-end/>b"
        "<text:page-number>1</text:page-number><text:placeholder>x</text:placeholder><text:script>x</text:script> "
        "<text:ruby><text:ruby-base>漢</text:ruby-base><text:ruby-text>かん</text:ruby-text></text:ruby> "
        "<text:date>today</text:date> <text:a>link</text:a><text:bookmark/><text:note-ref>1</text:note-ref>"
    )  # fmt: skip
    for kind in ("table-of-content", "alphabetical-index"):
        body += f"<text:{kind}><text:{kind}-source>x</text:{kind}-source>{p('x')}</text:{kind}>"
    body += "<text:bibliography><text:bibliography-source>x</text:bibliography-source><text:index-body>"
    body += p("A book.") + "</text:index-body></text:bibliography>"
    assert text_of(body, MASTER) == (
        "ab 漢 today link1\n\nA book.",
        {
            "comment": 1, "endnote": 1, "footnote": 2, "index": 1, "page header": 1, "page number": 1,
            "placeholder": 1, "ruby annotation": 1, "table of contents": 1,
        },
    )  # fmt: skip


def test_chapters_start_at_headings(tmp_path: Path) -> None:
    body = p("My Book", "P1") + h("One") + p("1") + h("A part", 2) + p("2") + h("Two") + p("3")
    (tmp_path / "a.fodt").write_text(flat(body), encoding="utf-8")
    assert read(tmp_path / "a.fodt", "chapter")[0] == ["My Book\n\nOne\n\n1\n\nA part\n\n2", "Two\n\n3"]


def write(path: Path, **members: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.text")
        for name, content in members.items():
            archive.writestr(name.replace("__", "/") + ".xml", content)
    return path


@pytest.mark.parametrize("suffix", ["odt", "ott"])
def test_styles_come_from_both_files(tmp_path: Path, suffix: str) -> None:
    style = (
        '<style:style style:name="T1" style:family="text"><style:text-properties text:display="none"/></style:style>'
    )
    styles = element("office:document-styles", f"<office:styles>{style}</office:styles>{MASTER}")
    body = p("a<text:span text:style-name='T1'>x</text:span>")
    content = element("office:document-content", f"<office:body><office:text>{body}</office:text></office:body>")
    path = write(tmp_path / f"a.{suffix}", styles=styles, content=content)
    texts, report = read(path)
    assert texts == ["a"]
    assert report["files"][0]["left_out"] == {"hidden passage": 1, "page header": 1}
    assert report["files"][0]["bytes"] == path.stat().st_size


def test_a_large_picture_within_a_flat_file(tmp_path: Path) -> None:
    picture = "<draw:frame><draw:image><office:binary-data>{}</office:binary-data></draw:image></draw:frame>"
    (tmp_path / "a.fodt").write_text(flat(p("a" + picture.format("QUJD" * (5 << 20)))), encoding="utf-8")
    assert read(tmp_path / "a.fodt")[0] == ["a"]


def refusal(path: Path) -> tuple[str, str]:
    with pytest.raises(SourceError) as caught:
        read(path)
    return caught.value.message.removeprefix(f"{path}: "), caught.value.hint


def test_invalid_documents_are_refused(tmp_path: Path) -> None:
    hint = "Open it in LibreOffice or Word and save it as .odt."
    manifest = element("manifest:manifest", "<manifest:encryption-data/>")
    path = write(tmp_path / "a.odt", META_INF="", content="x")
    assert refusal(path)[0].startswith("its part content.xml is not well-formed XML (Start tag expected")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/manifest.xml", manifest)
    assert refusal(path) == ("it is encrypted with a password.", "Save it without a password.")
    assert refusal(write(path)) == ("it is a zip file without content.xml, not an OpenDocument file.", hint)
    assert refusal(write(path, content=flat("", kind="spreadsheet"))) == (
        "it is an OpenDocument spreadsheet, not an OpenDocument text.",
        hint,
    )
    assert refusal(write(path, content="<x/>"))[0] == "it is XML of another kind, not an OpenDocument text."
    (tmp_path / "a.fodt").write_text(flat("", kind="presentation"))
    assert refusal(tmp_path / "a.fodt")[0] == "it is an OpenDocument presentation, not an OpenDocument text."
    (tmp_path / "a.fodt").write_text(flat(p("x"))[:-30])
    assert "is not well-formed XML" in refusal(tmp_path / "a.fodt")[0]


def test_elements_without_their_surroundings(text_of: Any) -> None:
    body = "<text:list-item/><table:table-cell/><table:table-row/><text:span>x</text:span><draw:image/><text:s/>"
    assert text_of(body + "x<table:table>" + p("y") + "</table:table>")[0] == "y"
