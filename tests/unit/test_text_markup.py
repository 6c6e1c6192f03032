"""Test Markdown, screenplays and subtitles: their text, omitted parts, and the lines of chapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text import read_parts
from finetale.text.documents import Part


def read(path: Path, content: str | bytes, **settings: object) -> tuple[list[Part], dict[str, Any]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    resolved = TextSettings.resolve({"validation_fraction": 0, "test_fraction": 0, **settings})
    parts, report = read_parts([str(path)], resolved)
    return list(parts), json.loads(json.dumps(report.to_dict()))


def text_of(path: Path, content: str | bytes, **settings: object) -> str:
    (part,) = read(path, content, **settings)[0]
    return part.text


MARKDOWN = """---
title: The Lamp
tags: [a, b]
---

Before the *first* heading.

# One {#one}

Text `with` **markup**.

```sh
# not a heading
~~~
```

    # code, not a heading

Two
===

## Deeper
#not a heading

# Three #

The end.
"""


def test_markdown_is_read_as_written_without_its_front_matter(tmp_path: Path) -> None:
    (part,), report = read(tmp_path / "a.md", MARKDOWN)
    assert part.text == MARKDOWN.split("---\n", 2)[2].strip()
    assert part.line == 6
    assert report["content_left_out"] == {"front matter block": 1}
    assert report["files"][0]["kind"] == "markdown"


def test_sections_of_level_1_are_chapters_at_their_lines(tmp_path: Path) -> None:
    parts, _ = read(tmp_path / "a.md", MARKDOWN, documents="chapter", strip=False)
    assert "".join(part.text for part in parts) == MARKDOWN.split("---\n", 2)[2]
    lines = MARKDOWN.split("\n")
    assert [(part.line, part.text.strip().split("\n")[0]) for part in parts] == [
        (5, "Before the *first* heading."),
        (8, "# One {#one}"),
        (19, "Two"),
        (25, "# Three #"),
    ]
    assert [lines[part.line - 1] for part in parts[1:]] == ["# One {#one}", "Two", "# Three #"]


def test_titles_come_from_headings_and_front_matter(tmp_path: Path) -> None:
    from finetale.text.account import TextReport
    from finetale.text.formats import SourceFile, format_named

    (tmp_path / "a.md").write_text(MARKDOWN)
    account = TextReport([]).open_file("a.md", "markdown")
    file = SourceFile("a.md", account, TextSettings.resolve({}), path=tmp_path / "a.md")
    titles = [chapter.title for chapter in format_named("markdown").read(file)]
    assert titles == ["The Lamp", "One", "Two", "Three"]


@pytest.mark.parametrize(
    "text",
    [
        "---\n\nA rule, not front matter.\n\n---\n\nMore.",
        "---\nno end: of it\n\nMore.",
        "---\n- a\n- list\n---\nMore.",
        "---\n" + "[" * 3000 + "\n---\nMore.",
        "---",
        "+++\nnot = toml = at all\n+++\nMore.",
    ],
)
def test_invalid_front_matter_is_text(tmp_path: Path, text: str) -> None:
    (part,), report = read(tmp_path / "a.md", text)
    assert (part.text, part.line) == (text, 1)
    assert report["content_left_out"] == {}


def test_front_matter_can_be_toml(tmp_path: Path) -> None:
    (part,), report = read(tmp_path / "a.md", '+++\ntitle = "The Lamp"\n+++\nText.')
    assert (part.text, part.line, report["content_left_out"]) == ("Text.", 4, {"front matter block": 1})


@pytest.mark.parametrize(
    ("documents", "lines"), [("line", [4, 6]), ("blank-line", [4, 6]), ("%%", [4]), ("chapter", [4]), ("file", [4])]
)
def test_line_numbers_include_the_front_matter(tmp_path: Path, documents: str, lines: list[int]) -> None:
    parts, _ = read(tmp_path / "a.md", "---\na: b\n---\nOne.\n\nTwo.\n", documents=documents)
    assert [part.line for part in parts] == lines


def test_a_long_markdown_file_is_read_in_pieces(tmp_path: Path) -> None:
    text = "".join(f"line {number}\n\n" for number in range(15_000))
    parts, _ = read(tmp_path / "a.md", text, documents="line")
    assert [parts[0].line, parts[-1].line, len(parts)] == [1, 29_999, 15_000]
    assert text_of(tmp_path / "b.md", text) == text.strip()


@pytest.mark.parametrize("suffix", [".rst", ".rest", ".adoc", ".org", ".wiki", ".text"])
def test_other_markup_is_read_as_written(tmp_path: Path, suffix: str) -> None:
    text = "* Heading\n\n.. image:: x.png\n\n=== More ===\n\n- a *list*"
    (part,), report = read(tmp_path / f"a{suffix}", text)
    assert (part.text, report["files"][0]["kind"]) == (text, "text")


FOUNTAIN = """Title:
    _**The Lamp**_
Author: N. N.

# Act One

INT. LIGHTHOUSE - NIGHT [[a note
on two lines]]

[[only a note]]

MARA
(softly)
Listen. /* cut
this

too */ It sings.

# Act Two

