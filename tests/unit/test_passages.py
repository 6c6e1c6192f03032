"""Test passages that held-out and training text share: counts by hand, in a store and in a verdict."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from finetale import passages, tokens
from finetale.passages import WINDOW, PassageFinder, word_hashes
from finetale.pipeline.evaluating import shared_shares
from finetale.schema import SharedText
from finetale.text.words import words_of
from tiny import part, store, story, tokenizer

SPLITS = ("train", "validation", "test")


def counted(parts: list[tuple[str, str]], at_once: int = 7) -> dict[str, SharedText]:
    with tempfile.TemporaryDirectory() as folder:
        with PassageFinder(Path(folder)) as finder:
            for start in range(0, len(parts), at_once):
                finder.add(parts[start : start + at_once])
            found = finder.compare()
        assert not list(Path(folder).iterdir())
    assert (found.unit, found.window) == ("words", WINDOW)
    assert found.validation is not None
    assert found.test is not None
    return {"validation": found.validation, "test": found.test}


def by_hand(parts: list[tuple[str, list[str]]]) -> dict[str, SharedText]:
    train = {
        tuple(words[at : at + WINDOW])
        for split, words in parts
        if split == "train"
        for at in range(len(words) - WINDOW + 1)
    }
    found = {}
    for wanted in SPLITS[1:]:
        total = shared = 0
        for words in (words for split, words in parts if split == wanted):
            covered: set[int] = set()
            for at in range(len(words) - WINDOW + 1):
                if tuple(words[at : at + WINDOW]) in train:
                    covered |= set(range(at, at + WINDOW))
            total, shared = total + len(words), shared + len(covered)
        found[wanted] = SharedText(words=total, shared=shared)
    return found


def with_copies(rng: np.random.Generator) -> list[tuple[str, list[str]]]:
    parts = [
        (SPLITS[rng.integers(0, 3)], [f"w{number}" for number in rng.integers(0, 60_000, rng.integers(1, 120))])
        for _ in range(40)
    ]
    for _ in range(40):  # copy a passage of one document into another
        (_, source), (_, target) = (parts[number] for number in rng.integers(0, len(parts), 2))
        at, to = int(rng.integers(0, len(source))), int(rng.integers(0, len(target) + 1))
        target[to:to] = source[at : at + int(rng.integers(10, 60))]
    return parts


@pytest.mark.parametrize("chunk", [8, 48, 1 << 20])
@pytest.mark.parametrize(("bits", "candidates", "ranges"), [(30, 1 << 22, 1), (10, 300, 4), (6, 3, 128)])
def test_shared_passages_equal_those_counted_by_hand(
    monkeypatch: pytest.MonkeyPatch, chunk: int, bits: int, candidates: int, ranges: int
) -> None:
    monkeypatch.setattr(passages, "_CHUNK", chunk)
    monkeypatch.setattr(passages, "_MIN_BITS", min(bits, 16))
    monkeypatch.setattr(passages, "_MAX_BITS", bits)
    monkeypatch.setattr(passages, "_MAX_CANDIDATES", candidates)
    numbers = watch_ranges(monkeypatch)
    parts = with_copies(np.random.default_rng(0))
    found = counted([(split, " ".join(words)) for split, words in parts])
    assert found == by_hand(parts)
    assert sum(each.shared for each in found.values()) > 300
    assert len(numbers) == ranges


def watch_ranges(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of windows that may be in common, once per range of the hashes."""
    numbers: list[int] = []
    common = PassageFinder._common

    def watched(self: PassageFinder, *arguments: int) -> passages.Hashes:
        found = common(self, *arguments)
        numbers.append(len(found))
        return found

    monkeypatch.setattr(PassageFinder, "_common", watched)
    return numbers


