"""Test that encoding a text in pieces gives the ids of the whole text, for every kind of tokenizer."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as tokenizer_models
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from finetale import tokenizing
from finetale.tokenizing import Encoder, encode_batch, token_ranges
from tiny import story, tokenizer

# The pre-tokenizer of the GPT-4, Llama 3 and Qwen families.
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ATOMS = [
    *"aZé今你ЯΣ好ん9２½_.,;:!?'’“”…—-#@/\\()\t\n\r\u00a0\u3000，。、；：？！\u0301\u200d👩",
    " ", " ", " ", " ", "  ", "\n\n", "\r\n", "don't", "I'LL", " the", " and",
    "e.g.", "http://a.b/c", "1,000.5", "x_y", "<|endoftext|>",
]  # fmt: skip


def bpe(*steps: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    raw = Tokenizer(tokenizer_models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(list(steps)) if len(steps) > 1 else steps[0]
    if normalizer is not None:
        raw.normalizer = normalizer
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator([story(number) for number in range(30)] + [mixed(0, 4000)], trainer)
    return raw


def wrapped(raw: Tokenizer, **special: str) -> PreTrainedTokenizerBase:
    made: PreTrainedTokenizerBase = PreTrainedTokenizerFast(tokenizer_object=raw, **special)
    return made


def gpt4(regex: str = GPT4, **more: object) -> PreTrainedTokenizerBase:
    split = pre_tokenizers.Split(Regex(regex), "isolated")
    return wrapped(bpe(split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), **more))


def with_digits() -> PreTrainedTokenizerBase:
    return wrapped(bpe(pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)))


def wordpiece() -> PreTrainedTokenizerBase:
    raw = Tokenizer(tokenizer_models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=["[UNK]"], show_progress=False)
    raw.train_from_iterator([story(number) for number in range(30)] + [mixed(0, 4000)], trainer)
    return wrapped(raw, unk_token="[UNK]")


def mixed(seed: int, size: int) -> str:
    rng = random.Random(seed)
    return "".join(rng.choices(ATOMS, k=size))


KINDS = {
    "gpt2": tokenizer,
    "gpt4": gpt4,
    "nfc": lambda: gpt4(normalizer=normalizers.NFC()),
    "digits": with_digits,
    "wordpiece": wordpiece,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slice_size", [50, 500_000])
def test_pieces_have_the_ids_of_the_whole_text(kind: str, slice_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "_SLICE_CHARACTERS", slice_size)
    monkeypatch.setattr(tokenizing, "_MAX_PIECES", 300)  # the cache is emptied several times
    chosen = KINDS[kind]()
    encoder = Encoder(chosen)
    texts = [mixed(seed, size) for seed, size in enumerate([0, 1, 2, 3, 5, 8, 30, 100, 1000] * 8)]
    texts += [story(number) for number in range(20)] + ["", " ", "a" * 3000]
    for _ in range(2):
        found = encoder.encode(texts)
        assert len(found) == 95
        for text, ids, whole in zip(texts, found, encode_batch(chosen, texts), strict=True):
            assert ids.tolist() == whole.tolist(), repr(text)
    assert encoder._pieces is not None, "the tokenizer can encode pieces"


@pytest.mark.parametrize(
    "make",
    [
        lambda: ByT5Tokenizer(),
        lambda: wrapped(bpe(pre_tokenizers.ByteLevel(add_prefix_space=True))),
        lambda: wrapped(bpe(pre_tokenizers.Metaspace())),
        lambda: gpt4(r"\p{L}+(?: \p{L}+)?|\s+|[^\s\p{L}]+"),  # two words are one piece
        lambda: gpt4(normalizer=normalizers.Prepend("x")),
    ],
)
def test_tokenizers_with_long_range_rules_get_the_whole_text(make) -> None:
    chosen = make()
    encoder = Encoder(chosen)
    texts = [story(1), mixed(3, 300)]
    found = encoder.encode(texts)
    assert encoder._pieces is None
    for ids, whole in zip(found, encode_batch(chosen, texts), strict=True):
        assert np.array_equal(ids, whole)


@pytest.mark.parametrize("flags", [{"rstrip": True}, {"lstrip": True}, {"single_word": True}, {}])
def test_added_tokens_across_a_cut_prevent_cutting(flags: dict) -> None:
    raw = bpe(pre_tokenizers.ByteLevel(add_prefix_space=False))
    raw.add_tokens([AddedToken("the end" if not flags else "mask", **flags)])
    chosen = wrapped(raw)
    text = "this is the end of the mask or mask. the mask ends"
    encoder = Encoder(chosen)
    assert encoder._pieces is None
    assert encoder.encode([text])[0].tolist() == encode_batch(chosen, [text])[0].tolist()


class WithoutPositions:
    """A tokenizer in Python, as far as an encoder uses it: it does not report the positions of its tokens."""

    is_fast = False

    def __init__(self, inner: PreTrainedTokenizerBase) -> None:
        self._inner = inner
        self.decode = inner.decode

    def __call__(self, texts: list[str], **settings: object) -> object:
        assert "return_offsets_mapping" not in settings
        return self._inner(texts, **settings)


EXAMPLE = "User: Où est le café ?\n\nBot:  Là-bas, 今天.\n\nUser: and\n\nBot: the end"
CONTEXT = [(0, EXAMPLE.index("Là")), (EXAMPLE.index("\n\nUser: and"), EXAMPLE.index("the end"))]


@pytest.mark.parametrize("make", [ByT5Tokenizer, lambda: WithoutPositions(tokenizer())])
def test_examples_of_tokenizers_without_positions(make) -> None:
    chosen = make()
    found = Encoder(chosen).encode_example(EXAMPLE, CONTEXT)
    assert found is not None
    ids, ranges = found
    assert chosen.decode(ids.tolist()) == EXAMPLE
    shown = [chosen.decode(ids[start:stop].tolist()) for start, stop in ranges]
    assert [text.strip() for text in shown] == [EXAMPLE[start:stop].strip() for start, stop in CONTEXT]


@pytest.mark.parametrize(
    "make", [lambda: WithoutPositions(tokenizer()), lambda: gpt4(normalizer=normalizers.NFKC())], ids=["python", "nfkc"]
)
def test_a_token_over_the_border_is_cut_where_no_character_changes(make) -> None:
    chosen = make()
    text = story(0) + " once"
    context = [(0, len(text) - 2)]  # the border is within the last word
    assert len(encode_batch(chosen, [" once"])[0]) < len(" once")
    found = Encoder(chosen).encode_example(text, context)
    assert found is not None
    ids, ranges = found
    assert chosen.decode(ids.tolist()) == text
    assert [chosen.decode(ids[start:stop].tolist()) for start, stop in ranges] == [text[:-2]]


def test_a_token_over_the_border_is_refused_where_a_piece_reads_otherwise() -> None:
    raw = bpe(pre_tokenizers.Metaspace())
    raw.decoder = decoders.Metaspace()
    chosen = wrapped(raw)
    text = story(0) + " once"
    assert Encoder(chosen).encode_example(text, [(0, len(text) - 2)]) is None


def test_offsets_of_a_long_text_equal_those_of_the_whole_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "_COMPARED_CHARACTERS", 40)
    monkeypatch.setattr(tokenizing, "_SLICE_CHARACTERS", 300)
    text = " ".join(story(number) for number in range(10)) + "今天我们，去河边。好吗？" * 20
    encoder = Encoder(tokenizer())
    (ids,) = encoder.encode([text])
    rng = random.Random(0)
    places = [(start, start + rng.randint(1, 30)) for start in sorted(rng.sample(range(len(text) - 30), 200))]
    assert encoder.ranges(text, places, ids) == token_ranges(tokenizer(), text, places, ids)


def test_places_are_found_in_texts_that_the_encoder_does_not_know_any_more() -> None:
    texts = [story(number) + "今天我们，去河边。" for number in range(5)]
    ids = encode_batch(tokenizer(), texts)
    for text, its_ids in zip(texts, ids, strict=True):
        places = [(0, 3), (len(text) // 2, len(text) // 2 + 9), (len(text) - 4, len(text))]
        assert Encoder(tokenizer()).ranges(text, places, its_ids) == token_ranges(tokenizer(), text, places, its_ids)


def test_the_tokenizer_gets_few_characters_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "_CHARACTERS_AT_ONCE", 100)
    texts = [mixed(seed, 3000) for seed in range(3)] + ["a" * 300 + " b", ""]
    encoder = Encoder(tokenizer())
    sizes = []

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(tokenizer().backend_tokenizer, name)

        def encode_batch_fast(self, pieces: list[str], **rest: object) -> object:
            sizes.append((sum(map(len, pieces)), len(pieces)))
            return tokenizer().backend_tokenizer.encode_batch_fast(pieces, **rest)

    monkeypatch.setattr(encoder._pieces, "_backend", Counting())
    assert all(map(np.array_equal, encoder.encode(texts), encode_batch(tokenizer(), texts)))
    assert len(sizes) > 30
    assert all(size <= 100 or number == 1 for size, number in sizes)
