"""Test saved model folders for other tools: all end-of-text tokens, and keys that transformers 4 reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from finetale import models
from finetale.cli import run
from finetale.config import SamplingSettings
from finetale.generate import Generator
from finetale.models import LoadedModel
from finetale.models.compatibility import add_older_keys
from finetale.server.completion import Completion, Vocabulary
from finetale.server.engines import Token
from finetale.server.wire import CompletionRequest
from tiny import model, save_model, tokenizer, write_stories

GREEDY = SamplingSettings.resolve({"temperature": 0, "max_new_tokens": 12})
SHORT = ("--max-steps", "2", "--batch-size", "2", "--block-size", "64", "--max-new-tokens", "4", "--audit-tokens", "0")


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(read(file) | values), encoding="utf-8")


def with_ends(folder: Path, ends: Any, **values: Any) -> LoadedModel:
    """Save the tiny model with a generation_config.json that lists `ends` as end-of-text; return the loaded model."""
    save_model(folder)
    change(folder / "generation_config.json", eos_token_id=ends, **values)
    return models.load(str(folder))


def greedy_ids(loaded: LoadedModel) -> list[int]:
    """Return the ids that the greedy search of transformers generates."""
    ids = torch.tensor([[0, *tokenizer().encode("The lamp")]])
    found = loaded.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, temperature=None, top_p=None
    )
    return [int(token) for token in found[0, ids.shape[1] :]]


def test_every_listed_end_of_text_ends_a_sample(tmp_path: Path) -> None:
    ids = greedy_ids(with_ends(tmp_path / "one", 0))
    at = next(place for place in range(1, len(ids)) if ids[place] not in ids[:place])
    before, second = ids[:at], ids[at]
    loaded = with_ends(tmp_path / "two", [0, second])
    assert models.end_ids(loaded.model, loaded.tokenizer) == (0, second)
    generator = Generator(loaded.model, loaded.tokenizer)
    expected = (tokenizer().decode(before), len(before), "end")
    sample = generator.generate(["The lamp"], GREEDY)[0][0]
    assert (sample.text, sample.num_tokens, sample.finish_reason) == expected
    found = "".join(generator.stream("The lamp", GREEDY))
    assert found == expected[0]
    vocabulary = Vocabulary(loaded.tokenizer, 400, 64, generator.ends)
    for more in ({}, {"stop": ["zzz"]}):  # without and with a check of the text after each token
        request = CompletionRequest.model_validate({"model": "x", "prompt": "The lamp", "max_tokens": 12} | more)
        writer = Completion(request, vocabulary).groups[0][0]
        for token in (*before, second):
            writer.job.tokens.append(token)
            writer.accept(Token(token))
        assert (writer.finished, writer.text.text) == ("end", expected[0])


def test_invalid_and_foreign_end_of_text_ids_are_ignored(tmp_path: Path) -> None:
    loaded = with_ends(tmp_path / "odd", [0, 7, -1, 10**6, True, "x", None, 1.5])
    assert models.end_ids(loaded.model, loaded.tokenizer) == (0, 7)
    other = models.load(str(tmp_path / "odd"), tokenizer=tokenizer())  # 7 is an ordinary token of another tokenizer
    assert models.end_ids(other.model, other.tokenizer) == (0,)
    own = models.load(str(tmp_path / "odd"), tokenizer=models.load_tokenizer(tmp_path / "odd"))
    assert models.end_ids(own.model, own.tokenizer) == (0, 7)
    (tmp_path / "odd/generation_config.json").unlink()
    change(tmp_path / "odd/config.json", eos_token_id=7)  # like the default of an architecture
    bare = models.load(str(tmp_path / "odd"))
    assert models.end_ids(bare.model, bare.tokenizer) == (0,)


def test_suppressed_tokens_are_never_generated(tmp_path: Path) -> None:
    plain = with_ends(tmp_path / "plain", 0)
    expected = Generator(plain.model, plain.tokenizer).generate(["The lamp"], GREEDY)[0][0].text
    first = greedy_ids(plain)[0]
    loaded = with_ends(tmp_path / "suppressed", 0, suppress_tokens=[first])
    generator = Generator(loaded.model, loaded.tokenizer)
    assert first in generator.forbidden
    assert generator.generate(["The lamp"], GREEDY)[0][0].text != expected


def test_training_keeps_the_generation_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with_ends(tmp_path / "base", [0, 7], pad_token_id=3, suppress_tokens=[9], temperature=0.1, top_k=5)
    write_stories(tmp_path / "text", 12)
    assert run(["train", "text", "--model", "base", "--out", "run", "--quiet", *SHORT]) == 0
    checkpoints = sorted(tmp_path.glob("run/checkpoints/step-*/generation_config.json"))
    assert len(checkpoints) >= 1
    for file in (tmp_path / "run/model/generation_config.json", *checkpoints):
        found = read(file)
        kept = {key: found[key] for key in ("eos_token_id", "pad_token_id", "suppress_tokens")}
        assert kept == {"eos_token_id": [0, 7], "pad_token_id": 3, "suppress_tokens": [9]}
        assert (found["temperature"], found["top_k"]) == (0.8, 0)  # the settings of the comparison
    again = models.load("run")
    assert models.end_ids(again.model, again.tokenizer) == (0, 7)


def test_a_gpt2_folder_has_the_keys_of_older_tools(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    config = read(folder / "config.json")
    assert config["n_ctx"] == config["n_positions"] == 64
    found = read(folder / "tokenizer_config.json")
    assert found["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"backend", "is_local", "local_files_only", "extra_special_tokens"} & set(found)
    plain = AutoTokenizer.from_pretrained(folder)
    assert plain("The lamp").input_ids == tokenizer()("The lamp").input_ids


def test_the_tokenizer_class_and_additional_special_tokens_are_kept(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "base")
    change(
        folder / "tokenizer_config.json", tokenizer_class="GPT2TokenizerFast", additional_special_tokens=["<|user|>"]
    )
    loaded = models.load_tokenizer(folder)
    extra = loaded.convert_tokens_to_ids("<|user|>")
    models.save(model(), loaded, tmp_path / "again")
    found = read(tmp_path / "again/tokenizer_config.json")
    assert found["tokenizer_class"] in ("GPT2Tokenizer", "GPT2TokenizerFast")
    assert found["additional_special_tokens"] == ["<|user|>"]
    assert extra in models.load_tokenizer(tmp_path / "again").all_special_ids


SMALL: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}
ROPE = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}
ROTARY = [
    (
        LlamaConfig(**SMALL, num_key_value_heads=1, rope_parameters={"rope_type": "default", "rope_theta": 1e5}),
        {"rope_theta": 1e5},
    ),
    (
        LlamaConfig(**SMALL, num_key_value_heads=1, rope_parameters=ROPE),
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
    (
        Qwen2Config(**SMALL, num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
        {"rope_theta": 1e6},
    ),
    (
        GPTNeoXConfig(
            **SMALL, rope_parameters={"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.5}
        ),
        {"rotary_emb_base": 2e4, "rotary_pct": 0.5},
    ),
]


@pytest.mark.parametrize(("config", "older"), ROTARY)
def test_rotary_settings_are_also_written_for_transformers_4(
    config: PreTrainedConfig, older: dict[str, Any], tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path).to_dict()
    add_older_keys(tmp_path)
    assert {key: read(tmp_path / "config.json").get(key) for key in older} == older
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == before


_IN_VERSION_4 = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
assert transformers.__version__.startswith("4.57"), transformers.__version__
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer("The lamp stood on the sill", return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = network(ids).logits[0, -1]
    eos = network.generation_config.eos_token_id
    made = pipeline("text-generation", model=folder)("The lamp", max_new_tokens=3)[0]["generated_text"]
    print(json.dumps([type(tokenizer).__name__, ids[0].tolist(), logits.tolist(), eos, made]))
"""


