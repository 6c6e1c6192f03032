"""Test PDF files: paragraphs, omitted content, and damaged or hostile files."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text import read_parts
from finetale.text.findings import text_notes
from finetale.text.formats import pdf as reader
from pdf_files import build, flow, pdf

FIRST = (
    "The ferryman kept a well-known ledger of the weather, and nobody in the five villages cut hay before he looked."
)
SECOND = (
    "It is not the geese that make the weather, said his daughter, it is only that they talk about it all day long."
)


def read(path: Path, data: bytes, **settings: object) -> tuple[list[str], dict[str, Any]]:
    path.write_bytes(data)
    resolved = TextSettings.resolve({"validation_fraction": 0, "test_fraction": 0, **settings})
    parts, report = read_parts([str(path)], resolved)
    return [part.text for part in parts], json.loads(json.dumps(report.to_dict()))


def refusal(path: Path, data: bytes) -> str:
    with pytest.raises(SourceError) as caught:
        read(path, data)
    return caught.value.message.removeprefix(f"{path}: ")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.pdf"


# -- paragraphs


def test_indented_lines_start_paragraphs_also_across_pages(file: Path) -> None:
    lines = flow(f"{FIRST}\n\n{SECOND}\n\n{FIRST}")
    (text,), report = read(file, pdf([lines[:3], [(x, y + 300, s, t) for x, y, s, t in lines[3:]]]))
    assert text == f"{FIRST}\n\n{SECOND}\n\n{FIRST}"
    assert report["files"][0]["kind"] == "pdf"
    assert report["content_left_out"] == {}


def test_a_short_last_line_and_a_wide_gap_end_paragraphs(file: Path) -> None:
    full = "The wind sat in the north-east all morning and the river was brown,"
    lines = [(72, 700, 11, full), (72, 686, 11, "then grey."), (72, 672, 11, full), (72, 644, 11, full)]
    lines += [(72, 630, 11, full)]
    assert read(file, pdf([lines]))[0] == [f"{full} then grey.\n\n{full}\n\n{full} {full}"]


def test_a_short_line_before_a_small_letter_is_verse(file: Path) -> None:
    prose = flow(f"{FIRST}\n\n{SECOND}")
    verse = [(72, 600, 11, "The tide goes out and leaves its shoes;"), (72, 586, 11, "the tide comes back and asks.")]
    (text,), _ = read(file, pdf([prose + verse]))
    assert text.endswith("\n\nThe tide goes out and leaves its shoes;\nthe tide comes back and asks.")


@pytest.mark.parametrize(
    ("end", "start", "joined", "elsewhere"),
    [
        ("wea-", "ther was", "weather was", ""),
        ("well-", "known was", "well-known was", "a well-known one and a well-known other"),
        ("well-", "known was", "wellknown was", ""),
        ("foot-", "note was", "footnote was", "one footnote for the foot and a note"),
        ("sheep-", "dog was", "sheep-dog was", "a sheep and a dog"),
        ("Franco-", "Prussian was", "Franco-Prussian was", ""),
        ("twenty-", "four were", "twenty-four were", ""),
        ("1914-", "1918 was", "1914-1918 was", ""),
        ("it rained—", "and rained", "it rained—and rained", ""),
    ],
)
def test_hyphens_at_line_ends(file: Path, end: str, start: str, joined: str, elsewhere: str) -> None:
    full = "The river rose and fell and rose again and nobody had seen it so high in"
    lines = [(72, 700, 11, f"{full} {end}"), (72, 686, 11, f"{start} {full}"), (72, 600, 11, elsewhere or "End.")]
    (text,), _ = read(file, pdf([lines]))
    assert text.split("\n\n")[0] == f"{full} {joined} {full}"


def test_ligatures_and_accents_of_tex_become_letters(file: Path) -> None:
    encoding = b"/Encoding << /Differences [1 /fi /fl] >> /ToUnicode 99 0 R"
    data = pdf([b"BT /F1 11 Tf 72 700 Td (a \\001sh and a \\002ower) Tj ET"], encoding=encoding)
    assert read(file, data)[0] == ["a fish and a flower"]
    data = pdf([[(72, 700, 11, "Ma¨elle and In´es")]], producer="pdfTeX-1.40")
    assert read(file, data)[0] == ["Maëlle and Inés"]
    data = pdf([[(72, 700, 11, "Ma¨elle and In´es")]])
    assert read(file, data)[0] == ["Ma¨elle and In´es"]


def test_columns_are_read_one_after_the_other_below_a_title(file: Path) -> None:
    left = flow(f"{FIRST}\n\n{SECOND}", left=60, top=650, width=40)
    right = flow(f"{SECOND}\n\n{FIRST}", left=330, top=650, width=40)
    title = [(120, 700, 20, "A title across both of the columns")]
    rows = [line for pair in zip(left, right, strict=True) for line in pair]  # drawn row by row
    (text,), _ = read(file, pdf([title + rows]))
    assert text.split("\n\n") == ["A title across both of the columns", FIRST, SECOND, SECOND, FIRST]


def test_a_table_is_read_row_by_row(file: Path) -> None:
    rows = [(left, 700 - 14 * row, 11, f"{name}{row}") for row in range(4) for left, name in ((72, "a"), (300, "b"))]
    (text,), _ = read(file, pdf([rows]))
    assert text == "a0 b0\n\na1 b1\n\na2 b2\n\na3 b3"


def test_items_with_a_hanging_indent_are_one_paragraph_each(file: Path) -> None:
    """Also those that fill their last line."""
    full = "The wind sat in the north-east all morning and the river was brown,"
    lines, expected = [], []
    for number in range(6):
        rows = [f"{number + 1}. {full}", full, full if number % 2 else "then grey."]
        lines += [(72 if not row else 90, 700 - 14 * (3 * number + row), 11, text) for row, text in enumerate(rows)]
        expected.append(" ".join(rows))
    lines = [(x, y, s, t if x == 72 else t[:-2]) for x, y, s, t in lines]
    (text,), _ = read(file, pdf([lines]))
    assert len(text.split("\n\n")) == 6
    assert [item[:2] for item in text.split("\n\n")] == ["1.", "2.", "3.", "4.", "5.", "6."]


def test_a_bibliography_has_one_paragraph_for_each_title(file: Path) -> None:
    full = "Ferryman, A. The wind sat in the north-east all morning and the river"
    rows = [
        (full, "was grey."),
        (full, "was brown, then grey."),
        (full, "was brown, then grey, and nobody cut hay before he looked at it."),
    ]
    rows *= 3
    lines = [
        (72 if not row else 90, 700 - 14 * (2 * n + row), 11, t)
        for n, pair in enumerate(rows)
        for row, t in enumerate(pair)
    ]
    (text,), _ = read(file, pdf([lines]))
    assert text.rstrip().split("\n\n") == [" ".join(pair) for pair in rows]


def test_columns_of_two_lines_are_those_of_the_pages_before(file: Path) -> None:
    def page(*texts: str) -> list[tuple[float, float, float, str]]:
        left, right = (flow(text, left=at, top=650, width=40) for text, at in zip(texts, (60, 330), strict=True))
        return [*left, *right]

    short = "The river was brown and nobody in the five villages cut any hay."
    pages = [page(f"{FIRST}\n\n{SECOND}", f"{SECOND}\n\n{FIRST}")] * 2 + [page(short, f"{short} Nobody.")]
    assert len(pages[-1]) <= 5
    (text,), _ = read(file, pdf(pages))
    assert text.rstrip().split("\n\n")[-2:] == [short, f"{short} Nobody."]
    rows = [(left, 650 - 14 * n, 11, f"{name}{n}") for n in range(2) for left, name in ((60, "a"), (330, "b"))]
    (text,), _ = read(file, pdf([*pages[:2], rows]))
    assert text.rstrip().endswith("a0 b0\n\na1 b1"), "a table"


# -- omitted content


def book(number: int = 6) -> list[list[tuple[float, float, float, str]]]:
    """Return pages with a running head, a different text each, and a page number."""
    return [
        [(200, 750, 9, "THE FERRY" if index % 2 else "CHAPTER ONE"), *flow(f"{FIRST} {index}.\n\n{SECOND} {index}."),
         (300, 40, 10, str(index + 5))]
        for index in range(number)
    ]  # fmt: skip


def test_running_heads_and_page_numbers_are_omitted(file: Path) -> None:
    (text,), report = read(file, pdf(book()))
    assert text.split("\n\n") == [f"{each} {index}." for index in range(6) for each in (FIRST, SECOND)]
    assert report["content_left_out"] == {"running head": 6, "page number": 6}


def test_heads_of_blank_pages_and_numbers_of_first_pages_are_omitted(file: Path) -> None:
    pages = []
    for index in range(12):
        at_foot = index in (0, 6)
        number = (300, 40, 9, str(index + 3)) if at_foot else (72, 750, 9, f"{index + 3} The Goose Ferry")
        pages.append([number, *([] if index == 5 else flow(f"{FIRST} {index}."))])
    (text,), report = read(file, pdf(pages))
    assert text.split("\n\n") == [f"{FIRST} {index}." for index in range(12) if index != 5]
    assert report["content_left_out"] == {"running head": 10, "page number": 2}


def test_speeches_of_two_speakers_are_two_paragraphs_at_the_end_of_a_page(file: Path) -> None:
    full = "The wind sat in the north-east all morning and the river was brown,"
    first = [(72, 700, 11, "“" + full), (72, 686, 11, full + "”")]
    second = [(72, 700, 11, "“" + full), (72, 686, 11, full)]
    assert read(file, pdf([first, second]))[0] == [f"“{full} {full}”\n\n“{full} {full}"]


def test_a_dash_at_a_line_end_is_followed_by_a_space_only_if_one_precedes_it(file: Path) -> None:
    full = "The wind sat in the north-east all morning and the river was brown"
    for dash in "–—":
        lines = [(72, 700, 11, full + dash), (72, 686, 11, full + f" {dash}"), (72, 672, 11, full)]
        assert read(file, pdf([lines]))[0] == [f"{full}{dash}{full} {dash} {full}"]


def test_a_heading_repeated_by_running_heads_is_kept(file: Path) -> None:
    pages = [[(72, 750, 22 if index == 0 else 9, "The Ferry"), *flow(f"{FIRST} {index}.")] for index in range(5)]
    (text,), report = read(file, pdf(pages, outline=[("The Ferry", 0, 700)]))
    assert text.split("\n\n") == ["The Ferry", *(f"{FIRST} {index}." for index in range(5))]
    assert report["content_left_out"] == {"running head": 4}


def test_numbers_that_are_not_page_numbers_are_kept(file: Path) -> None:
    pages = [[(300, 740, 11, str(year)), *flow(f"{FIRST} {year}.")] for year in (1914, 1935, 1917, 1984, 1960)]
    (text,), report = read(file, pdf(pages))
    assert text.split("\n\n")[::2] == ["1914", "1935", "1917", "1984", "1960"]
    assert report["content_left_out"] == {}


def test_chapter_headings_are_not_running_heads(file: Path) -> None:
    pages = [[(72, 740, 11, f"Chapter {number}"), *flow(f"{FIRST} {number}.")] for number in range(3, 10, 2)]
    (text,), report = read(file, pdf(pages))
    assert text.split("\n\n")[::2] == ["Chapter 3", "Chapter 5", "Chapter 7", "Chapter 9"]
    assert report["content_left_out"] == {}


def test_footnotes_and_their_marks_are_omitted(file: Path) -> None:
    body = flow(f"{FIRST}\n\n{SECOND}")
    last = body[-1]
    mark = (last[0] + 250, last[1] + 4, 6, "1")
    notes = [
        (72, 90, 8, "1 He did not count goslings, which he thought"),
        (72, 80, 8, "undecided."),
        (72, 70, 8, "* No."),
    ]
    (text,), report = read(file, pdf([[*body, mark, *notes]]))
    assert text == f"{FIRST}\n\n{SECOND}"
    assert report["content_left_out"] == {"footnote": 2}


def test_footnotes_in_text_size_are_omitted_if_a_raised_mark_refers_to_them(file: Path) -> None:
    body = flow(f"{FIRST}\n\n{SECOND}")
    last = body[-1]
    mark = (last[0] + 250, last[1] + 4, 6, "1")
    note = [(72, 95, 6, "1"), (76, 90, 11, "He did not count goslings."), (72, 76, 11, "Nobody did.")]
    (text,), report = read(file, pdf([[*body, mark, *note]]))
    assert text == f"{FIRST}\n\n{SECOND}"
    assert report["content_left_out"] == {"footnote": 1}
    (text,), report = read(file, pdf([[*body, *note]]))
    assert text.endswith("\n\n1He did not count goslings.\n\nNobody did.")
    assert report["content_left_out"] == {}


def test_pictures_are_counted(file: Path) -> None:
    _, report = read(file, pdf([flow(FIRST), flow(SECOND)], pictures=[1]))
    assert report["content_left_out"] == {"picture": 1}


def test_top_entries_of_the_outline_are_chapters(file: Path) -> None:
    pages = [[(72, 730, 11, "Preface."), *flow(FIRST)], [*flow(SECOND), (72, 600, 18, "Two"), *flow(FIRST, top=560)]]
    outline = [("One", 1, None), ("Two", 1, 620.0)]
    texts, _ = read(file, pdf(pages, outline=outline), documents="chapter")
    assert texts == [f"Preface.\n\n{FIRST}", SECOND, f"Two\n\n{FIRST}"]
    (whole,), _ = read(file, pdf(pages, outline=outline))
    assert whole == "\n\n".join(texts)


# -- pages without text


def test_a_scan_is_refused(file: Path) -> None:
    scan = pdf([[] for _ in range(4)], pictures=range(4))
    assert refusal(file, scan) == "has no text: pages 1–4 have only pictures of it."
    with pytest.raises(SourceError) as caught:
        read(file, scan)
    assert caught.value.hint == (
        "Run OCR first, for example with `ocrmypdf IN.pdf OUT.pdf`; or leave such files out with --skip-unreadable."
    )
    file.with_name("b.txt").write_text("A text.")
    settings = TextSettings.resolve({"validation_fraction": 0, "test_fraction": 0, "skip_unreadable": True})
    parts, report = read_parts([str(file.parent)], settings)
    assert [part.text for part in parts] == ["A text."]
    assert report.to_dict()["skipped"]["unreadable"] == 1


def test_pages_without_text_are_counted_and_reported(file: Path) -> None:
    pages = [flow(FIRST), *([] for _ in range(6)), flow(SECOND)]
    (text,), report = read(file, pdf(pages, pictures=[2, 3, 4, 6]))  # the other pages are blank
    assert text == f"{FIRST}\n\n{SECOND}"
    (problem,) = report["problems"]
    assert (problem["kind"], problem["count"], problem["fatal"]) == ("pages_without_text", 4, False)
    notes = [note for note in text_notes(report) if note.what.startswith("In ")]
    assert [note.what for note in notes] == ["In a.pdf, pages 3–5 and 7 have no text; run OCR, for example ocrmypdf"]
    assert notes[0].matters


def test_characters_unknown_to_the_fonts_are_refused_or_counted(file: Path) -> None:
    encoding = b"/Encoding << /Differences [65 %s] >>" % b" ".join(b"/uniE%03X" % code for code in range(26))
    garbage = pdf([[(72, 700, 11, "ABCDEFGHIJ KLMNOPQ")]], encoding=encoding)
    assert refusal(file, garbage) == "does not say which characters its fonts hold: 94% of them are unknown."
    mixed = pdf([[(72, 700, 11, "A lamp that sang, and nobody in the village knew why.")]], encoding=encoding)
    (text,), report = read(file, mixed)
    assert text == "lamp that sang, and nobody in the village knew why."
    assert report["content_left_out"] == {"unknown character": 1}


# -- damaged and hostile files


GOOD = pdf([flow(FIRST)])
PAGE = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>"
CATALOG, PAGES = b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>"


def bomb(chunk: bytes, times: int) -> bytes:
    """Return a file with one content stream that decompresses to `times` chunks."""
    packer = zlib.compressobj(9)
    packed = b"".join([*(packer.compress(chunk) for _ in range(times)), packer.flush()])
    stream = b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(packed), packed)
    return build([CATALOG, PAGES, PAGE, stream, b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"])


def test_a_damaged_cross_reference_is_repaired(file: Path) -> None:
    damaged = GOOD.replace(b"startxref\n", b"startxref\n99").replace(b" 00000 n", b" 77777 n")
    assert damaged != GOOD
    assert read(file, damaged)[0] == [FIRST]


@pytest.mark.parametrize("data", [GOOD[:700], GOOD[:100], b"%PDF-1.7\n" + bytes(range(256)) * 40, b"not a PDF at all"])
def test_a_damaged_file_gives_one_error_sentence(file: Path, data: bytes) -> None:
    assert refusal(file, data) == "is not a PDF document that can be read; it is damaged."


def test_a_page_tree_with_a_cycle_gives_one_error_sentence(file: Path) -> None:
    tree = b"<< /Type /Pages /Parent 2 0 R /Count 2 /Kids [2 0 R 2 0 R] >>"
    data = build([CATALOG, b"<< /Type /Pages /Count 3 /Kids [3 0 R 3 0 R] >>", tree])
    assert refusal(file, data) == "has no page that can be read; it is damaged."


def test_a_file_that_declares_too_many_pages_is_refused(file: Path) -> None:
    small = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>"
    for number, reason in (
        (900_000, "has 900,000 pages, and at most 200,000 are read."),
        (0, "has no pages; it is damaged."),
    ):
        data = build([CATALOG, b"<< /Type /Pages /Count %d /Kids [%s] >>" % (number, b"3 0 R" * bool(number)), small])
        assert refusal(file, data) == reason


def test_an_encrypted_file_gives_one_error_sentence(file: Path) -> None:
    encryption = b"<< /Filter /Standard /V 2 /R 3 /Length 128 /P -4 /O <%s> /U <%s> >>" % (b"41" * 32, b"42" * 32)
    data = build([CATALOG, PAGES, PAGE, encryption], trailer=b"/Encrypt 4 0 R /ID [<41> <41>]")
    assert refusal(file, data) == "is encrypted, and opens only with a password."


def test_a_failing_child_process_gives_one_error_sentence(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MEMORY_LIMIT", 300 << 20)
    message = refusal(file, bomb(b" " * (1 << 20), 600))
    assert message.startswith("made the reader fail (exit code ")
    assert message.endswith(") at page 1; it is damaged, or needs over 0 GiB of memory.")


def test_a_file_that_takes_too_long_gives_one_error_sentence(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "SECONDS_PER_PAGE", 0.01)
    monkeypatch.setattr(reader, "_START", "import time; time.sleep(60)")
    assert refusal(file, GOOD).startswith("took over 0.01 seconds when it was opened; it is damaged, or needs over ")


@pytest.mark.slow
@pytest.mark.parametrize(("chunk", "times"), [(b" " * (1 << 20), 4000), (b"q " * (1 << 19), 1000)])
def test_a_bomb_ends_within_the_limits(file: Path, chunk: bytes, times: int) -> None:
    assert " at page 1; it is damaged, or needs over 2 GiB of memory." in refusal(file, bomb(chunk, times))


@pytest.mark.slow
def test_100_000_empty_pages_have_no_text(file: Path) -> None:
    kids = b"3 0 R " * 100_000
    small = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>"
    data = build([CATALOG, b"<< /Type /Pages /Count 100000 /Kids [%s] >>" % kids, small])
    assert refusal(file, data).startswith("There is no training text in ")


def test_a_compressed_file_and_one_without_a_suffix_are_read(tmp_path: Path) -> None:
    import gzip

    assert read(tmp_path / "a.pdf.gz", gzip.compress(GOOD))[0] == [FIRST]
    assert read(tmp_path / "scroll", GOOD)[0] == [FIRST]
