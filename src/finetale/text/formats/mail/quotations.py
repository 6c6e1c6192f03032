"""A mail's text → the words of its writer: without quotations, what introduces them, and the signature."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile

_QUOTED = re.compile(r" ?>")
_INTRODUCTION_LINES = 4
_INTRODUCES = re.compile(r"\s*(?:(?:On|Am|Le|El|Il|Op|Em|Den|At|In|W dniu|Dnia)\b|\d|[于在])", re.IGNORECASE)
_DATE_OR_ADDRESS = re.compile(r"\d|@|\bwr(?:o|i)te|\bschrieb|\ba écrit|\bescribió|写道|寫道")
_SIGNATURE_LINES = 10
_ORIGINAL = re.compile(
    r"\s*(?:-{2,}|_{5,})\s*(?:Original Message|Forwarded message|Original-Nachricht|Ursprüngliche Nachricht|"
    r"Weitergeleitete Nachricht|Message d'origine|Message transféré|Mensaje original|Mensaje reenviado|"
    r"原始邮件|转发的邮件)"
    r"\s*(?:-{2,}|_{5,})?\s*|Begin forwarded message:\s*|_{20,}\s*",
    re.IGNORECASE,
)
_HEADER_NAMES = (
    ("from", "von", "de", "da", "van", "发件人", "寄件者"),
    ("sent", "date", "gesendet", "datum", "envoyé", "enviado", "inviato", "verzonden", "发送时间", "日期"),
    ("to", "subject", "an", "betreff", "à", "objet", "para", "asunto", "a", "oggetto", "aan", "收件人", "主题"),
)
_HEADER = re.compile(r"\s*\*?([^\s:：*]{1,12}(?: [^\s:：*]{1,8})?)\s?[:：]\*?\s+\S")


@dataclass
class OwnWords:
    """The words of a mail's writer, and the number of lines and signatures that were left out."""

    text: str
    quoted_lines: int = 0
    signatures: int = 0


def own_words(text: str) -> OwnWords:
    """Return the text of a mail without quotations and signature.

    Left out are: lines that start with ">", and up to four lines before them that introduce them ("On … wrote:"); the
    rest from "-----Original Message-----" or the header of a forwarded mail on; the rest from a line "-- " on, except
    the text below a quotation in it.
    """
    lines = text.split("\n")
    found = OwnWords("")
    if (end := _end_of_own(lines)) < len(lines):
        found.quoted_lines += sum(1 for line in lines[end:] if line.strip())
        del lines[end:]
    kept: list[str] = []
    in_signature = False
    for number, line in enumerate(lines):
        if _QUOTED.match(line):
            if not in_signature:
                _drop_introduction(kept, found)
            in_signature = False
            found.quoted_lines += 1
            if kept and kept[-1].strip():
                kept.append("")
        elif line.startswith("--") and _is_signature(lines, number):
            in_signature = True
            found.signatures += 1
        elif not in_signature:
            kept.append(line.rstrip())
    found.text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip("\n")
    return found


def unflowed(text: str, *, delete_space: bool) -> str:
    """Join the lines of a text in format=flowed (RFC 3676): a space at the end of a line continues the paragraph.

    Args:
        text: the text.
        delete_space: whether to remove this space (DelSp=yes).
    """
    result: list[str] = []
    pending = ""
    depth = 0
    for line in text.split("\n"):
        here = len(line) - len(line.lstrip(">"))
        body = line[here:].removeprefix(" ")
        if pending and here != depth:
            result.append(">" * depth + " " * (depth > 0) + pending)
            pending = ""
        depth = here
        if body.endswith(" ") and body != "-- ":
            pending += body[:-1] if delete_space else body
        else:
            result.append(">" * depth + " " * (depth > 0) + pending + body)
            pending = ""
    if pending:
        result.append(">" * depth + " " * (depth > 0) + pending)
    return "\n".join(result)


def _end_of_own(lines: list[str]) -> int:
    """Return the number of the line from which on the mail quotes another one as a whole."""
    for number, line in enumerate(lines):
        if _ORIGINAL.fullmatch(line):
            following = next((each for each in lines[number + 1 :] if each.strip()), "")
            if not line.startswith("_") or _is_header(following, 0) or "mailing list" in following.lower():
                return number
        elif _is_header(line, 0):
            block = [each for each in lines[number : number + 6] if each.strip()]
            if any(_is_header(each, 1) for each in block) and any(_is_header(each, 2) for each in block):
                return number
    return len(lines)


def _is_header(line: str, kind: int) -> bool:
    match = _HEADER.match(line)
    return match is not None and match.group(1).lower() in _HEADER_NAMES[kind]


def _drop_introduction(kept: list[str], found: OwnWords) -> None:
    """Remove the lines at the end that introduce a quotation: they end with a colon and hold a date or an address."""
    end = len(kept)
    while end and not kept[end - 1].strip():
        end -= 1
    if not end or not kept[end - 1].endswith((":", "：")):
        return
    lengths = takewhile(lambda n: kept[end - n].strip(), range(1, min(_INTRODUCTION_LINES, end) + 1))
    length = next((n for n in lengths if _INTRODUCES.match(kept[end - n])), 1)
    if _DATE_OR_ADDRESS.search(" ".join(kept[end - length : end])):
        found.quoted_lines += length
        del kept[end - length :]


def _is_signature(lines: list[str], number: int) -> bool:
    """Return whether a signature starts here. A mark that lost its space starts one of a few lines only."""
    mark = lines[number].rstrip("\r")
    if mark == "-- ":
        return True
    rest = takewhile(lambda line: not _QUOTED.match(line), lines[number + 1 :])
    return mark == "--" and sum(1 for line in rest if line.strip()) <= _SIGNATURE_LINES
