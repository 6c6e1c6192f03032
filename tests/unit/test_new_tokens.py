"""`--new-tokens`, and added tokens of a tokenizer that have no embedding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    PreTrainedModel,
)

import finetale
from finetale import models
from finetale.cli import run
from finetale.config import Config
from finetale.errors import ConfigError, TokenizerError
from finetale.models.vocabulary import grow
from finetale.tokens import tokenizer_hash, train_tokenizer
from tiny import model as tiny_model
from tiny import save_model, story, tokenizer, write_stories

NEW = ["Finglewort", "Óðinn", "河边", " the lamp", "<note>"]


def fresh() -> Any:
    """Return a tokenizer that a test may change."""
    return train_tokenizer([story(n) for n in range(20)], 400)


def other_model(*, tied: bool) -> PreTrainedModel:
    """Return a GPT-J, whose output layer has a bias."""
    torch.manual_seed(0)
    config = GPTJConfig(vocab_size=400, n_positions=64, n_embd=32, n_layer=1, n_head=2, rotary_dim=8)
    config.tie_word_embeddings = tied
    made = GPTJForCausalLM(config)
    torch.nn.init.normal_(made.lm_head.bias)
    return made


def test_ids_of_other_tokens_stay_and_text_comes_back() -> None:
    made = fresh()
    before = dict(made.get_vocab())
    added, existing = models.add_new_tokens(made, [*NEW, "e"])
    assert existing == ["e"]
    assert {text: number for text, number in made.get_vocab().items() if text in before} == before
    assert [token.id for token in added][:5] == list(range(400, 405))
    for token in added:
        assert made.encode(token.text) == [token.id]
        assert list(token.pieces) == tokenizer().encode(token.text)
    text = "A Finglewort and Finglewortish <note> the lamp; 我们去河边。 Óðinn  Finglewort"
    ids = made.encode(text)
    assert made.decode(ids) == text
    assert ids.count(400) == 2  # not within a longer word
    assert ids.count(402) == 1  # Chinese has no spaces


def test_embeddings_begin_as_the_mean_of_the_pieces() -> None:
    for model in (tiny_model(), other_model(tied=False)):
        made = fresh()
        added, _ = models.add_new_tokens(made, NEW)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        grow(model, made, added)
        assert model.config.vocab_size == 405
        tied = model.config.tie_word_embeddings
        assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
        head = model.get_output_embeddings()
        matrices = [
            (model.get_input_embeddings().weight, before[name_of(model)]),
            (head.weight, before["lm_head.weight"]),
        ]
        if head.bias is not None:
            matrices.append((head.bias, before["lm_head.bias"]))
        for matrix, old in matrices:
            assert matrix.shape[0] == 405
            assert torch.equal(matrix[:400], old)
            for token in added:
                assert torch.allclose(matrix[token.id], old[list(token.pieces)].mean(0), atol=1e-6)


def name_of(model: PreTrainedModel) -> str:
    embedding = model.get_input_embeddings().weight
    return next(key for key, value in model.named_parameters() if value is embedding)


def test_rows_that_exist_already_are_used() -> None:
    """Models often have more rows than tokens; these must not be cut off."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=448, n_positions=64, n_embd=32, n_layer=1, n_head=2))
    made = fresh()
    added, _ = models.add_new_tokens(made, ["Finglewort"])
    old = model.get_input_embeddings().weight.clone()
    grow(model, made, added)
    weight = model.get_input_embeddings().weight
    assert weight.shape[0] == model.config.vocab_size == 448
    assert torch.equal(weight[401:], old[401:])
    assert torch.allclose(weight[400], old[list(added[0].pieces)].mean(0), atol=1e-6)


