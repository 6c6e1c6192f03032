"""How a tokenizer changes a text, and how well it fits one."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from finetale import models
from finetale.cli import run
from finetale.round_trip import TextSample, changes
from finetale.tokenizer_report import measure, new_sample
from tiny import loaded, save_model, story, tokenizer, write_stories


def unigram(normalizer: normalizers.Normalizer) -> PreTrainedTokenizerBase:
    raw = Tokenizer(tokenizer_models.Unigram())
    raw.normalizer = normalizer
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    raw.train_from_iterator([story(number) + "\nÉé" for number in range(20)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>")


def bert() -> PreTrainedTokenizerBase:
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"你好河水桥我们去边", "mill", "cafe", "the", "naive"]
    made: PreTrainedTokenizerBase = BertTokenizer(vocab={entry: number for number, entry in enumerate(entries)})
    return made


def test_text_that_comes_back_exactly() -> None:
    text = "  The naïve   café;\n\n今天 \t end. <|endoftext|> ﬁ e\u0301 " + story(3)
    sample = TextSample()
    sample.add(text)
    assert "".join(sample.units) == text
    assert changes(tokenizer(), sample.units) is None


def test_changed_text_is_shown_with_its_share() -> None:
    found = changes(bert(), ["the Naïve café the mill"])
    assert found is not None
    assert (found.before, found.after) == ("the Naïve café", "the naive cafe")
    assert not found.only_spaces
    assert found.share == pytest.approx(9 / 23)
    assert "“the Naïve" in found.sentence()
    assert f"({9 / 23:.2%} of a sample is changed)" in found.sentence()


def test_spaces_that_are_added_or_removed() -> None:
    found = changes(bert(), ["我们去河边"])
    assert found is not None
    assert found.only_spaces
    assert found.share == pytest.approx(4 / 5)
    assert found.sentence().startswith("The tokenizer changes the spaces and line ends: “我们去” becomes “我 们")
    found = changes(unigram(normalizers.Replace("\n", " ")), ["the lamp stood\non the sill"])
    assert found is not None
    assert (found.before, found.after) == (" stood\\non ", " stood on ")
    assert found.share == pytest.approx(1 / 26)


def test_unknown_text_is_no_change() -> None:
    """It has a warning of its own."""
    assert changes(bert(), ["the mill Ж the"]) is None


def test_a_sample_is_bounded_and_spread_over_the_text() -> None:
    sample = TextSample(10_000)
    words = [f"w{number}" for number in range(100_000)]
    for start in range(0, len(words), 1000):
        sample.add(" ".join(words[start : start + 1000]) + " ")
    text = "".join(sample.units)
    assert 5_000 <= len(text) <= 10_000
    found = [int(word[1:]) for word in text.split() if word[1:].isdigit() and len(word) > 1]
    assert found[0] == 0
    assert max(found) > 90_000
    assert sum(20_000 < number < 60_000 for number in found) > 0.2 * len(found)


def chinese(count: int) -> str:
    rng = random.Random(1)
    words = ["今天", "我们", "去河边", "看见", "一只", "白鹭", "站在", "浅水里", "等着", "，", "。"]
    return "".join(rng.choices(words, k=count))


def test_a_tokenizer_that_fits_badly() -> None:
    sample = new_sample()
    sample.add(chinese(30_000))
    fit = measure(tokenizer(), sample)
    assert fit is not None
    assert fit.fragments_share == 1.0
    assert fit.bytes_per_token == 1.0
    assert fit.own_vocab_size is not None
    assert fit.own_bytes_per_token is not None
    assert fit.own_vocab_size <= fit.vocab_size == 400
    assert fit.own_bytes_per_token > 3
    assert f"it needs {fit.own_bytes_per_token:.1f} times the tokens" in str(fit.advice)
    assert "100% of its tokens are fragments of characters" in str(fit.advice)
    fit = measure(bert(), sample)
    assert fit is not None
    assert fit.unknown_share > 0.1
    assert "of its tokens are unknown text" in str(fit.advice)


def test_a_tokenizer_that_fits() -> None:
    sample = new_sample()
    for number in range(200):
        sample.add(story(number))
    fit = measure(tokenizer(), sample)
    assert fit is not None
    assert (fit.advice, fit.fragments_share, fit.changed_share) == (None, 0.0, 0.0)
    assert fit.own_bytes_per_token == pytest.approx(fit.bytes_per_token, rel=0.1)
    little = new_sample()
    little.add(story(1))
    fit = measure(tokenizer(), little)
    assert fit is not None
    assert fit.own_vocab_size is None
    assert measure(tokenizer(), new_sample()) is None


def test_check_shows_the_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_model(tmp_path / "base")
    source = tmp_path / "text.txt"
    source.write_text("\n".join(chinese(10) for _ in range(3000)), encoding="utf-8")
    assert run(["check", str(source), "--model", str(base)]) == 0
    shown = capsys.readouterr().out
    assert "one trained on this text" in shown
    assert "fragments of characters" in shown
    assert "note: The tokenizer does not fit the text: it needs" in shown
    assert run(["check", str(source), "--model", str(base), "--json"]) == 0
    fit = json.loads(capsys.readouterr().out)["tokenizer_fit"]
    assert fit["bytes_per_token"] < 1.1 < fit["own_bytes_per_token"]
    assert run(["check", str(source), "--model", "new:1m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokenizer_fit"] is None


def test_training_warns_of_changed_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = unigram(normalizers.Sequence([normalizers.Lowercase(), normalizers.StripAccents()]))
    models.save(loaded().model, made, tmp_path / "base")
    write_stories(tmp_path / "stories", 12, words=30)
    words = ["--out", str(tmp_path / "run"), "--max-steps", "1", "--max-new-tokens", "2", "--audit-tokens", "0"]
    assert run(["train", str(tmp_path / "stories"), "--model", str(tmp_path / "base"), *words]) == 0
    assert "warning: The tokenizer changes the text: “" in capsys.readouterr().err
    assert "The tokenizer changes the text" in json.loads((tmp_path / "run" / "data.json").read_text())["warnings"][-1]
