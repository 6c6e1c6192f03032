"""Test the checks of tokenizers, and that a token store counts every token of its text."""

from __future__ import annotations

import copy
import json
import random
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import AutoTokenizer, BertTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from finetale import tokens
from finetale.errors import RunError, SourceError, TokenizerError
from finetale.text import Part
from finetale.tokenizing import batches as batching
from finetale.tokenizing import encode_batch, token_ranges
from finetale.tokens import (
    SPLITS,
    begin_and_end,
    build_store,
    check_tokenizer,
    open_store,
    tokenizer_hash,
)
from tiny import part, store, story, tokenizer

END = 0  # end-of-text of the tiny tokenizer, which is also its beginning-of-text


def words_tokenizer(vocabulary: dict[str, int], **special: str) -> PreTrainedTokenizerBase:
    """Return a tokenizer of whole words separated by spaces."""
    raw = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token=next(iter(vocabulary))))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    made: PreTrainedTokenizerBase = PreTrainedTokenizerFast(tokenizer_object=raw, **special)
    return made


def bert_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer of single letters, like those of Chinese GPT-2 models: [CLS], [SEP], [UNK], no end-of-text."""
    letters = "abcdefghijklmnopqrstuvwxyz.,;—0123456789你好"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    made: PreTrainedTokenizerBase = BertTokenizer(vocab={entry: number for number, entry in enumerate(vocabulary)})
    return made


def count(text: str) -> int:
    return len(tokenizer()(text, add_special_tokens=False)["input_ids"])


def build(folder: Path, parts: list[Part], chosen: PreTrainedTokenizerBase) -> tokens.TokenStore:
    return build_store(iter(parts), chosen, folder / "store", report=dict)


# Begin and end of a text


def test_gpt2_begins_and_ends_texts_with_one_id() -> None:
    assert tokenizer().eos_token == tokens.END_OF_TEXT
    assert begin_and_end(tokenizer()) == (END, END)


def test_different_begin_and_end_are_both_used() -> None:
    chosen = words_tokenizer({"<u>": 0, "<b>": 1, "<e>": 2, "a": 3}, bos_token="<b>", eos_token="<e>")
    assert begin_and_end(chosen) == (1, 2)


def test_bert_like_tokenizers_begin_with_cls_and_end_with_sep() -> None:
    chosen = bert_tokenizer()
    assert chosen.bos_token is None
    assert chosen.eos_token is None
    assert begin_and_end(chosen) == tuple(chosen.convert_tokens_to_ids(["[CLS]", "[SEP]"])) == (2, 3)


def test_end_of_text_is_also_the_beginning_if_there_is_no_other() -> None:
    assert begin_and_end(words_tokenizer({"<u>": 0, "<e>": 1}, eos_token="<e>")) == (1, 1)


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    with pytest.raises(TokenizerError, match="no end-of-text token"):
        begin_and_end(words_tokenizer({"<u>": 0, "a": 1}, unk_token="<u>"))


# Refused tokenizers


@pytest.mark.parametrize("chosen", [tokenizer, bert_tokenizer, ByT5Tokenizer], ids=["bytes", "bert", "no backend"])
def test_valid_tokenizers_are_accepted(chosen: Any) -> None:
    check_tokenizer(chosen(), "whole")


def test_an_empty_tokenizer_is_refused() -> None:
    with pytest.raises(TokenizerError, match="tokenizer of bare is empty: its vocabulary has 1 entries"):
        check_tokenizer(words_tokenizer({"<e>": 0}, eos_token="<e>"), "bare")


def test_a_tokenizer_without_known_words_is_refused() -> None:
    chosen = words_tokenizer({"<u>": 0, "<e>": 1, "zzz": 2}, unk_token="<u>", eos_token="<e>")
    with pytest.raises(TokenizerError, match="tokenizer of deaf loses text: nothing is left of an English sentence"):
        check_tokenizer(chosen, "deaf")


def test_a_tokenizer_that_decodes_only_to_spaces_is_refused() -> None:
    raw = Tokenizer(tokenizer_models.WordLevel({"<u>": 0, "<e>": 1, "fox": 2}, unk_token="<u>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.decoder = decoders.Replace("fox", " ")
    chosen = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<u>", eos_token="<e>")
    with pytest.raises(TokenizerError, match="tokenizer of lossy loses text"):
        check_tokenizer(chosen, "lossy")


def test_a_valid_tokenizer_without_end_of_text_is_refused() -> None:
    with pytest.raises(TokenizerError, match="no end-of-text token"):
        check_tokenizer(words_tokenizer({"<u>": 0, "fox": 1, "brown": 2}, unk_token="<u>"), "endless")


# The tokenizer trained on the text


def test_the_trained_tokenizer_decodes_any_text_unchanged() -> None:
    rng = random.Random(0)
    characters = [chr(point) for point in range(0x110000) if not 0xD800 <= point <= 0xDFFF]
    texts = ["".join(rng.choices(characters, k=300)) for _ in range(10)]
    texts += [
        "",
        " ",
        "a  b\t\n\r\n c ",
        "e\u0301 é",
        "👩‍👩‍👧 🇺🇳",
        "你好，世界",
        "\x00\x1f\x7f\u2028\ufeff\uffff",
        " don 't , no . ",
    ]
    encoded = encode_batch(tokenizer(), texts)
    assert len(encoded) == 18
    assert [tokenizer().decode(ids.tolist()) for ids in encoded] == texts


def test_the_trained_tokenizer_does_not_depend_on_the_order_of_documents() -> None:
    texts = [story(number) for number in range(20)]
    shuffled = random.Random(1).sample(texts, len(texts))
    assert shuffled != texts
    one, other = (tokens.train_tokenizer(order, 350) for order in (texts, shuffled))
    assert one.get_vocab() == other.get_vocab()
    assert tokenizer_hash(one) == tokenizer_hash(other)


def test_the_trained_tokenizer_has_at_most_the_requested_size() -> None:
    texts = [story(number) for number in range(20)]
    assert len(tokens.train_tokenizer(texts, 350)) == 350
    assert len(tokens.train_tokenizer(["ab"], 350)) <= 258
    assert max(tokenizer().get_vocab().values()) + 1 == len(tokenizer()) == 400


def test_a_tokenizer_is_trained_only_on_the_training_text() -> None:
    parts = [part("one"), part("two", "validation"), part("three", "test"), part("four", dropped="duplicate")]
    assert list(tokens.training_texts(parts)) == ["one"]


# The hash of a tokenizer


def test_the_hash_changes_with_merges_and_with_the_end_of_text() -> None:
    rules = json.loads(tokenizer().backend_tokenizer.to_str())
    rules["model"]["merges"].reverse()  # the vocabulary does not change
    swapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(rules)),
        bos_token=tokens.END_OF_TEXT,
        eos_token=tokens.END_OF_TEXT,
    )
    assert swapped.get_vocab() == tokenizer().get_vocab()
    other_end = copy.deepcopy(tokenizer())
    other_end.eos_token = "."
    assert len({tokenizer_hash(item) for item in (tokenizer(), swapped, other_end)}) == 3
    assert tokenizer_hash(tokenizer()) == tokenizer_hash(copy.deepcopy(tokenizer()))


def test_the_hash_does_not_change_by_saving_and_use(tmp_path: Path) -> None:
    tokenizer().save_pretrained(str(tmp_path))
    again = AutoTokenizer.from_pretrained(str(tmp_path))
    assert tokenizer_hash(again) == tokenizer_hash(tokenizer())
    encode_batch(again, ["some text"])
    assert tokenizer_hash(again) == tokenizer_hash(tokenizer())


def cutting_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tiny tokenizer with a saved truncation to 8 tokens, as in some published tokenizers."""
    tokenizer().save_pretrained(str(folder))
    rules = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    rules["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(rules), encoding="utf-8")
    made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder))
    return made


