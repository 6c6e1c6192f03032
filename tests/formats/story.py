"""A short story with all elements of a manuscript, and a normalised form to compare two readings of it.

The story was written for these tests. `make.py` writes it as HTML and Markdown and converts it with real programs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TITLE = "The Clock That Ate Salt"


@dataclass(frozen=True)
class Heading:
    """The heading of a chapter."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph. Its text may hold <i>, <b>, <br> for a line break, and <note>…</note> for a footnote."""

    text: str


@dataclass(frozen=True)
class SceneBreak:
    """A break between two scenes: a paragraph with three asterisks."""


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table. Its first row is the header."""

    rows: tuple[tuple[str, ...], ...]


Block = Heading | Paragraph | SceneBreak | Bullets | Table

STORY: tuple[Block, ...] = (
    Heading("The Keeper’s Daughter"),
    Paragraph(
        "On the last spit of land before the ice stood a tower, and in the tower stood a clock that ate salt. Nobody "
        "in Ousemouth remembered who had built it. The pilots set their watches by it—when they remembered to feed it."
    ),
    Paragraph(
        "“A pinch at dawn, a pinch at dusk,” said old Maëlle Quennevère, who had kept it for forty-one years. “Never "
        "sea salt. It sulks.”"
    ),
    Paragraph(
        "Her daughter Inès was eleven and did not believe in clocks that sulked. She believed in <i>gears</i>, in "
        "<b>grease</b>, and in the long brass key that hung behind the kitchen door."
    ),
    Paragraph("“Machines don’t have moods,” she said."),
    Paragraph("“This one does,” said her mother, and went to bed with a cough."),
    Paragraph(
        "In the morning the cough had become a fever. Inès climbed the 212 steps alone – past the owl’s landing, past "
        "the window with no glass – and held out a pinch of salt to the dark behind the dial.<note>The tower has 213 "
        "steps today; one was added for the inspector.</note>"
    ),
    Paragraph("Something in there took it, politely, one grain at a time."),
    SceneBreak(),
    Paragraph(
        "By noon she had made a list. She made lists the way other children made faces: quickly, and when no one was "
        "looking."
    ),
    Bullets(
        (
            "one jar of rock salt, nearly empty",
            "one mother, too hot to touch",
            "one clock, <i>possibly alive</i>",
        )
    ),
    Paragraph(
        "She read it twice. Then she copied the last page of the feeding book, because the numbers troubled her. They "
        "grew, and what grows must be bought."
    ),
    Table(
        (
            ("Year", "Pinches", "Remark"),
            ("1861", "2", "content"),
            ("1884", "3", "hums at night"),
            ("1902", "7", "asks for names"),
        )
    ),
    Paragraph("<i>Asks for names.</i> Her mother had underlined it, and then, it seemed, had tried to rub it out."),
    Heading("第二章 潮水"),
    Paragraph(
        "The salt ran out on a Thursday. Inès took the sledge and the café’s biggest pot, and walked across the flats "
        "to the barge of Mr. Shen, who sold everything that did not spoil."
    ),
    Paragraph("He listened to the whole story without blinking. Then he opened a drawer and read aloud from a letter:"),
    Paragraph("“潮水退去的时候，钟会饿。不要给它名字，只给它盐。”他的祖父这样写道，“名字……是要还的。”"),
    Paragraph("“My grandfather built the works,” he said. “He would not say for whom.”"),
    Paragraph("On the wall above the stove hung a verse in the same hand, which Mr. Shen put into English for her:"),
    Paragraph("The tide goes out and leaves its shoes;<br>the tide comes back and asks for whose."),
    Paragraph("“How much for the salt?” asked Inès."),
    Paragraph("“For you? 3 crowns the sack, or one true answer. What is it that you’re afraid of?”"),
    Paragraph("She thought about it for so long that the kettle boiled dry. “That it knows mine already,” she said."),
    Paragraph("He gave her two sacks."),
    Heading("What the Dial Showed"),
    Paragraph(
        "She ran home over the ice, twenty‑odd furlongs, with the sacks bumping behind her. The clock had stopped at "
        "4\u00a0p.m. For the first time in anyone’s life, Ousemouth was quiet."
    ),
    Paragraph("She did not feed it. She climbed to the dial, put her mouth to the keyhole and said, very clearly:"),
    Paragraph("“You may have salt, and you may have thanks. <b>You may not have names.</b>”"),
    Paragraph(
        "The dark considered this. It considered it for a minute—an hour—she could not have told which, because the "
        "only clock for thirty miles was doing the considering."
    ),
    Paragraph("Then one small wheel turned over, like a sleeper. Then another."),
    Paragraph("Downstairs her mother woke, thirsty and cross and well, and called for soup."),
    Paragraph(
        "In the feeding book, under 1902, Inès wrote in her best hand: <i>2 pinches. Sulks. Naïve, but it can be "
        "taught.</i>"
    ),
)
"""The story: three chapters."""

_SCENE_BREAK = "* * *"
_CHINESE = re.compile("[\u4e00-\u9fff]")
_MARKUP = re.compile(r"<note>.*?</note>|</?[ib]>")
_MARKER = re.compile(r"[-•·◦▪‣*●–]\s+")
_RULE = re.compile(r"[*⁂_#~\-–—\s]+")


def without_chinese(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """Return the story without its Chinese paragraph and heading, for programs without Chinese fonts."""
    return tuple(block for block in blocks if not (hasattr(block, "text") and _CHINESE.search(block.text)))


def plain(text: str) -> str:
    """Return the text of a paragraph without markup and footnotes, with line ends for <br>."""
    return _MARKUP.sub("", text).replace("<br>", "\n")


def titles(blocks: tuple[Block, ...]) -> list[str]:
    """Return the headings of the chapters."""
    return [block.text for block in blocks if isinstance(block, Heading)]


def paragraphs(blocks: tuple[Block, ...]) -> list[str]:
    """Return the normalised paragraphs of the story: what `normalised` returns for a perfect reading."""
    found: list[str] = []
    for block in blocks:
        match block:
            case Heading(text) | Paragraph(text):
                found.append(plain(text))
            case SceneBreak():
                found.append(_SCENE_BREAK)
            case Bullets(items):
                found += map(plain, items)
            case Table(rows):
                found += map(" ".join, rows)
    return [_in_one_form(text) for text in found]


def normalised(text: str) -> list[str]:
    """Return the paragraphs of a reading in their normalised form.

    1. Paragraphs are separated by blank lines. Each run of white space within one becomes one space: a line end, a tab,
       and a non-breaking space as well.
    2. The items of a list and the rows of a table may be paragraphs, or lines of one paragraph. They are compared one
       by one. A mark before an item (`-`, `•`, …) is left out. Cells of a row are separated by a tab, ` | ` or a space.
    3. A paragraph of nothing but `*`, `-` and the like is a scene break.
    4. The title of the book at the beginning, from a title page, is removed.
    5. A non-breaking hyphen is a hyphen.

    The mark and the text of the footnote are not part of the text.
    """
    single = set(paragraphs(tuple(each for each in STORY if isinstance(each, Bullets | Table))))
    found: list[str] = []
    for paragraph in re.split(r"\n(?:[^\S\n]*\n)+", text.strip()):
        lines = [_in_one_form(line) for line in paragraph.split("\n")]
        unmarked = [_MARKER.sub("", line, count=1) if _MARKER.match(line) else line for line in lines]
        if single.issuperset(unmarked):
            found += unmarked
        else:
            found.append(_in_one_form(paragraph))
    found = [paragraph for paragraph in found if paragraph]
    return found[1:] if found[:1] == [TITLE] else found


def _in_one_form(text: str) -> str:
    if text.strip() and _RULE.fullmatch(text):
        return _SCENE_BREAK
    return " ".join(text.replace(" | ", " ").replace("\u2011", "-").split())
