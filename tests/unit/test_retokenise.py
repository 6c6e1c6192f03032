"""Test retokenising: the held-out tokens of a run are decoded and encoded with another tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from finetale import tokens
from finetale.chat import chat_renderer
from finetale.config import Config
from finetale.pipeline.data import retokenise
from finetale.text import read_parts
from tiny import story, tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALKS = [
    ["Who sat by the river?", f"The old man, number {n}.", "What did he do – then?", "He whistled for his “dog”."]
    for n in range(4)
]


def chatml() -> PreTrainedTokenizerBase:
    """Return a tokenizer with other tokens, another end-of-text and chat markers."""
    made: Any = tokens.train_tokenizer([story(n) for n in range(20)], 300)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.eos_token = "<|im_end|>"
    made.chat_template = CHATML
    found: PreTrainedTokenizerBase = made
    return found


def learned(store: tokens.TokenStore, reader: PreTrainedTokenizerBase) -> list[list[str]]:
    """Return the decoded learned pieces of each part, with special tokens in brackets."""
    found = []
    for part in range(len(store.parts)):
        ids, at, pieces = store.ids(part), 0, []
        for start, stop in [*store.context_of(part).tolist(), (len(ids), len(ids))]:
            if start > at:
                pieces.append(reader.decode(ids[at:start].tolist()))
            at = stop
        found.append(pieces)
    return found


@pytest.mark.parametrize("swapped", [False, True])
def test_examples_keep_their_context(swapped: bool, tmp_path: Path) -> None:
    old, new = (chatml(), tokenizer()) if swapped else (tokenizer(), chatml())
    rows = [{"messages": [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(talk)]}
            for talk in TALKS]  # fmt: skip
    source = tmp_path / "talks.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    config = Config.resolve(
        {"sources": (str(source),), "test": (str(source),), "drop_overlap": "off", "cache_dir": str(tmp_path / "cache")}
    )
    parts, report = read_parts(config.sources, config, renderer=chat_renderer(old, config.loss))
    store = tokens.build_store(parts, old, tmp_path / "store", report=report.to_dict)
    found = retokenise(store, old, new, config, lambda event: None)
    ends = [reader.eos_token for reader in (old, new)]
    for end, each, reader in ((ends[0], store, old), (ends[1], found, new)):
        pieces = learned(each, reader)[-4:]
        assert pieces == [[f"{talk[1]}{end}", talk[3]] for talk in TALKS]
    held_out = store.parts[store.parts_of("test")]
    assert len(held_out) == 4
    assert found.num_targets("train") == 0
    for column in ("words", "bytes", "split", "ends"):
        assert found.parts[column].tolist() == held_out[column].tolist()
    assert held_out["bytes"].tolist() == [len((talk[1] + talk[3]).encode()) for talk in TALKS]
    assert held_out["words"].tolist() == [5 + 5 for _ in TALKS]


def test_running_text_is_unchanged(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text(story(1))
    config = Config.resolve({"sources": (str(source),), "test": (str(source),), "cache_dir": str(tmp_path / "cache")})
    config = config.model_copy(update={"drop_overlap": "off"})
    parts, report = read_parts(config.sources, config)
    store = tokens.build_store(parts, tokenizer(), tmp_path / "store", report=report.to_dict)
    found = retokenise(store, tokenizer(), chatml(), config, lambda event: None)
    assert [chatml().decode(found.ids(0).tolist())] == [story(1)]
    assert found.parts["words"].tolist() == [len(story(1).split())]
