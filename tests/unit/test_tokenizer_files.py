"""Tokenizers as they are found in model folders: few files, no class, the wrong class, odd vocabularies."""

from __future__ import annotations

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from finetale import extras, models
from finetale.cli import run
from finetale.errors import FinetaleError, TokenizerError
from finetale.tokens import begin_and_end
from tiny import story, tokenizer

TEXT = "The  naïve 12 boats 2023;\n你好 — it's 'x' , ok . Ünï\n\nnew"
PLAIN = "the lamp stood on the sill and the boat lay in the reeds. nobody came down to the water before noon."


def config_of(kind: str, rows: int) -> Any:
    if kind == "gpt2":
        return GPT2Config(vocab_size=rows, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind](
        vocab_size=rows, max_position_embeddings=64, num_key_value_heads=2, **sizes
    )


def save_base(folder: Path, kind: str = "gpt2", rows: int = 400) -> Path:
    """Save a model with random weights and no tokenizer; return the folder."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    classes: dict[str, Any] = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM, "qwen2": Qwen2ForCausalLM}
    classes[kind](config_of(kind, rows)).save_pretrained(folder)
    return folder


@lru_cache(maxsize=1)
def rules() -> dict[str, Any]:
    """Return the tokenizer.json of the tiny tokenizer."""
    found: dict[str, Any] = json.loads(tokenizer().backend_tokenizer.to_str())
    return found


def write_json(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def write_vocabulary_and_merges(folder: Path) -> None:
    write_json(folder, "vocab.json", rules()["model"]["vocab"])
    merges = "\n".join(" ".join(pair) for pair in rules()["model"]["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")


def train_pieces(folder: Path, kind: str, name: str = "tokenizer.model", **settings: Any) -> Any:
    """Train a SentencePiece model into a folder; return its processor."""
    texts = folder / "texts.txt"
    texts.write_text("\n".join(story(number) for number in range(20)), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(texts),
        model_prefix=str(folder / "trained"),
        vocab_size=380,
        hard_vocab_limit=False,
        model_type=kind,
        minloglevel=2,
        **settings,
    )
    (folder / "trained.model").rename(folder / name)
    for file in (texts, folder / "trained.vocab"):
        file.unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / name))


def write_bert(folder: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"你好河水桥,.;—", *letters, *(f"##{x}" for x in letters)]
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n", encoding="utf-8")


def reloaded_by_transformers(folder: Path, target: Path) -> PreTrainedTokenizerBase:
    """Load and save a model, and load its tokenizer as users of transformers do."""
    loaded = models.load(str(folder))
    models.save(loaded.model, loaded.tokenizer, target)
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(target)
    return found


def ids_of(found: PreTrainedTokenizerBase, text: str = TEXT) -> list[int]:
    ids: list[int] = found.encode(text, add_special_tokens=False)
    return ids


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_vocabulary_and_merges_only(kind: str, tmp_path: Path) -> None:
    """transformers knows the class for GPT-2 only, and `GPT2TokenizerFast(vocab_file=…)` builds an empty tokenizer."""
    folder = save_base(tmp_path / "base", kind)
    write_vocabulary_and_merges(folder)
    assert ids_of(models.load_tokenizer(folder)) == ids_of(tokenizer())
    assert ids_of(reloaded_by_transformers(folder, tmp_path / "saved")) == ids_of(tokenizer())


@pytest.mark.parametrize("named", [{}, {"tokenizer_class": "BertTokenizer", "do_lower_case": True}])
def test_a_vocabulary_of_bert_for_gpt2(named: dict[str, Any], tmp_path: Path) -> None:
    """Chinese GPT-2 models have vocab.txt; AutoTokenizer without a class gives an empty tokenizer."""
    folder = save_base(tmp_path / "base")
    write_bert(folder)
    if named:
        write_json(folder, "tokenizer_config.json", named)
    found = models.load_tokenizer(folder)
    assert isinstance(found, BertTokenizer)
    assert begin_and_end(found) == (2, 3)
    assert found.decode(ids_of(found, "你好河水")) == "你 好 河 水"
    again = reloaded_by_transformers(folder, tmp_path / "saved")
    assert ids_of(again, PLAIN) == ids_of(found, PLAIN)
    assert AutoConfig.from_pretrained(tmp_path / "saved").eos_token_id == 3


@pytest.mark.parametrize(
    "named", [{}, {"tokenizer_class": "NoSuchTokenizer"}, {"tokenizer_class": "GPT2TokenizerFast"}]
)
def test_a_class_that_is_missing_or_unknown(named: dict[str, Any], tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base")
    write_json(folder, "tokenizer.json", rules())
    write_json(
        folder,
        "tokenizer_config.json",
        {"tokenizer_class": named, "eos_token": "<|endoftext|>", "model_max_length": 1e30},
    )
    assert ids_of(models.load_tokenizer(folder)) == ids_of(tokenizer())
    assert ids_of(reloaded_by_transformers(folder, tmp_path / "saved")) == ids_of(tokenizer())


@pytest.mark.parametrize(
    ("model", "kind", "named"),
    [
        ("llama", "bpe", {}),
        ("llama", "unigram", {}),
        ("llama", "unigram", {"tokenizer_class": "LlamaTokenizer"}),
        ("gpt2", "bpe", {}),
    ],
)
def test_a_sentencepiece_model_only(model: str, kind: str, named: dict[str, Any], tmp_path: Path) -> None:
    """transformers loses spaces in some of these; SentencePiece's own tokens are right."""
    folder = save_base(tmp_path / "base", model)
    processor = train_pieces(folder, kind)
    if named:
        write_json(folder, "tokenizer_config.json", named)
    found = models.load_tokenizer(folder)
    for text in (TEXT, story(1), f" {PLAIN}  {PLAIN}"):
        assert ids_of(found, text) == processor.encode(text)
        assert found.decode(ids_of(found, text)) == processor.decode(processor.encode(text)).replace(" ⁇ ", "<unk>")
    again = reloaded_by_transformers(folder, tmp_path / "saved")
    assert ids_of(again) == ids_of(found)


