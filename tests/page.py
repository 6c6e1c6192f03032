"""Use the page of the service in a real browser. A module that imports the fixtures gets a service of its own."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from finetale import models
from scene import write_adapter
from serving import Serving
from tiny import model, tokenizer

sync_api = pytest.importorskip("playwright.sync_api")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
NEEDS_BROWSER = pytest.mark.skipif(BROWSER is None, reason="needs a Chromium on the PATH, or named by CHROMIUM")
KEY = "a key of the tests"
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script> & “quotes” 你好 🙂"
SEED = r"seed (\d+)"
expect = sync_api.expect
expect.set_options(timeout=30_000)  # as long as clicks wait, for busy machines


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Serve a base without a chat template, and an adapter of it that has one."""
    folder = tmp_path_factory.mktemp("page")
    # A model with a long context whose end-of-text has a score of -160, so that its texts are long.
    endless = model(5, positions=2048)
    endless.transformer.ln_f.bias.data.fill_(1)
    endless.transformer.wte.weight.data[0] = -5
    (folder / "base").mkdir()
    models.save(endless, tokenizer(), folder / "base")
    write_adapter(folder / "adapter", folder / "base", 1)
    chats = models.load_tokenizer(folder / "base")
    chats.chat_template = TEMPLATE
    chats.save_pretrained(folder / "adapter")
    (folder / "key").write_text(KEY)
    with Serving(folder, "base", "--adapter", "tuned=adapter", "--engine", "torch", "--api-key-file", "key") as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


Open = Callable[..., Any]


@pytest.fixture
def visit(browser: Any, serving: Serving) -> Iterator[Open]:
    """Return a function that opens the page with the key. The page must log no error and stay on its site."""
    with opened(browser, serving) as found:
        yield found


@contextmanager
def opened(browser: Any, serving: Serving) -> Iterator[Open]:
    wrong: list[str] = []
    contexts = []
    own = f"http://127.0.0.1:{serving.port}/"

    def go(fragment: str = "", routes: Callable[[Any], None] = lambda page: None, **options: Any) -> Any:
        given = {"locale": "en-US", "http_credentials": {"username": "me", "password": KEY}}
        context = browser.new_context(**(given | options))
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if is_page_error(message) else None)
        page.on("request", lambda sent: None if sent.url.startswith((own, "blob:" + own)) else wrong.append(sent.url))
        routes(page)
        page.goto(own + fragment)
        return page

    try:
        yield go
    finally:
        for context in contexts:
            context.close()
    assert wrong == []


def is_page_error(message: Any) -> bool:
    """Return whether a message is an error of the page. The browser itself logs failed requests."""
    return message.type == "error" and "Failed to load resource" not in message.text


@pytest.fixture
def desk(visit: Open) -> Any:
    """The page with the writing desk, without a comparison."""
    return at_desk(visit())


def at_desk(page: Any) -> Any:
    page.get_by_role("button", name="Write", exact=True).click()
    compare = page.get_by_label("Compare with", exact=True)
    expect(compare).to_be_checked()  # once the list of models is there; until then it is hidden and unchecked
    compare.uncheck()
    return page


@pytest.fixture
def chat(visit: Open) -> Any:
    """The page with the conversation, without a comparison."""
    return at_chat(visit())


def at_chat(page: Any) -> Any:
    expect(page.get_by_label("Your message")).to_be_visible()  # a model with a chat template begins with a chat
    page.get_by_label("Compare with", exact=True).uncheck()
    page.get_by_label("Tokens").fill("12")
    return page


def status(page: Any, text: str | re.Pattern[str]) -> None:
    expect(page.locator("#status")).to_have_text(text)


def finish(page: Any, done: str = "Done.") -> None:
    """Wait for the end of a text. A click that begins one marks the page at once."""
    expect(page.locator("body")).not_to_have_class(re.compile("running"))
    status(page, done)


def say(page: Any, text: str) -> str:
    """Send a message; return the answer."""
    page.get_by_label("Your message").fill(text)
    page.get_by_role("button", name="Send", exact=True).click()
    finish(page)
    return answer(page)


def answer(page: Any) -> str:
    return page.locator(".answer .prose").last.inner_text()


def written(page: Any) -> str:
    return page.get_by_label("Your text").input_value()


def go_on(page: Any, done: str = "Done.") -> str:
    page.get_by_role("button", name="Continue", exact=True).click()
    finish(page, done)
    return written(page)