def test_few_windows_are_in_memory_at_once_however_long_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 1 GB of Chinese, 9 million windows shared a bit with held-out text by chance."""
    monkeypatch.setattr(passages, "_MAX_BITS", 14)
    monkeypatch.setattr(passages, "_MAX_CANDIDATES", 500)
    numbers = watch_ranges(monkeypatch)
    words = [f"w{number}" for number in np.random.default_rng(0).integers(0, 60_000, 120_000)]
    with PassageFinder(tmp_path) as finder:
        finder.add([("train", " ".join(words[:100_000])), ("test", " ".join(words[99_900:]))])
        found = finder.compare()
    assert found.test is not None
    assert (found.test.words, found.test.shared) == (20_100, 100)
    assert len(numbers) == 16
    assert 100 < max(numbers) < 600
    assert sum(numbers) > 2_500


def test_hashes_of_pieces_equal_those_of_the_whole_text(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [(split, " ".join(words)) for split, words in with_copies(np.random.default_rng(1))]
    whole = counted(parts)
    monkeypatch.setattr(passages, "_CHARACTERS", 40)
    assert counted(parts, at_once=1000) == whole


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", 0),
        ("Hello, world! Don't", 3),
        ("你好，世界。", 4),
        ("naïve x_1 GPT-2", 4),
        ("ひらがなABC漢字", 4 + 1 + 2),
        ("हिन्दी में", 2),
        ("Привет, мир", 2),
        ("😀 \ud800 \U0010ffff", 0),
        ("\U00020000\U00020001", 2),
    ],
)
def test_words_of_every_script(text: str, number: int) -> None:
    assert len(word_hashes(text)) == number


def test_words_ignore_case_punctuation_and_white_space() -> None:
    text = "The Fox’s tail, she said: “It’s RED!”\nNaïve — 12 jumps."
    same = "the foxs tail she said it's red naïve 12 jumps"
    assert word_hashes(text).tolist() == word_hashes(same).tolist()
    assert len(set(word_hashes(same).tolist())) == 10
    many = [f"{letter}{number}" for letter in "abcdeé你" for number in range(3000)]
    assert len(set(word_hashes(" ".join(many)).tolist())) == 6 * 3000 + 3001  # 你 is one word


def test_without_training_or_held_out_text_nothing_is_shared() -> None:
    text = " ".join(map(str, range(80)))
    for splits in (("train", "train"), ("validation", "test")):
        assert all(each.shared == 0 for each in counted([(split, text) for split in splits]).values())
    assert counted([("validation", "a b c"), ("train", text)])["validation"] == SharedText(words=3, shared=0)
    # A passage does not cross the end of a document.
    halves = [("train", text), ("test", " ".join(text.split()[:15])), ("test", " ".join(text.split()[15:30]))]
    assert counted(halves)["test"] == SharedText(words=30, shared=0)


@pytest.mark.parametrize(
    ("texts", "unit"),
    [
        (["从前有一座山。", "山上有一座庙，庙里有一个老和尚。"], "characters"),
        (["one two", "三"], "words"),
        ([""], "words"),
    ],
)
def test_the_script_of_most_of_the_text_decides_the_unit(tmp_path: Path, texts: list[str], unit: str) -> None:
    with PassageFinder(tmp_path) as finder:
        finder.add([("train", text) for text in texts])
        assert finder.compare().unit == unit


def test_a_quotation_is_reported_by_the_store(tmp_path: Path) -> None:
    quoted = story(7, 60)
    texts = [part(story(1) + quoted), part(story(2)), part(quoted + story(3, 60), "test"), part(story(4), "validation")]
    made = store(tmp_path, texts)
    found = made.report["shared_passages"]
    assert found["unit"] == "words"
    assert found["window"] == WINDOW
    assert found["test"] == {"words": len(words_of(quoted + story(3, 60))), "shared": len(words_of(quoted))}
    assert shared_shares(made) == {
        "validation": 0,
        "test": len(words_of(quoted)) / len(words_of(quoted + story(3, 60))),
    }


def characters(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per character, like that of Chinese BERT models."""
    vocabulary = {"[UNK]": 0, "[SEP]": 1, "[CLS]": 2}
    for character in "".join(texts):
        vocabulary.setdefault(character, len(vocabulary))
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", sep_token="[SEP]", cls_token="[CLS]")


def test_two_tokenizers_measure_the_same_share_of_chinese_text(tmp_path: Path) -> None:
    """Passages of 24 characters: more than 32 tokens of one tokenizer, fewer of the other."""
    rng = np.random.default_rng(0)

    def chinese(number: int, first: int = 0x4E00) -> str:
        return "".join(chr(first + int(code)) for code in rng.integers(0, 500, number))

    passages_in_common = [chinese(24) for _ in range(20)]
    training = "。".join(passage + "，" + chinese(10, 0x5500) for passage in passages_in_common)
    held_out = "。".join(passage + chinese(6, 0x6000) for passage in passages_in_common)
    texts = [part(training), part(held_out, "test")]
    shares = []
    for number, chosen in enumerate((tokenizer(), characters([training, held_out, "。，"]))):
        folder = tmp_path / str(number)
        folder.mkdir()
        made = tokens.build_store(iter(texts), chosen, folder / "store", report=dict)
        shares.append((made.num_targets("test"), made.report["shared_passages"]["test"]))
    assert shares[0][0] > 2 * shares[1][0]  # tokens
    assert shares[0][1] == shares[1][1] == {"words": 20 * 30, "shared": 20 * 24}
