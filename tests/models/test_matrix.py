"""Every architecture from its base to a served model: trained, resumed, compared, read again by plain transformers."""

from __future__ import annotations

import runpy
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

import finetale as ft
from architectures import ALL, POSITIONS, Architecture
from finetale import models, speed
from finetale.config import Config, SamplingSettings
from finetale.errors import InterruptedRun, ModelError
from finetale.forward import find_route
from finetale.generate import Generator, find_way
from finetale.library import Run
from finetale.models import adapters
from finetale.models.adapter_hooks import load_adapter, using
from finetale.server.engines import Job, selection
from finetale.server.model_spec import Served, serve_model
from finetale.tokens import begin_and_end
from tiny import MODEL_FILES, story, tokenizer, write_stories

ROOT = Path(__file__).parents[2]
QUICK = ("llama", "gpt_neox", "qwen2", "gemma3_text", "phi3", "mixtral", "mamba", "recurrent_gemma")
SETTINGS: dict[str, Any] = {
    "block_size": 32,
    "batch_size": 4,
    "micro_batch_size": 2,
    "max_steps": 4,
    "eval_every": 2,
    "learning_rate": 1e-3,
    "precision": "fp32",
    "optimizer_state": "fp32",
    "max_new_tokens": 8,
    "prompts": ["The lamp"],
    "tensorboard": False,
    "offline": True,
    "quiet": True,
}
SHORT = ("The lamp", "She counted the eggs")
PROMPTS = ("The lamp stood on the sill and the boat lay in the reeds.", "She counted")

each = pytest.mark.parametrize(
    "architecture",
    [pytest.param(item, id=item.name, marks=() if item.kind in QUICK else pytest.mark.slow) for item in ALL],
)


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stories(tmp_path_factory.mktemp("text") / "stories", 20, 40)


def tensors(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a model folder, by name."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def interrupted(stories: Path, out: Path, **settings: Any) -> Run:
    """Train with an interruption after two of four steps; return the resumed run."""
    cancel = threading.Event()

    def stop(event: Any) -> None:
        if event.event == "train" and event.step == 2:
            cancel.set()

    with pytest.raises(InterruptedRun):
        ft.train(stories, out=out, cancel=cancel, on_event=stop, **settings)
    return ft.resume(out, quiet=True)


def plain_loss(model: PreTrainedModel, text: str) -> float:
    """Return the loss of transformers' own code on a document, per token."""
    begin, end = begin_and_end(tokenizer())
    ids = torch.tensor([[begin, *tokenizer().encode(text), end]])
    with torch.inference_mode():
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return float(torch.nn.functional.cross_entropy(logits[0].double(), ids[0, 1:]))


def plain_text(model: PreTrainedModel, prompt: str, number: int) -> list[int]:
    """Return the most likely continuation; transformers' own code reads the whole text again for each token."""
    begin, _ = begin_and_end(tokenizer())
    ids = [begin, *tokenizer().encode(prompt)]
    start = len(ids)
    for _ in range(number):
        with torch.inference_mode():
            ids.append(
                int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1, : len(tokenizer())].argmax())
            )
    return ids[start:]


def until_end(tokens: list[int]) -> list[int]:
    """Return the tokens before end-of-text."""
    _, end = begin_and_end(tokenizer())
    return tokens[: tokens.index(end)] if end in tokens else tokens


def greedy(served: Served, prompts: Sequence[str], number: int) -> list[list[int]]:
    """Return the continuations of prompts that an engine reads together."""
    settings = SamplingSettings.resolve({"temperature": 0})
    begin, _ = begin_and_end(tokenizer())
    engine = served.worker.engine
    jobs = [Job([begin, *tokenizer().encode(prompt)], settings) for prompt in prompts]
    engine.start([[job] for job in jobs])
    for _ in range(number):
        engine.step()
    return [job.tokens for job in jobs]


@pytest.mark.parametrize("architecture", ALL, ids=lambda item: item.name)
def test_what_is_done_with_a_type(architecture: Architecture, tmp_path: Path) -> None:
    base = architecture.save(tmp_path / "base")
    loaded = models.load(str(base))
    speed.set_up(loaded.model, enabled=True, attention="auto", precision="fp32", training=True)
    assert models.positions_of(loaded.model.config.to_dict()) == architecture.context
    assert models.locate(str(base)).positions == architecture.context
    assert find_route(loaded.model).isolation == architecture.documents
    assert find_way(loaded.model) == architecture.reading
    facts = selection.Facts(len(tokenizer()), (), architecture.context or POSITIONS)
    assert selection.torch_engine(loaded, facts, 4).name == architecture.server
    for folder in (tmp_path / "saved", tmp_path / "saved again"):
        models.save(loaded.model, loaded.tokenizer, folder)
        assert tensors(folder) == tensors(base)
        loaded = models.load(str(folder))