def test_files_and_lists(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeffFinglewort\r\n\r\nÓðinn\r\nFinglewort\r\n the lamp".encode())
    assert models.read_new_tokens([str(file), "<note>", "Óðinn"]) == ["Finglewort", "Óðinn", " the lamp", "<note>"]
    for entries, said in (
        (["   "], "names no token"),
        (["x" * 300], "has 300 characters"),
        ([str(tmp_path / "none.txt")], "does not exist"),
    ):
        with pytest.raises(ConfigError, match=said):
            models.read_new_tokens(entries)
    file.write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        models.read_new_tokens([str(file)])
    with pytest.raises(TokenizerError, match="has all tokens of --new-tokens already, such as 'e'"):
        models.add_new_tokens(fresh(), ["e"])


def test_frozen_embeddings_can_not_learn_new_tokens() -> None:
    with pytest.raises(ConfigError, match="new_tokens need trained embeddings, and freeze embeddings keeps them"):
        Config.resolve({"new_tokens": ["x"], "freeze": "embeddings"})


def train(tmp_path: Path, out: str, *words: str) -> Path:
    given = ["train", str(tmp_path / "stories"), "--model", str(tmp_path / "base"), "--out", str(tmp_path / out)]
    fixed = ["--max-new-tokens", "2", "--audit-tokens", "0", "--no-probe", "--save-every", "1", "--precision", "fp32"]
    assert run([*given, *fixed, *words]) == 0
    return tmp_path / out


def test_training_resuming_saving_and_generating(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "base")
    write_stories(tmp_path / "stories", 12, words=30)
    (tmp_path / "names.txt").write_text("Finglewort\nheron\nwaited\ne\n", encoding="utf-8")
    new = ["--new-tokens", str(tmp_path / "names.txt"), "--new-tokens", "<note>"]
    given = {"model": str(tmp_path / "base"), "new_tokens": new[1::2]}
    counted = finetale.check(str(tmp_path / "stories"), **given).tokens.read
    whole = train(tmp_path, "whole", *new, "--max-steps", "4")
    said = capsys.readouterr().err
    assert "4 tokens added to the 400 of the model." in said
    assert "1 new token left out, because the tokenizer has them already: 'e'" in said
    assert json.loads((whole / "data.json").read_text())["tokens"]["read"] == counted
    (tmp_path / "names.txt").unlink()
    literal = [word for text in ("Finglewort", "heron", "waited", "<note>") for word in ("--new-tokens", text)]
    stopped = train(tmp_path, "stopped", *literal, "--max-steps", "4")
    for step in ("step-00000003", "step-00000004"):
        for file in (stopped / "checkpoints" / step).glob("*"):
            file.unlink()
    (stopped / "run.json").write_text((stopped / "run.json").read_text().replace('"finished"', '"interrupted"'))
    assert run(["resume", str(stopped)]) == 0
    results = [AutoModelForCausalLM.from_pretrained(folder / "model") for folder in (whole, stopped)]
    for name, weights in results[0].named_parameters():
        assert torch.equal(weights, results[1].get_parameter(name)), name
    assert results[0].config.vocab_size == 404
    assert results[0].get_output_embeddings().weight is results[0].get_input_embeddings().weight
    again = AutoTokenizer.from_pretrained(whole / "model")
    assert again.encode("heron") == [401]
    assert tokenizer_hash(again) == tokenizer_hash(models.load_tokenizer(whole))
    assert run(["generate", str(whole), "The heron waited", "--max-new-tokens", "3"]) == 0
    assert run(["compare", str(whole)]) == 0


def test_an_added_token_without_an_embedding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tokenizers are saved with a padding token that was never given to the model."""
    save_model(tmp_path / "base")
    made = fresh()
    made.add_special_tokens({"pad_token": "[PAD]"})
    made.save_pretrained(tmp_path / "base")
    loaded = models.load(str(tmp_path / "base"))
    assert "1 added token of the tokenizer of" in str(loaded.warning)
    assert "('[PAD]') had no embedding" in str(loaded.warning)
    weight = loaded.model.get_input_embeddings().weight
    assert torch.allclose(weight[400], weight[:400].mean(0), atol=1e-6)
    write_stories(tmp_path / "stories", 12, words=30)
    result = train(tmp_path, "run", "--max-steps", "1")
    assert "('[PAD]') had no embedding" in capsys.readouterr().err
    assert AutoModelForCausalLM.from_pretrained(result / "model").config.vocab_size == 401
    assert AutoTokenizer.from_pretrained(result / "model").pad_token_id == 400


def test_a_tokenizer_of_another_model_is_refused_before_the_text_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "base")
    train_tokenizer([story(n) for n in range(20)], 420).save_pretrained(tmp_path / "base")
    write_stories(tmp_path / "stories", 12, words=30)
    words = ["train", str(tmp_path / "stories"), "--model", str(tmp_path / "base"), "--out", str(tmp_path / "run")]
    assert run(words) == 1
    said = capsys.readouterr().err
    assert "it has ids up to 419, and the model has 400 embeddings" in said
    assert "Reading and tokenising" not in said
