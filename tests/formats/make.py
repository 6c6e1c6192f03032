"""Write the story as HTML and Markdown, and convert it with real programs to tests/formats/files/PROGRAM.SUFFIX.

    python tests/formats/make.py [PROGRAM …]

Programs: LibreOffice (soffice), pandoc, calibre (ebook-convert), pdfLaTeX. The tests need none of them.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from story import STORY, TITLE, Block, Bullets, Heading, Paragraph, SceneBreak, Table, without_chinese

FILES = Path(__file__).parent / "files"
PANDOC = {
    "docx": "docx", "odt": "odt", "rtf": "rtf", "html": "html5", "epub": "epub3", "tex": "latex", "rst": "rst",
    "md": "markdown", "fb2": "fb2", "org": "org", "ipynb": "ipynb",
}  # fmt: skip
"""Suffix → pandoc's name of the format."""
SOFFICE = ("docx", "odt", "fodt", "rtf", "html", "xhtml", "pdf", "doc")
CALIBRE = ("epub", "docx", "htmlz", "rtf", "pdf", "fb2", "mobi", "azw3")


def as_html() -> str:
    """Return the story as a page of HTML."""
    notes: list[str] = []

    def note(match: re.Match[str]) -> str:
        notes.append(match.group(1))
        number = len(notes)
        return f'<a epub:type="noteref" id="ref{number}" href="#note{number}"><sup>{number}</sup></a>'

    def inline(text: str) -> str:
        text = re.sub(r"<note>(.*?)</note>", note, text)
        return text.replace("<br>", "<br/>").replace("\u00a0", "&#160;")

    parts = []
    for block in STORY:
        match block:
            case Heading(text):
                parts.append(f"<h1>{inline(text)}</h1>")
            case Paragraph(text):
                parts.append(f"<p>{inline(text)}</p>")
            case SceneBreak():
                parts.append('<p style="text-align: center">* * *</p>')
            case Bullets(items):
                parts.append("<ul>" + "".join(f"<li>{inline(item)}</li>" for item in items) + "</ul>")
            case Table(rows):
                lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
                parts.append("<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>")
    parts += [
        f'<aside epub:type="footnote" id="note{number}"><p>{text}</p></aside>' for number, text in enumerate(notes, 1)
    ]
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<html xmlns="http://www.w3.org/1999/xhtml" '
        'xmlns:epub="http://www.idpf.org/2007/ops" lang="en">\n'
        f'<head><meta charset="utf-8"/><title>{TITLE}</title></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def as_markdown(blocks: tuple[Block, ...]) -> str:
    """Return the story in pandoc's Markdown."""
    notes: list[str] = []

    def note(match: re.Match[str]) -> str:
        notes.append(match.group(1))
        return f"[^{len(notes)}]"

    def inline(text: str) -> str:
        text = re.sub(r"<note>(.*?)</note>", note, text)
        text = text.replace("<br>", "\\\n").replace("<i>", "*").replace("</i>", "*")
        return text.replace("<b>", "**").replace("</b>", "**")

    parts = []
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"# {inline(text)}")
            case Paragraph(text):
                parts.append(inline(text))
            case SceneBreak():
                parts.append("\\* \\* \\*")
            case Bullets(items):
                parts.append("\n".join(f"- {inline(item)}" for item in items))
            case Table((header, *rows)):
                lines = [header, ["---"] * len(header), *rows]
                parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    parts += [f"[^{number}]: {text}" for number, text in enumerate(notes, 1)]
    return "\n\n".join(parts) + "\n"


def pandoc(folder: Path) -> None:
    """Write pandoc.SUFFIX for each format."""
    source = folder / "story.md"
    source.write_text(as_markdown(STORY), encoding="utf-8")
    for suffix, name in PANDOC.items():
        _pandoc(source, FILES / f"pandoc.{suffix}", name)
    _pandoc(source, FILES / "pandoc.epub2.epub", "epub2")


def _pandoc(source: Path, target: Path, name: str, *options: str) -> None:
    form = "markdown-smart"  # quotes and dashes are written as they are
    name = "markdown-smart" if name == "markdown" else "latex-smart" if name == "latex" else name
    run("pandoc", "-s", "-f", form, "-t", name, "--metadata", f"pagetitle={TITLE}", "--metadata", "lang=en",
        *(("--metadata", f"title={TITLE}", "--epub-chapter-level=1") if name.startswith("epub") else ()),
        *options, str(source), "-o", str(target))  # fmt: skip