> FADE OUT. [[not closed

by a paragraph]]
"""


def test_a_screenplay_keeps_its_scenes_and_loses_notes_and_boneyard(tmp_path: Path) -> None:
    (part,), report = read(tmp_path / "a.fountain", FOUNTAIN)
    assert part.text == (
        "# Act One\n\nINT. LIGHTHOUSE - NIGHT \n\nMARA\n(softly)\nListen.  It sings.\n\n# Act Two\n\n"
        "> FADE OUT. [[not closed\n\nby a paragraph]]"
    )
    assert report["content_left_out"] == {"note": 2, "boneyard": 1, "title page": 1}
    parts, _ = read(tmp_path / "a.fountain", FOUNTAIN, documents="chapter")
    assert [(part.line, part.text.split("\n")[0]) for part in parts] == [(1, "# Act One"), (2, "# Act Two")]


def test_a_transition_is_not_a_title_page(tmp_path: Path) -> None:
    assert text_of(tmp_path / "a.fountain", "FADE IN:\n\nINT. HOUSE - DAY") == "FADE IN:\n\nINT. HOUSE - DAY"


def test_unclosed_marks_take_linear_time(tmp_path: Path) -> None:
    text = "[[ x\n\n" * 100_000 + "]]" + "[[ y" * 100_000 + "/* " * 100_000
    assert text_of(tmp_path / "a.fountain", text) == text.strip()


SRT = """\ufeff1
00:00:01,000 --> 00:00:02,500 X1:40 X2:600 Y1:20 Y2:50
<i>The lamp</i> went out,
{\\an8}and came back.

2
00:00:02,600 --> 00:00:04,000
He counted to

12

3
00:00:09,000 --> 00:00:10,000
“<b>No</b>,” she said. 2 < 3

4
00:00:11,000 --> 00:00:12,000

5
0:00:14.9 --> 0:00:15.5
灯塔
亮了。
"""


def test_subrip_is_one_line_per_cue_with_a_blank_line_at_each_gap(tmp_path: Path) -> None:
    (part,), report = read(tmp_path / "a.srt", SRT.replace("\n", "\r\n"))
    assert part.text == ("The lamp went out, and came back.\nHe counted to 12\n\n“No,” she said. 2 < 3\n灯塔亮了。")
    assert report["content_left_out"] == {"cue time": 5, "style tag": 5}


def test_subtitles_can_have_another_encoding(tmp_path: Path) -> None:
    text = "1\n00:00:01,000 --> 00:00:02,000\nCafé déjà fermé, Hélène !\n"
    (part,), report = read(tmp_path / "a.srt", text.encode("cp1252"))
    assert (part.text, report["files"][0]["encoding"]) == ("Café déjà fermé, Hélène !", "cp1252")


VTT = """WEBVTT - a title
Kind: captions

STYLE
::cue { color: red }

NOTE a remark
on two lines

intro
00:01.000 --> 00:02.000 align:start position:0%
<v Mara>Fish &amp; <c.loud>chips</c></v>

00:00:07.000 --> 00:00:08.000
42
"""


def test_webvtt_loses_header_styles_notes_and_names_of_speakers(tmp_path: Path) -> None:
    (part,), report = read(tmp_path / "a.vtt", VTT)
    assert part.text == "Fish & chips\n\n42"
    assert report["content_left_out"] == {
        "cue time": 2, "note": 1, "speaker name": 1, "style sheet": 1, "style tag": 3,
    }  # fmt: skip


def test_automatic_captions_do_not_repeat_their_lines(tmp_path: Path) -> None:
    text = """WEBVTT

00:00.000 --> 00:02.000
 \nthe<00:00.500><c> lamp</c><00:01.000><c> went</c>

00:02.000 --> 00:02.010
the lamp went
 \n
00:02.010 --> 00:04.000
the lamp went
out<00:03.000><c> again</c>
"""
    (part,), report = read(tmp_path / "a.vtt", text)
    assert part.text == "the lamp went\nout again"
    assert report["content_left_out"]["repeated line"] == 2


def test_equal_lines_of_other_subtitles_are_kept(tmp_path: Path) -> None:
    assert text_of(tmp_path / "a.vtt", "WEBVTT\n\n00:01.000 --> 00:02.000\nNo.\n\n00:02.000 --> 00:03.000\nNo.") == (
        "No.\nNo."
    )


def test_substation_alpha_and_microdvd(tmp_path: Path) -> None:
    ass = (
        "[Script Info]\nTitle: x\n\n[Events]\nFormat: Layer, Start, End, Style, Text\n"
        "Dialogue: 0,0:00:09.00,0:00:10.00,Default,Later, {\\i1}much{\\i0} later.\n"
        "Comment: 0,0:00:01.00,0:00:02.00,Default,no\n"
        "Dialogue: 0,0:00:01.00,0:00:02.00,Default,One\\Nline\n"
        "Dialogue: 0,0:00:01.50,0:00:02.00,Default,{\\p1}m 0 0 l 1 1{\\p0}\n"
    )
    (part,), report = read(tmp_path / "a.ass", ass)
    assert part.text == "One line\n\nLater, much later."
    assert report["content_left_out"] == {"style tag": 4, "cue time": 3, "comment": 1, "drawing": 1}
    sub = "{1}{1}23.976\n{25}{50}{y:i}One|line\n{200}{250}Later.\n"
    assert text_of(tmp_path / "a.sub", sub) == "One line\n\nLater."


@pytest.mark.parametrize("name", ["a.srt", "a.vtt", "a.ass", "a.sub"])
def test_a_file_without_cues_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match=rf"{name}: has no .*, so its subtitles can't be read\.") as caught:
        read(tmp_path / name, "Dear diary,\n\ntoday it rained.\n")
    assert "suffix .txt" in caught.value.hint