@pytest.mark.parametrize("architecture", ALL, ids=lambda item: item.name)
def test_an_adapter_beside_its_base_gives_the_scores_of_the_merged_model(
    architecture: Architecture, tmp_path: Path
) -> None:
    base = str(architecture.save(tmp_path / "base"))
    loaded = models.open_model(base, lambda event: None)
    facts = selection.Facts(len(tokenizer()), (), architecture.context or POSITIONS)
    assert selection.torch_engine(loaded, facts, 4, adapters=True).name == architecture.server
    trained = models.load(base).model
    adapters.attach(trained, Config.resolve({"method": "dora", "lora_rank": 2}), seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path / "adapter"
    folder.mkdir()
    adapters.write(trained, folder, base=base, revision=None, base_sha256="0" * 64)
    adapter = load_adapter(loaded.model, folder, "it")
    merged = adapters.merge_into(models.load(base).model, folder, "it").eval()
    ids = torch.arange(2, 14)[None]
    with torch.inference_mode():
        expected, alone = (model(input_ids=ids, use_cache=False).logits for model in (merged, loaded.model))
        with using([adapter]):
            found = loaded.model(input_ids=ids, use_cache=False).logits
    assert (alone - expected).abs().max() > 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max().clamp(min=1)))


@each
def test_from_base_to_service(architecture: Architecture, stories: Path, tmp_path: Path) -> None:
    base = architecture.save(tmp_path / "base")
    settings = SETTINGS | {"model": str(base)}
    run = interrupted(stories, tmp_path / "run", **settings)
    model = tmp_path / "run" / "model"
    assert {file.name for file in model.iterdir()} - {"manifest.json"} == set(MODEL_FILES)
    assert tensors(model) == tensors(base)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("*04")
    assert tensors(checkpoint) == tensors(base)
    assert run.comparison.after.validation.loss < run.comparison.before.validation.loss

    ft.train(stories, out=tmp_path / "whole", **settings)
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("run", "whole")]
    assert weights[0] == weights[1]

    plain, info = AutoModelForCausalLM.from_pretrained(model, output_loading_info=True)
    assert not any(info.values())
    text = story(99, 8)
    measured = ft.evaluate(run, texts=[text], precision="fp32", block_size=32)
    assert measured.loss == pytest.approx(plain_loss(plain, text), abs=1e-5)

    expected = [plain_text(plain, prompt, 8) for prompt in PROMPTS]
    greedily: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0}
    loaded = models.load(str(tmp_path / "run"))
    together = Generator(loaded.model, loaded.tokenizer).generate(PROMPTS, SamplingSettings.resolve(greedily))
    assert [samples[0].text for samples in together] == [tokenizer().decode(until_end(tokens)) for tokens in expected]
    served = serve_model("it", loaded, slots=4, max_waiting=4, precision="fp32")
    assert greedy(served, SHORT, 4) == [plain_text(plain, prompt, 4) for prompt in SHORT]
    served.worker.close(None)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ALL, ids=lambda item: item.name)
def test_openvino(architecture: Architecture, tmp_path: Path) -> None:
    loaded = models.load(str(architecture.save(tmp_path / "base")))
    if architecture.openvino is not None:
        with pytest.raises(ModelError, match=f"OpenVINO can't serve this model.*{architecture.openvino}"):
            serve_model("it", loaded, slots=4, max_waiting=4, engine="openvino")
        return
    expected = [plain_text(loaded.model, prompt, 4) for prompt in SHORT]
    served = serve_model("it", loaded, slots=4, max_waiting=4, engine="openvino")
    assert served.worker.engine.name.startswith("openvino")
    found = greedy(served, SHORT, 4)
    served.worker.close(None)
    assert [tokens[0] for tokens in found] == [tokens[0] for tokens in expected]  # rounded weights change near ties


def test_the_table_is_up_to_date() -> None:
    generate = runpy.run_path(str(ROOT / "docs/generate.py"))
    page = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    assert page == generate["models"](), "run `make docs`"
    assert sum(line.startswith("| ") for line in page.splitlines()) == len(ALL) + 1
    assert len(ALL) == 25