def test_the_tokenizer_never_truncates_texts(tmp_path: Path) -> None:
    ids = encode_batch(cutting_tokenizer(tmp_path), [story(1)])[0]
    assert len(ids) == count(story(1)) > 8


def test_the_hash_does_not_depend_on_the_truncation(tmp_path: Path) -> None:
    assert tokenizer_hash(cutting_tokenizer(tmp_path)) == tokenizer_hash(tokenizer())


def test_tokenizers_without_a_backend_have_a_hash() -> None:
    few, many = ByT5Tokenizer(extra_ids=3), ByT5Tokenizer(extra_ids=4)
    assert getattr(few, "backend_tokenizer", None) is None
    assert tokenizer_hash(few) == tokenizer_hash(ByT5Tokenizer(extra_ids=3)) != tokenizer_hash(many)


# The account


def test_token_counts_of_the_account_add_up(tmp_path: Path) -> None:
    parts = [
        part(story(1), "train"),
        part(story(2), "train"),
        part(story(3), "validation"),
        part(story(4), "test"),
        part(story(5), dropped="duplicate"),
        part(story(6), dropped="duplicate"),
        part("short", dropped="too short"),
        part("half of a", dropped="too short", ends=False),
        part("", "test"),
    ]
    made = store(tmp_path, parts)
    targets = [count(item.text) + item.ends if item.text else 0 for item in parts]
    assert made.account == {
        "tokens": {
            "read": sum(targets),
            "trained": targets[0] + targets[1],
            "validation": targets[2],
            "test": targets[3],
            "watched": 0,
            "context": 0,
            "unused": 0,
            "dropped": sum(targets[4:8]),
        },
        "dropped": [
            {"reason": "duplicate", "documents": 2, "tokens": targets[4] + targets[5]},
            {"reason": "empty", "documents": 1, "tokens": 0},
            {"reason": "too short", "documents": 2, "tokens": targets[6] + targets[7]},
        ],
    }
    assert all(target > 0 for target in targets[:8])
    assert [made.num_targets(split) for split in SPLITS[:3]] == [sum(targets[:2]), targets[2], targets[3]]
    assert len(made.tokens) == sum(targets[:4]) + 4  # beginning-of-text of each part
    assert made.warnings == []


