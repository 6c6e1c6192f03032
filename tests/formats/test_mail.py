"""Test mails and mailboxes: the text of the writer without quotations, signatures, headers and attachments."""

from __future__ import annotations

import base64
import quopri
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text.formats.mail.quotations import own_words, unflowed
from finetale.text.reading import read_parts

Read = Callable[..., tuple[list[str], dict[str, Any]]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write a file, read its documents, and return them and the entry of the file in the report."""

    def read(data: str | bytes, name: str = "a.eml", **settings: Any) -> tuple[list[str], dict[str, Any]]:
        path = tmp_path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        parts, report = read_parts([str(path)], TextSettings(validation_fraction=0, test_fraction=0, **settings))
        return [part.text for part in parts], report.to_dict()["files"][0]

    return read


def mail(body: str, **headers: str) -> str:
    """Return a message with these headers; `_` in a name stands for `-`."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\n" for name, value in headers.items())
    return f"From: Anna <anna@example.org>\nTo: Ben <b@example.org>\nDate: Mon, 1 Jan 2024 10:00:00\n{lines}\n{body}"


def test_a_mail_is_read_with_subject_and_text(read: Read) -> None:
    texts, account = read(mail("The ferry was late.\n\nThe moon, again.\n", Subject="The  pier"))
    assert texts == ["The pier\n\nThe ferry was late.\n\nThe moon, again."]
    assert account["kind"] == "eml"
    assert "left_out" not in account


@pytest.mark.parametrize(
    ("headers", "first"),
    [
        ({"Subject": "=?utf-8?q?Caf=C3=A9_am_?= =?gb2312?b?urq6xQ==?="}, "Café am 汉号"),
        ({"Subject": "Re: The pier"}, "Body."),
        ({"Subject": "AW: The pier"}, "Body."),
        ({"Subject": "Fwd: The pier"}, "Body."),
        ({"Subject": "The pier", "In_Reply_To": "<1@x>"}, "Body."),
        ({"Subject": "=?no-such?q?Caf=E9?="}, "Caf\ufffd"),
        ({}, "Body."),
    ],
)
def test_the_subject_is_omitted_in_replies_and_forwarded_mails(read: Read, headers: dict[str, str], first: str) -> None:
    assert read(mail("Body.", **headers))[0][0].splitlines()[0] == first


@pytest.mark.parametrize(
    ("body", "text", "quoted", "signatures"),
    [
        ("Yes.\n\nOn Mon, 1 Jan 2024, Ben <b@x.org> wrote:\n> No?\n> Never?\n", "Yes.", 3, 0),
        (
            "Yes.\n\nOn Monday, 1 January 2024 at 10:00,\nBen Quennevère\n<ben@example.org> wrote:\n\n> No?\n",
            "Yes.",
            4,
            0,
        ),
        ("Am 01.01.2024 um 10:00 schrieb Ben:\n> Nein?\nDoch.\n> Nie?\nImmer.", "Doch.\n\nImmer.", 3, 0),
        ("Le 1 janv. 2024 à 10:00, Ben a écrit :\n> Non ?\n\nSi.", "Si.", 2, 0),
        ("Here is my list:\n> quoted\nend", "Here is my list:\n\nend", 1, 0),
        ("My answer:\n\n>> deep\n> less\n\nis no.", "My answer:\n\nis no.", 2, 0),
        ("Yes.\n-- \nAnna\nThe pier 1\n", "Yes.", 0, 1),
        ("Yes.\n--\nAnna", "Yes.", 0, 1),
        ("One.\n--\n" + "More.\n" * 20, "One.\n--\n" + "More.\n" * 19 + "More.", 0, 0),
        ("Yes.\n-- \nAnna\n> No?\nBelow.", "Yes.\n\nBelow.", 1, 1),
        ("Yes.\n\n-----Original Message-----\nFrom: Ben\nSent: Monday\n\nNo?", "Yes.", 4, 0),
        ("Yes.\n\nFrom: Ben <b@x>\nSent: Monday\nTo: Anna\nSubject: x\n\nNo?", "Yes.", 5, 0),
        ("Yes.\n\nVon: Ben\nGesendet: Montag\nAn: Anna\n\nNein?", "Yes.", 4, 0),
        ("Yes.\n\n---------- Forwarded message ---------\nText", "Yes.", 2, 0),
        ("From: my heart\n\nI write.", "From: my heart\n\nI write.", 0, 0),
        ("a\n" + "_" * 40 + "\nb", "a\n" + "_" * 40 + "\nb", 0, 0),
        ("a\n" + "_" * 40 + "\nThe pier mailing list\nhttp://x", "a", 3, 0),
        ("  > indented by two stays\nx", "  > indented by two stays\nx", 0, 0),
    ],
)
def test_quotations_and_signatures_are_omitted(body: str, text: str, quoted: int, signatures: int) -> None:
    own = own_words(body)
    assert (own.text, own.quoted_lines, own.signatures) == (text, quoted, signatures)


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        ("One \ntwo \nthree.\nFour.", "One two three.\nFour."),
        ("> quoted \n> text\nmine \nis\n-- \nAnna", "> quoted text\nmine is\n-- \nAnna"),
        (" From here", "From here"),
        ("open \n> quoted", "open \n> quoted"),
    ],
)
def test_flowed_lines_are_joined(text: str, joined: str) -> None:
    assert unflowed(text, delete_space=False) == joined
    assert unflowed("渡船 \n又", delete_space=True) == "渡船又"