@pytest.fixture(scope="session")
def python_with_version_4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create an environment with transformers 4.57 and the other packages of this one; return its Python."""
    folder = tmp_path_factory.mktemp("transformers4")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    wanted = ("transformers==4.57.*", "tokenizers>=0.22,<=0.23", "huggingface_hub<1")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages, *wanted]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"transformers 4.57 can't be installed here: {done.stderr.strip()[-200:]}")
    here = Path(torch.__file__).parents[1]
    (packages / "zz.pth").write_text(f"{here}\n", encoding="utf-8")  # searched after its own packages
    return folder / "bin/python"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the environment is laid out as on POSIX")
def test_saved_folders_load_in_transformers_4(python_with_version_4: Path, tmp_path: Path) -> None:
    folders = [save_model(tmp_path / "gpt2")]
    for place, (config, _) in enumerate(ROTARY):
        torch.manual_seed(place)
        folders.append(tmp_path / f"{config.model_type}{place}")
        folders[-1].mkdir()
        models.save(AutoModelForCausalLM.from_config(config), tokenizer(), folders[-1])
    folders.append(tmp_path / "named")
    with_ends(tmp_path / "before", [0, 7])
    change(tmp_path / "before/tokenizer_config.json", tokenizer_class="GPT2TokenizerFast")
    named = models.load(str(tmp_path / "before"))
    models.save(named.model, named.tokenizer, folders[-1])
    done = subprocess.run(
        [python_with_version_4, "-c", _IN_VERSION_4, *folders], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(folders) == 6
    for folder, (kind, ids, logits, eos, made) in zip(folders, rows, strict=True):
        assert kind == ("GPT2TokenizerFast" if folder.name == "named" else "PreTrainedTokenizerFast")
        assert ids == tokenizer().encode("The lamp stood on the sill")
        assert eos == ([0, 7] if folder.name == "named" else 0)
        assert made.startswith("The lamp")
        network = AutoModelForCausalLM.from_pretrained(folder).eval()
        with torch.inference_mode():
            ours = network(torch.tensor([ids])).logits[0, -1]
        assert torch.allclose(ours, torch.tensor(logits), atol=1e-5), folder
