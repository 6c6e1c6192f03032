"""Test the page of the service in a real browser: type a prompt, watch the texts, compare and stop them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetale import models
from serving import Serving
from tiny import model, save_model, tokenizer

sync_api = pytest.importorskip("playwright.sync_api")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs a Chromium on the PATH, or named by CHROMIUM")
KEY = "a key of the tests"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("page")
    save_model(folder / "before")
    # A model with a long context whose end-of-text has a score of -160, so that its texts are long.
    endless = model(5, positions=2048)
    endless.transformer.ln_f.bias.data.fill_(1)
    endless.transformer.wte.weight.data[0] = -5
    (folder / "after").mkdir()
    models.save(endless, tokenizer(), folder / "after")
    (folder / "key").write_text(KEY)
    words = ("before", "--also", "after=after", "--engine", "torch", "--api-key-file", "key")
    with Serving(folder, *words) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: sync_api.Browser, serving: Serving) -> Iterator[sync_api.Page]:
    """Open the page with the key. The test fails if the page logs an error or sends a request to another site."""
    with browser.new_context(http_credentials={"username": "me", "password": KEY}) as context:
        found = context.new_page()
        wrong: list[str] = []
        found.on("pageerror", lambda error: wrong.append(str(error)))
        found.on("console", lambda message: wrong.append(message.text) if is_page_error(message) else None)
        own = f"http://127.0.0.1:{serving.port}/"
        found.on("request", lambda request: None if request.url.startswith(own) else wrong.append(request.url))
        found.goto(own)
        yield found
        assert wrong == []


def is_page_error(message: sync_api.ConsoleMessage) -> bool:
    """Return whether a message is an error of the page. The browser itself logs each response with status 400."""
    return message.type == "error" and "400 (Bad Request)" not in message.text


def texts(page: sync_api.Page) -> dict[str, str]:
    """Return the text shown for each model."""
    found = page.locator("article")
    return {
        found.nth(number).get_attribute("data-model"): found.nth(number).locator(".text").inner_text()
        for number in range(found.count())
    }


def test_two_models_continue_a_typed_prompt_side_by_side(page: sync_api.Page, tmp_path: Path) -> None:
    page.get_by_label("How does it begin?").fill("The lamp")
    page.get_by_label("Tokens").fill("40")
    page.get_by_label("Seed").fill("7")
    page.get_by_role("button", name="Write").click()
    notes = page.locator("article .note")
    for number in range(2):
        sync_api.expect(notes.nth(number)).to_have_text(re.compile(r"^\d+ tokens in [\d.]+ s, "), timeout=30_000)
    first = texts(page)
    assert list(first) == ["before", "after"]
    assert all(text.startswith("The lamp") and len(text) > 20 for text in first.values()), first
    assert first["before"] != first["after"]
    page.get_by_role("button", name="Write").click()
    sync_api.expect(notes.nth(0)).to_have_text(re.compile(r"^\d+ tokens in"), timeout=30_000)
    sync_api.expect(notes.nth(1)).to_have_text(re.compile(r"^\d+ tokens in"), timeout=30_000)
    assert texts(page) == first, "the same seed gives the same texts"
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    # The texts are side by side and do not overlap.
    boxes = [page.locator("article").nth(number).bounding_box() for number in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]


def test_a_text_appears_as_it_is_generated_and_can_be_stopped(page: sync_api.Page) -> None:
    page.get_by_label("Tokens").fill("2000")
    page.get_by_label("Temperature").fill("1.5")
    after = page.locator("article[data-model=after]")
    page.get_by_role("button", name="Write").click()
    sync_api.expect(after.locator(".note")).to_have_text("writing …", timeout=30_000)
    lengths: set[int] = set()
    while len(lengths) < 4:  # the time limit of the tests ends this loop if the text stops growing
        lengths.add(len(after.locator(".text").inner_text()))
    page.get_by_role("button", name="Stop").click()
    sync_api.expect(after.locator(".note")).to_have_text("stopped")
    sync_api.expect(page.get_by_role("button", name="Write")).to_be_enabled()
    length = len(after.locator(".text").inner_text())
    page.wait_for_timeout(300)
    assert len(after.locator(".text").inner_text()) == length
    # The error of a model appears in place of its text.
    sync_api.expect(page.locator("article[data-model=before] .note")).to_contain_text("The model's context length is")


def test_markup_in_a_prompt_is_shown_as_text(page: sync_api.Page) -> None:
    prompt = "<img src=x onerror=alert(1)> & “quotes” 你好 🙂"
    page.get_by_label("How does it begin?").fill(prompt)
    page.get_by_label("Tokens").fill("5")
    page.get_by_role("button", name="Write").click()
    sync_api.expect(page.locator("article .note").nth(1)).to_have_text(re.compile(r"^\d+ tokens in"), timeout=30_000)
    assert all(text.startswith(prompt) for text in texts(page).values())
    assert page.locator("article img").count() == 0


def test_the_page_needs_the_key(browser: sync_api.Browser, serving: Serving) -> None:
    with browser.new_context() as context:
        found = context.new_page()
        with pytest.raises(sync_api.Error, match="ERR_INVALID_AUTH_CREDENTIALS"):
            found.goto(f"http://127.0.0.1:{serving.port}/")
        assert found.locator("article").count() == 0
