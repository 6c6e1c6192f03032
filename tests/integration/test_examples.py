"""Train the bundled model on pairs of prompt and answer; test the model, its files and its report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import finetale as ft
from finetale.chat import PLAIN_TEMPLATE
from finetale.cli import run as call
from finetale.cli.outcome import print_outcome
from finetale.errors import GenerationError
from finetale.models import BUNDLED_NAME
from finetale.rundir import RunDirectory

COLOURS = ("red", "green", "blue", "brown", "black", "white", "yellow", "grey")
ANIMALS = ("heron", "dog", "cat", "hen", "horse", "goat", "mouse", "owl")


def pairs() -> list[dict[str, str]]:
    return [
        {"prompt": f"What colour is the {animal}?", "completion": f"The {animal} is {colour}."}
        for colour in COLOURS
        for animal in ANIMALS
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> ft.Run:
    place = tmp_path_factory.mktemp("examples")
    path = place / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, pairs())))
    settings: dict[str, Any] = {"max_steps": 60, "learning_rate": 2e-3, "block_size": 128, "batch_size": 4}
    settings |= {"validation_fraction": 0.1, "test_fraction": 0.1, "max_new_tokens": 24, "audit_tokens": 0}
    return ft.train(
        path,
        model=BUNDLED_NAME,
        out=place / "run",
        probe=False,
        cache_dir=place / "cache",
        tensorboard=False,
        **settings,
    )


def test_token_counts_with_context_add_up(finished: ft.Run) -> None:
    data = json.loads((finished.path / "data.json").read_text())
    tokens = data["tokens"]
    parts = ("trained", "validation", "test", "context", "dropped")
    assert tokens["read"] == sum(tokens[part] for part in parts)
    assert tokens["context"] > tokens["trained"] > 0
    assert data["text"]["examples"]["documents"] == 64
    assert data["text"]["examples"]["loss"] == "answers"


def test_the_model_improves_and_learns_to_stop(finished: ft.Run) -> None:
    before, after = finished.comparison.content.before.answers, finished.comparison.content.after.answers
    assert before is not None
    assert after is not None
    assert before.examples == after.examples >= 4
    assert after.ended == 1 > before.ended
    assert before.chrf is not None
    assert after.chrf is not None
    assert after.chrf > before.chrf + 20
    shares = [
        side.sample_metrics.ended for side in (finished.comparison.content.before, finished.comparison.content.after)
    ]
    assert shares[1] == 1
    assert (shares[0] or 0) < 1


def test_samples_have_the_prompt_and_the_reference(finished: ft.Run) -> None:
    known = {f"User:\n{pair['prompt']}\n\nAssistant:\n": pair for pair in pairs()}
    for sample in finished.comparison.content.after.samples:
        assert sample.prompt in known
        animal = sample.prompt.split("the ")[1].split("?")[0]
        assert sample.reference is not None
        assert sample.reference.startswith(f"The {animal} is ")


def test_the_report_shows_answers_and_references(finished: ft.Run) -> None:
    page = (finished.path / "report.html").read_text()
    for text in (
        "Exact answers",
        "ChrF",
        "The answer in the held-out text:",
        "Answers to held-out examples",
        "read as context",
    ):
        assert text in page, text


def test_the_template_is_saved_with_the_model(finished: ft.Run) -> None:
    tokenizer = AutoTokenizer.from_pretrained(finished.path / "model")
    assert tokenizer.chat_template == PLAIN_TEMPLATE
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == f"User:\na\n\nAssistant:\nb{tokenizer.eos_token}\n\nUser:\nc\n\nAssistant:\n"


def test_the_suggested_commands_use_chat(finished: ft.Run, capsys: pytest.CaptureFixture[str]) -> None:
    card = (finished.path / "model" / "README.md").read_text()
    page = (finished.path / "report.html").read_text()
    assert "finetale generate . --chat" in card
    assert "finetale generate . --chat" in page
    assert "Once upon a time" not in card
    assert "print(generate(&#39;User:\\nWhat colour is the" in page
    print_outcome(RunDirectory(finished.path))
    assert f"Next     finetale generate {finished.path} --chat" in capsys.readouterr().out.replace("'", "")


def test_a_model_trained_with_a_template_has_no_chat_template(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, pairs()[:20])))
    settings: dict[str, Any] = {"max_steps": 1, "block_size": 64, "max_new_tokens": 4, "audit_tokens": 0}
    settings |= {"template": "Q: {prompt}\nA: {completion}", "num_answers": 2}
    run = ft.train(path, model=BUNDLED_NAME, out=tmp_path / "run", probe=False, cache_dir=tmp_path / "c", **settings)
    assert AutoTokenizer.from_pretrained(run.path / "model").chat_template is None
    prompt = run.comparison.content.prompts[0]
    assert prompt.startswith("Q: What colour is the ")
    assert prompt.endswith("\nA:")
    assert run.comparison.content.after.answers is not None
    assert "--chat" not in (run.path / "model" / "README.md").read_text()


def test_generate_answers_with_chat(finished: ft.Run, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(finished.path), "--chat", "What colour is the owl?", "--temperature", "0", "--quiet"]
    assert call(words) == 0
    out = capsys.readouterr().out
    assert out.startswith("The owl is ")
    assert "User:" not in out
    assert call([*words, "--json"]) == 0
    sample = json.loads(capsys.readouterr().out)["samples"][0]
    assert sample["prompt"] == "What colour is the owl?"
    assert sample["finish_reason"] == "end"
    assert finished.model.chat("What colour is the owl?", temperature=0) == [sample["text"]]


def test_chat_needs_a_template(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(GenerationError, match="bundled has no chat template"):
        ft.load(BUNDLED_NAME).chat("Hello?")
    assert call(["generate", BUNDLED_NAME, "--chat", "Hello?", "--quiet"]) == 1
    assert "has no chat template: it was not trained on conversations" in capsys.readouterr().err


def test_figures_measure_only_the_answers(finished: ft.Run) -> None:
    figures = finished.comparison.content.after.on("test")
    assert figures is not None
    answers = [f"The {animal} is {colour}." for colour in COLOURS for animal in ANIMALS]
    assert figures.bytes <= max(map(len, answers)) * figures.documents
    assert math.isfinite(figures.loss)


def test_a_model_trained_on_short_texts_learns_to_stop(tmp_path: Path) -> None:
    lines = [f"The {animal} by the gate is {colour}." for colour in COLOURS for animal in ANIMALS]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    settings: dict[str, Any] = {"max_steps": 40, "learning_rate": 2e-3, "block_size": 128, "batch_size": 4}
    settings |= {"documents": "line", "max_new_tokens": 40, "audit_tokens": 0, "tensorboard": False, "probe": False}
    run = ft.train(
        tmp_path / "lines.txt", model=BUNDLED_NAME, out=tmp_path / "run", cache_dir=tmp_path / "c", **settings
    )
    before, after = run.comparison.content.before.sample_metrics, run.comparison.content.after.sample_metrics
    assert before.ended is not None
    assert after.ended == 1 > before.ended
    assert "samples that end" in (run.path / "report.html").read_text()


def test_examples_longer_than_a_block_are_reported(tmp_path: Path) -> None:
    question = " ".join(f"Word {number} of a long question." for number in range(30))
    rows = [{"prompt": question, "completion": "Yes."}, {"prompt": "Why?", "completion": question}]
    rows += pairs()
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    messages: list[str] = []
    settings: dict[str, Any] = {"max_steps": 1, "block_size": 64, "max_new_tokens": 2, "num_answers": 1}
    settings |= {"validation_fraction": 0, "test_fraction": 0, "audit_tokens": 0, "tensorboard": False, "probe": False}
    run = ft.train(
        tmp_path / "pairs.jsonl",
        model=BUNDLED_NAME,
        out=tmp_path / "run",
        cache_dir=tmp_path / "cache",
        on_event=lambda event: messages.append(str(getattr(event, "message", ""))),
        **settings,
    )
    lost = json.loads((run.path / "data.json").read_text())["dropped"]
    assert [(row["reason"], row["documents"]) for row in lost] == [
        ("context that does not fit into a block of 64 tokens", 1)
    ]
    expected = (
        f"2 examples are longer than a block of 64 tokens: 1 example loses {lost[0]['tokens']} tokens of context "
        "and 1 answer is cut into pieces, all of them learned."
    )
    assert expected in messages