def test_parts_of_a_message(read: Read) -> None:
    body = (
        "--m\nContent-Type: multipart/alternative; boundary=a\n\n"
        "--a\nContent-Type: text/plain; charset=utf-8; format=flowed\nContent-Transfer-Encoding: base64\n\n"
        + base64.encodebytes("Ça, la \nlune.".encode()).decode()
        + "--a\nContent-Type: text/html\n\n<p>HTML</p>\n--a--\n"
        "--m\nContent-Type: image/png\nContent-Disposition: inline\nContent-Transfer-Encoding: base64\n\nAAAA\n"
        "--m\nContent-Type: text/plain\nContent-Disposition: attachment; filename=x.txt\n\nA file.\n"
        "--m\nContent-Type: message/rfc822\n\nSubject: x\n\nNot mine.\n"
        "--m\nContent-Type: text/plain\n\nAnd an end.\n--m--\n"
    )
    texts, account = read(mail(body, Content_Type="multipart/mixed; boundary=m"))
    assert texts == ["Ça, la lune.\n\nAnd an end."]
    assert account["left_out"] == {"attached mail": 1, "attachment": 2}


def test_html_is_read_if_there_is_no_plain_text(read: Read) -> None:
    html = (
        "<html><body><div>Yes, the =\nmoon.</div><div><br></div><div>Anna &amp; Ben</div><img src=3D'x'>"
        "<div class=3D'gmail_signature'>Anna</div>"
        "<div class=3D'gmail_quote'>On Monday:<blockquote>No?</blockquote></div>"
        "<blockquote type=3D'cite'>Never</blockquote></body></html>"
    )
    kind = "text/html; charset=utf-8"
    texts, account = read(mail(html, Content_Type=kind, Content_Transfer_Encoding="quoted-printable"))
    assert texts == ["Yes, the moon.\n\nAnna & Ben"]
    assert account["left_out"] == {"picture": 1, "quotation": 2, "signature": 1}
    empty = "--a\nContent-Type: text/plain\n\n \n--a\nContent-Type: text/html\n\n<p>HTML</p>\n--a--\n"
    assert read(mail(empty, Content_Type="multipart/alternative; boundary=a"))[0] == ["HTML"]


@pytest.mark.parametrize(
    ("charset", "encoding", "text"),
    [
        ("gb2312", "gb18030", "渡船又迟到了，鎔。"),
        ("big5", "big5", "渡船又遲到了。"),
        ("iso-8859-1", "cp1252", "“été” œuf"),
        ("utf-8", "cp1252", "Le passeur a été en retard à cause de la lune, voilà."),
        ("unknown-8bit", "utf-8", "Ça"),
        ('x-broken"charset', "utf-8", "Ça"),
        ("us-ascii", "utf-8", "Ça"),
    ],
)
@pytest.mark.parametrize("transfer", ["8bit", "base64", "quoted-printable"])
def test_encodings(read: Read, charset: str, encoding: str, text: str, transfer: str) -> None:
    data = text.encode(encoding)
    packed = {"8bit": data, "base64": base64.encodebytes(data), "quoted-printable": quopri.encodestring(data)}[transfer]
    head = mail("", Content_Type=f"text/plain; charset={charset}", Content_Transfer_Encoding=transfer).encode()
    assert read(head + packed)[0] == [text]