def soffice(folder: Path) -> None:
    """Write soffice.SUFFIX for each format, and the story's table as a spreadsheet."""
    markdown = folder / "story.md"
    markdown.write_text(as_markdown(STORY), encoding="utf-8")
    _pandoc(markdown, folder / "story.odt", "odt")
    filters = {"html": "html:HTML (StarWriter)", "xhtml": "xhtml:XHTML Writer File", "doc": "doc:MS Word 97"}
    for suffix in SOFFICE:
        _convert(folder / "story.odt", filters.get(suffix, suffix), f"soffice.{suffix}")
    table = next(block for block in STORY if isinstance(block, Table))
    (folder / "table.csv").write_text("\n".join(",".join(row) for row in table.rows) + "\n", encoding="utf-8")
    for suffix in ("xlsx", "ods", "xls"):
        _convert(folder / "table.csv", suffix, f"soffice.{suffix}")


def _convert(source: Path, form: str, name: str) -> None:
    out = source.parent / "out"
    run("soffice", f"-env:UserInstallation=file://{source.parent}/profile", "--headless", "--convert-to", form,
        "--outdir", str(out), str(source))  # fmt: skip
    shutil.move(out / f"{source.stem}.{form.partition(':')[0]}", FILES / name)


def calibre(folder: Path) -> None:
    """Write calibre.SUFFIX for each format."""
    source = folder / "story.html"
    source.write_text(as_html(), encoding="utf-8")
    for suffix in CALIBRE:
        target = folder / f"calibre.{suffix}"
        options = ["--no-default-epub-cover"] if suffix == "epub" else []
        run("ebook-convert", str(source), str(target), "--chapter", "//h:h1", "--chapter-mark", "none", *options)
        shutil.move(target, FILES / target.name)


def pdflatex(folder: Path) -> None:
    """Write the story without Chinese as PDF files of one and of two columns."""
    source = folder / "story.md"
    source.write_text(as_markdown(without_chinese(STORY)), encoding="utf-8")
    run(
        "pandoc",
        "-f",
        "markdown-smart-auto_identifiers",
        "-t",
        "latex-smart",
        str(source),
        "-o",
        str(folder / "body.tex"),
    )
    body = (folder / "body.tex").read_text(encoding="utf-8")
    # A longtable does not work in two columns.
    body = body.replace("\\begin{longtable}[]", "\\begin{tabular}").replace("\\end{longtable}", "\\end{tabular}")
    body = body.replace("\\endhead\n", "").replace("\\tightlist\n", "").replace("{]}", "]")
    body = re.sub(r"\\(top|mid|bottom)rule(\(\))?", r"\\hline", body)
    preamble = "\\usepackage{array}\n\\DeclareUnicodeCharacter{2011}{\\mbox{-}}\n"
    preamble += "\\renewcommand{\\labelitemi}{*}\n\\setcounter{secnumdepth}{0}\n\\pdfobjcompresslevel=3"
    for name, options in (("pdflatex", "11pt"), ("pdflatex.two-columns", "twocolumn")):
        tex = folder / f"{name}.tex"
        page = f"\\documentclass[{options}]{{article}}\n{preamble}\n\\begin{{document}}\n{body}\n\\end{{document}}\n"
        tex.write_text(page, encoding="utf-8")
        run("pdflatex", "-interaction=nonstopmode", "-output-directory", str(folder), str(tex))
        shutil.move(tex.with_suffix(".pdf"), FILES / f"{name}.pdf")


def run(*command: str) -> None:
    """Run a command and show its output if it fails."""
    print(" ".join(command[:1] + command[-1:]), flush=True)
    environment = os.environ | {"QTWEBENGINE_DISABLE_SANDBOX": "1"}  # lets calibre make a PDF in a container
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


if __name__ == "__main__":
    FILES.mkdir(exist_ok=True)
    for make in (pandoc, soffice, calibre, pdflatex):
        if not sys.argv[1:] or make.__name__ in sys.argv[1:]:
            with tempfile.TemporaryDirectory() as name:
                make(Path(name))
    for path in sorted(FILES.iterdir()):
        print(f"{path.stat().st_size:8,} {path.name}")
