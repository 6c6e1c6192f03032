"""Test chats: exports of WhatsApp, Telegram, ChatGPT and Claude are recognised, cut at silences, and counted."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from examples import marked, read
from finetale.chat import chat_renderer
from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text import read_parts
from finetale.text.findings import text_notes

NNBSP, LRM = "\u202f", "\u200e"

ANDROID_EN = f"""\
12/31/23, 9:58{NNBSP}PM - Messages and calls are end-to-end encrypted. Only people in this chat can read them.
12/31/23, 9:58{NNBSP}PM - Mara created group "Ferry: the plan"
12/31/23, 10:15{NNBSP}PM - Mara: Is the ferry running tonight?
12/31/23, 10:15{NNBSP}PM - Mara: The timetable says no
12/31/23, 10:17{NNBSP}PM - Tobias: It never runs on the last day of the year.
You would have to take the bridge,
and walk.
12/31/23, 10:18{NNBSP}PM - Mara: <Media omitted>
12/31/23, 10:19{NNBSP}PM - Tobias: This message was deleted
12/31/23, 10:20{NNBSP}PM - Mara: Then I walk: it is dry. <This message was edited>
12/31/23, 10:21{NNBSP}PM - Mara: IMG-20231231-WA0003.jpg (file attached)
The bridge in the fog
1/1/24, 9:02{NNBSP}AM - Tobias: Did you arrive?
1/1/24, 9:40{NNBSP}AM - Mara: Wet, but yes
"""
IOS_DE = f"""\
[31.12.23, 22:15:03] Fähre: {LRM}Nachrichten und Anrufe sind Ende-zu-Ende-verschlüsselt.
[31.12.23, 22:15:03] Mara: Fährt heute die Fähre?
{LRM}[31.12.23, 22:16:11] Mara: {LRM}Bild weggelassen
[31.12.23, 22:17:40] ~{NNBSP}Tobias: Nein, erst wieder im neuen Jahr.
Nimm die Brücke.
[31.12.23, 22:18:02] Mara: {LRM}<Anhang: 00000007-PHOTO-2023-12-31-22-18-02.jpg>
[31.12.23, 22:19:00] Mara: Gut, dann zu Fuß. {LRM}<Diese Nachricht wurde bearbeitet.>
[31.12.23, 22:20:00] ~{NNBSP}Tobias: {LRM}Diese Nachricht wurde gelöscht.
[01.01.24, 09:40:12] Mara: Nass, aber da
"""


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def notes(report: dict[str, Any]) -> str:
    return "\n".join(note.line() for note in text_notes(report))


# -- WhatsApp


def test_whatsapp_from_android(tmp_path: Path) -> None:
    parts, report = read(write(tmp_path, "talk.txt", ANDROID_EN))
    assert [part.text for part in parts] == [
        "Mara: Is the ferry running tonight?\nThe timetable says no\n"
        "Tobias: It never runs on the last day of the year.\nYou would have to take the bridge,\nand walk.\n"
        "Mara: Then I walk: it is dry.\nThe bridge in the fog",
        "Tobias: Did you arrive?\nMara: Wet, but yes",
    ]
    assert [part.line for part in parts] == [3, 13]
    assert report["content_left_out"] == {
        "system message": 2, "attachment": 2, "deleted message": 1, "edit mark": 1,
    }  # fmt: skip
    assert report["files"][0]["kind"] == "whatsapp"
    assert report["chats"] == {
        "forms": {"WhatsApp": 1},
        "conversations": 2,
        "people": 2,
        "speakers": [
            {"name": "Mara", "messages": 5, "share": 0.714286},
            {"name": "Tobias", "messages": 2, "share": 0.285714},
        ],
        "speaker": None,
    }
    sentences = notes(report)
    assert "Recognised 1 chat of WhatsApp (--documents file reads it as plain text)." in sentences
    assert (
        "2 people write in 2 conversations, cut at silences of 6 hours (--speaker NAME learns the messages of one"
        " person as answers): Mara (71% of the messages), Tobias (29% of the messages)." in sentences
    )
    assert "Left out of talk.txt: 2 system messages, 2 attachments, 1 deleted message and 1 edit mark" in sentences


def test_whatsapp_from_ios(tmp_path: Path) -> None:
    parts, report = read(write(tmp_path, "_chat.txt", IOS_DE))
    assert [part.text for part in parts] == [
        "Mara: Fährt heute die Fähre?\nTobias: Nein, erst wieder im neuen Jahr.\nNimm die Brücke.\n"
        "Mara: Gut, dann zu Fuß.",
        "Mara: Nass, aber da",
    ]
    assert report["content_left_out"] == {
        "system message": 1, "attachment": 2, "edit mark": 1, "deleted message": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ("31/12/2023, 22:15 - ", "01/01/2024, 07:00 - "),
        ("12/31/23, 10:15 PM - ", "1/1/24, 7:00 AM - "),
        ("31/12/23, 10:15 p. m. - ", "1/1/24, 7:00 a. m. - "),
        ("31.12.23, 22:15 - ", "01.01.24, 07:00 - "),
        ("31/12/2023 à 22:15 - ", "01/01/2024 à 07:00 - "),
        ("2023-12-31 22:15 - ", "2024-01-01 07:00 - "),
        ("31-12-2023 22:15 - ", "01-01-2024 07:00 - "),
        ("2023/12/31 下午10:15 - ", "2024/1/1 上午7:00 - "),
        ("31/12/23 22.15 - ", "01/01/24 07.00 - "),
        ("[31.12.23, 22:15:03] ", "[01.01.24, 07:00:00] "),
        ("[12/31/23, 10:15:03\u202fPM] ", "[1/1/24, 7:00:00\u202fAM] "),
        ("[2023-12-31 22:15:03] ", "[2024-01-01 07:00:00] "),
        ("[31/12/2023, 22:15:03] ", "[01/01/2024, 07:00:00] "),
        ("\u200e[31/12/23, 10:15:03 PM] ", "\u200e[1/1/24, 7:00:00 AM] "),
    ],
)
def test_dates_and_times_of_many_locales(first: str, later: str, tmp_path: Path) -> None:
    talk = f"{first}Mara: Hello\n{first}Tobias: Good evening\n{later}Mara: Good morning\n"
    parts, report = read(write(tmp_path, "talk.txt", talk))
    assert [part.text for part in parts] == ["Mara: Hello\nTobias: Good evening", "Mara: Good morning"]
    assert report["chats"]["forms"] == {"WhatsApp": 1}


def test_ambiguous_dates_are_read_in_the_order_that_makes_them_increase(tmp_path: Path) -> None:
    rows = [("1/5/24", "Mara: one"), ("1/6/24", "Tobias: two"), ("2/1/24", "Mara: three"), ("2/1/24", "Tobias: four")]
    month_first = "\n".join(f"{date}, 10:15 - {text}" for date, text in rows)
    assert len(read(write(tmp_path, "talk.txt", month_first))[0]) == 3
    later = "\n".join(f"{date}, 10:15 - {text}" for date, text in [rows[0], ("2/5/24", "Tobias: two"), rows[0]])
    assert len(read(write(tmp_path, "talk.txt", later))[0]) == 2


PROSE = {
    "a diary": "31.12.23, 22:15 - A long walk by the river.\n01.01.24, 09:00 - Snow: the first of the year.\n"
    "02.01.24, 20:30 - Still no letter.\n",
    "a diary with headings": "31.12.23, 22:15 - Weather: rain\n01.01.24, 09:00 - Walk: to the bridge\n"
    "02.01.24, 20:30 - Letter: none\n03.01.24, 20:30 - Supper: soup\n",
    "a diary by date": "12/31/2023\nDear diary: I saw the ferry.\n\n1/1/2024\nDear diary: it sank.\n",
    "a play": "MARA: Is the ferry running?\nTOBIAS: Never at night.\nMARA: Then I walk.\n",
    "IRC": "[22:15:03] <mara> is the ferry running\n[22:15:40] <tobias> mara: no\n[22:16:00] <mara> tobias: pity\n",
    "IRC with dates": "[2023-12-31 22:15:03] <mara> tobias: is it running\n[2023-12-31 22:15:09] <tobias> mara: no\n"
    "[2023-12-31 22:16:03] <mara> tobias: pity\n",
    "irssi": "--- Log opened Sun Dec 31 22:15:03 2023\n22:15 < mara> tobias: hello\n22:16 < tobias> mara: hello\n",
    "a log": "[2023-12-31 22:15:03] INFO: started\n[2023-12-31 22:15:04] WARN: slow\n[2023-12-31 22:15:05] INFO: done\n"
    "[2023-12-31 22:15:06] INFO: idle\n",
    "prose with a time": "At 22:15 on 31.12.23, Mara: tired, wet, late, came home.\n",
}


@pytest.mark.parametrize("kind", PROSE)
def test_other_text_with_dates_and_names_is_not_a_chat(kind: str, tmp_path: Path) -> None:
    parts, report = read(write(tmp_path, "text.txt", PROSE[kind]))
    assert [part.text for part in parts] == [PROSE[kind].strip()]
    assert report["chats"] is None
    assert report["files"][0]["kind"] == "text"


def test_an_export_can_be_read_as_plain_text(tmp_path: Path) -> None:
    parts, report = read(write(tmp_path, "talk.txt", ANDROID_EN), documents="file")
    assert [part.text for part in parts] == [ANDROID_EN.strip()]
    assert report["chats"] is None


def test_a_short_export_is_recognised_by_its_file_name(tmp_path: Path) -> None:
    line = "31/12/2023, 22:15 - Mara: Note to myself\n"
    assert read(write(tmp_path, "WhatsApp Chat with Mara.txt", line))[0][0].text == "Mara: Note to myself"
    assert read(write(tmp_path, "notes.txt", line))[0][0].text == line.strip()


def test_an_export_is_recognised_with_a_bom_other_line_ends_or_compression(tmp_path: Path) -> None:
    content = ("\ufeff" + LRM + IOS_DE).replace("\n", "\r\n").encode()
    (tmp_path / "talk.txt").write_bytes(content)
    (tmp_path / "talk.txt.gz").write_bytes(gzip.compress(content))
    parts, report = read(tmp_path)
    assert [part.text.startswith("Mara: ") for part in parts] == [True] * 4
    assert report["chats"]["forms"] == {"WhatsApp": 2}


def test_placeholders_and_notices_of_whatsapp_are_counted(tmp_path: Path) -> None:
    ios = {
        f"{LRM}plan.pdf • {LRM}2 pages {LRM}document omitted": ("", "attachment"),
        f"The plan {LRM}image omitted": ("The plan", "attachment"),
        f"{LRM}<attached: 00000012-VIDEO-2023-12-31-22-18-02.mp4>\nThe fog": ("The fog", "attachment"),
        f"{LRM}Missed voice call, {LRM}Tap to call back": ("", "system message"),
        f"{LRM}This message was deleted.": ("", "deleted message"),
        f"Good {LRM}<This message was edited>": ("Good", "edit mark"),
        f"Call {LRM}+49 151 000": ("Call +49 151 000", None),
    }
    android = {
        "<Medien ausgeschlossen>": ("", "attachment"),
        "<媒体文件已省略>": ("", "attachment"),
        f"{LRM}DOC-20231231-WA0002.pdf (αρχείο)": ("", "attachment"),
        "My plan.pdf (fichier joint)\nThe fog": ("The fog", "attachment"),
        "see plan.pdf (the old one)": ("see plan.pdf (the old one)", None),
        "location: https://maps.google.com/?q=50.1,8.2": ("", "location"),
        "Se eliminó este mensaje.": ("", "deleted message"),
        "Gut <Diese Nachricht wurde bearbeitet.>": ("Gut", "edit mark"),
        "null": ("", "empty message"),
        "<3": ("<3", None),
        f"{LRM}+49 151 000": ("+49 151 000", None),
    }
    for form, cases in (("[31.12.23, 22:15:03] ", ios), ("31.12.23, 22:15 - ", android)):
        for written, (kept, kind) in cases.items():
            talk = "".join(f"{form}{name}: {text}\n" for name, text in (("M", "Hi"), ("T", "Ho"), ("M", written)))
            parts, report = read(write(tmp_path, "WhatsApp.txt", talk))
            assert parts[0].text.split("T: Ho")[1] == (f"\nM: {kept}" if kept else ""), written
            assert report["content_left_out"] == ({kind: 1} if kind else {}), written


# -- one person's messages as answers


def test_the_messages_of_the_speaker_are_learned(tmp_path: Path) -> None:
    path = write(tmp_path, "talk.txt", ANDROID_EN)
    parts, report = read(path, speaker="tobias")
    assert [marked(part) for part in parts] == [
        "[User:\nIs the ferry running tonight?\nThe timetable says no\n\nAssistant:\n]It never runs on the last day of "
        "the year.\nYou would have to take the bridge,\nand walk.",
        "[Assistant:\n]Did you arrive?",
    ]
    assert (report["examples"]["documents"], report["examples"]["answers"]) == (2, 2)
    assert report["content_left_out"]["message after the last answer"] == 2
    assert "the messages of --speaker are the answers: Mara (71% of the messages)" in notes(report)


def test_names_are_kept_in_chats_of_more_than_two_people(tmp_path: Path) -> None:
    talk = [("Mara", "Who has the key?"), ("Tobias", "Not me"), ("Ines", "In the boat"), ("Mara", "Which boat?"),
            ("Ines", "The blue one"), ("Ines", "By the wall")]  # fmt: skip
    text = "".join(f"31/12/2023, 22:{15 + i} - {name}: {what}\n" for i, (name, what) in enumerate(talk))
    path = write(tmp_path, "talk.txt", text)
    assert [marked(part) for part in read(path, speaker="Ines")[0]] == [
        "[User:\nMara: Who has the key?\nTobias: Not me\n\nAssistant:\n]In the boat"
        "[\n\nUser:\nMara: Which boat?\n\nAssistant:\n]The blue one\nBy the wall"
    ]


def test_a_conversation_without_the_speaker_is_dropped_and_counted(tmp_path: Path) -> None:
    talk = "".join(f"0{day}/01/2024, 10:00 - {name}: Hello {day}\n" for day, name in enumerate(("Mara", "Tobias") * 2))
    talk = talk.replace("00/01", "10/12").replace("2024", "2023", 1)
    parts, report = read(write(tmp_path, "talk.txt", talk), speaker="Mara")
    assert [part.dropped for part in parts] == [None, "no answer", None, "no answer"]
    assert report["dropped"][0]["documents"] == 2


def test_the_error_for_an_unknown_speaker_lists_the_names(tmp_path: Path) -> None:
    path = write(tmp_path, "talk.txt", ANDROID_EN)
    with pytest.raises(SourceError) as caught:
        read(path, speaker="Tobi")
    assert caught.value.message == (
        f"{path}: has no messages of 'Tobi'; the people and their messages are 'Mara' (5), 'Tobias' (2)."
    )
    assert caught.value.hint == "Set --speaker to one of these names."
    with pytest.raises(SourceError, match="has no chat of WhatsApp or Telegram, so there is no speaker 'Tobi'"):
        read(write(tmp_path, "prose.txt", PROSE["a play"]), speaker="Tobi")


def test_check_records_an_unknown_speaker(tmp_path: Path) -> None:
    settings = TextSettings.resolve({"speaker": "Tobi"})
    path = write(tmp_path, "talk.txt", ANDROID_EN)
    parts, report = read_parts([str(path)], settings, on_problem="collect", renderer=chat_renderer(None, "answers"))
    assert list(parts)
    assert [(each["kind"], each["fatal"]) for each in report.to_dict()["problems"]][-1] == ("unknown_speaker", True)


def test_the_speaker_needs_to_occur_in_one_chat_only(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", ANDROID_EN)
    write(tmp_path, "b.txt", ANDROID_EN.replace("Tobias", "Ines"))
    parts, report = read(tmp_path, speaker="Ines")
    assert [part.dropped for part in parts] == ["no answer"] * 2 + [None] * 2
    assert report["chats"]["forms"] == {"WhatsApp": 2}


# -- Telegram

CHAT = {
    "name": "Mara",
    "type": "personal_chat",
    "id": 4711,
    "messages": [
        {"id": 1, "type": "service", "date": "2023-12-31T22:00:00", "date_unixtime": "1704060000", "actor": "Mara",
         "actor_id": "user1", "action": "phone_call", "text": ""},
        {"id": 2, "type": "message", "date": "2023-12-31T22:15:03", "date_unixtime": "1704060903", "from": "Mara",
         "from_id": "user1", "text": "Is the ferry running?", "text_entities": []},
        {"id": 3, "type": "message", "date": "2023-12-31T22:16:03", "date_unixtime": "1704060963", "from": "Tobias",
         "from_id": "user2", "text": ["See ", {"type": "link", "text": "ferry.example"}, ", it says ",
                                      {"type": "bold", "text": "no"}, "."]},
        {"id": 4, "type": "message", "date": "2023-12-31T22:17:03", "date_unixtime": "1704061023", "from": "Mara",
         "from_id": "user1", "file": "(File not included)", "media_type": "sticker", "sticker_emoji": "🙁", "text": ""},
        {"id": 5, "type": "message", "date": "2023-12-31T22:18:03", "date_unixtime": "1704061083", "from": "Mara",
         "from_id": "user1", "photo": "(File not included)", "width": 1, "height": 1, "text": "The fog here"},
        {"id": 6, "type": "message", "date": "2023-12-31T22:19:03", "date_unixtime": "1704061143", "from": "Mara",
         "from_id": "user1", "forwarded_from": "Harbour news", "text": "All ferries are cancelled today."},
        {"id": 7, "type": "message", "date": "2024-01-01T09:00:00", "date_unixtime": "1704099600", "from": None,
         "from_id": "user3", "text": "Happy new year"},
    ],
}  # fmt: skip


def test_a_chat_of_telegram(tmp_path: Path) -> None:
    parts, report = read(write(tmp_path, "result.json", CHAT))
    assert [part.text for part in parts] == [
        "Mara: Is the ferry running?\nTobias: See ferry.example, it says no.\nMara: The fog here",
        "Deleted account: Happy new year",
    ]
    assert report["content_left_out"] == {
        "system message": 1, "sticker": 1, "picture": 1, "forwarded message": 1,
    }  # fmt: skip
    assert "Recognised 1 chat of Telegram.\n3 people write in 2 conversations" in notes(report)


def test_all_chats_of_telegram(tmp_path: Path) -> None:
    other = CHAT | {"name": "Harbour", "type": "private_group", "messages": CHAT["messages"][1:3]}  # type: ignore[index]
    saved = {"type": "saved_messages", "id": 1, "messages": []}
    value = {
        "about": "Here is the data you requested.",
        "personal_information": {"user_id": 1, "first_name": "Tobias"},
        "contacts": {"list": [{"first_name": "Mara", "phone_number": "00"}]},
        "chats": {"about": "This page lists all chats.", "list": [CHAT, other, saved]},
    }
    path = write(tmp_path, "result.json", value)
    parts, report = read(path)
    assert len(parts) == 3
    assert report["chats"]["forms"] == {"Telegram": 2}
    assert marked(read(path, speaker="Tobias")[0][2]) == (
        "[User:\nIs the ferry running?\n\nAssistant:\n]See ferry.example, it says no."
    )


def test_a_chat_without_messages_is_an_empty_file(tmp_path: Path) -> None:
    path = write(tmp_path, "result.json", {"type": "saved_messages", "id": 1, "messages": []})
    with pytest.raises(SourceError, match="There is no training text"):
        read(path)


# -- ChatGPT and Claude


def node(key: str, parent: str | None, role: str, *parts: Any, **more: Any) -> dict[str, Any]:
    """Return a node of the tree of a ChatGPT export."""
    content = more.pop("content", {"content_type": "text", "parts": list(parts)})
    message = {
        "id": key, "author": {"role": role, "name": None, "metadata": {}}, "create_time": 1704060903.5,
        "update_time": None, "content": content, "status": "finished_successfully", "end_turn": None, "weight": 1.0,
        "metadata": {}, "recipient": "all", "channel": None,
    }  # fmt: skip
    return {"id": key, "message": message | more, "parent": parent, "children": []}


def conversation(*nodes: dict[str, Any], current: str | None) -> dict[str, Any]:
    """Return a conversation of a ChatGPT export."""
    root: dict[str, Any] = {"id": "root", "message": None, "parent": None, "children": []}
    tree = {each["id"]: each for each in (root, *nodes)}
    for each in nodes:
        tree[each["parent"]]["children"].append(each["id"])
    return {
        "title": "Ferry at night", "create_time": 1704060900.1, "update_time": 1704061900.1, "mapping": tree,
        "moderation_results": [], "current_node": current, "plugin_ids": None, "conversation_id": "c1", "id": "c1",
    }  # fmt: skip


IMAGE = {"content_type": "image_asset_pointer", "asset_pointer": "file-service://file-1", "size_bytes": 1}
FERRY = conversation(
    node("s", "root", "system", "", weight=0.0),
    node("h", "s", "user", content={"content_type": "user_editable_context", "user_profile": "I am Mara"}),
    node("u1", "h", "user", "When does the ferry run?"),
    node("a1", "u1", "assistant", "At noon."),
    node("a2", "u1", "assistant", content={"content_type": "thoughts", "thoughts": []}),
    node("a3", "a2", "assistant", content={"content_type": "code", "text": "search()"}, recipient="web"),
    node("t", "a3", "tool", "Timetable"),
    node("a4", "t", "assistant", "At six\ue200cite\ue202turn0\ue201.", ""),
    node("u2", "a4", "user", IMAGE, "And this one?", content={
        "content_type": "multimodal_text", "parts": [IMAGE, "And this one?"]}),
    node("a5", "u2", "assistant", "At seven."),
    node("e", "a5", "assistant", ""),
    node("u3", "a5", "user", "Another question"),
    current="e",
)  # fmt: skip


def test_conversations_of_chatgpt(tmp_path: Path) -> None:
    empty = conversation(current="root")
    path = write(tmp_path, "conversations.json", [FERRY, empty])
    parts, report = read(path)
    assert [marked(part) for part in parts] == [
        "[User:\nWhen does the ferry run?\n\nAssistant:\n]At six.[\n\nUser:\nAnd this one?\n\nAssistant:\n]At seven.",
        "",
    ]
    assert [part.dropped for part in parts] == [None, "no answer"]
    assert report["content_left_out"] == {
        "message in another branch": 2, "system message": 1, "hidden message": 1, "thought of the assistant": 1,
        "call of a tool": 1, "tool message": 1, "citation mark": 1, "image": 1, "empty message": 1,
    }  # fmt: skip
    assert report["columns"][0]["taken"] == "mapping"
    sentences = notes(report)
    assert "Recognised 2 conversations with ChatGPT." in sentences
    assert "2 messages in another branch" in sentences
    assert report["files"][0]["left_out"]["thought of the assistant"] == 1


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_other_files_of_an_export_are_skipped(kind: str, tmp_path: Path) -> None:
    files = {
        "conversations.json": json.dumps([FERRY]),
        "chat.html": "<html><body><p>When does the ferry run?</p></body></html>",
        "user.json": json.dumps({"id": "user-1", "email": "mara@example.org", "phone_number": None}),
        "message_feedback.json": json.dumps([{"id": "1", "rating": "thumbs_up", "content": "{}"}]),
        "ferry.md": "# A note of my own\n",
    }
    source = tmp_path / "export"
    if kind == "zip":
        source = tmp_path / "export.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        source.mkdir()
        for name, content in files.items():
            write(source, name, content)
    parts, report = read(source)
    assert sorted(Path(part.source).name for part in parts) == ["conversations.json", "ferry.md"]
    assert "Read 2 of 5 files; left out: 3 of kinds that are not read (3 beside the conversations)" in notes(report)
    source = write(tmp_path, "user.json", files["user.json"])  # a file outside of an export is read
    assert [part.text for part in read(source)[0]] == ["mara@example.org"]


def test_without_a_current_node_the_last_branch_is_read(tmp_path: Path) -> None:
    talk = conversation(node("u", "root", "user", "One?"), node("a", "u", "assistant", "1"), current=None)
    del talk["current_node"]
    talk["mapping"]["root"]["parent"] = "a"  # a cycle does not hang
    assert marked(read(write(tmp_path, "one.json", talk))[0][0]) == "[User:\nOne?\n\nAssistant:\n]1"


def claude(sender: str, text: str, **more: Any) -> dict[str, Any]:
    """Return a message of a Claude export."""
    content = [{"type": "text", "text": text, "citations": []}] if text else []
    return {
        "uuid": "m", "text": text, "content": content, "sender": sender, "created_at": "2024-01-01T09:00:00Z",
        "updated_at": "2024-01-01T09:00:00Z", "attachments": [], "files": [],
    } | more  # fmt: skip


def test_conversations_of_claude(tmp_path: Path) -> None:
    thinking = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Take the bridge."}]
    talk = {
        "uuid": "c",
        "name": "Ferry",
        "created_at": "2024-01-01T09:00:00Z",
        "account": {"uuid": "x"},
        "chat_messages": [
            claude("human", "No ferry. What now?", attachments=[{"file_name": "a.txt", "extracted_content": "x"}]),
            claude("assistant", "Take the bridge.", content=thinking),
            claude("human", ""),
        ],
    }
    for value in (talk, [talk]):
        parts, report = read(write(tmp_path, "conversations.json", value))
        assert [marked(part) for part in parts] == ["[User:\nNo ferry. What now?\n\nAssistant:\n]Take the bridge."]
        assert report["content_left_out"] == {"file": 1, "thought of the assistant": 1, "empty message": 1}
        assert "Recognised 1 conversation with Claude." in notes(report)


def test_an_object_with_one_conversation_is_one_example(tmp_path: Path) -> None:
    talk = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The old man."}]}
    parts, _ = read(write(tmp_path, "one.json", talk))
    assert [marked(part) for part in parts] == ["[User:\nWho?\n\nAssistant:\n]The old man."]
