"""Subtitles: the spoken text of SubRip, WebVTT, SubStation Alpha and MicroDVD as running text.

Each cue is one line. A blank line marks a gap of `GAP_SECONDS` or more. A cue counts as one "cue
time" that was left out: its number, times and position. Tags for the style are counted as "style tag".
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from finetale.text.account import FileAccount
from finetale.text.documents import FileError
from finetale.text.formats.base import Chapter, Format, SourceFile

GAP_SECONDS = 5.0
_FRAMES_PER_SECOND = 25.0
"""Assumed for MicroDVD, which counts frames. It decides only where blank lines are."""

_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[,.](\d{1,3})"
_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")
_WITHIN_CUE = re.compile(r"<(?:\d+:)?\d{1,2}:\d{2}\.\d{3}>")
_SPEAKER = re.compile(r"<v(?:\.[^\s>]*)?(?:[ \t][^>]*)?>", re.IGNORECASE)
_TAG = re.compile(
    r"</?(?:[biuscvq]|ruby|rt|font|lang|span|strong|em)(?:[.\s][^<>]*)?/?>|\{\\[^{}]*\}|\{/?[biusyYCcfFsSPpoDH](?::[^{}]*)?\}",
    re.IGNORECASE,
)
_OVERRIDE = re.compile(r"\{[^{}]*\}")
_ASS_TIME = re.compile(r"\s*(\d+):(\d{1,2}):(\d{1,2})[.:](\d{1,3})\s*")
_FRAMES = re.compile(r"\{(\d+)\}\{(\d*)\}(.*)", re.DOTALL)
_NO_SPACE = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]")
_NOT_TEXT = {"NOTE": "note", "STYLE": "style sheet", "REGION": "region"}


@dataclass
class _Cue:
    """A cue: first and last second, and its lines of text."""

    start: float
    end: float
    lines: list[str]


def _srt(file: SourceFile) -> Iterator[Chapter]:
    return _one_chapter(_running_text(_untagged(_srt_cues(file), file.account), file.account))


def _srt_cues(file: SourceFile) -> Iterator[_Cue]:
    """Yield the cues of a SubRip file. The line before the times is the cue's number. A cue may hold blank lines."""
    cue: _Cue | None = None
    num_before = 0
    for _, line in file.lines():
        if match := _TIMES.fullmatch(line):
            if cue is not None:
                _drop_number(cue)
                yield cue
            cue = _Cue(_seconds(*match.groups()[:4]), _seconds(*match.groups()[4:8]), [])
        elif cue is not None:
            cue.lines.append(line)
        elif line.strip() and not line.strip().isdecimal():
            num_before += 1
    if cue is not None:
        yield cue
        file.account.leave_out("line before the first cue", num_before)
    elif num_before:
        raise _not_cues(file, "times such as 00:00:01,000 --> 00:00:04,000")


def _drop_number(cue: _Cue) -> None:
    """Remove the number of the next cue from the end of a cue, if it has one."""
    if cue.lines and cue.lines[-1].strip().isdecimal():
        cue.lines.pop()


def _vtt(file: SourceFile) -> Iterator[Chapter]:
    return _one_chapter(_running_text(_untagged(_vtt_cues(file), file.account, entities=True), file.account))


def _vtt_cues(file: SourceFile) -> Iterator[_Cue]:
    """Yield the cues of a WebVTT file.

    Automatic captions repeat the last line of a cue in the next one. They have times within their text. In a cue after
    such a cue, a first line that repeats the last one is left out.
    """
    rolling, last = False, ""
    for number, block in enumerate(_paragraphs(file)):
        timed = next((index for index in (0, 1) if len(block) > index and _TIMES.fullmatch(block[index])), None)
        if timed is None:
            if number == 0 and not block[0].startswith("WEBVTT"):
                raise _not_cues(file, "times such as 00:01.000 --> 00:04.000")
            if number:
                file.account.leave_out(_NOT_TEXT.get(block[0].split(" ")[0], "block without a time"))
            continue
        match = _TIMES.fullmatch(block[timed])
        assert match is not None
        lines = block[timed + 1 :]
        rolling = rolling or any(_WITHIN_CUE.search(line) for line in lines)
        if rolling:
            plain = [" ".join(_TAG.sub("", _WITHIN_CUE.sub("", line)).split()) for line in lines]
            shown = [(line, text) for line, text in zip(lines, plain, strict=True) if text]
            if shown and shown[0][1] == last:
                file.account.leave_out("repeated line")
                shown = shown[1:]
            last = shown[-1][1] if shown else last
            lines = [line for line, _ in shown]
        yield _Cue(_seconds(*match.groups()[:4]), _seconds(*match.groups()[4:8]), lines)


def _paragraphs(file: SourceFile) -> Iterator[list[str]]:
    """Yield lines between empty lines. A line of spaces is not empty; automatic captions have such lines in a cue."""
    block: list[str] = []
    for _, line in file.lines():
        if line.rstrip("\r"):
            block.append(line)
        elif block:
            yield block
            block = []
    if block:
        yield block