def test_a_store_keeps_each_part_unchanged(tmp_path: Path) -> None:
    texts = {"train": "Æther, twice  over", "validation": "你好 world", "test": story(2)}
    made = store(tmp_path, [part(text, split) for split, text in texts.items()])
    assert len(made.parts) == 3
    for number, (split, text) in enumerate(texts.items()):
        assert made.parts_of(split).tolist() == [number]
        row = made.parts[number]
        ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
        start = int(row["start"])
        assert made.tokens[start : start + len(ids) + 2].tolist() == [END, *ids, END]
        assert made.ids(number).tolist() == ids
        assert (row["targets"], row["words"], row["bytes"]) == (len(ids) + 1, len(text.split()), len(text.encode()))


def test_the_parts_of_a_cut_document_have_one_end_of_text(tmp_path: Path) -> None:
    text = story(3)
    pieces = [(text[:200], "train", False), (text[200:300], "validation", False), (text[300:], "test", True)]
    made = store(tmp_path, [part(piece, split, ends=ends) for piece, split, ends in pieces])
    assert made.parts["ends"].tolist() == [0, 0, 1]
    assert (made.tokens == END).sum() == 3 + 1  # three beginnings, one end
    assert made.tokens[-1] == END
    assert made.account["tokens"]["read"] == sum(count(piece) for piece, _, _ in pieces) + 1
    assert "".join(tokenizer().decode(made.ids(number).tolist()) for number in range(3)) == text


def test_bert_like_texts_are_enclosed_by_cls_and_sep(tmp_path: Path) -> None:
    made = build(tmp_path, [part("ab"), part("c d", ends=False)], bert_tokenizer())
    a, b, c, d = bert_tokenizer().convert_tokens_to_ids(["a", "##b", "c", "d"])
    assert made.tokens.tolist() == [2, a, b, 3, 2, c, d]


