"""Tiny models, tokenizers and stores that tests build for themselves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from finetale import models, tokens
from finetale.models import LoadedModel, Provenance
from finetale.text import Part, Split
from finetale.tokens import TokenStore

MODEL_FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
WORDS = (
    "The lamp stood on the sill and the boat lay in the reeds. Nobody came down to the water before noon. "
    "She counted the eggs twice, then once more, and wrote the number on the door. A heron waited in the shallows, "
    "grey and patient as a fence post. When the wind turned, the old man whistled for his dog and went home. "
)


def story(number: int, words: int = 120) -> str:
    """A text of so many words that differs for each number."""
    base = WORDS.split()
    picked = [base[(i * (number + 3) + number * number) % len(base)] for i in range(words)]
    return f"Story {number}. " + " ".join(picked) + f" The end of story {number}."


def write_stories(folder: Path, count: int = 30, words: int = 120) -> Path:
    """A folder of text files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:03}.txt").write_text(story(number, words), encoding="utf-8")
    return folder


@lru_cache(maxsize=1)
def tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of 400 entries."""
    return tokens.train_tokenizer([story(n) for n in range(20)], 400)


def model(seed: int = 0, *, positions: int = 64, dropout: float = 0.0, scale: float = 0.2) -> GPT2LMHeadModel:
    """A GPT-2 of 2 layers, 32 wide."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer()),
        n_positions=positions,
        n_embd=32,
        n_layer=2,
        n_head=2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        initializer_range=scale,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


def loaded(seed: int = 0, **settings: Any) -> LoadedModel:
    """The tiny model as `models.load` would give it."""
    tiny = model(seed, **settings)
    return LoadedModel(tiny, tokenizer(), Provenance("tiny", "local", None, "0" * 64, tiny.num_parameters()))


def save_model(folder: Path, seed: int = 0, **settings: Any) -> Path:
    """The tiny model in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    models.save(model(seed, **settings), tokenizer(), folder)
    return folder


def part(text: str, split: Split = "train", *, ends: bool = True, dropped: str | None = None) -> Part:
    """A part of a document as `text.read_parts` would give it."""
    return Part(text=text, source="made-up", line=1, split=split, digest=text[:16], dropped=dropped, ends=ends)


def store(folder: Path, texts: Sequence[str | Part]) -> TokenStore:
    """A token store of the tiny tokenizer."""
    parts = [item if isinstance(item, Part) else part(item) for item in texts]
    return tokens.build_store(iter(parts), tokenizer(), folder / "store", report=dict)
