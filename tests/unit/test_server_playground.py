"""Test that the texts of the service's page are complete in each language, and what its scripts may do."""

from __future__ import annotations

import json
import re
from importlib import resources

import pytest

from finetale.server.playground import LANGUAGES, SCRIPTS, page

FOLDER = resources.files("finetale") / "templates"
WORDS = {
    each: json.loads((FOLDER / "playground" / f"words.{each}.json").read_text(encoding="utf-8")) for each in LANGUAGES
}
SOURCES = {name: (FOLDER / "playground" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS}


def test_each_language_has_the_same_texts_with_the_same_places_for_values() -> None:
    english, chinese = WORDS["en"], WORDS["zh"]
    assert list(english) == list(chinese)
    assert len(english) > 100
    assert all(text.strip() for words in WORDS.values() for text in words.values())
    places = {key: sorted(re.findall(r"\{\d\}", text)) for key, text in english.items()}
    assert places == {key: sorted(re.findall(r"\{\d\}", text)) for key, text in chinese.items()}


def test_all_texts_are_used_and_all_used_texts_exist() -> None:
    html, _ = page(["tiny"], "word")
    code = "\n".join(SOURCES.values())
    in_html = set(re.findall(r'data-say(?:-label|-placeholder)?="([^"]+)"', html))
    quoted = set(re.findall(r'"([a-z_]+(?:-[a-z]+)*)"', code))
    used_in_code = set(re.findall(r'(?:say|button|Failure)\("([^"]+)"', code))
    assert len(in_html) > 50
    assert len(used_in_code) > 30
    assert in_html | used_in_code <= set(WORDS["en"])
    assert set(WORDS["en"]) <= in_html | quoted


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_make_no_markup_of_text_and_are_short(name: str) -> None:
    source = SOURCES[name]
    assert len(source.splitlines()) < 500
    for dangerous in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "localStorage", "</"):
        assert dangerous not in source


def test_a_name_of_a_model_is_text() -> None:
    html, policy = page(["<b>&\"'"], "word")
    assert "<b>" not in html
    assert 'data-model="&lt;b&gt;&amp;&#34;&#39;"' in html
    assert "unsafe" not in policy
    assert html.count("</script>") == 1
