"""Test that fast paths equal simple ones: key tables, sketches by pieces, word counts, and chunks."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rensa import RMinHash

from finetale import text
from finetale.config import TextSettings
from finetale.text import cleaning, near, reading, words
from finetale.text.account import FileAccount
from finetale.text.documents import FileError
from finetale.text.key_table import KeyStore, KeyTable, occurs_twice
from finetale.text.splits import first_digest

SAMPLE = "The ferry’s bell rang; Ｓigma Σ ΟΔΟΣ, x_y 12 — 今天我们去河边。それはペンです don't İstanbul\n\n"


def test_a_key_table_finds_exactly_the_added_keys() -> None:
    rng = np.random.default_rng(0)
    store, numbers = KeyStore(), {}
    table = KeyTable(store)
    for size in (1, 0, 700, 5000, 40_000):
        keys = rng.integers(0, 1 << 63, size, np.uint64) << np.uint64(3)  # keys with equal low bits
        first = store.extend(keys)
        table.add(np.arange(first, first + size))
        numbers |= {int(key): first + at for at, key in enumerate(keys)}
    absent = rng.integers(0, 1 << 60, 1000, np.uint64) * np.uint64(2) + np.uint64(1)
    known = np.array(list(numbers), np.uint64)
    assert len(numbers) == 45_701
    assert table.find(known).tolist() == list(numbers.values())
    assert set(table.find(absent).tolist()) == {-1}


def test_keys_with_the_same_slot_are_distinguished() -> None:
    store = KeyStore()
    table = KeyTable(store)
    inverse = pow(0x9E3779B97F4A7C15, -1, 1 << 64)
    keys = np.array([inverse * low % (1 << 64) for low in range(500)], np.uint64)  # all keys hash to the first slot
    store.extend(keys)
    table.add(np.arange(500))
    assert table.find(keys).tolist() == list(range(500))


def test_occurs_twice() -> None:
    assert occurs_twice(np.array([5, 1, 5, 2, 1, 9], np.uint64)).tolist() == [True, True, True, False, True, False]
    assert occurs_twice(np.zeros(0, np.uint64)).tolist() == []


@pytest.mark.parametrize("size", [1, 7, 40, 1000])
def test_pieces_of_a_long_text_give_the_sketch_and_words_of_the_whole(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(size)
    long = "".join(rng.choices(SAMPLE.split(" "), k=300)) + " ".join(rng.choices(SAMPLE.split(" "), k=300))
    whole, plain = near._words(long), RMinHash(64, 1)
    plain.update(list(map(" ".join, zip(whole, whole[1:], whole[2:], strict=False))))
    for module in (near, words):
        monkeypatch.setattr(module, "_CHARACTERS_AT_ONCE", size)
    assert [word for piece in near._pieces(long) for word in near._words(piece)] == whole
    sketches, index = near.sketches_of([long])
    assert index.tolist() == [0]
    assert near._minima(sketches)[0].tolist() == np.array(plain.digest(), np.uint32).astype(np.uint16).tolist()
    assert words.count_words(long) == len(long.split())


def test_the_index_names_the_rows_of_sketches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "_CHARACTERS_AT_ONCE", 60)
    texts = ["too short", "one two three four five six", SAMPLE * 3, "", "six five four three two one"]
    sketches, index = near.sketches_of(texts)
    assert index.tolist() == [-1, 0, 2, -1, 1]
    for at in (1, 2, 4):
        assert sketches[index[at]].tolist() == near.sketches_of([texts[at]])[0][0].tolist()


SUSPECTS = ["\x00", "a\x7f", "\x85", "\ufeff", "\ufffd", "\ud800", "Ã©", "â€™", "вЂ”", "√±", "‚Äô", "\r\n", "\x0b"]


@pytest.mark.parametrize("suspect", SUSPECTS)
@pytest.mark.parametrize("at_once", [1, 2, 5, 1 << 20])
def test_is_clean_detects_a_suspect_character_at_any_place(
    suspect: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleaning, "_CHARACTERS_AT_ONCE", at_once)
    for before in ("", "plain ", "naïve 今天 "):
        assert cleaning.is_clean(f"{before} – fine\n\tso")
        for after in ("", " after", "—今"):
            assert not cleaning.is_clean(before + suspect + after)


def test_the_share_of_a_hash_is_that_of_its_first_48_bits() -> None:
    for share in (0.0, 0.05, 0.1, 1 / 3, 0.5, 1 - 2**-48, 1.0):
        bound = first_digest(share)
        for value in {0, 1, (1 << 48) - 1, *(int(share * (1 << 48)) + step for step in (-1, 0, 1))}:
            if 0 <= value < 1 << 48:
                for rest in (b"\x00" * 10, b"\xff" * 10):
                    assert (value.to_bytes(6, "big") + rest < bound) == (value / (1 << 48) < share)


def test_documents_before_an_error_are_read_and_the_error_has_its_line() -> None:
    def items():
        yield from range(5)
        raise FileError("a.txt", 6, "bad", "is bad", "")

    chunks, seen = reading.in_chunks(items(), lambda item: 400_000), []
    with pytest.raises(FileError, match=r"a\.txt:6"):
        seen.extend(chunks)
    assert seen == [[0, 1, 2], [3, 4]]


@pytest.mark.parametrize("settings", [{}, {"strip": False}, {"mask_personal_data": True}, {"screen": False}])
def test_the_size_of_chunks_changes_nothing(settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    rows = [" ".join(rng.choices(SAMPLE.split(), k=rng.randint(1, 12))) for _ in range(400)]
    rows += [f"  {row} " for row in rows[:40]] + [
        "call (212) 555-0147",
        "bad\x07bell",
        "mend â€™ this",
        "x@example.org",
    ]
    (tmp_path / "t.txt").write_text("\n".join(rows * 2), encoding="utf-8")
    given = TextSettings.resolve({"documents": "line", "deduplicate": "near", "drop_overlap": "near", **settings})

    def read() -> tuple[list[text.Part], dict]:
        parts, report = text.read_parts([str(tmp_path / "t.txt")], given)
        return list(parts), report.to_dict()

    expected = read()
    assert len(expected[0]) > 880
    assert expected[1]["duplicates"]["documents"] > 300
    for size in (1, 3, 100):
        monkeypatch.setattr(reading, "_CHUNK_ITEMS", size)
        assert read() == expected


def test_counts_of_findings_are_exact_beyond_the_listed_lines() -> None:
    account = FileAccount("a.txt", "text", Counter())
    cleaner = cleaning.Cleaner(account, TextSettings(), records=False)
    assert cleaner.clean("a\x07b\n" * 12, 1) == ("ab\n" * 12).strip()
    assert account.problems["control_character"].count == 12
    assert account.problems["control_character"].lines == [1, 2, 3, 4, 5]