def test_a_sentencepiece_model_of_llama(tmp_path: Path) -> None:
    """With its class named, the class is used, as by everyone who trained such a model with transformers."""
    folder = save_base(tmp_path / "base", "llama")
    unchanged = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    processor = train_pieces(folder, "bpe", byte_fallback=True, **unchanged)
    named = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "padding_side": "left"}
    write_json(folder, "tokenizer_config.json", named)
    found = models.load_tokenizer(folder)
    assert ids_of(found) == processor.encode(TEXT)
    assert found.decode(ids_of(found)) == TEXT
    again = reloaded_by_transformers(folder, tmp_path / "saved")
    assert again.encode(TEXT) == found.encode(TEXT) == [1, *processor.encode(TEXT)]
    assert again.padding_side == "left"


def test_sentencepiece_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_base(tmp_path / "base", "llama")
    train_pieces(folder, "bpe")
    monkeypatch.setattr("finetale.models.tokenizer_files.is_installed", lambda package: False)
    with pytest.raises(TokenizerError, match="needs the package sentencepiece") as caught:
        models.load_tokenizer(folder)
    assert "pip install 'finetale[sentencepiece]'" in caught.value.hint
    assert extras.EXTRA_OF["sentencepiece"] == "sentencepiece"


def test_rules_that_a_class_ignores(tmp_path: Path) -> None:
    """For Qwen 2, transformers applies the class's rules to any tokenizer.json, and the tokens differ."""
    folder = save_base(tmp_path / "base", "qwen2")
    write_json(folder, "tokenizer.json", rules())
    write_json(folder, "tokenizer_config.json", {"eos_token": "<|endoftext|>"})
    assert ids_of(AutoTokenizer.from_pretrained(folder)) != ids_of(tokenizer())
    found = models.load_tokenizer(folder)
    assert ids_of(found) == ids_of(tokenizer())
    assert "reads the tokenizer of" in str(models.tokenizer_warning(found))
    assert "as Qwen2Tokenizer" in str(models.tokenizer_warning(found))
    assert "as Qwen2Tokenizer" in str(models.load(str(folder)).warning)


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base")
    with pytest.raises(FinetaleError):
        models.load_tokenizer(folder)
    shutil.copy(Path(__file__), folder / "tokenizer.model")
    with pytest.raises(TokenizerError) as caught:
        models.load_tokenizer(folder)
    assert "tokenizer.model" in str(caught.value)


@pytest.mark.parametrize("kind", ["vocabulary and merges", "bert", "sentencepiece"])
def test_from_training_to_generating(kind: str, tmp_path: Path) -> None:
    """A run is resumed bit by bit, and its tokenizer is the same in transformers."""
    folder = save_base(tmp_path / "base", "llama" if kind == "sentencepiece" else "gpt2")
    {
        "vocabulary and merges": write_vocabulary_and_merges,
        "bert": write_bert,
        "sentencepiece": lambda place: train_pieces(place, "unigram"),
    }[kind](folder)
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(12):
        (texts / f"{number}.txt").write_text(f"{PLAIN} {PLAIN[number:]}", encoding="utf-8")
    fixed = ["--max-new-tokens", "2", "--audit-tokens", "0", "--no-probe", "--save-every", "1", "--precision", "fp32"]
    words = ["train", str(texts), "--model", str(folder), "--max-steps", "2", *fixed]
    weights = []
    for name in ("whole", "stopped"):
        out = tmp_path / name
        assert run([*words, "--out", str(out)]) == 0
        if name == "stopped":
            shutil.rmtree(out / "checkpoints" / "step-00000002")
            manifest = out / "run.json"
            manifest.write_text(manifest.read_text().replace('"finished"', '"interrupted"'))
            assert run(["resume", str(out)]) == 0
        weights.append(load_file(out / "model" / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    made, again = models.load_tokenizer(folder), AutoTokenizer.from_pretrained(tmp_path / "stopped" / "model")
    assert ids_of(again) == ids_of(made)
    end = json.loads((tmp_path / "stopped" / "model" / "generation_config.json").read_text())["eos_token_id"]
    assert end == begin_and_end(made)[1]
    assert run(["generate", str(tmp_path / "stopped"), "the lamp", "--max-new-tokens", "3"]) == 0
