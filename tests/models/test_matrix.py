"""Every architecture from its base to a served model: trained, resumed, compared, read again by plain transformers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

import finetale as ft
from architectures import ALL, Architecture
from finetale.errors import InterruptedRun
from finetale.library import Run
from finetale.tokens import begin_and_end
from tiny import MODEL_FILES, story, tokenizer, write_stories

QUICK = ("llama", "gpt_neox")
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


@each
def test_from_base_to_service(architecture: Architecture, stories: Path, tmp_path: Path) -> None:
    base = architecture.save(tmp_path / "base")
    run = interrupted(stories, tmp_path / "run", model=str(base), **SETTINGS)
    model = tmp_path / "run" / "model"
    assert {file.name for file in model.iterdir()} - {"manifest.json"} == set(MODEL_FILES)
    assert tensors(model) == tensors(base)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("*04")
    assert tensors(checkpoint) == tensors(base)
    assert run.comparison.after.validation.loss < run.comparison.before.validation.loss
    plain, info = AutoModelForCausalLM.from_pretrained(model, output_loading_info=True)
    assert not any(info.values())
    text = story(99, 20)
    assert ft.evaluate(run, texts=[text], precision="fp32", block_size=64).loss == pytest.approx(
        plain_loss(plain, text), abs=1e-5
    )
    writer = ft.load(run)
    for prompt in PROMPTS:
        expected = tokenizer().decode(plain_text(plain, prompt, 8))
        assert writer.generate(prompt, max_new_tokens=8, temperature=0) == [expected]
