"""The format html: the page runs the model in a real browser, from a file, with the model's own scores and tokens."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

import architectures
from finetale import models, pipeline
from finetale.cli import run
from finetale.errors import ConfigError, ModelError
from finetale.export import html
from finetale.export.chromium import PageRuntime
from finetale.models.beginning import set_mark
from finetale.schema import Event, ExportFile
from page import BROWSER, MARKUP, NEEDS_BROWSER, expect, status
from tiny import tokenizer

sync_api = pytest.importorskip("playwright.sync_api")
PROOF = {"README.md", "export.json", "manifest.json"}
NAME = "<img src=x onerror=alert(1)> & tales"


def quiet(event: Event) -> None:
    """Receive an event."""


def export(name: Path | str, **options: Any) -> tuple[Path, ExportFile]:
    return pipeline.export_model(str(name), "html", quiet, **options)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportFile]:
    """A tiny GPT-2 whose name is markup, exported."""
    if BROWSER is None:
        pytest.skip("needs a Chromium")
    folder = tmp_path_factory.mktemp("html")
    architectures.ALL[0].save(folder / NAME)
    return export(folder / NAME, out=folder / "out")


@pytest.fixture(scope="module")
def page(exported: tuple[Path, ExportFile]) -> Iterator[Any]:
    """The page, opened from its file. It must log no error and load nothing."""
    wrong: list[str] = []
    file = next(exported[0].glob("*.html"))
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_context(locale="en-US").new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on(
            "request",
            lambda sent: None if sent.url == file.as_uri() or sent.url.startswith("blob:") else wrong.append(sent.url),
        )
        page.goto(file.as_uri())
        status(page, "Ready.")
        yield page
        browser.close()
    assert wrong == []


def write(page: Any, text: str, **settings: str) -> str:
    for label, value in settings.items():
        page.locator(f"#{label}").fill(value)
    page.get_by_label("Your text").fill(text)
    page.get_by_role("button", name="Write", exact=True).click()
    expect(page.locator("#made")).to_have_text(re.compile("seed"))
    found: str = page.get_by_label("Your text").input_value()
    return found


def scores(page: Any, ids: list[int]) -> NDArray[np.float32]:
    parts = page.evaluate("ids => finetale.read(ids)", ids)
    return np.frombuffer(b"".join(map(base64.b64decode, parts)), np.float32).reshape(len(ids), -1)


def test_the_export_is_one_page_within_its_bounds(exported: tuple[Path, ExportFile]) -> None:
    place, record = exported
    assert {file.name for file in place.iterdir()} == {"img-src-x-onerror-alert-1-tales.html"} | PROOF
    assert re.match(r"(Headless)?Chrom\w+ \d", record.runtime)
    assert abs(record.change.percent) < record.largest_change == 1.0
    assert record.same_choice >= record.smallest_same_choice == 0.9
    assert "double click" in (place / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("begins", [True, False])
def test_a_text_begins_as_it_did_in_training(begins: bool, tmp_path: Path) -> None:
    model = architectures.ALL[0].build()
    set_mark(model, begins)
    models.save(model, tokenizer(), tmp_path / "base")
    html.write(models.load(str(tmp_path / "base")), tmp_path, "int8")
    assert f'"lead":[{0 if begins else ""}]' in (tmp_path / "base.html").read_text(encoding="utf-8")


def test_a_name_is_text_and_never_markup(page: Any) -> None:
    assert page.title() == NAME
    assert page.get_by_role("heading", level=1).inner_text() == NAME
    assert page.locator("img").count() == 0


def test_the_same_seed_gives_the_same_text_and_temperature_0_needs_none(page: Any) -> None:
    first = write(page, "The lamp", length="12", seed="5", temperature="1")
    assert first.startswith("The lamp")
    assert len(first) > len("The lamp")
    assert write(page, "The lamp") == first
    assert write(page, "The lamp", seed="6") != first
    page.get_by_role("button", name="Undo").click()
    assert page.get_by_label("Your text").input_value() == "The lamp"
    most_likely = write(page, "The lamp", temperature="0")
    assert write(page, "The lamp", seed="7") == most_likely
    assert MARKUP in write(page, MARKUP)
    assert page.locator("img").count() == 0


def test_stop_ends_a_text_at_once(page: Any) -> None:
    settings = {"length": 60, "temperature": 1, "top_p": 1, "top_k": 0, "seed": 1}
    script = """settings => {
        const writing = ask("write", { text: "The", settings }, () => {});
        ask("stop");
        return writing;
    }"""
    result = page.evaluate(script, settings)
    assert result["stopped"]
    assert result["count"] < 60


def test_a_text_can_be_longer_than_the_context(page: Any) -> None:
    text = "The wind turned. " * 40
    assert write(page, text, length="20", seed="1", temperature="1").startswith(text)


def test_pieces_of_a_text_have_the_scores_of_the_whole(page: Any) -> None:
    page.evaluate("finetale.reset()")
    whole = scores(page, [1, 2, 3, 4])
    page.evaluate("finetale.reset()")
    parts = np.concatenate([scores(page, [1, 2]), scores(page, [3]), scores(page, [4])])
    assert whole.shape == parts.shape
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-4)


def test_an_invalid_setting_is_named(page: Any) -> None:
    page.locator("#temperature").fill("9")
    page.get_by_role("button", name="Write", exact=True).click()
    status(page, "Temperature: enter a number from 0 to 2.")
    page.locator("#temperature").fill("1")


def test_the_page_speaks_chinese(page: Any) -> None:
    page.get_by_role("button", name="中文").click()
    expect(page.get_by_role("button", name="续写", exact=True)).to_be_visible()
    assert page.locator("html").get_attribute("lang") == "zh"
    page.get_by_role("button", name="English").click()
    words = [
        json.loads((Path(html.__file__).parents[1] / f"templates/webpage/words.{each}.json").read_text("utf-8"))
        for each in ("en", "zh")
    ]
    assert list(words[0]) == list(words[1])


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    folder = next(each for each in architectures.ALL if each.kind == "llama").save(tmp_path / "base")
    with pytest.raises(ModelError, match="type llama can't be written to html"):
        export(folder, out=tmp_path / "out")
    assert [item.name for item in tmp_path.iterdir()] == ["base"]


def test_other_rules_to_cut_text_are_refused(tmp_path: Path) -> None:
    folder = architectures.ALL[0].save(tmp_path / "base")
    own = AutoTokenizer.from_pretrained(folder)
    own.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()])
    own.save_pretrained(folder)
    with pytest.raises(ModelError, match="only byte-level BPE that cuts text as GPT-2 does"):
        export(folder, out=tmp_path / "out")


def test_other_kinds_of_gpt2_and_large_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = architectures.ALL[0].save(tmp_path / "base", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ModelError, match="scale_attn_by_inverse_layer_idx: True can't be written"):
        export(folder, out=tmp_path / "out")
    monkeypatch.setattr(html, "MOST_BYTES", 1000)
    with pytest.raises(ModelError, match="The page would have") as caught:
        html.check(models.load(str(architectures.ALL[0].save(tmp_path / "large"))))
    assert caught.value.hint == "Choose --to gguf for a model of this size."


def test_a_missing_browser_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = architectures.ALL[0].save(tmp_path / "base")
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert run(["export", str(folder), "--to", "html", "--out", str(tmp_path / "out")]) == 1
    printed = " ".join(capsys.readouterr().err.split())
    assert "no Chromium, Chrome or Edge was found" in printed
    assert "set the variable CHROMIUM to the path of one" in printed
    monkeypatch.setenv("CHROMIUM", "/no/such/browser")
    with pytest.raises(ConfigError, match="CHROMIUM names /no/such/browser, which is not a program"):
        export(folder, out=tmp_path / "out")
    assert [item.name for item in tmp_path.iterdir()] == ["base"]


@NEEDS_BROWSER
def test_a_browser_that_fails_is_an_error_and_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.html").write_text("<p>not a model")
    with pytest.raises(ModelError, match=r"The page failed in the browser: .*finetale is not defined"):
        PageRuntime(tmp_path / "page.html")
    monkeypatch.setenv("CHROMIUM", "true")
    with pytest.raises(ModelError, match="The page failed in the browser: it ended"):
        PageRuntime(tmp_path / "page.html")


@NEEDS_BROWSER
@pytest.mark.parametrize("activation", ["gelu", pytest.param("relu", marks=pytest.mark.slow)])
def test_other_activations_and_an_output_layer_of_its_own(activation: str, tmp_path: Path) -> None:
    config = GPT2Config(
        vocab_size=len(tokenizer()),
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_inner=48,
        activation_function=activation,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    architectures.spread(model)
    models.save(model, tokenizer(), tmp_path / "base")
    _, record = export(tmp_path / "base", out=tmp_path / "out")
    assert abs(record.change.percent) < 1


@NEEDS_BROWSER
@pytest.mark.slow
def test_the_bundled_model_is_within_the_bounds(tmp_path: Path) -> None:
    _, record = export("bundled", out=tmp_path / "out")
    assert record.bytes < 12_000_000
    assert record.same_choice > 0.97
    assert record.greedy_equal > 0.85
