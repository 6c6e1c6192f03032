"""Mails: .eml, and mailboxes, .mbox. Each message is a document. The rules are in docs/formats.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from email import message_from_bytes
from email.errors import MessageError
from email.header import decode_header
from email.message import Message
from email.policy import compat32
from itertools import chain

from finetale.text.account import FileAccount
from finetale.text.documents import FileError
from finetale.text.encodings import guess_encoding
from finetale.text.formats.base import Format, SourceFile
from finetale.text.formats.html.encoding import is_utf8, known_encoding
from finetale.text.formats.html.text import read_page
from finetale.text.formats.mail.quotations import own_words, unflowed

MAX_MESSAGE_BYTES = 64 << 20
MAX_PARTS = 10_000
MAX_DEPTH = 100
_SEPARATOR = re.compile(rb"From \S.*\d\d:\d\d.*")
_ESCAPED = re.compile(rb"^>(>*From )", re.MULTILINE)
_ANSWER = re.compile(
    r"\s*(?:re|aw|antw|sv|vs|odp|r|fw|fwd|wg|tr|rv|回复|答复|转发)\s*(?:\[\d+\])?\s*[:：]\s*", re.IGNORECASE
)
_HINT = "Open it in a mail program and save its text, or leave it out."


def eml_documents(source: SourceFile) -> Iterator[tuple[int, str]]:
    """Yield (1, text) of a message. Yield nothing if it has only quotations and signatures.

    Raises:
        FileError: the message is larger than `MAX_MESSAGE_BYTES`, or nested too deeply.
    """
    pieces: list[bytes] = []
    for block in source.counted():
        pieces.append(block)
        if source.account.bytes > MAX_MESSAGE_BYTES:
            raise _too_large(source.name, None)
    data = b"".join(pieces)
    if data.strip():
        yield from _document(data, source, 1, None)


def mbox_documents(source: SourceFile) -> Iterator[tuple[int, str]]:
    """Yield (number of the message from 1, text) of each message of a mailbox. Memory holds one message.

    Raises:
        FileError: it is not a mailbox, or a message is larger than `MAX_MESSAGE_BYTES` or nested too deeply.
    """
    for number, message in enumerate(_messages(source), 1):
        yield from _document(message.partition(b"\n")[2], source, number, number)


def _messages(source: SourceFile) -> Iterator[bytes]:
    """Yield the messages of a mailbox, each with its separator line. Lines ">From " lose a ">"."""
    lines: list[bytes] = []
    size, number, blank, rest = 0, 1, True, b""
    for block in chain(source.counted(), (b"",)):
        found = (rest + block).split(b"\n")
        rest = found.pop() if block else b""
        for line in found:
            if blank and line.startswith(b"From ") and _SEPARATOR.match(line) and lines:
                yield _ESCAPED.sub(rb"\1", b"\n".join(lines))
                lines.clear()
                size, number = 0, number + 1
            elif not lines and not _SEPARATOR.match(line):
                if not line.strip():
                    continue
                detail = 'is not a mailbox (its first line is not "From SENDER DATE")'
                raise FileError(source.name, None, "damaged", detail, "Save a single mail as .eml.")
            lines.append(line)
            size += len(line) + 1
            blank = not line.strip()
        if size + len(rest) > MAX_MESSAGE_BYTES:
            raise _too_large(source.name, number)
    if lines:
        yield _ESCAPED.sub(rb"\1", b"\n".join(lines))


def _too_large(name: str, number: int | None) -> FileError:
    detail = f"is a mail of more than {MAX_MESSAGE_BYTES >> 20} MiB, the most that is read"
    return FileError(name, number, "mail_limit", detail, _HINT)


def _document(data: bytes, source: SourceFile, number: int, line: int | None) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of one message, unless it has no words of its writer."""
    account = source.account
    try:
        message = message_from_bytes(data, policy=compat32)
        texts = [_own(part, account, number) for part in _text_parts(message, account)]
    except (RecursionError, _TooDeep):
        detail = f"is a mail with more than {MAX_DEPTH} parts nested in each other or {MAX_PARTS:,} parts"
        raise FileError(source.name, line, "mail_limit", detail, _HINT) from None
    except (MessageError, ValueError, LookupError) as error:
        raise FileError(source.name, line, "damaged", f"is a damaged mail ({error})", _HINT) from None
    body = "\n\n".join(filter(None, texts))
    if not body.strip():
        account.leave_out("mail without words of its writer")
        return
    subject = _subject(message)
    yield number, f"{subject}\n\n{body}" if subject else body


