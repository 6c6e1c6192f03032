"""Build tiny models, tokenizers, texts and token stores for tests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from finetale import models, tokens
from finetale.models import LoadedModel, Provenance
from finetale.text import Part, Split
from finetale.tokens import TokenStore

DEVICE = torch.device(os.environ.get("FINETALE_TEST_DEVICE", "cpu"))
"""Device of the models. FINETALE_TEST_DEVICE=cuda runs `tests/invariant` on a GPU."""
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
    """Return a text of about `words` words that differs for each number."""
    base = WORDS.split()
    picked = [base[(i * (number + 3) + number * number) % len(base)] for i in range(words)]
    return f"Story {number}. " + " ".join(picked) + f" The end of story {number}."


def write_stories(folder: Path, count: int = 30, words: int = 120) -> Path:
    """Write `count` stories as text files; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:03}.txt").write_text(story(number, words), encoding="utf-8")
    return folder


@lru_cache(maxsize=1)
def tokenizer() -> PreTrainedTokenizerBase:
    """Return a byte-level BPE tokenizer of 400 entries."""
    return tokens.train_tokenizer([story(n) for n in range(20)], 400)


def model(
    seed: int = 0,
    *,
    positions: int = 64,
    dropout: float = 0.0,
    attention_dropout: float | None = None,
    scale: float = 0.2,
) -> GPT2LMHeadModel:
    """Return a GPT-2 with 2 layers and width 32. `attention_dropout` is `dropout` if None."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer()),
        n_positions=positions,
        n_embd=32,
        n_layer=2,
        n_head=2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout if attention_dropout is None else attention_dropout,
        initializer_range=scale,
        bos_token_id=0,
        eos_token_id=0,
        bos_before_text=True,  # as in a model that Finetale trained
    )
    return GPT2LMHeadModel(config).eval().to(DEVICE)


def llama_model(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """Return a Llama with 2 layers, width 32 and two query heads per key. `changes` are other values of its config."""
    torch.manual_seed(seed)
    values: dict[str, Any] = {
        "vocab_size": len(tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "bos_before_text": True,
    }
    return LlamaForCausalLM(LlamaConfig(**values | changes)).eval().to(DEVICE)


def bound(cpu: float, gpu: float) -> float:
    """Return the relative difference that a test allows on its device. A GPU adds in an order that varies."""
    return cpu if DEVICE.type == "cpu" else gpu


def loaded(seed: int = 0, **settings: Any) -> LoadedModel:
    """Return the tiny model as `models.load` would."""
    tiny = model(seed, **settings)
    return LoadedModel(tiny, tokenizer(), Provenance("tiny", "local", None, "0" * 64, tiny.num_parameters()))


def save_model(folder: Path, seed: int = 0, **settings: Any) -> Path:
    """Save the tiny model; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    models.save(model(seed, **settings), tokenizer(), folder)
    return folder


def part(text: str, split: Split = "train", *, ends: bool = True, dropped: str | None = None) -> Part:
    """Return a part of a document as `text.read_parts` would."""
    return Part(text=text, source="made-up", line=1, split=split, digest=text[:16], dropped=dropped, ends=ends)


def store(folder: Path, texts: Sequence[str | Part]) -> TokenStore:
    """Return a token store of the tiny tokenizer."""
    parts = [item if isinstance(item, Part) else part(item) for item in texts]
    return tokens.build_store(iter(parts), tokenizer(), folder / "store", report=dict)
