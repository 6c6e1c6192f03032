"""Problems with tokenizers in fine-tuning that users of other tools reported, each named by its report.

Others are in the tests of new tokens (unsloth#237, transformers#8706 and #11102, LlamaFactory#8823, Qwen#553) and of
tokenizer files (transformers#45812 and #26773, mellea#947).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_tokenizer_files import TEXT, ids_of, rules, save_base, train_pieces, write_json
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from finetale import models
from finetale.blocks import pack
from finetale.cli import run
from finetale.generate.text import TextStream
from finetale.text import read_parts
from finetale.tokenizing import Encoder
from finetale.tokens import build_store, train_tokenizer
from tiny import part, save_model, story, tokenizer, write_stories

SENTENCES = ("Arthur met Deniz today.", "<note> a <note>b Deniz", "Deniz", "x Größe y", "the word 'social' , ok  .")


def llama(folder: Path) -> PreTrainedTokenizerBase:
    """Return a tokenizer of Llama's kind, loaded from a model folder."""
    save_base(folder, "llama")
    train_pieces(folder, "bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False)
    write_json(folder, "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})
    return models.load_tokenizer(folder)


def streamed(found: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text = TextStream(found, [], ())
    for token in ids:
        text.add(token)
    text.finish()
    return text.text


@pytest.mark.parametrize("sentence", SENTENCES)
def test_spaces_around_added_tokens_stay(sentence: str, tmp_path: Path) -> None:
    """transformers#28384: `metDeniz`. transformers#22710: a stream of Llama's tokens loses spaces."""
    found = llama(tmp_path / "base")
    models.add_new_tokens(found, ["Deniz", "<note>", "today", "Größe"])
    ids = ids_of(found, sentence)
    assert found.decode(ids, clean_up_tokenization_spaces=False) == sentence
    assert streamed(found, ids) == sentence
    found.save_pretrained(tmp_path / "base")
    assert ids_of(AutoTokenizer.from_pretrained(tmp_path / "base"), sentence) == ids


def test_spaces_before_marks_stay(tmp_path: Path) -> None:
    """transformers#40088 and #32575: decoding removes spaces if the tokenizer says so in its config."""
    save_base(tmp_path / "base")
    write_json(tmp_path / "base", "tokenizer.json", rules())
    write_json(
        tmp_path / "base",
        "tokenizer_config.json",
        {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "clean_up_tokenization_spaces": True},
    )
    found = models.load_tokenizer(tmp_path / "base")
    text = "the word 'social' , ok ! do n't"
    assert streamed(found, ids_of(found, text)) == text


def test_special_tokens_keep_their_ids(tmp_path: Path) -> None:
    """transformers#3366: ids of special tokens change when a tokenizer is saved and loaded."""
    base = save_model(tmp_path / "base")
    made = train_tokenizer([story(n) for n in range(20)], 400)
    made.add_special_tokens({"pad_token": "<pad>", "sep_token": "<sep>", "cls_token": "<cls>"})
    made.save_pretrained(base)
    write_stories(tmp_path / "stories", 12, words=30)
    words = ["--out", str(tmp_path / "run"), "--max-steps", "1", "--max-new-tokens", "2", "--audit-tokens", "0"]
    assert run(["train", str(tmp_path / "stories"), "--model", str(base), *words]) == 0
    again = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    for name in ("pad_token_id", "sep_token_id", "cls_token_id", "eos_token_id"):
        assert getattr(again, name) == getattr(made, name)
    text = "<sep>The lamp<cls> stood<pad>"
    assert again.encode(text) == made.encode(text)


def test_truncation_padding_and_dropout_of_a_file(tmp_path: Path) -> None:
    """A tokenizer that was saved within a training keeps its truncation, its padding and the dropout of its merges."""
    base = save_base(tmp_path / "base")
    changed = json.loads(json.dumps(rules()))
    changed["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 512}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0}
    changed["padding"] = padding | {"pad_type_id": 0, "pad_token": "<|endoftext|>"}
    changed["model"]["dropout"] = 0.5
    write_json(base, "tokenizer.json", changed)
    write_json(base, "tokenizer_config.json", {"eos_token": "<|endoftext|>", "model_max_length": 16})
    found = models.load_tokenizer(base)
    (ids,) = Encoder(found).encode([TEXT * 20])
    assert ids.tolist() == ids_of(tokenizer(), TEXT * 20)
    assert ids_of(found, TEXT * 20) == ids.tolist()


def test_a_padding_token_that_ends_texts_is_learned(tmp_path: Path) -> None:
    """llm-course#33, granite#2, smol-course#159: with padding = end-of-text, tuned models never stop."""
    made = train_tokenizer([story(n) for n in range(20)], 400)
    made.pad_token = made.eos_token
    texts = [story(number, 10) for number in range(12)]
    store = build_store(iter([part(text) for text in texts]), made, tmp_path / "store", report=dict)
    blocks = pack(store, "train", 64)
    assert blocks.padding_share > 0
    assert blocks.num_targets == sum(len(ids_of(made, text)) + 1 for text in texts)
    batch = blocks.batch(np.arange(len(blocks)))
    assert int((batch.labels == made.pad_token_id).sum()) == len(texts)


@pytest.mark.parametrize("writes_begin", [True, False])
def test_a_conversation_begins_once(writes_begin: bool, tmp_path: Path) -> None:
    """Soup#781, open-r1#462, sglang#888: beginning-of-text twice, from the template and from the tokenizer."""
    from finetale.chat import chat_renderer
    from finetale.config import Config

    made: Any = llama(tmp_path / "base")
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    made.chat_template = ("{{ bos_token }}" if writes_begin else "") + turns
    messages = [{"role": "user", "content": "The lamp?"}, {"role": "assistant", "content": "On the sill."}]
    (tmp_path / "chat.jsonl").write_text("\n".join(json.dumps({"messages": messages}) for _ in range(4)))
    config = Config.resolve({"sources": [str(tmp_path / "chat.jsonl")]})
    parts, report = read_parts(config.sources, config, renderer=chat_renderer(made, config.loss, "base"))
    store = build_store(parts, made, tmp_path / "store", report=report.to_dict)
    tokens = store.tokens.tolist()
    assert tokens.count(1) == len(store.parts) == 4
    assert tokens[0] == 1
    assert tokens[1] != 1


def test_a_tokenizer_without_a_limit_or_padding(tmp_path: Path) -> None:
    """`model_max_length` 1e30 overflows an integer; a missing padding token stops batches of other tools."""
    base = save_model(tmp_path / "base")
    made = train_tokenizer([story(n) for n in range(20)], 400)
    bare = PreTrainedTokenizerFast(tokenizer_object=made.backend_tokenizer, eos_token="<|endoftext|>")
    assert bare.pad_token is None
    assert bare.bos_token is None
    bare.save_pretrained(base)
    write_json(base, "tokenizer_config.json", {"eos_token": "<|endoftext|>", "model_max_length": 1e30})
    write_stories(tmp_path / "stories", 12, words=30)
    words = ["--out", str(tmp_path / "run"), "--max-steps", "1", "--max-new-tokens", "2", "--audit-tokens", "0"]
    assert run(["train", str(tmp_path / "stories"), "--model", str(base), *words]) == 0
    assert run(["generate", str(tmp_path / "run"), "The", "A long story", "-n", "2", "--max-new-tokens", "3"]) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "model").encode("The lamp") == made.encode("The lamp")