class _TooDeep(Exception):
    """A message has too many parts, or they are nested too deeply."""


def _text_parts(message: Message, account: FileAccount) -> list[Message]:
    """Return the parts with the text of a message, and count the others.

    Of alternatives the plain text is taken if it has any words, else HTML.
    """
    found: list[Message] = []
    pending = [(message, 0)]
    num_parts = 0
    while pending:
        part, depth = pending.pop()
        num_parts += 1
        if num_parts > MAX_PARTS or depth > MAX_DEPTH:
            raise _TooDeep
        kind = part.get_content_type()
        payload = part.get_payload()
        if part.get_content_maintype() == "multipart" and isinstance(payload, list):
            inner = [each for each in payload if isinstance(each, Message)]
            if kind == "multipart/alternative":
                inner = _best(inner)
            pending += [(each, depth + 1) for each in reversed(inner)]
        elif kind in ("text/plain", "text/html") and not _is_attachment(part):
            found.append(part)
        elif kind == "message/rfc822":
            account.leave_out("attached mail")
        else:
            account.leave_out("attachment")
    return found


def _best(parts: list[Message]) -> list[Message]:
    """Return the alternative to read: plain text with words, else HTML, else the last one."""
    plain = [part for part in parts if part.get_content_type() == "text/plain"]
    if plain and _payload(plain[0]).strip():
        return plain[:1]
    others = [part for part in parts if part.get_content_type() != "text/plain"]
    html = [part for part in others if part.get_content_type() in ("text/html", "multipart/related", "multipart/mixed")]
    return (html or others or parts)[-1:]


def _is_attachment(part: Message) -> bool:
    return part.get_content_disposition() == "attachment" or bool(part.get_filename())


def _payload(part: Message) -> bytes:
    data = part.get_payload(decode=True)
    return data if isinstance(data, bytes) else b""


def _own(part: Message, account: FileAccount, number: int) -> str:
    """Return the words of the writer in one part."""
    text = _decoded(_payload(part), part.get_content_charset(), account, number)
    if part.get_content_type() == "text/html":
        text = read_page(text, account, "mail").text()
    elif str(part.get_param("format", "")).lower() == "flowed":
        text = unflowed(text, delete_space=str(part.get_param("delsp", "")).lower() == "yes")
    own = own_words(text)
    account.leave_out("quoted line", own.quoted_lines)
    account.leave_out("signature", own.signatures)
    return own.text


def _decoded(data: bytes, charset: str | None, account: FileAccount, number: int) -> str:
    """Return the text of a part: in the encoding it declares, in UTF-8, or in the one it seems to be in."""
    declared = known_encoding(charset)
    for encoding in ("utf-8" if is_utf8(data, declared) else declared, "utf-8", guess_encoding(data)):
        if encoding is not None:
            try:
                text = data.decode(encoding)
            except UnicodeDecodeError:
                continue
            break
    else:
        text = data.decode(declared or "utf-8", "replace")
        account.problem("undecodable", number, text.count("\ufffd"), "replaced by U+FFFD")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _subject(message: Message) -> str:
    """Return the subject of a message that begins a conversation. The subject of an answer is not its writer's."""
    raw = message.get("Subject")
    if raw is None or message.get("In-Reply-To"):
        return ""
    pieces = []
    try:
        for piece, charset in decode_header(raw):
            if isinstance(piece, bytes):
                pieces.append(piece.decode(known_encoding(charset) or "utf-8", "replace"))
            else:
                pieces.append(piece)
    except (MessageError, ValueError):
        pieces = [str(raw)]
    subject = " ".join("".join(pieces).split())
    return "" if _ANSWER.match(subject) else subject


FORMATS = (
    Format("eml", "mail", (".eml",), "documents", eml_documents, has_columns=False, needs=("lxml",)),
    Format(
        "mbox", "mail", (".mbox",), "documents", mbox_documents, has_columns=False, needs=("lxml",), magic=(_SEPARATOR,)
    ),
)
