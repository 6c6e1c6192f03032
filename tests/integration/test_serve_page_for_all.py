"""Test the page of the service in a real browser: links, keys, failures, languages, phones, keyboards."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from page import (
    KEY,
    MARKUP,
    NEEDS_BROWSER,
    Open,
    answer,
    at_chat,
    at_desk,
    browser,
    chat,
    desk,
    expect,
    go_on,
    say,
    serving,
    status,
    sync_api,
    visit,
    written,
)
from serving import Serving

__all__ = ["browser", "chat", "desk", "serving", "visit"]  # fixtures
pytestmark = NEEDS_BROWSER


# -- links


def test_a_link_restores_text_and_settings_and_keeps_the_reader_s_own_text(desk: Any, visit: Open) -> None:
    text = "Ein Licht – 一盏灯 🙂\n  " + MARKUP
    desk.get_by_label("Your text").fill(text)
    desk.get_by_label("Temperature").fill("1.3")
    desk.get_by_label("Seed", exact=True).fill("77")
    desk.get_by_role("button", name="Share link").click()
    status(desk, re.compile("The link is copied"))
    link = desk.evaluate("() => navigator.clipboard.readText()")
    assert KEY not in link
    fragment = link[link.index("#") :]
    other = visit(fragment)
    expect(other.get_by_label("Your text")).to_have_value(text)
    expect(other.get_by_label("Temperature")).to_have_value("1.3")
    expect(other.get_by_label("Seed", exact=True)).to_have_value("77")
    assert "#" not in other.url, "a reload must not replace what is typed from now on"
    other.get_by_label("Your text").fill("my own")
    other.goto(link)
    expect(other.get_by_label("Your text")).to_have_value(text)
    other.get_by_role("button", name="Back to my own text").click()
    expect(other.get_by_label("Your text")).to_have_value("my own")
    other.goto(link[:-9])
    expect(other.get_by_role("alert")).to_contain_text("The link is incomplete or damaged")
    expect(other.get_by_label("Your text")).to_have_value("my own")
    long = "".join(f"{number * 7919 % 99991:x} " for number in range(4000))
    other.get_by_label("Your text").fill(long)
    other.get_by_role("button", name="Share link").click()
    expect(other.get_by_role("alert")).to_contain_text(re.compile(r"too long for a link \([\d,]+ characters"))


# -- keys and failures


def test_the_page_needs_the_key(browser: Any, serving: Serving) -> None:
    with browser.new_context() as context:
        found = context.new_page()
        with pytest.raises(sync_api.Error, match="ERR_INVALID_AUTH_CREDENTIALS"):
            found.goto(f"http://127.0.0.1:{serving.port}/")
        assert found.locator("main").count() == 0


def test_a_key_that_the_page_asks_for_stays_in_memory(visit: Open) -> None:
    def without_the_password(page: Any) -> None:
        """Let the page's requests have no key of the browser, as behind a proxy that sends it for the page alone."""

        def pass_on(route: Any) -> None:
            headers = {k: v for k, v in route.request.headers.items() if not v.startswith("Basic")}
            answered = route.fetch(headers=headers)
            route.fulfill(response=answered)

        page.route(re.compile("/v1/|/tokenize"), pass_on)

    page = visit(routes=without_the_password)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    for given in ("wrong", KEY):
        page.get_by_label("API key", exact=True).fill(given)
        page.get_by_role("button", name="Use this key").click()
    expect(page.get_by_label("Your message")).to_be_visible()
    at_chat(page)
    assert say(page, "The lamp")
    page.wait_for_timeout(500)  # until the draft is kept
    kept = page.evaluate(
        "() => JSON.stringify([{...sessionStorage}, {...localStorage}, document.cookie, location.href])"
    )
    assert "The lamp" in kept
    assert KEY not in kept


def failing(*answers: dict[str, Any] | str) -> Callable[[Any], None]:
    """Return a function that makes the first requests for a text fail as given; later ones pass."""
    left = list(answers)

    def answer_next(route: Any) -> None:
        if not left:
            route.continue_()
        elif isinstance(first := left.pop(0), str):
            route.abort(first)
        else:
            route.fulfill(**first)

    return lambda page: page.route(re.compile("/v1/.*completions$"), answer_next)


def error(code: int, message: str = "", **headers: str) -> dict[str, Any]:
    body = {"error": {"message": message, "type": "", "param": None, "code": None}}
    return {"status": code, "headers": headers, "json": body}


