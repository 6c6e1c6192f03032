"""Test the data report: counts, cleaning, problems by line, repeats, overlap, and the division into documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text import Part, account, read_parts
from finetale.text.languages import guess_language


def read(path: Path, **settings: object) -> tuple[list[Part], dict]:
    resolved = TextSettings.resolve({"validation_fraction": 0, "test_fraction": 0, **settings})
    parts, report = read_parts([str(path)], resolved)
    found = list(parts)
    return found, json.loads(json.dumps(report.to_dict(), allow_nan=False))


def write(folder: Path, content: str | bytes, name: str = "a.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("auto", [(1, "one\ntwo\n\n \nthree\n--\nfour")]),
        ("file", [(1, "one\ntwo\n\n \nthree\n--\nfour")]),
        ("line", [(1, "one"), (2, "two"), (5, "three"), (6, "--"), (7, "four")]),
        ("blank-line", [(1, "one\ntwo"), (5, "three\n--\nfour")]),
        ("\\n--\\n", [(1, "one\ntwo\n\n \nthree"), (7, "four")]),
        ("--", [(1, "one\ntwo\n\n \nthree"), (7, "four")]),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_is_divided_into_documents(
    tmp_path: Path, documents: str, expected: list[tuple[int, str]], end: str
) -> None:
    path = write(tmp_path, "one\ntwo\n\n \nthree\n--\nfour\n".replace("\n", end))
    parts, report = read(path, documents=documents)
    assert [(part.line, part.text) for part in parts] == expected
    assert report["cleaning"].get("newlines", 0) == (7 if end != "\n" else 0)
    assert report["problems"] == []


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_documents_do_not_depend_on_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    from finetale.text import byte_streams

    path = write(tmp_path, "ä\r\n—<|end|>\r\nö “x”\n\n\ny<|end|>z\r" * 40)
    for documents in ("line", "blank-line", "<|end|>", "file"):
        monkeypatch.setattr(byte_streams, "BLOCK_BYTES", 1 << 20)
        whole = read(path, documents=documents)
        monkeypatch.setattr(byte_streams, "BLOCK_BYTES", size)
        assert read(path, documents=documents) == whole


def test_a_document_starts_at_its_first_line_of_text(tmp_path: Path) -> None:
    parts, _ = read(write(tmp_path, "\n\n  Once.\n"))
    assert (parts[0].line, parts[0].text) == (3, "Once.")


DIRTY = "one\x00\ntwo\x07\x1b\nthree\ufffd\nfour \ufeff\nItâ€™s five\n"


def test_problems_are_counted_by_kind_with_their_lines(tmp_path: Path) -> None:
    parts, report = read(write(tmp_path, DIRTY))
    assert parts[0].text == "one\ntwo\nthree\ufffd\nfour \nItâ€™s five"
    found = {problem["kind"]: (problem["line"], problem["count"], problem["fatal"]) for problem in report["problems"]}
    assert found == {
        "nul": (1, 1, False),
        "control_character": (2, 2, False),
        "replacement_character": (3, 1, False),
        "byte_order_mark": (4, 1, False),
        "mojibake": (5, 1, False),
    }
    assert report["cleaning"] == {"control_characters": 4, "stripped_characters": 1}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("bread,\x0bmilk\x0cand eggs.\x1fThe end", "bread,\nmilk\nand eggs. The end"),
        ("one\x1ctwo\x1dthree\x1efour", "one\ntwo\nthree\nfour"),
        ("one\u0085two\u2028three\u2029four", "one\ntwo\nthree\nfour"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_other_line_ends_and_separators_become_white_space(tmp_path: Path, raw: str, expected: str, name: str) -> None:
    content = raw if name == "a.txt" else json.dumps({"text": raw}, ensure_ascii=name == "a.txt")
    parts, report = read(write(tmp_path, content, name))
    assert [part.text for part in parts] == [expected]
    assert report["cleaning"] == {"unusual_spaces": 3}
    assert report["files"][0]["problems"] == {"unusual_space": 3}
    assert read(tmp_path / name, clean_control=False)[0][0].text == raw


def test_zero_width_characters_are_kept(tmp_path: Path) -> None:
    text = "ภาษา\u200bไทย soft\u00adhyphen می\u200cخواهم 👩\u200d🚀"
    parts, report = read(write(tmp_path, text))
    assert parts[0].text == text
    assert report["problems"] == []


def test_cleaning_can_be_switched_off(tmp_path: Path) -> None:
    path = write(tmp_path, " a\x07\r\nItâ€™s\n")
    settings = {"clean_newlines": False, "clean_control": False, "strip": False}
    parts, report = read(path, **settings)
    assert parts[0].text == " a\x07\r\nItâ€™s\n"
    assert report["cleaning"] == {}
    assert set(report["files"][0]["problems"]) == {"mixed_newlines", "control_character", "mojibake"}
    parts, report = read(path, clean_mojibake=True)
    assert parts[0].text == "a\nIt’s"
    assert report["cleaning"]["mojibake"] == 1


@pytest.mark.parametrize(
    "text", ["« Où vas-tu ? » « Là »", "groß“ – ÄÖÜ", "“naïve” café…", "Гёте — «МИГ»", "从前，有座山。"]
)
def test_good_text_is_not_called_mojibake(tmp_path: Path, text: str) -> None:
    assert read(write(tmp_path, text))[1]["problems"] == []


def test_mixed_newlines(tmp_path: Path) -> None:
    _, report = read(write(tmp_path, "a\nb\nc\r\nd\n"))
    (problem,) = report["problems"]
    assert (problem["kind"], problem["line"], problem["count"]) == ("mixed_newlines", 3, 1)
    assert problem["detail"] == "3 end with \\n, 1 end with \\r\\n"


def test_the_numbers_of_the_report(tmp_path: Path) -> None:
    path = write(tmp_path, "one two\n\nthree four — five\n\n\n\n")
    parts, report = read(path, documents="blank-line")
    assert len(parts) == 2
    assert (report["documents"], report["characters"], report["words"]) == (2, 24, 6)
    assert report["splits"]["train"] == {"documents": 2, "characters": 24, "words": 6, "bytes": 26}
    assert report["splits"]["test"] == {"documents": 0, "characters": 0, "words": 0, "bytes": 0}
    assert report["length_histogram"] == [{"from": 4, "to": 7, "documents": 1}, {"from": 16, "to": 31, "documents": 1}]
    assert report["files"] == [
        {
            "file": str(path),
            "kind": "text",
            "encoding": "utf-8",
            "bytes": 32,
            "documents": 2,
            "characters": 24,
            "problems": {},
        }
    ]
    assert report["sources"] == [str(path)]


def test_character_counts_add_up(tmp_path: Path) -> None:
    texts = [f"story {n % 84} " * (n % 7) for n in range(200)]
    path = write(tmp_path, "".join(json.dumps(text) + "\n" for text in texts), "a.jsonl")
    parts, report = read(
        path, validation_fraction=0.2, test_fraction=0.2, deduplicate=True, min_characters=12, long_document=1000
    )
    kept = sum(split["characters"] for split in report["splits"].values())
    dropped = {entry["reason"]: entry["characters"] for entry in report["dropped"]}
    assert set(dropped) == {"empty", "shorter than 12 characters", "duplicate"}
    assert kept + sum(dropped.values()) == report["characters"] == sum(len(part.text) for part in parts)
    assert (
        sum(entry["documents"] for entry in report["dropped"])
        + sum(split["documents"] for split in report["splits"].values())
        == report["documents"]
    )


def test_repeats_are_counted_and_dropped_on_request(tmp_path: Path) -> None:
    path = write(tmp_path, "one\ntwo\none\none\n")
    parts, report = read(path, documents="line")
    assert [part.dropped for part in parts] == [None] * 4
    assert report["duplicates"] == {
        "dropped": 0,
        "documents": 2,
        "examples": [
            {"source": str(path), "line": 3, "first_seen": f"{path}:1"},
            {"source": str(path), "line": 4, "first_seen": f"{path}:1"},
        ],
    }
    parts, report = read(path, documents="line", deduplicate=True)
    assert [part.dropped for part in parts] == [None, None, "duplicate", "duplicate"]
    assert report["dropped"] == [{"reason": "duplicate", "documents": 2, "characters": 6}]


def test_overlap_between_splits_is_counted_and_dropped_on_request(tmp_path: Path) -> None:
    held = write(tmp_path, "two\n", "held.txt")
    path = write(tmp_path, "one\ntwo\nthree\n")
    parts, report = read(path, documents="line", test=str(held))
    assert [part.dropped for part in parts] == [None] * 4
    expected = {"dropped": 0, "documents": 1, "examples": [{"source": str(path), "line": 2, "also_in": f"{held}:1"}]}
    assert report["overlap"] == expected
    assert report["duplicates"]["documents"] == 0
    parts, report = read(path, documents="line", test=str(held), drop_overlap=True)
    assert [part.dropped for part in parts] == [None, None, "also in validation or test", None]
    assert report["overlap"] == expected | {"dropped": 1}


def test_splitting_by_hash_never_creates_overlap(tmp_path: Path) -> None:
    path = write(tmp_path, "".join(f"line {n % 150}\n" for n in range(600)))
    parts, report = read(path, documents="line", validation_fraction=0.2, test_fraction=0.2)
    assert len(parts) == 600
    assert report["overlap"]["documents"] == 0
    assert report["duplicates"]["documents"] == 450


def test_short_and_empty_documents_are_dropped_with_a_reason(tmp_path: Path) -> None:
    path = write(tmp_path, '"a long enough text"\n"short"\n""\n', "a.jsonl")
    parts, _ = read(path, min_characters=10)
    assert [part.dropped for part in parts] == [None, "shorter than 10 characters", "empty"]


def test_an_empty_validation_source_is_an_error(tmp_path: Path) -> None:
    empty = write(tmp_path, "", "v.txt")
    with pytest.raises(SourceError, match=r"no validation text in .*v\.txt"):
        read(write(tmp_path, "text"), validation=str(empty))


def test_long_lists_are_capped_and_the_rest_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "MAX_FILES", 2)
    monkeypatch.setattr(account, "MAX_PROBLEMS", 3)
    monkeypatch.setattr(account, "MAX_EXAMPLES", 1)
    for n in range(5):
        write(tmp_path, "same \x00", f"{n}.txt")
    _, report = read(tmp_path)
    assert (len(report["files"]), report["more_files"]) == (2, 3)
    assert (len(report["problems"]), report["more_problems"]) == (3, 2)
    assert (len(report["duplicates"]["examples"]), report["duplicates"]["documents"]) == (1, 4)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The fox went to the river and said that he was not afraid of the water.", "English"),
        ("Der Fuchs ging zum Fluss und sagte, dass er nicht die Angst vor dem Wasser hat.", "German"),
        ("Le renard est venu dans la forêt et il a dit que les loups ne sont pas là.", "French"),
        ("El zorro fue por la orilla del río y dijo que no tenía miedo de los lobos.", "Spanish"),
        ("Лиса пошла к реке и сказала, что она не боится, как все, его воды.", "Russian"),
        ("从前有座山，山里有座庙，庙里有个老和尚。", "Chinese"),
        ("むかしむかし、おじいさんとおばあさんが山に住んでいました。", "Japanese"),
        ("옛날 옛적에 할머니와 할아버지가 살고 있었습니다.", "Korean"),
        ("zxcv qwer tyui asdf ghjk vbnm", None),
    ],
)
def test_languages(text: str, language: str | None) -> None:
    assert guess_language(text) == language


def test_languages_come_from_a_sample(tmp_path: Path) -> None:
    _, report = read(
        write(tmp_path, "The fox went to the river and said that he was not afraid of the water.\n" * 9),
        documents="line",
    )
    assert report["languages"] == [{"language": "English", "sampled_documents": 9}]
