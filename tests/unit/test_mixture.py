"""Test mixed text (its share of the training tokens, the choice of passages, the account) and watched text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetale.chat import chat_renderer
from finetale.config import Config, TextSettings
from finetale.config.mixing import Mix, parse_mix
from finetale.errors import ConfigError, SourceError
from finetale.mixture import wanted_tokens
from finetale.schema import ACCOUNT_PARTS
from finetale.text import Part, fingerprint, read_parts
from finetale.text.findings import text_findings, text_notes
from finetale.text.reading import PASSAGE_CHARACTERS
from finetale.tokens import TokenStore, build_store
from tiny import story, tokenizer


def general(number: int) -> str:
    return f"General {number}. " + " ".join(f"fact {number * k % 97} of {k}" for k in range(20))


def write_records(path: Path, texts: Sequence[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def built(folder: Path, own: Sequence[str], place: str = "store", **settings: Any) -> TokenStore:
    source = write_records(folder / "own.jsonl", own)
    resolved = TextSettings.resolve(settings)
    parts, report = read_parts([source], resolved, renderer=chat_renderer(tokenizer(), "answers", "tiny"))
    shares = [mix.share for mix in resolved.mixes]
    return build_store(parts, tokenizer(), folder / place, report=report.to_dict, shares=shares)


def texts_of(store: TokenStore, source: str, split: str = "train") -> list[str]:
    parts = [part for part in store.parts_of(split).tolist() if store.name_of(part).startswith(source)]
    return [tokenizer().decode(store.ids(part).tolist()) for part in parts]


# The value of the setting


@pytest.mark.parametrize(
    ("value", "source", "share"),
    [
        ("general.txt:0.05", "general.txt", 0.05),
        ("C:\\text\\general.txt:0.05", "C:\\text\\general.txt", 0.05),
        ("C:\\text:0.05", "C:\\text", 0.05),
        ("hf:NAME/CONFIG:SPLIT:0.05", "hf:NAME/CONFIG:SPLIT", 0.05),
        ("bundled:tales:0.2", "bundled:tales", 0.2),
        ("-:0.01", "-", 0.01),
    ],
)
def test_the_last_colon_ends_the_source(value: str, source: str, share: float) -> None:
    assert parse_mix(value) == Mix(source, share)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("general.txt:0", "the share 0 of general.txt is not above 0 and below 1; 0.05 is 5% of the training tokens"),
        ("general.txt:1.5", "the share 1.5 of general.txt is not above 0 and below 1"),
        ("general.txt:-0.1", "the share -0.1 of general.txt is not above 0 and below 1"),
        ("general.txt:nan", "the share nan of general.txt is not above 0 and below 1"),
        ("general.txt", "'general.txt' has no share; write SOURCE:SHARE, where 0.05 is 5% of the training tokens"),
        ("general.txt:5%", "'general.txt:5%' has no share"),
        ("C:\\text", "has no share"),
        ("hf:NAME/CONFIG:SPLIT", "'hf:NAME/CONFIG:SPLIT' has no share"),
        (":0.05", "':0.05' has no source; write SOURCE:SHARE, such as general.txt:0.05"),
    ],
)
def test_the_error_for_an_invalid_value_names_the_rule(value: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TextSettings.resolve({"mix": value})
    assert problem in caught.value.message


def test_shares_must_sum_to_less_than_one_and_sources_be_unique() -> None:
    for mix, problem in (
        (["a:0.5", "b:0.5"], "the shares add up to 1; they must stay below 1"),
        (["a:0.1", "a:0.2"], "a is given twice; give each source one share"),
    ):
        with pytest.raises(ConfigError) as caught:
            TextSettings.resolve({"mix": mix})
        assert problem in caught.value.message


def test_a_text_cannot_be_both_mixed_and_watched() -> None:
    with pytest.raises(ConfigError, match=r"mix and watch both name general.txt; watched text must not be trained on"):
        TextSettings.resolve({"mix": "general.txt:0.05", "watch": "general.txt"})


def test_a_mapping_and_a_list_are_the_same_setting() -> None:
    assert TextSettings.resolve({"mix": {"a": 0.05, "b": 0.1}}) == TextSettings.resolve({"mix": ["a:0.05", "b:0.1"]})


def test_all_sources_are_renamed_and_keep_their_shares() -> None:
    config = Config.resolve({"sources": "a", "test": "t", "mix": ["b:0.050", "c:0.1"], "watch": "w"})
    assert config.all_sources == ("a", "t", "b", "c", "w")
    renamed = config.with_sources(str.upper)
    assert renamed.all_sources == ("A", "T", "B", "C", "W")
    assert renamed.mix == ("B:0.050", "C:0.1")


# The number of tokens


@pytest.mark.parametrize(
    ("own", "shares", "available", "wanted"),
    [
        (950, [0.05], [1000], [50]),
        (700, [0.1, 0.2], [1000, 1000], [100, 200]),
        (950, [0.05], [20], [20]),
        (800, [0.1, 0.2], [20, 1000], [20, 205]),  # 205 of 1,025
        (0, [0.5], [10], [0]),
    ],
)
def test_shares_are_of_all_training_tokens(
    own: int, shares: list[float], available: list[int], wanted: list[int]
) -> None:
    assert wanted_tokens(own, shares, available) == wanted


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2, 0.6])
def test_the_share_is_reached_and_token_counts_add_up(tmp_path: Path, share: float) -> None:
    mixed = write_records(tmp_path / "general.jsonl", [general(n) for n in range(500)])
    store = built(tmp_path, [story(n) for n in range(60)], mix=f"{mixed}:{share}")
    plain = built(tmp_path, [story(n) for n in range(60)], "plain")
    tokens = store.account["tokens"]
    [entry] = store.report["mixed"]
    assert tokens["read"] == sum(tokens[name] for name in ACCOUNT_PARTS)
    assert entry["tokens"] == tokens["trained"] - plain.account["tokens"]["trained"] > 0
    assert entry["of_tokens"] == tokens["trained"] == store.num_targets("train")
    assert abs(entry["tokens"] - share * tokens["trained"]) <= 12  # the cut falls on a long word
    assert store.account["dropped"] == []
    every = sum(len(tokenizer()(general(n))["input_ids"]) + 1 for n in range(500))
    assert abs(tokens["unused"] + entry["tokens"] - every) <= 1
    for split in ("validation", "test"):
        assert tokens[split] == plain.account["tokens"][split]
        assert texts_of(store, mixed, split) == []
    assert store.report["splits"] == plain.report["splits"]
    assert store.report["documents"] == 60


def test_adding_text_keeps_most_of_the_chosen_passages(tmp_path: Path) -> None:
    texts = [general(n) for n in range(300)]
    own = [story(n) for n in range(40)]
    mixed = write_records(tmp_path / "general.jsonl", texts)
    first = texts_of(built(tmp_path, own, "1", mix=f"{mixed}:0.5"), mixed)
    again = texts_of(built(tmp_path, own, "2", mix=f"{mixed}:0.5"), mixed)
    more_own = texts_of(built(tmp_path, [story(n) for n in range(80)], "3", mix=f"{mixed}:0.5"), mixed)
    write_records(tmp_path / "general.jsonl", [*(general(n) for n in range(300, 330)), *texts])
    more_mixed = texts_of(built(tmp_path, own, "4", mix=f"{mixed}:0.5"), mixed)
    assert first == again
    whole = set(first) & set(texts)
    assert len(whole) >= len(first) - 1 > 8
    assert whole <= set(more_own)
    kept = whole & set(more_mixed)
    assert 0.75 * len(whole) < len(kept) <= len(whole)  # the 30 new passages replace about a tenth
    places = sorted(texts.index(text) for text in whole)
    assert places[0] < 60 < 240 < places[-1]  # the passages are spread over the source


def test_one_long_document_gives_passages_from_all_of_it(tmp_path: Path) -> None:
    long = tmp_path / "book.txt"
    long.write_text("\n\n".join(general(n) for n in range(600)))
    store = built(tmp_path, [story(n) for n in range(400)], mix=f"{long}:0.3")
    found = texts_of(store, str(long))
    assert len(found) > 5
    assert max(map(len, found)) <= 1.3 * PASSAGE_CHARACTERS
    whole = long.read_text()
    places = [whole.index(text) for text in found]
    assert places == sorted(places)
    assert places[-1] > len(whole) / 2
    [entry] = store.report["mixed"]
    assert entry["passages"] == len(found)
    assert abs(entry["tokens"] - 0.3 * entry["of_tokens"]) <= 12
    lines = [int(store.parts["line"][part]) for part in store.parts_of("train").tolist()][-len(found) :]
    assert lines == [whole.count("\n", 0, place) + 1 for place in places]


def test_a_long_document_is_cut_after_personal_data_is_masked(tmp_path: Path) -> None:
    long = tmp_path / "book.txt"
    long.write_text("\n\n".join(f"{general(n)} Write to a.very.long.name.{n}@example.com today." for n in range(60)))
    settings = TextSettings.resolve({"mix": f"{long}:0.5", "mask_personal_data": True})
    parts, _ = read_parts([write_records(tmp_path / "own.jsonl", [story(n) for n in range(30)])], settings)
    mixed = [each.text for each in parts if each.is_mixed]
    assert len(mixed) > 2
    whole = "".join(mixed)
    assert whole.count("[EMAIL]") == 60
    assert "@" not in whole
    assert whole.endswith("Write to [EMAIL] today.")


def test_a_source_with_too_little_text_is_used_completely_and_reported(tmp_path: Path) -> None:
    little = write_records(tmp_path / "little.jsonl", [general(1)])
    much = write_records(tmp_path / "much.jsonl", [general(n) for n in range(2, 300)])
    store = built(tmp_path, [story(n) for n in range(60)], mix=[f"{little}:0.3", f"{much}:0.2"])
    first, second = store.report["mixed"]
    assert first["is_short"] is True
    assert second["is_short"] is False
    assert texts_of(store, little) == [general(1)]
    assert abs(second["tokens"] - 0.2 * second["of_tokens"]) <= 12
    [note] = [note for note in text_notes(store.report) if note.matters]
    assert note.sentence().endswith("are from little.jsonl, which is all of its text and less than the 30.0% of --mix.")
    plain = [note.what for note in text_notes(store.report) if note.what.endswith("from much.jsonl")]
    assert plain == [f"Of the {second['of_tokens']:,} training tokens {second['tokens']:,} (20.0%) are from much.jsonl"]


def test_held_out_text_is_removed_from_mixed_text(tmp_path: Path) -> None:
    own = [story(n) for n in range(60)]
    plain = built(tmp_path, own, "plain")
    held_out = texts_of(plain, "", "validation") + texts_of(plain, "", "test")
    mixed = write_records(tmp_path / "general.jsonl", [*held_out, *(general(n) for n in range(100))])
    store = built(tmp_path, own, mix=f"{mixed}:0.9")
    assert len(held_out) >= 2
    assert not set(held_out) & set(texts_of(store, mixed))
    [row] = store.account["dropped"]
    assert (row["reason"], row["documents"]) == ("also in validation or test", len(held_out))
    assert store.report["shared_passages"]["test"]["shared"] == 0
    assert any("were left out" in finding.what for finding in text_findings(store.report))


def test_a_long_training_document_is_removed_from_mixed_text(tmp_path: Path) -> None:
    long = " ".join(story(n) for n in range(200))
    mixed = write_records(tmp_path / "general.jsonl", [long, *(general(n) for n in range(300))])
    store = built(tmp_path, [long], mix=f"{mixed}:0.2")
    assert [row["reason"] for row in store.account["dropped"]] == ["also in validation or test"]
    assert all(text.startswith("General") for text in texts_of(store, mixed))


def test_examples_are_mixed_whole_and_the_share_counts_learned_tokens(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    pairs = [{"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}, I think."} for n in range(200)]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    store = built(tmp_path, [story(n) for n in range(60)], mix=f"{path}:0.1")
    [entry] = store.report["mixed"]
    tokens = store.account["tokens"]
    assert tokens["read"] == sum(tokens[name] for name in ACCOUNT_PARTS)
    assert tokens["context"] > 0
    assert abs(entry["tokens"] - 0.1 * tokens["trained"]) < 20  # half an answer
    assert store.report["examples"] is None
    mixed = [part for part in store.parts_of("train") if store.name_of(part).startswith(str(path))]
    assert all(store.parts["ends"][part] for part in mixed)
    assert store.is_example[mixed].all()


def test_mixed_or_watched_files_in_the_folder_are_not_training_text(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    for name, text in (("own", story(1)), ("general", general(1)), ("news", general(2))):
        (folder / f"{name}.txt").write_text(text)
    settings = TextSettings.resolve(
        {"mix": f"{folder / 'general.txt'}:0.1", "watch": str(folder / "news.txt"), "test_fraction": 0.0}
    )
    parts, report = read_parts([str(folder)], settings)
    used = [(Path(each.source).name, each.split, each.beside) for each in parts]
    assert used == [
        ("news.txt", "watched", 0),
        ("own.txt", "train", None),
        ("own.txt", "validation", None),
        ("general.txt", "train", 0),
    ]
    assert report.to_dict()["skipped"]["held_out_files"] == 2


def test_a_missing_or_empty_source_is_an_error(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(SourceError, match=r"there is no such file or folder"):
        built(tmp_path, [story(1)], mix=f"{tmp_path / 'gone.txt'}:0.05")
    with pytest.raises(SourceError, match=r"There is no text to mix in in .*empty.txt\."):
        built(tmp_path, [story(1)], mix=f"{empty}:0.05")
    with pytest.raises(SourceError, match=r"There is no text to watch in .*empty.txt\."):
        built(tmp_path, [story(1)], watch=str(empty))


# Watched text


def test_watched_text_has_separate_splits(tmp_path: Path) -> None:
    first = write_records(tmp_path / "first.jsonl", [general(n) for n in range(3)])
    second = write_records(tmp_path / "second.jsonl", [general(9)])
    store = built(tmp_path, [story(n) for n in range(30)], watch=[first, second])
    plain = built(tmp_path, [story(n) for n in range(30)], "plain")
    assert store.watched == ["watched 1", "watched 2"]
    assert texts_of(store, first, "watched 1") == [general(n) for n in range(3)]
    assert texts_of(store, second, "watched 2") == [general(9)]
    tokens = store.account["tokens"]
    assert tokens["watched"] == sum(map(store.num_targets, store.watched)) > 0
    assert {**tokens, "read": 0, "watched": 0} == {**plain.account["tokens"], "read": 0}
    assert tokens["read"] == sum(tokens[name] for name in ACCOUNT_PARTS)
    assert np.array_equal(store.tokens[-len(plain.tokens) :], plain.tokens)
    assert [entry["documents"] for entry in store.report["watched"]] == [3, 1]
    assert "watched" in store.report["shared_passages"]


def test_watched_text_in_the_training_text_is_reported(tmp_path: Path) -> None:
    own = [story(n) for n in range(40)]
    watched = write_records(tmp_path / "watched.jsonl", own)
    store = built(tmp_path, own, watch=watched)
    [finding] = [finding for finding in text_findings(store.report) if "watched" in finding.what]
    assert finding.matters
    assert "of the words of the watched text also occur word for word in the training text" in finding.what
    assert finding.remedy == "--watch FILE"


def test_the_fingerprint_covers_every_file(tmp_path: Path) -> None:
    own, other = tmp_path / "own.txt", tmp_path / "other.txt"
    own.write_text(story(1))
    for settings in ({"mix": f"{other}:0.1"}, {"watch": str(other)}):
        seen = set()
        for text in (general(1), general(2)):
            other.write_text(text)
            seen.add(fingerprint([str(own)], TextSettings.resolve(settings)))
        assert len(seen) == 2
        assert None not in seen


def test_mixed_parts_are_marked(tmp_path: Path) -> None:
    assert Part("a", "f", 1, "train", "", None, beside=0).is_mixed
    assert not Part("a", "f", 1, "watched", "", None, beside=0).is_mixed
    assert not Part("a", "f", 1, "train", "", None).is_mixed