def _untagged(cues: Iterable[_Cue], account: FileAccount, *, entities: bool = False) -> Iterator[_Cue]:
    """Remove the tags of each cue and count them. The names in voice tags are counted as "speaker name"."""
    for cue in cues:
        for index, line in enumerate(cue.lines):
            if "<" in line or "{" in line:
                line, speakers = _SPEAKER.subn("", line)
                line, times = _WITHIN_CUE.subn("", line)
                line, tags = _TAG.subn("", line)
                account.leave_out("speaker name", speakers)
                account.leave_out("time within a cue", times)
                account.leave_out("style tag", tags)
            cue.lines[index] = html.unescape(line) if entities and "&" in line else line
        yield cue


def _ass(file: SourceFile) -> Iterator[Chapter]:
    return _one_chapter(_running_text(_ass_cues(file), file.account))


def _ass_cues(file: SourceFile) -> Iterator[_Cue]:
    """Yield the cues of a SubStation Alpha file: the lines `Dialogue:` of its section `[Events]`, in order of time."""
    section, columns = "", ["start", "end", "text"]
    cues: list[_Cue] = []
    for _, line in file.lines():
        stripped = line.strip()
        if stripped.startswith("[") and stripped.endswith("]"):
            section = stripped.lower()
        elif section == "[events]":
            key, _, values = line.partition(":")
            if key.strip() == "Format":
                columns = [name.strip().lower() for name in values.split(",")]
            elif key.strip() == "Comment":
                file.account.leave_out("comment")
            elif key.strip() == "Dialogue":
                cells = dict(zip(columns, values.split(",", len(columns) - 1), strict=False))
                times = [_ASS_TIME.fullmatch(cells.get(name, "")) for name in ("start", "end")]
                start, end = (_seconds(*match.groups()) if match else 0.0 for match in times)
                text, tags = _OVERRIDE.subn(
                    lambda tag: "\x00" if re.search(r"\\p[1-9]", tag[0]) else "", cells.get("text", "")
                )
                file.account.leave_out("style tag", tags)
                if "\x00" in text:
                    file.account.leave_out("drawing")
                    text = text[: text.index("\x00")]
                cues.append(_Cue(start, end, re.split(r"\\[Nn]", text.replace("\\h", " "))))
    if not cues and not section:
        raise _not_cues(file, "a section [Events] with lines `Dialogue:`")
    yield from sorted(cues, key=lambda cue: cue.start)


def _sub(file: SourceFile) -> Iterator[Chapter]:
    return _one_chapter(_running_text(_untagged(_sub_cues(file), file.account), file.account))


def _sub_cues(file: SourceFile) -> Iterator[_Cue]:
    """Yield the cues of a MicroDVD file. Its first cue may hold the number of frames per second."""
    rate = _FRAMES_PER_SECOND
    for number, line in file.lines():
        match = _FRAMES.fullmatch(line)
        if match is None:
            if line.strip():
                raise _not_cues(file, "frames such as {25}{100} (MicroDVD)")
            continue
        start, end, text = match.groups()
        if number == 1 and re.fullmatch(r"\s*\d{2}(?:\.\d+)?\s*", text):
            rate = float(text)
            continue
        yield _Cue(int(start[:9]) / rate, int((end or start)[:9]) / rate, text.split("|"))


def _one_chapter(lines: Iterable[str]) -> Iterator[Chapter]:
    yield Chapter("".join(lines), "", 1)


def _running_text(cues: Iterable[_Cue], account: FileAccount) -> Iterator[str]:
    """Yield each cue as a line, after a blank line where the one before ended `GAP_SECONDS` or more ago."""
    end: float | None = None
    for cue in cues:
        account.leave_out("cue time")
        text = ""
        for line in map(str.strip, cue.lines):
            space = "" if not text or not line or (_NO_SPACE.match(text[-1]) and _NO_SPACE.match(line[0])) else " "
            text += space + line
        if not text:
            continue
        yield ("\n" if end is not None and cue.start - end >= GAP_SECONDS else "") + text + "\n"
        end = cue.end if end is None else max(end, cue.end)


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str) -> float:
    return int((hours or "0")[:9]) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{fraction}")


def _not_cues(file: SourceFile, expected: str) -> FileError:
    hint = "Check that the file holds subtitles. Give it the suffix .txt to read it as plain text."
    return FileError(file.name, None, "damaged", f"has no {expected}, so its subtitles can't be read", hint)


FORMATS = (
    Format("srt", "subtitles", (".srt",), "chapters", _srt),
    Format("vtt", "subtitles", (".vtt",), "chapters", _vtt, magic=(b"WEBVTT",)),
    Format("ass", "subtitles", (".ass", ".ssa"), "chapters", _ass),
    Format("microdvd", "subtitles", (".sub",), "chapters", _sub),
)
