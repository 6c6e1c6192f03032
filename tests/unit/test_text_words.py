"""Test whether white space separates the words of a text, in many scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetale.config import Config
from finetale.pipeline.evaluating import MeasuredText, evaluate_model
from finetale.text.words import spaces_separate_words, unit_of
from tiny import loaded, part, store, story

GERMAN = "Die Rindfleischetikettierungsüberwachung ist eine Aufgabe, und niemand weiß, wozu sie gut sein soll."


@pytest.mark.parametrize(
    ("text", "spaced"),
    [
        ("The lamp stood on the sill.", True),
        (GERMAN, True),
        ("안녕하세요 저는 학생입니다", True),
        ("हिन्दी में लिखा गया पाठ", True),
        ("മലയാളത്തിൽ എഴുതിയ ഒരു വാചകം", True),
        ("كان يا ما كان في قديم الزمان", True),
        ("He said 你好 to the whole crowd of people who were waiting there.", True),
        ("123 456 + 7", True),
        ("", True),
        ("从前有一座山，山上有一座庙。", False),
        ("床前明月光\n疑是地上霜\n举头望明月", False),  # verse, with as many characters per line as a long word has
        ("今日は天気がいいですね。", False),
        ("ยินดีต้อนรับสู่ประเทศไทย", False),
        ("ສະບາຍດີທຸກຄົນ", False),
        ("ស្វាគមន៍មកកាន់", False),
        ("မြန်မာနိုင်ငံသို့", False),
        ("བོད་ཀྱི་སྐད་ཡིག", False),
        ("你 好 世 界", False),  # the form that some tokenizers decode
        ("onceuponatimetherewasafoxwhocountedtoten", False),
        ("The fox said: 从前有一座山，山上有一座庙，庙里有一个老和尚。", False),  # half of the text
    ],
)
def test_white_space_separates_words(text: str, spaced: bool) -> None:
    assert spaces_separate_words([text]) is spaced
    assert spaces_separate_words([text] * 3) is spaced


def test_the_rule_is_applied_to_the_text_that_is_measured(tmp_path: Path) -> None:
    chinese = [part(f"从前有{number}座山，山上有一座庙。" * 5, "test") for number in range(6)]
    held = store(tmp_path, [*chinese, part(story(1), "validation"), part(story(2))])
    config = Config.resolve({"sources": ("x",), "precision": "fp32"})
    measured = evaluate_model(loaded(0), held, MeasuredText.HELD_OUT, config, lambda event: None)
    assert (measured["validation"].spaced, measured["test"].spaced) == (True, False)
    figures = measured["test"].summary().to_dict()
    assert (figures["word_perplexity"], figures["words"], figures["documents"]) == (None, None, 6)
    assert figures["bits_per_byte"] > 0


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("the lamp stood on the sill", "word"),
        ("从前有一座山", "character"),
        ("昔々あるところに", "character"),
        ("He said 你好 to them", "word"),
        ("从前有一座山 OK", "character"),
        ("안녕하세요 저는", "word"),
        ("", "word"),
    ],
)
def test_words_of_chinese_and_japanese_are_called_characters(text: str, unit: str) -> None:
    assert unit_of(text) == unit