def stream(*texts: str, ends: bool = True) -> dict[str, Any]:
    """Return the answer of a service that streams texts."""
    parts = [json.dumps({"choices": [{"index": 0, "text": text, "finish_reason": None}]}) for text in texts]
    last = json.dumps({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})
    events = [*parts, *([last, "[DONE]"] if ends else [])]
    body = "".join(f"data: {event}\n\n" for event in events)
    return {"status": 200, "headers": {"Content-Type": "text/event-stream"}, "body": body}


@pytest.mark.parametrize(
    ("answered", "words"),
    [
        (error(503, "x"), "The service is starting or shutting down."),
        pytest.param(error(504, "x"), "The service did not finish in time.", marks=pytest.mark.slow),
        pytest.param(error(400, "The model's own words."), "The model's own words.", marks=pytest.mark.slow),
        ("connectionrefused", "The service does not answer. Check that it is still running. Your text is kept."),
        ({"status": 500, "body": "<html>a proxy's page</html>"}, "500 Internal Server Error"),
        (stream(" half", ends=False), "The connection was lost before the end. What was written is kept."),
    ],
)
def test_failures_are_sentences_and_can_be_tried_again(visit: Open, answered: Any, words: str) -> None:
    page = at_desk(visit(routes=failing(answered)))
    page.get_by_label("Your text").fill("The lamp")
    page.get_by_label("Tokens").fill("5")
    page.get_by_role("button", name="Continue", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text(words)
    status(page, "Not finished.")
    kept = "The lamp half" if "half" in str(answered) else "The lamp"
    assert written(page) == kept
    page.get_by_role("button", name="Try again").click()
    status(page, "Done.")
    assert written(page) != kept
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_full_queue_is_tried_again_by_itself(visit: Open) -> None:
    page = at_chat(visit(routes=failing(error(429, "x", **{"Retry-After": "1"}))))
    page.get_by_label("Your message").fill("The lamp")
    page.get_by_role("button", name="Send", exact=True).click()
    status(page, "Too many requests are waiting. Next try in 2 s.")
    status(page, "Done.")
    assert answer(page)


def test_a_failed_answer_keeps_the_question_and_can_be_asked_again(visit: Open) -> None:
    page = at_chat(visit(routes=failing("connectionreset")))
    page.get_by_label("Your message").fill("The lamp")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("The service does not answer.")
    expect(page.locator(".user .prose")).to_have_text("The lamp")
    page.get_by_role("button", name="Try again").click()
    status(page, "Done.")
    assert answer(page)
    expect(page.locator(".turn")).to_have_count(2)


def test_markup_of_a_person_or_a_model_is_text(visit: Open) -> None:
    page = at_desk(visit(routes=failing(stream(MARKUP, " " + MARKUP))))
    page.get_by_label("Your text").fill(MARKUP)
    assert go_on(page) == MARKUP * 2 + " " + MARKUP
    page.get_by_label("Alternatives").fill("2")
    page.get_by_role("button", name="Chat", exact=True).click()
    page.get_by_label("Tokens").fill("5")
    page.get_by_label("Your message").fill(MARKUP)
    page.get_by_role("button", name="Send", exact=True).click()
    status(page, "Done: 2 texts.")
    expect(page.locator(".user .prose")).to_have_text(MARKUP)
    assert page.locator("main img, main script").count() == 0


def test_the_policy_forbids_markup_from_text(browser: Any, serving: Serving) -> None:
    with browser.new_context(http_credentials={"username": "me", "password": KEY}) as context:
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{serving.port}/")
        assert page.evaluate(
            "() => { try { document.body.innerHTML = '<b>x</b>'; return false; } catch { return true; } }"
        )
        assert page.locator("main").count() == 1


# -- for everybody


NAMELESS = """() =>
  [...document.querySelectorAll("button, input, select, textarea, summary, a, dialog, article, section")].filter(e => {
    const ids = (e.getAttribute("aria-labelledby") ?? "").split(" ");
    const labelled = ids.map(id => document.getElementById(id)?.textContent).join("");
    const labels = [...(e.labels ?? [])].map(l => l.textContent).join("");
    const own = ["BUTTON", "SUMMARY", "A"].includes(e.tagName) ? e.textContent : "";
    return !(labelled + labels + own + (e.ariaLabel ?? "")).trim();
  }).map(e => e.outerHTML)"""
# The formula of WCAG 2 for contrast: at least 4.5 for text.
UNREADABLE = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = e => {
    const colour = rgb(getComputedStyle(e).backgroundColor);
    return colour[3] !== 0 || !e.parentElement ? colour : behind(e.parentElement);
  };
  const textOf = e => e.matches("input, textarea, select") ? e.value || e.placeholder
    : [...e.childNodes].filter(n => n.nodeType === Node.TEXT_NODE).map(n => n.data).join("").trim();
  const isLeftOut = e => e.disabled || e.ariaDisabled === "true" || !e.checkVisibility()
    || e.closest("[aria-hidden=true], script, style, option, .skip");
  const shown = [...document.querySelectorAll("body *")].filter(e => textOf(e) && !isLeftOut(e));
  const poor = shown.filter(e => {
    const colour = getComputedStyle(e, e.value === "" ? "::placeholder" : null).color;
    const [one, other] = [luminance(rgb(colour)), luminance(behind(e))].sort((a, b) => b - a);
    return (one + 0.05) / (other + 0.05) < 4.5;
  });
  return [shown.length, poor.map(e => e.outerHTML)];
}"""
TWICE = """() => {
  const ids = [...document.querySelectorAll("[id]")].map(e => e.id);
  return ids.filter((id, at) => ids.indexOf(id) !== at);
}"""
DANGLING = """() => [...document.querySelectorAll("[for], [aria-describedby], [aria-labelledby]")]
  .flatMap(e => [e.htmlFor, e.getAttribute("aria-describedby"), e.getAttribute("aria-labelledby")])
  .filter(id => id && !document.getElementById(id))"""
LEVELS = """() => [...document.querySelectorAll("h1, h2, h3, h4")]
  .filter(e => e.checkVisibility()).map(e => Number(e.tagName[1]))"""
WIDTHS = "() => [document.documentElement.scrollWidth, innerWidth]"
MOVING = """() => [...document.querySelectorAll("*")]
  .filter(e => parseFloat(getComputedStyle(e).transitionDuration) > 0).length"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_contrast_in_both_languages_and_fits_a_phone(visit: Open, scheme: str) -> None:
    page = visit(locale="zh-CN", color_scheme=scheme, viewport={"width": 360, "height": 740})
    expect(page.locator("html")).to_have_attribute("lang", "zh-Hans")
    page.get_by_text("设置", exact=True).click()
    page.get_by_label("词元数").fill("8")
    page.get_by_label("消息", exact=True).fill("你好")
    page.get_by_role("button", name="发送").click()
    status(page, "完成，共 2 段。")
    cards = page.locator(".answer article")
    boxes = [cards.nth(number).bounding_box() for number in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"], "side by side on a phone, too"
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    for language in ("zh", "en"):
        for mode in ("desk", "chat"):
            page.locator(f"#to-{mode}").click()
            assert page.evaluate(NAMELESS) == []
            seen, unreadable = page.evaluate(UNREADABLE)
            assert seen > 30
            assert unreadable == []
            assert page.evaluate(TWICE) == page.evaluate(DANGLING) == []
            levels = page.evaluate(LEVELS)
            assert levels[0] == 1
            assert levels.count(1) == 1
            assert all(after <= before + 1 for before, after in pairwise(levels))
            width, room = page.evaluate(WIDTHS)
            assert width <= room, (language, mode)
        page.locator("#language").click()
    assert page.get_by_role("main").count() == 1
    expect(page.locator("html")).to_have_attribute("lang", "zh-Hans")


def test_all_controls_are_reached_with_the_keyboard_and_focus_is_visible(desk: Any) -> None:
    desk.locator(".skip").focus()
    reached = set()
    for _ in range(40):
        desk.keyboard.press("Tab")
        name, outline = desk.evaluate(
            "() => [document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]"
        )
        if name:
            reached.add(name)
            assert outline != "none", name
    wanted = {"model", "compare", "to-chat", "language", "share", "clear", "text", "go", "temperature", "seed", "stops"}
    assert wanted <= reached


def test_right_to_left_text_is_written_from_the_right(desk: Any) -> None:
    desk.get_by_label("Your text").fill("كان يا ما كان")
    desk.get_by_label("Tokens").fill("3")
    go_on(desk)
    for part in ("#text", ".mirror"):
        assert desk.locator(part).evaluate("e => getComputedStyle(e).direction") == "rtl"


def test_nothing_moves_for_those_who_want_it_so(visit: Open) -> None:
    page = visit(reduced_motion="reduce")
    assert page.evaluate(MOVING) == 0
    assert visit(reduced_motion="no-preference").evaluate(MOVING) > 0