def test_parts_of_several_batches_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "BATCH_CHARACTERS", 100)
    progress: list[int] = []
    texts = [f"number {number} of some" for number in range(30)]
    made = build_store(
        (part(text) for text in texts), tokenizer(), tmp_path / "store", report=dict, progress=progress.append
    )
    assert [tokenizer().decode(made.ids(number).tolist()) for number in range(30)] == texts
    assert len(progress) >= 4
    assert progress == sorted(progress)
    assert progress[-1] == 30


def test_the_report_is_requested_after_the_last_part(tmp_path: Path) -> None:
    seen: list[int] = []

    def parts() -> Iterator[Part]:
        for number in range(3):
            seen.append(number)
            yield part(story(number))

    made = build_store(parts(), tokenizer(), tmp_path / "store", report=lambda: {"seen": list(seen)})
    assert made.report["seen"] == [0, 1, 2]
    assert set(made.report) == {"seen", "shared_passages"}


def test_the_hash_of_a_store_depends_on_its_content(tmp_path: Path) -> None:
    def digest(name: str, *parts: Part) -> str:
        sha256: str = store(tmp_path / name, parts).info["sha256"]
        return sha256

    one = digest("a", part("one"), part("two"))
    assert one == digest("b", part("one"), part("two"))
    others = {
        digest("c", part("one"), part("too")),
        digest("d", part("two"), part("one")),
        digest("e", part("one"), part("two", "test")),
        digest("f", part("one"), part("two", ends=False)),
    }
    assert len(others | {one}) == 5


# Warnings


def test_end_of_text_markers_in_the_text_give_a_warning(tmp_path: Path) -> None:
    made = store(tmp_path, ["one<|endoftext|>two<|endoftext|>three", "four"])
    assert len(made.warnings) == 1
    assert "holds 2 end-of-text markers (<|endoftext|>)" in made.warnings[0]
    assert "--documents '<|endoftext|>'" in made.warnings[0]


def test_the_warning_names_the_marker_of_bert_like_tokenizers(tmp_path: Path) -> None:
    made = build(tmp_path, [part("ab[SEP]cd")], bert_tokenizer())
    assert "[SEP]" in made.warnings[0]
    assert "None" not in made.warnings[0]


def test_up_to_20_percent_of_unknown_tokens_give_a_warning(tmp_path: Path) -> None:
    made = build(tmp_path, [part("a b c d ж")], bert_tokenizer())
    assert made.warnings == ["The tokenizer does not know 1 token of the text (20.00%) and read [UNK] there."]
    assert made.account["tokens"]["read"] == 6


def test_more_than_20_percent_of_unknown_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="does not know 22% of the text"):
        build(tmp_path, [part("a b c ж"), part("a b c d ж")], bert_tokenizer())
    assert list(tmp_path.iterdir()) == []


def test_no_text_at_all_is_refused(tmp_path: Path) -> None:
    for number, parts in enumerate([[], [part("")]]):
        with pytest.raises(SourceError, match="hold no text"):
            store(tmp_path / str(number), parts)
        assert list((tmp_path / str(number)).iterdir()) == []


def test_the_error_for_a_store_of_dropped_parts_says_that_it_is_empty(tmp_path: Path) -> None:
    made = store(tmp_path, [part(story(1), dropped="duplicate")])
    assert len(made.tokens) == len(made.parts) == made.num_targets("train") == 0
    assert made.account["tokens"]["read"] == made.account["tokens"]["dropped"] == count(story(1)) + 1


# The files


@pytest.mark.parametrize(("size", "dtype"), [(2**16, "<u2"), (2**16 + 1, "<u4")])
def test_ids_take_two_bytes_if_possible(tmp_path: Path, size: int, dtype: str) -> None:
    chosen = words_tokenizer({f"w{number}": number for number in range(size)}, eos_token="w0")
    made = build(tmp_path, [part(f"w1 w{size - 1}")], chosen)
    assert made.info["dtype"] == dtype
    assert made.tokens.tolist() == [0, 1, size - 1, 0]
    assert (tmp_path / "store" / "tokens.bin").stat().st_size == 4 * int(dtype[-1])


