"""Test the bundled tales, and the bundled base model with its card."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

import finetale as ft
from finetale import models
from finetale.models.names import BUNDLED_FOLDER

TALES = Path(ft.__file__).parent / "bundled" / "tales"


@pytest.fixture(scope="module")
def tales() -> dict[str, str]:
    """Return the texts of the tales by file name."""
    return {path.name: path.read_text(encoding="ascii") for path in sorted(TALES.iterdir())}


def test_there_are_enough_tales(tales: dict[str, str]) -> None:
    assert len(tales) >= 120
    assert sum(len(text.split()) for text in tales.values()) >= 25_000
    assert sorted(int(name.split("-")[0]) for name in tales) == list(range(1, len(tales) + 1))
    guide = (Path(__file__).parents[2] / "docs/tales-world.md").read_text(encoding="utf-8")
    listed = re.findall(r"^(\d+)\. ", guide.partition("## Told so far")[2], re.MULTILINE)
    assert listed == [str(number) for number in range(1, len(tales) + 1)]


def test_every_tale_has_its_title_as_its_name(tales: dict[str, str]) -> None:
    for name, text in tales.items():
        title, blank, rest = text.split("\n", 2)
        assert name.split("-", 1)[1] == re.sub(r"[^a-z0-9]+", "-", title.lower().replace("'", "")).strip("-") + ".txt"
        assert not blank
        assert 200 <= len(rest.split()) <= 420, name
        assert not re.search(r"[ \t]$|\n\n\n|\t|  ", text, re.MULTILINE), name
        assert text.endswith("\n")


def test_no_two_tales_share_a_paragraph_or_a_run_of_ten_words(tales: dict[str, str]) -> None:
    paragraphs = Counter(paragraph for text in tales.values() for paragraph in set(text.strip().split("\n\n")))
    assert [paragraph for paragraph, count in paragraphs.items() if count > 1] == []
    runs: Counter[tuple[str, ...]] = Counter()
    for text in tales.values():
        words = re.findall(r"[a-z']+", text.lower())
        runs.update({tuple(words[at : at + 10]) for at in range(len(words) - 9)})
    assert [" ".join(run) for run, count in runs.items() if count > 1] == []


def test_tales_have_dialogue_verse_and_letters(tales: dict[str, str]) -> None:
    spoken = [name for name, text in tales.items() if text.count('"') >= 6]
    verse = [name for name, text in tales.items() if re.search(r"(?:^.{8,60}\n){3,}", text, re.MULTILINE)]
    letters = [
        name for name, text in tales.items() if re.search(r"^(?:My )?(?:[Dd]ear|Sirs?,|Madam)\b", text, re.MULTILINE)
    ]
    assert len(spoken) >= 60
    assert len(verse) >= 8
    assert len(letters) >= 5


def test_every_tale_names_the_world_of_the_tales(tales: dict[str, str]) -> None:
    world = re.findall(
        r"\S+",
        "Tarrow Grummet Pellimoor Sallowfen Wrackstaith Staith Cradlewick Hushwood Thrum Dunnet Tolly Bartle Damaris "
        "Issy Fenner Vane Lettice Ninnis Posy Thessaly Fipple Stint Ploy Marrable Ruddle Skein Keziah Odd Wick Dorrick "
        "Sloe Rook Amble slackling murrow pobbin tallick quillet glim-warden owlock thatchel nibbet smeak ploshet "
        "thrumble wimble doorling pecks Eelrun Loose Candlethaw Mudwake Lambloud Greenstep Haymoon Goldstook Smokefall "
        "Longlamp Deepnap Kneadday Ferryday Sitday",
    )
    for name, text in tales.items():
        words = set(re.findall(r"[A-Za-z-]+", text.replace("'s", "")))
        assert len(words & set(world)) >= 4, name


def test_tales_are_a_source_in_any_installation(tales: dict[str, str]) -> None:
    report = ft.check("bundled:tales", offline=True).text
    assert report.documents == len(tales)
    names = [f"bundled:tales/{name}" for name in tales]
    assert [file.file for file in report.files] == names[: len(report.files)]


def test_the_model_is_a_small_gpt2_in_half_precision() -> None:
    config = json.loads((BUNDLED_FOLDER / "config.json").read_text())
    assert config["model_type"] == "gpt2"
    assert config["n_positions"] >= 512
    assert 6_000 <= config["vocab_size"] <= 10_000
    with safe_open(BUNDLED_FOLDER / "model.safetensors", framework="pt") as file:  # type: ignore[no-untyped-call]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {tensor.dtype for tensor in tensors.values()} <= {torch.float16, torch.bfloat16}
    assert 3e6 <= sum(tensor.numel() for tensor in tensors.values()) <= 12e6
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert sum(file.stat().st_size for file in BUNDLED_FOLDER.iterdir()) <= 24 * 2**20


def test_the_model_is_held_in_fp32_and_all_of_it_trains() -> None:
    loaded = models.load("bundled")
    assert loaded.provenance.kind == "bundled"
    assert {(each.dtype, each.requires_grad) for each in loaded.model.parameters()} == {(torch.float32, True)}


def test_the_tokenizer_encodes_every_byte_and_has_an_end_of_text() -> None:
    tokenizer = models.load_tokenizer("bundled")
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == tokenizer.eos_token_id
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    assert len(alphabet) == 256
    assert set(alphabet) <= set(tokenizer.get_vocab())
    for text in ("Tarrowside", "Ünïcödé 漢字 🙂\r\n\t\x00 end", "".join(map(chr, range(1, 0x250))), "  two  spaces "):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_plain_transformers_loads_the_model_with_the_same_results() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_FOLDER)
    plain = AutoModelForCausalLM.from_pretrained(BUNDLED_FOLDER, dtype=torch.float32).eval()
    ids = tokenizer("The old woman went down to the river with her basket, and", return_tensors="pt").input_ids
    with torch.inference_mode():
        ours = models.load("bundled").model(ids).logits
        torch.testing.assert_close(ours, plain(ids).logits, rtol=1e-4, atol=1e-4)


def test_the_model_is_pretrained(tmp_path: Path, tales: dict[str, str]) -> None:
    """The base predicts unseen text well. Every fourth tale is enough for the bound."""
    texts = list(tales.values())[::4]
    figures = ft.evaluate("bundled", texts=texts, precision="fp32", cache_dir=tmp_path)
    assert figures.bits_per_byte < 2.0
    loaded = models.load("bundled")
    ids = loaded.tokenizer("Once upon a time there was a little", return_tensors="pt").input_ids
    with torch.inference_mode():
        likely = loaded.model(ids).logits[0, -1].topk(20).indices.tolist()
    assert {"girl", "boy"} & {loaded.tokenizer.decode([token]).strip() for token in likely}


def test_the_card_has_the_required_facts() -> None:
    card = (BUNDLED_FOLDER / "README.md").read_text(encoding="utf-8")
    for word in ("Text", "Tokens", "Steps", "Cost", "Versions", "Licence"):
        assert re.search(rf"^\| {word} \| \S", card, re.MULTILINE), word
    bits = dict(re.findall(r"^\| \**([\w ,.-]+?)\** \| \**(\d\.\d{3})", card, re.MULTILINE))
    baselines = ("gzip -9", "xz -9e", "zstd -19", "5-gram, Kneser-Ney")
    assert float(bits["bundled"]) < min(float(bits[name]) for name in baselines)
    assert re.findall(r"^(\d+)\.$", card, re.MULTILINE) == [str(number) for number in range(1, 11)]
    parameters = models.load("bundled").provenance.parameters
    assert f"{parameters / 1e6:.1f} million parameters" in card
