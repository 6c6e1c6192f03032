"""Test the page of the service in a real browser: the writing desk, the conversation, before and after."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from page import (
    NEEDS_BROWSER,
    SEED,
    Open,
    answer,
    browser,
    chat,
    desk,
    expect,
    finish,
    go_on,
    say,
    serving,
    status,
    visit,
    written,
)
from tiny import tokenizer

__all__ = ["browser", "chat", "desk", "serving", "visit"]  # fixtures
pytestmark = NEEDS_BROWSER


# -- the writing desk


def test_the_model_continues_at_the_cursor_in_another_colour_and_undo_takes_it_back(desk: Any) -> None:
    area = desk.get_by_label("Your text")
    area.fill("The lamp")
    desk.get_by_label("Tokens").fill("20")
    first = go_on(desk)
    assert first.startswith("The lamp")
    assert len(first) > 20
    mark = desk.locator(".mirror mark")
    assert mark.text_content() == first.removeprefix("The lamp")
    colours = (
        "element => [getComputedStyle(element).backgroundColor, getComputedStyle(element.parentNode).backgroundColor]"
    )
    assert len(set(mark.evaluate(colours))) == 2
    # In the middle: the text after the cursor stays behind the new one, and what is typed is not the model's.
    area.evaluate("area => area.setSelectionRange(3, 3)")
    second = go_on(desk)
    assert second.startswith("The")
    assert second.endswith(first.removeprefix("The"))
    assert len(second) > len(first)
    assert desk.locator(".mirror mark").count() == 2
    area.press("Control+z")
    assert written(desk) == first
    desk.get_by_role("button", name="Undo").click()
    assert written(desk) == "The lamp"
    desk.get_by_role("button", name="Redo").click()
    assert written(desk) == first
    area.evaluate("area => area.setSelectionRange(12, 12)")
    area.press_sequentially("typed")
    desk.keyboard.insert_text(first[12])  # equal to the letter behind it
    marks = desk.locator(".mirror mark").all_text_contents()
    assert marks == [first.removeprefix("The lamp")[:4], first[12:]]


def test_a_seed_that_is_kept_gives_the_same_text_again(desk: Any) -> None:
    desk.get_by_label("Your text").fill("The lamp ")
    desk.get_by_label("Tokens").fill("20")
    first = go_on(desk)
    seed = re.search(SEED, desk.locator("#made").inner_text())
    assert seed is not None
    desk.get_by_role("button", name="Again").click()
    finish(desk)
    expect(desk.locator("#made")).not_to_contain_text(seed[1])
    assert written(desk) != first, "a new seed"
    desk.get_by_role("button", name="Undo").click()
    assert written(desk) == first, "the text that was replaced is still there"
    desk.get_by_role("button", name="Undo").click()
    desk.get_by_label("Seed", exact=True).fill(seed[1])
    assert go_on(desk) == first
    assert first.startswith("The lamp ")
    assert first[9] != " ", "spaces before the cursor and of the text are not doubled"


def test_one_of_several_alternatives_goes_into_the_text(desk: Any) -> None:
    desk.get_by_label("Your text").fill("The lamp")
    desk.get_by_label("Tokens").fill("10")
    desk.get_by_label("Alternatives").fill("3")
    assert go_on(desk, "Done: 3 texts.") == "The lamp"
    offers = desk.locator("#offers article")
    texts = offers.locator(".prose").all_inner_texts()
    assert len(set(texts)) == 3
    boxes = [offers.nth(number).bounding_box() for number in range(3)]
    assert len({box["y"] for box in boxes}) == 1
    assert all(one["x"] + one["width"] <= other["x"] for one, other in pairwise(boxes))
    for number in (0, 2):  # the second choice replaces the first
        offers.nth(number).get_by_role("button", name="Choose this").click()
        assert written(desk).removeprefix("The lamp").strip() == texts[number].strip()
        expect(offers.nth(number).get_by_role("button", name="Chosen")).to_have_attribute("aria-pressed", "true")
    desk.get_by_role("button", name="Undo").click()
    assert written(desk) == "The lamp"


def test_a_text_longer_than_the_context_is_continued_from_its_end(desk: Any) -> None:
    long = "The boat lay in the reeds. " * 700
    desk.get_by_label("Your text").fill(long)
    expect(desk.locator("#count")).to_have_text("The model reads the last 2,048 tokens before the cursor.")
    desk.get_by_label("Tokens").fill("5")
    assert len(go_on(desk)) > len(long)
    desk.get_by_label("Your text").fill("The boat")
    count = len(tokenizer()("The boat")["input_ids"]) + 1  # with beginning-of-text
    expect(desk.locator("#count")).to_have_text(f"{count} of 2,048 tokens")


def test_a_text_grows_and_esc_stops_it_and_it_is_announced_twice(desk: Any) -> None:
    desk.get_by_label("Tokens").fill("1536")
    desk.get_by_label("Your text").fill("The lamp")
    desk.evaluate(
        "() => { window.said = []; new MutationObserver(() => said.push(document.querySelector('#status').textContent))"
        ".observe(document.querySelector('#status'), {childList: true}); }"
    )
    desk.get_by_label("Your text").press("Control+Enter")
    lengths: set[int] = set()
    while len(lengths) < 2:  # the time limit of the tests ends this loop if the text stops growing
        lengths.add(len(written(desk)))
    desk.keyboard.press("Escape")
    status(desk, "Stopped.")
    expect(desk.get_by_role("button", name="Continue", exact=True)).to_be_enabled()
    length = len(written(desk))
    assert length >= max(lengths) > len("The lamp")
    desk.wait_for_timeout(300)
    assert len(written(desk)) == length
    assert desk.evaluate("said") == ["Waiting …", "Writing …", "Stopped."]
    assert desk.locator("[aria-live], [role=status], [role=alert], [role=log]").count() == 2
    assert desk.locator("#text[aria-live], .turns[aria-live], #offers[aria-live]").count() == 0


def test_a_wrong_setting_is_named_and_its_field_is_shown(desk: Any) -> None:
    desk.get_by_label("Your text").fill("The lamp")
    for label, value, words in (
        ("Tokens", "99999", "Tokens: enter a number from 1 to 1,536."),
        ("Temperature", "", "Temperature: enter a number from 0 to 2."),
        ("Seed", "-1", "Seed: enter a number from 0 to 2,147,483,647."),
        ("End the text at", "a\nb\nc\nd\ne", "End the text at: at most 4 lines are allowed."),
    ):
        desk.get_by_role("button", name="Reset settings").click()
        field = desk.get_by_label(label, exact=True)
        field.fill(value)
        desk.get_by_role("button", name="Continue", exact=True).click()
        expect(desk.get_by_role("alert")).to_contain_text(words)
        expect(field).to_be_focused()
    assert written(desk) == "The lamp"


# -- the conversation


def test_a_conversation_with_stop_versions_edits_and_files(chat: Any, tmp_path: Path) -> None:
    chat.get_by_text("Instructions to the model").click()
    chat.get_by_label("Instructions to the model").fill("Be kind.")
    first = say(chat, "The lamp")
    assert first
    seed = re.search(SEED, chat.locator(".answer .note").inner_text())
    assert seed is not None
    chat.get_by_role("button", name="Again").click()
    finish(chat)
    expect(chat.locator(".pager")).to_contain_text("2 of 2")
    second = answer(chat)
    assert second != first
    chat.get_by_role("button", name="Earlier answer").click()
    assert answer(chat) == first
    # The same seed gives the same answer.
    chat.get_by_role("button", name=f"Keep seed {seed[1]}").click()
    chat.get_by_role("button", name="Again").click()
    finish(chat)
    expect(chat.locator(".pager")).to_contain_text("3 of 3")
    assert answer(chat) == first
    # An answer that was cut goes on.
    chat.get_by_role("button", name="Continue").click()
    finish(chat)
    expect(chat.locator(".answer .note")).to_contain_text("24 tokens")
    assert answer(chat).startswith(first)
    longer = answer(chat)
    say(chat, "And the boat?")
    expect(chat.locator(".turn")).to_have_count(4)
    # Files.
    with chat.expect_download() as found:
        chat.get_by_role("button", name="Save JSON").click()
    found.value.save_as(tmp_path / "chat.json")
    saved = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))["messages"]
    assert [message["role"] for message in saved] == ["system", "user", "assistant", "user", "assistant"]
    assert (saved[0]["content"], saved[1]["content"]) == ("Be kind.", "The lamp")
    assert (saved[2]["content"].strip(), saved[2]["model"]) == (longer.strip(), "tuned")
    with chat.expect_download() as found:
        chat.get_by_role("button", name="Save text").click()
    found.value.save_as(tmp_path / "chat.txt")
    assert "[You]\nThe lamp\n\n[tuned]\n" in (tmp_path / "chat.txt").read_text(encoding="utf-8")
    # An edited message removes what came after it, and it can be brought back.
    chat.locator(".user").first.get_by_role("button", name="Edit").click()
    chat.get_by_label("Edit the message").fill("The heron")
    chat.get_by_label("Edit the message").press("Control+Enter")
    finish(chat)
    expect(chat.locator(".turn")).to_have_count(2)
    expect(chat.locator(".user .prose")).to_have_text("The heron")


def test_deleted_messages_can_be_brought_back_and_a_draft_survives_a_reload(chat: Any) -> None:
    first = say(chat, "The lamp")
    chat.locator(".user").get_by_role("button", name="Delete").click()
    expect(chat.locator(".turn")).to_have_count(0)
    chat.get_by_role("button", name="Bring back").click()
    expect(chat.locator(".turn")).to_have_count(2)
    chat.get_by_role("button", name="Clear").click()
    expect(chat.locator(".turn")).to_have_count(0)
    chat.get_by_role("button", name="Bring back").click()
    chat.get_by_label("Your message").fill("half a sen")
    chat.reload()
    expect(chat.get_by_label("Your message")).to_have_value("half a sen")
    assert answer(chat) == first
    expect(chat.get_by_label("Tokens")).to_have_value("12")
    # Typed text is also kept when the page is closed while the model writes.
    chat.get_by_label("Tokens").fill("1536")
    chat.get_by_role("button", name="Send", exact=True).click()
    status(chat, "Writing …")
    chat.reload()
    expect(chat.locator(".user .prose").last).to_have_text("half a sen")
    expect(chat.locator(".answer .note").last).to_contain_text("stopped")


def test_enter_sends_but_not_while_an_input_method_composes(chat: Any) -> None:
    field = chat.get_by_label("Your message")
    field.click()
    keyboard = chat.context.new_cdp_session(chat)
    keyboard.send("Input.imeSetComposition", {"text": "ni hao", "selectionStart": 6, "selectionEnd": 6})
    for keys in ("Enter", "Control+Enter"):
        field.press(keys)
        assert chat.locator(".turn").count() == 0
    keyboard.send("Input.insertText", {"text": "你好"})
    field.press("Shift+Enter")
    assert chat.locator(".turn").count() == 0
    assert field.input_value().strip() == "你好"
    field.press("Enter")
    expect(chat.locator(".user .prose")).to_have_text("你好")
    status(chat, "Done.")


# -- before and after


def test_a_base_and_its_tuned_model_answer_side_by_side_with_one_seed(visit: Open) -> None:
    page = visit()
    expect(page.get_by_label("Compare with", exact=True)).to_be_checked()  # these two are there to be compared
    page.get_by_label("Tokens").fill("12")
    page.get_by_label("Your message").fill("The lamp")
    page.get_by_role("button", name="Send", exact=True).click()
    status(page, "Done: 2 texts.")
    cards = page.locator(".answer article")
    assert cards.locator("h3").all_inner_texts() == ["base · before", "tuned · after"]
    notes = cards.locator(".note").all_inner_texts()
    assert len({re.findall(SEED, note)[0] for note in notes}) == 1
    assert len(set(cards.locator(".prose").all_inner_texts())) == 2
    boxes = [cards.nth(number).bounding_box() for number in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    # The base has no chat template and reads what the tuned model reads: alone, each gives the same text again.
    seed = re.findall(SEED, notes[0])[0]
    after = cards.locator(".prose").nth(1).inner_text()
    cards.nth(1).get_by_role("button", name="Choose this").click()
    expect(cards).to_have_count(1)
    page.get_by_label("Compare with", exact=True).uncheck()
    page.get_by_label("Seed", exact=True).fill(seed)
    page.get_by_role("button", name="Again").click()
    finish(page)
    expect(page.locator(".pager")).to_contain_text("3 of 3")
    assert answer(page) == after
    # The same at the desk.
    page.get_by_role("button", name="Write", exact=True).click()
    page.get_by_label("Compare with", exact=True).check()
    page.get_by_label("Your text").fill("The lamp")
    assert go_on(page, "Done: 2 texts.") == "The lamp"
    offers = page.locator("#offers article")
    assert offers.locator("h3").all_inner_texts() == ["base · before", "tuned · after"]
    before = offers.locator(".prose").first.inner_text()
    page.get_by_label("Compare with", exact=True).uncheck()
    page.get_by_label("Model", exact=True).select_option("base")
    assert go_on(page).removeprefix("The lamp").strip() == before.strip()
    expect(page.get_by_role("button", name="Chat", exact=True)).to_have_attribute("aria-disabled", "true")