def test_a_message_with_only_quotations_is_counted(read: Read) -> None:
    data = f"From a Mon Jan  1 10:00:00 2024\n{mail('> No?')}\n\nFrom b Mon Jan  1 10:00:00 2024\n{mail('Yes.')}\n"
    texts, account = read(data, "box.mbox")
    assert texts == ["Yes."]
    assert account["left_out"] == {"mail without words of its writer": 1, "quoted line": 1}


MAILBOX = (
    f"From anna@x Mon Jan  1 10:00:00 2024\n{mail('One.', Subject='First')}\n\n>From here on it rained.\n>>From\n\n"
    "From the pier one sees the moon.\n\n"
    f"From ben@x Tue Jan  2 10:00:00 2024\n{mail('Two.')}\n"
)


@pytest.mark.parametrize("name", ["box.mbox", "Sent"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_each_message_of_a_mailbox_is_a_document(read: Read, name: str, end: str) -> None:
    texts, account = read(MAILBOX.replace("\n", end), name)
    assert texts == ["First\n\nOne.\n\nFrom here on it rained.\n\nFrom the pier one sees the moon.", "Two."]
    assert account["kind"] == "mbox"
    assert account["bytes"] == len(MAILBOX.replace("\n", end))


def test_a_text_that_begins_with_from_is_not_a_mailbox(read: Read) -> None:
    assert read("From the pier one sees the moon.\n", "story")[1]["kind"] == "text"
    with pytest.raises(SourceError, match=r"box\.mbox: is not a mailbox"):
        read("From the pier one sees the moon.\n", "box.mbox")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("".join(f"Content-Type: multipart/mixed; boundary=b{n}\n\n--b{n}\n" for n in range(10_000)), "in each other"),
        (mail("--m\n\nx\n" * 11_000, Content_Type="multipart/mixed; boundary=m"), "or 10,000 parts"),
        ("\n" + "x" * (65 << 20), "is a mail of more than 64 MiB, the most that is read"),
    ],
    ids=["nested", "parts", "large"],
)  # fmt: skip
def test_hostile_mails_give_one_error_sentence(read: Read, data: str, sentence: str) -> None:
    start = time.process_time()
    with pytest.raises(SourceError) as caught:
        read(data)
    assert sentence in caught.value.message
    with pytest.raises(SourceError) as caught:
        read(f"From a Mon Jan  1 10:00:00 2024\n{data}\n", "box.mbox")
    assert sentence in caught.value.message
    assert "box.mbox:1: " in caught.value.message
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    "data",
    [
        "Content-Type: text/plain; charset\n\nwords",
        "Content-Type: ;;;=\n\nwords",
        "Content-Type: multipart/mixed\n\nwords",
        "Content-Type: multipart/mixed; boundary=x\n\n--x\n\nwords",
        "Content-Transfer-Encoding: base64\n\nwords!",
        "Content-Transfer-Encoding: x-uuencode\n\nwords",
        "Subject: =?utf-8?b?A?=\n\nwords",
        "no header at all\n\nwords",
        "words",
        "Content-Disposition: inline; filename*=x'y'%ff\n\nwords",
        "\x00\n\nwords\x00",
        "Subject: " + "=?utf-8?q?a?= " * 20_000 + "\n\nwords",
        "Content-Type: text/plain; " + "a*0=b; " * 20_000 + "\n\nwords",
    ],
    ids=range(13),
)
def test_damaged_mails_do_not_crash(read: Read, data: str) -> None:
    start = time.process_time()
    with suppress(SourceError):
        read(data)
    assert time.process_time() - start < 5


def test_a_large_mailbox_is_read_with_the_memory_of_one_message(tmp_path: Path) -> None:
    from collections import Counter

    from finetale.text.account import FileAccount
    from finetale.text.formats import SourceFile, format_named

    path = tmp_path / "box.mbox"
    with path.open("w", encoding="utf-8") as file:
        for number in range(40):
            file.write(f"From a Mon Jan  1 10:00:00 2024\n{mail('word ' * 200_000)}\n{number}\n\n")
    source = SourceFile("box.mbox", FileAccount("box.mbox", "mbox", Counter()), TextSettings(), path=path)
    tracemalloc.start()
    try:
        assert sum(1 for _ in format_named("mbox").read(source)) == 40
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".msg", ".pst"])
def test_outlook_files_are_refused_with_a_hint(read: Read, suffix: str) -> None:
    with pytest.raises(SourceError, match=rf"mails{suffix}: is an Outlook file, and Finetale does not") as caught:
        read("x", f"mails{suffix}")
    assert ".mbox" in caught.value.hint
