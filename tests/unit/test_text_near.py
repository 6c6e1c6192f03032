"""Test near repeats: what counts as one, which document they repeat, and their handling between splits."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetale import text
from finetale.config import TextSettings
from finetale.text import near, repeats
from finetale.text.near import NearIndex, sketches_of
from tiny import WORDS

FIRST = " ".join(f"The {word} number {i} went by." for i, word in enumerate(WORDS.split()))
LIKE = FIRST.replace("number 7 ", "number seven ").upper()
OTHER = " ".join(f"{word} said {i}" for i, word in enumerate(reversed(WORDS.split())))


def read(folder: Path, train: list[str], test: list[str] = [], **settings: object) -> tuple[list[text.Part], dict]:  # noqa: B006
    for name, texts in (("train", train), ("test", test)):
        (folder / f"{name}.txt").write_text("\n".join(texts), encoding="utf-8")
    given = {"documents": "line", "validation_fraction": 0, "test_fraction": 0, **settings}
    if test:
        given["test"] = str(folder / "test.txt")
    parts, report = text.read_parts([str(folder / "train.txt")], TextSettings.resolve(given))
    return list(parts), report.to_dict()


def sketch_of(words: str) -> near.Sketches | None:
    """Return the sketch of a text, or None if it is too short."""
    sketches, index = sketches_of([words])
    return sketches[0] if index[0] >= 0 else None


def test_case_and_punctuation_and_a_changed_word_make_a_near_repeat() -> None:
    index = NearIndex()
    for number, words in enumerate((OTHER, FIRST)):
        index.add(sketch_of(words), number)
    found = index.find(sketch_of(LIKE.replace(".", " –")))
    assert found is not None
    assert found[0] == 1
    assert found[1] > 0.9
    assert index.find(sketch_of("An altogether different sentence, with nothing in common.")) is None


@pytest.mark.parametrize("words", ["It's Anna’s _own_ boat", "İstanbul and 東京 don't", "naïve café CAFÉ's x_y"])
def test_ascii_and_other_text_give_the_same_words(words: str) -> None:
    plain = "".join(character for character in words.replace("’", "'") if character.isascii())
    assert near._words(plain) == near._words(plain + "\u00a0")
    assert near._words(plain + " é")[:-1] == near._words(plain)


def test_two_short_texts_are_not_compared() -> None:
    assert sketch_of("Yes, said she.") is None
    assert sketch_of("") is None


def test_a_near_repeat_is_counted_with_place_and_similarity_and_dropped_on_request(tmp_path: Path) -> None:
    parts, report = read(tmp_path, [FIRST, OTHER, LIKE, LIKE])
    assert not any(part.dropped for part in parts)
    assert report["duplicates"]["documents"] == 1
    assert report["near_duplicates"]["documents"] == 1
    example = report["near_duplicates"]["examples"][0]
    assert (example["line"], example["first_seen"]) == (3, f"{tmp_path / 'train.txt'}:1")
    assert 0.8 < example["similarity"] < 1
    parts, _ = read(tmp_path, [FIRST, OTHER, LIKE, LIKE], deduplicate="exact")
    assert [part.dropped for part in parts] == [None, None, None, "duplicate"]
    parts, _ = read(tmp_path, [FIRST, OTHER, LIKE, LIKE], deduplicate="near")
    assert [part.dropped for part in parts] == [None, None, "nearly a duplicate", "nearly a duplicate"]


def test_a_near_copy_of_held_out_text_is_counted_and_dropped_with_all_its_repeats(tmp_path: Path) -> None:
    parts, report = read(tmp_path, [LIKE, OTHER, LIKE, FIRST], [FIRST])
    assert not any(part.dropped for part in parts)
    assert (report["near_overlap"]["documents"], report["overlap"]["documents"]) == (2, 1)
    parts, report = read(tmp_path, [LIKE, OTHER, LIKE, FIRST], [FIRST], drop_overlap="near")
    kept = [part.text for part in parts if not part.dropped]
    assert kept == [FIRST, OTHER]
    assert {row["reason"]: row["documents"] for row in report["dropped"]} == {
        "also in validation or test": 1,
        "nearly the same in training and in validation or test": 2,
    }


def test_the_later_of_two_near_repeats_in_different_splits_is_dropped(tmp_path: Path) -> None:
    """The training copy can come first. It was already returned when its held-out copy is read."""
    rows = [f"{FIRST} Ending {i} of this." if i % 2 else f"{OTHER} {i} {i * 7} {i * 13}" for i in range(60)]
    settings = {"validation_fraction": 0.3, "test_fraction": 0.3}
    parts, report = read(tmp_path, rows, **settings)
    assert {part.split for part in parts} == {"train", "validation", "test"}
    assert report["near_overlap"]["documents"] > 10
    parts, _ = read(tmp_path, rows, drop_overlap="near", **settings)
    kept = {(part.split == "train", part.text.startswith("The")) for part in parts if not part.dropped}
    assert len(kept) == 2, "each group of near repeats is in one split"


def test_a_cut_document_and_its_uncut_near_repeat(tmp_path: Path) -> None:
    long = " ".join(f"{FIRST} {i}" for i in range(20))
    shares = {"validation_fraction": 0.2, "test_fraction": 0.2, "long_document": len(long) - 5}
    filler = [" ".join(f"{word}{i}" for word in WORDS.split()) for i in range(30)]
    parts, report = read(tmp_path, [*filler, long, long[: len(long) - 30]], screen=True, **shares)
    assert any(not part.ends for part in parts), "one of the documents is cut"
    places = [example["line"] for example in report["near_overlap"]["examples"]]
    assert 32 in places
    parts, _ = read(tmp_path, [*filler, long, long[: len(long) - 30]], drop_overlap="near", **shares)
    assert [bool(part.dropped) for part in parts if part.line == 32] == [True]
    parts, report = read(tmp_path, [*filler, long, long], drop_overlap="near", **shares)
    assert not any(part.dropped for part in parts if part.line == 32), (
        "nothing leaks if both are cut at the same places"
    )


def test_memory_is_limited_and_the_report_names_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (near, repeats):
        monkeypatch.setattr(module, "MAX_DOCUMENTS", 2)
    rows = [f"{word} " * 3 + f"{i} {i} {word}{i} goes" for i, word in enumerate(WORDS.split()[:5])]
    _, report = read(tmp_path, [FIRST, *rows, LIKE])
    assert report["near_duplicates"] == {
        "documents": 1,
        "dropped": 0,
        "examples": report["near_duplicates"]["examples"],
        "compared_with": 2,
    }
    _, report = read(tmp_path, [FIRST, LIKE])
    assert "compared_with" not in report["near_duplicates"]


def test_cut_near_repeats_leak_into_each_other(tmp_path: Path) -> None:
    """They are cut at different places, so held-out text of one is training text of the other."""
    paragraphs = [" ".join(f"{word}{i}" for word in WORDS.split()[:20]) for i in range(40)]
    for name, part in (("a", paragraphs), ("b", paragraphs[10:])):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(part), encoding="utf-8")
    sources = [str(tmp_path / f"{name}.txt") for name in "ab"]
    for settings, leaks, dropped in (({}, 1, 0), ({"drop_overlap": "near"}, 1, 1)):
        parts, report = text.read_parts(sources, TextSettings.resolve(settings))
        found = list(parts)
        assert report.to_dict()["near_overlap"]["documents"] == leaks
        assert len({part.source for part in found if part.dropped}) == dropped


def test_a_dropped_repeat_is_not_also_counted_as_a_leak(tmp_path: Path) -> None:
    _, report = read(tmp_path, [LIKE, LIKE, LIKE], [FIRST], deduplicate="exact")
    assert report["near_overlap"]["documents"] == 1
    assert (report["duplicates"]["documents"], report["duplicates"]["dropped"]) == (2, 2)


def test_comparisons_of_partly_similar_texts_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "_MAX_CANDIDATES", 20)
    form = " ".join(f"line {i} of the form reads so" for i in range(8))
    rows = [f"{form} " + " ".join(f"{i}x{k} {i}y{k}" for k in range(8)) for i in range(300)]
    _, report = read(tmp_path, rows)
    assert report["near_duplicates"]["not_compared_with_all"] > 100
