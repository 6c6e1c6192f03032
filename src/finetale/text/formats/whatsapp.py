"""WhatsApp's exports of a chat: `.txt` files that are recognised by their first lines.

    Android   12/31/23, 10:15 PM - Name: text
    iOS       [31.12.23, 22:15:03] Name: text

The phone's language decides the order of the date and the form of the time. What WhatsApp itself wrote begins with
U+200E on iOS. On Android it has no name, or is in angle brackets.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import PurePath

from finetale.text.account import FileAccount
from finetale.text.chats import ChatMessage, chat_documents
from finetale.text.conversations import Conversation
from finetale.text.documents import FileError
from finetale.text.formats.base import Format, SourceFile

FORM = "WhatsApp"
_HEAD_BYTES = 16 << 10
_MARKS = "\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff"
_MARK = re.compile(f"[{_MARKS}]")
_MORNING = r"a\.?\s?m\.?|上午|午前|오전|ص|π\.?μ\.?|SA|PG|ÖÖ|de\.?"
_EVENING = r"p\.?\s?m\.?|下午|午後|오후|م|μ\.?μ\.?|CH|PTG|ÖS|du\.?"
_IS_EVENING = re.compile(_EVENING, re.IGNORECASE)
_HALF = rf"(?:{_MORNING}|{_EVENING})"
_DATE = r"(?P<a>\d{1,4})[./-]\s?(?P<b>\d{1,2})[./-]\s?(?P<c>\d{1,4})\.?"
_TIME = (
    rf"(?:(?P<before>{_HALF})\s?)?(?P<hour>\d{{1,2}})[:.](?P<minute>\d\d)(?:[:.](?P<second>\d\d))?"
    rf"(?:\s?(?P<after>{_HALF}))?"
)
_BETWEEN = r",?\s(?:(?:à|às|a las|alle|um|kl\.?|at|om)\s)?"
_HEAD = re.compile(
    rf"[{_MARKS}\s]*(?:\[{_DATE}{_BETWEEN}{_TIME}\]\s|{_DATE.replace('?P<', '?P<x')}{_BETWEEN}"
    rf"{_TIME.replace('?P<', '?P<x')}\s[-\u2013]\s)(?P<rest>.*)",
    re.IGNORECASE,
)
_NAMED = re.compile(r"(?P<name>[^:<>\n]{1,100}?)\s?:(?:\s(?P<text>.*))?", re.DOTALL)
_LOG_LEVEL = re.compile(r"(?:.*\W)?(?:trace|debug|info|notice|warn|warning|error|critical|fatal)", re.IGNORECASE)
_FILE_NAME = re.compile(r"whatsapp|_chat\.txt", re.IGNORECASE)
_MAY_START = re.compile(rb"(?:\xef\xbb\xbf|\xe2\x80[\x8e\x8f\xaa-\xae]|\s|\[)*[\d\xd9\xdb\xe0\xe1]|\s*\Z|[\x1f\x28]")
"""What the first bytes of an export may be: a digit of any script after marks, or the start of a compressed file."""
_FIRST_BYTES = 64
_ENOUGH_NAMED = 3
_MOST_NAMES = 0.75
"""Maximum share of different names among the first messages. Headings in a diary do not repeat."""

# What WhatsApp writes in place of something else, in the languages that it is used in most.
_OMITTED = re.compile(
    r"omitted|weggelassen|ausgeschlossen|\bomise?s?\b|absente?|omitid[oa]|ocult|omess[oaie]|weggelaten|пропущен|опущен"
    r"|dahil edilmedi|pominięt|utelämn|udelad|utelatt|jätetty pois|vynechán|忽略|省略|略去|생략|제외|tidak disertakan"
    r"|הושמט|استبعاد",
    re.IGNORECASE,
)
_IN_BRACKETS = re.compile(r"<[^<>\n]{0,60}[\s\u3040-\u9fff\uac00-\ud7af][^<>\n]{0,60}>")
_ATTACHED = re.compile(
    r"<[^<>:\n]{1,40}:\s[^<>\n]{1,250}\.\w{2,5}>"
    r"|(?:(?:IMG|VID|AUD|PTT|STK|DOC)-\d{8}-WA\d+\.\w{2,5} \([^()\n]{3,40}\)"
    r"|[^\n/]{1,250}\.\w{2,5} \((?:file attached|Datei angehängt|fichier joint|archivo adjunto|arquivo anexado"
    r"|file allegato|bestand bijgevoegd|файл добавлен|dosya ekli|plik załączony"
    r"|文件附件|添付ファイル|파일 첨부됨)\))(?=\n|$)"
)
_LOCATION = re.compile(r"[^:\n]{3,30}: https://maps\.google\.com/\?q=\S+")
_DELETED = re.compile(
    r"(?:This message was deleted|You deleted this message|Diese Nachricht wurde gelöscht|"
    r"Du hast diese Nachricht gelöscht|Ce message a été supprimé|Vous avez supprimé ce message|Se eliminó este mensaje|"
    r"Eliminaste este mensaje|Esta mensagem foi apagada|Mensagem apagada|Você apagou esta mensagem|"
    r"Questo messaggio è stato eliminato|Hai eliminato questo messaggio|Dit bericht is verwijderd|"
    r"(?:U hebt|Je hebt) dit bericht verwijderd|Данное сообщение удалено|Вы удалили данное сообщение)\.?",
    re.IGNORECASE,
)
_EDITED = re.compile(
    r"\s?<(?:This message was edited|Diese Nachricht wurde bearbeitet|Ce message a été modifié|Se editó este mensaje|"
    r"(?:Essa|Esta) mensagem foi editada|Questo messaggio è stato modificato|Dit bericht is bewerkt|"
    r"Данное сообщение изменено)\.?>$",
    re.IGNORECASE,
)
_LONGEST_MARK = 60
_NULL = re.compile("null")  # in place of what WhatsApp can't export
_INSTEAD_OF_TEXT = (
    (_DELETED, "deleted message"),
    (_IN_BRACKETS, "attachment"),
    (_LOCATION, "location"),
    (_NULL, "empty message"),
)


@dataclass(slots=True)
class _Entry:
    """A message as it was written.

    Attributes:
        date: the three numbers of its date.
        seconds: its time of the day.
        lines: what follows them.
        place: its first line in the file.
        is_ios: whether an iPhone wrote it.
    """

    date: tuple[int, int, int]
    seconds: int
    lines: list[str]
    place: int
    is_ios: bool

    @property
    def text(self) -> str:
        """What follows date and time."""
        return "\n".join(self.lines)


def is_whatsapp(file: SourceFile) -> bool:
    """Return whether a text file is an export of WhatsApp, by its first 16 KiB.

    Its first line must begin with a date and time in WhatsApp's form. At least three of such lines must name a sender,
    and at least two names must occur. If the file's name says that it is an export, one named line is enough.
    """
    if not _may_start(file):
        return False
    try:
        head = next(file.blocks(), b"")[:_HEAD_BYTES].decode("utf-8", "ignore")
    except FileError:  # the reader of plain text raises it again
        return False
    lines = [line for line in head.replace("\r", "\n").split("\n") if line.strip()]
    if not lines or not _HEAD.match(lines[0]):
        return False
    matches = (match for line in lines if (match := _HEAD.match(line)))
    names = Counter(named["name"].strip() for match in matches if (named := _NAMED.fullmatch(_bare(match["rest"]))))
    if not names or any(_LOG_LEVEL.fullmatch(name) for name in names):
        return False
    if _FILE_NAME.search(PurePath(file.name).name):
        return True
    return names.total() >= _ENOUGH_NAMED and 2 <= len(names) <= max(2, _MOST_NAMES * names.total())


def _may_start(file: SourceFile) -> bool:
    """Return whether the first bytes of a file leave it possible. This is cheaper than to decode its first block."""
    if file.path is None or file.is_member:
        return True
    try:
        with file.path.open("rb", buffering=0) as opened:
            return _MAY_START.match(opened.read(_FIRST_BYTES) or b"") is not None
    except OSError:  # the reader of plain text reports it
        return False


def _read(file: SourceFile) -> Iterator[tuple[int, str | Conversation]]:
    messages = _messages(list(_entries(file.lines())), file.account)
    yield from chat_documents(messages, FORM, file.settings.speaker, file.account)


def _entries(lines: Iterable[tuple[int, str]]) -> Iterator[_Entry]:
    entry: _Entry | None = None
    for number, line in lines:
        if (match := _HEAD.match(line)) is None:
            if entry is not None:
                entry.lines.append(line)
            continue
        if entry is not None:
            yield entry
        found = {key.removeprefix("x"): value for key, value in match.groupdict().items() if value is not None}
        hour = int(found["hour"])
        half = found.get("before") or found.get("after")
        if half is not None:
            hour = hour % 12 + 12 * (_IS_EVENING.fullmatch(half) is not None)
        seconds = 3600 * hour + 60 * int(found["minute"]) + int(found.get("second", 0))
        date = int(found["a"]), int(found["b"]), int(found["c"])
        entry = _Entry(date, seconds, [found["rest"]], number, match["a"] is not None)
    if entry is not None:
        yield entry


def _messages(entries: Sequence[_Entry], account: FileAccount) -> list[ChatMessage]:
    named = [_NAMED.fullmatch(_bare_start(entry.text)) for entry in entries]
    names = Counter(_name(match["name"]) for match in named if match)
    found = []
    for entry, match, time in zip(entries, named, _times(entries), strict=True):
        if match is None or _is_system_line(_name(match["name"]), names):
            account.leave_out("system message")
        elif text := _text(match["text"] or "", account, is_ios=entry.is_ios):
            found.append(ChatMessage(entry.place, time, _name(match["name"]), text))
    return found


def _text(text: str, account: FileAccount, *, is_ios: bool) -> str:
    """Return what a person wrote of a message. Count what WhatsApp wrote."""
    written, mark, generated = text.partition("\u200e")
    if mark and is_ios:
        generated = _bare(generated)
        if (found := _kind_of_generated(generated, alone=not written.strip())) is not None:
            account.leave_out(found)
            text = written
    text, edits = _EDITED.subn("", _bare(text))
    account.leave_out("edit mark", edits)
    if match := _ATTACHED.match(text):
        account.leave_out("attachment")
        return text[match.end() :].strip()
    for pattern, what in _INSTEAD_OF_TEXT:
        if pattern.fullmatch(text):
            account.leave_out(what)
            return ""
    if not text and not mark:
        account.leave_out("empty message")
    return text


def _kind_of_generated(text: str, *, alone: bool) -> str | None:
    """Return the kind of a text after U+200E that WhatsApp wrote on iOS.

    None if a person wrote it, or it may have a caption.

    Args:
        text: the text, without marks.
        alone: whether it is the whole message.
    """
    if _ATTACHED.match(text):
        return None if alone else "attachment"
    if not alone and text.startswith("<") and text.endswith(">"):
        return "edit mark"
    if _OMITTED.search(text) and (alone or len(text) <= _LONGEST_MARK):
        return "attachment"
    if not alone:
        return None
    return "deleted message" if _DELETED.fullmatch(text) else "system message"


def _times(entries: Sequence[_Entry]) -> list[float]:
    """Return the time of each entry in seconds.

    The order of day and month is the one that makes all dates valid. If both do, it is the one by which fewer messages
    are earlier than the one before them, and the day comes first if there is no difference.
    """
    readings = [[_seconds(entry, order) for entry in entries] for order in ("dmy", "mdy")]
    valid = [[time for time in reading if time is not None] for reading in readings]

    def badness(number: int) -> tuple[int, int]:
        return len(entries) - len(valid[number]), sum(later < earlier for earlier, later in pairwise(valid[number]))

    times: list[float] = []
    for time in min(zip(map(badness, (0, 1)), (0, 1), readings, strict=True))[2]:
        times.append(time if time is not None else times[-1] if times else 0.0)
    return times


def _seconds(entry: _Entry, order: str) -> float | None:
    """Return the time of an entry, None if this order gives no date. A year of four digits may come first."""
    first, second, third = entry.date
    if first > 31:
        year, month, day = first, second, third
    elif order == "dmy":
        year, month, day = third, second, first
    else:
        year, month, day = third, first, second
    try:
        return 86400.0 * datetime(year + 2000 * (year < 100), month, day).toordinal() + entry.seconds
    except ValueError:
        return None


def _is_system_line(name: str, names: Counter[str]) -> bool:
    """Return whether a name is the start of a line such as `Anna changed the group's name to "Plans: summer"`."""
    if names[name] > 1 or not any(mark in name for mark in "\"“„«”'’"):
        return False
    return any(name.startswith(f"{other} ") for other in names if other != name)


def _name(name: str) -> str:
    return " ".join(_MARK.sub("", name).split()).removeprefix("~").strip()


def _bare(text: str) -> str:
    return _MARK.sub("", text).strip()


def _bare_start(text: str) -> str:
    return text.lstrip("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\ufeff ")


FORMATS = (Format("whatsapp", "chat", (), "documents", _read),)
