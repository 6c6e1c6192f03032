"""Test that a text begins with the tokens that the model was trained with, or that its tokenizer adds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from finetale import models
from finetale.config import Config, SamplingSettings
from finetale.generate import Generator
from finetale.pipeline import evaluate_on
from finetale.server.completion import Completion, Vocabulary
from finetale.server.wire import CompletionRequest
from finetale.tokens import train_tokenizer

PROMPTS = [f"{start} {place}" for start in ("The miller", "A heron", "Every tale", "Nobody") for place in "abcde"]
TEXT = "The miller told a tale of the river and the old bridge, and nobody told the heron."
GREEDY = SamplingSettings(max_new_tokens=12, temperature=0)


def save(folder: Path, *, adds: bool) -> None:
    """Write a model of somebody else's, whose tokenizer adds beginning-of-text or nothing."""
    tokenizer: Any = train_tokenizer([TEXT] * 8, 300)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin = tokenizer.bos_token_id
    if adds:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", begin)]
        )
    torch.manual_seed(3)
    ends = {"bos_token_id": begin, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(
        n_embd=32, n_layer=2, n_head=2, n_positions=64, vocab_size=begin + 1, initializer_range=0.4, **ends
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("adds", [False, True])
def test_a_model_from_elsewhere_reads_texts_as_in_transformers(adds: bool, tmp_path: Path) -> None:
    save(tmp_path / "model", adds=adds)
    loaded = models.load(str(tmp_path / "model"))
    tokenizer: Any = loaded.tokenizer
    assert len(tokenizer("a")["input_ids"]) == 1 + adds
    written = Generator(loaded.model, tokenizer).generate(PROMPTS, GREEDY)
    vocabulary = Vocabulary(tokenizer, len(tokenizer), 64, bos_before_text=models.mark_of(loaded.model))
    for prompt, (sample,) in zip(PROMPTS, written, strict=True):
        given = tokenizer(prompt, return_tensors="pt")
        served = Completion(CompletionRequest.model_validate({"model": "m", "prompt": prompt}), vocabulary)
        assert served.groups[0][0].job.ids == given["input_ids"][0].tolist()
        output = loaded.model.generate(**given, max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert sample.text == tokenizer.decode(output[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    config = Config.resolve({"sources": [str(text)], "model": str(tmp_path / "model"), "precision": "fp32"})
    measured = evaluate_on(str(tmp_path / "model"), config, lambda event: None)
    ids = [*tokenizer(TEXT)["input_ids"], tokenizer.eos_token_id]
    first = 0.0 if adds else _nats(loaded.model, [tokenizer.bos_token_id, ids[0]])
    targets = len(ids) - adds
    assert measured.tokens == targets
    assert math.log(measured.perplexity) == pytest.approx((first + _nats(loaded.model, ids)) / targets, rel=1e-5)


def _nats(model: Any, ids: list[int]) -> float:
    given = torch.tensor([ids])
    with torch.inference_mode():
        return float(model(input_ids=given, labels=given).loss) * (len(ids) - 1)


def test_a_folder_says_how_its_model_was_trained(tmp_path: Path) -> None:
    save(tmp_path / "theirs", adds=False)
    loaded = models.load(str(tmp_path / "theirs"))
    assert models.mark_of(loaded.model) is None
    models.save(loaded.model, loaded.tokenizer, tmp_path / "untrained")
    models.set_mark(loaded.model, True)
    models.save(loaded.model, loaded.tokenizer, tmp_path / "ours")
    for folder, mark in (("untrained", False), ("ours", True)):
        assert json.loads((tmp_path / folder / "config.json").read_text())["bos_before_text"] is mark
        found = models.load(str(tmp_path / folder))
        assert models.mark_of(found.model) is mark
        begin = found.tokenizer.bos_token_id
        assert Generator(found.model, found.tokenizer).lead == ((begin,) if mark else ())


def test_older_models_of_finetale_were_trained_with_beginning_of_text() -> None:
    loaded = models.load("bundled")
    assert "bos_before_text" not in json.loads((models.names.BUNDLED_FOLDER / "config.json").read_text())
    assert models.mark_of(loaded.model) is True


@pytest.mark.parametrize(
    ("ids", "lead", "expected"),
    [([], (), [9]), ([], (9,), [9]), ([5, 6], (), [5, 6]), ([5], (9,), [9, 5]), ([9, 5], (9,), [9, 5])],
)
def test_a_text_begins_once(ids: list[int], lead: tuple[int, ...], expected: list[int]) -> None:
    assert models.with_lead(ids, lead, 9) == expected


def test_a_tokenizer_that_adds_an_end_too_adds_no_end_to_a_prompt() -> None:
    tokenizer: Any = train_tokenizer([TEXT] * 8, 300)
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    pairs = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pairs)
    assert _lead(tokenizer) == [pairs[0][1]]


def _lead(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(models.lead_of(tokenizer, None))