def test_ids_above_the_number_of_entries_are_kept(tmp_path: Path) -> None:
    made = build(tmp_path, [part("b a")], words_tokenizer({"<e>": 0, "a": 1, "b": 70_000}, eos_token="<e>"))
    assert made.tokens.tolist() == [0, 70_000, 1, 0]


def test_tokens_and_parts_are_memory_mapped(tmp_path: Path) -> None:
    made = open_store(store(tmp_path, [story(1)]).folder)
    assert isinstance(made.tokens, np.memmap)
    assert isinstance(made.parts, np.memmap)
    assert not made.tokens.flags.writeable
    assert sorted(file.name for file in made.folder.iterdir()) == [
        "context.npy",
        "manifest.json",
        "parts.npy",
        "personal.npy",
        "sources.json",
        "store.json",
        "tokens.bin",
    ]


def test_a_source_that_fails_leaves_no_folder_behind(tmp_path: Path) -> None:
    def parts() -> Iterator[Part]:
        yield part(story(1))
        raise SourceError("b.txt line 3: broken.")

    with pytest.raises(SourceError, match="line 3: broken"):
        build_store(parts(), tokenizer(), tmp_path / "store", report=dict)
    assert list(tmp_path.iterdir()) == []
    before = store(tmp_path, ["what was there"]).info
    with pytest.raises(SourceError, match="line 3: broken"):
        build_store(parts(), tokenizer(), tmp_path / "store", report=dict)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert open_store(tmp_path / "store").info == before


def test_a_missing_store_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="json is missing"):
        open_store(tmp_path / "nowhere")


def test_places_of_personal_data_become_ranges_of_tokens(tmp_path: Path) -> None:
    first, second = "Nobody answered.", "Write to ada@example.org or call 212-555-0147, said the heron."
    places = tuple((second.index(a), second.index(a) + len(a)) for a in ("ada@example.org", "212-555-0147"))
    given = replace(part(second), personal=places)
    made = store(tmp_path, [part(first), given])
    texts = [tokenizer().decode(made.tokens[a:b].tolist()) for a, b in made.personal.tolist()]
    assert ["ada@example.org" in texts[0], "212-555-0147" in texts[1]] == [True, True]
    assert all(len(found) < 24 for found in texts), "the range is little longer than the data"
    assert made.personal[0, 0] > made.parts["start"][1]


def test_without_offsets_the_range_is_the_whole_part() -> None:
    class Slow:
        is_fast = False

    assert token_ranges(Slow(), "a b c", [(2, 3)], np.arange(3)) == [(0, 3)]  # type: ignore[arg-type]


def test_the_table_of_parts_is_written_row_by_row_as_numpy_saves_it(tmp_path: Path) -> None:
    rows = [(7 * number, 6, number % 3, 1, 2**31, 5, 20, number, 0) for number in range(1000)]
    for number in (0, 1, 1000):
        with tokens._Table(tmp_path / "rows.npy") as table:
            for start in range(0, number, 300):
                table.append(rows[start : min(number, start + 300)])
        np.save(tmp_path / "whole.npy", np.array(rows[:number], tokens.PART_DTYPE))
        assert (tmp_path / "rows.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_the_memory_of_a_store_does_not_grow_with_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of parts takes 51 bytes per part on disk. It took 170 bytes of memory."""
    monkeypatch.setattr(tokens, "_ROWS_AT_ONCE", 1000)
    monkeypatch.setattr(batching, "BATCH_CHARACTERS", 5_000)

    def peak(number: int) -> int:
        parts = (part("ab") for _ in range(number))
        tracemalloc.start()
        made = build_store(parts, tokenizer(), tmp_path / str(number), report=dict)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(made.parts) == number
        assert made.largest_id == int(made.tokens.max())
        return found

    peak(10)  # what is loaded once
    assert peak(18_000) - peak(8_000) < 10_000 * 50
