"""Chat templates of the usual families: what is learned of a file of conversations, from the file to the labels.

Each test is a fault that users of other tools reported; docs/log.md lists the reports.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from finetale.blocks import IGNORE, pack
from finetale.chat import chat_renderer
from finetale.config import TextSettings
from finetale.errors import SourceError, TokenizerError
from finetale.text import read_parts
from finetale.tokens import TokenStore, build_store
from tiny import tokenizer

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ '<turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{{ (m['content'] | trim) + '</turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
LLAMA = (
    "{% for m in messages %}{{ bos_token if loop.first }}{{ '<head>' + m['role'] + '</head>\n\n' }}"
    "{{ (m['content'] | trim) + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<head>assistant</head>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|start|>system\nBe kind.<|end|>\n' }}"
    "{% endif %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


def with_template(template: str, end: str, begin: str | None, *others: str, adds: bool = False) -> Any:
    """Return a maker of a tokenizer; `adds` is one that adds the tokens of begin and end to each text by itself."""

    @cache
    def make() -> PreTrainedTokenizerBase:
        made: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(tokenizer().backend_tokenizer.to_str()),
            eos_token=end,
            pad_token=end,
            bos_token=begin,
            additional_special_tokens=list(others),
            chat_template=template,
        )
        if adds:
            marks = [(mark, made.convert_tokens_to_ids(mark)) for mark in (begin or end, end)]
            made.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{begin or end} $A {end}", special_tokens=marks
            )
        return made

    return make


FAMILIES = {
    "gemma": with_template(GEMMA, "<eos>", "<bos>", "<turn>", "</turn>"),
    "llama": with_template(LLAMA, "<eot>", "<begin>", "<head>", "</head>", adds=True),
    "mistral": with_template(MISTRAL, "</s>", "<s>", "[INST]", "[/INST]", adds=True),
    "chatml": with_template(CHATML, "<|end|>", None, "<|start|>"),
}
ENDS = {"gemma": "</turn>", "llama": "<eot>", "mistral": "</s>", "chatml": "<|end|>"}


def talk(*contents: str, first: str = "user") -> dict[str, Any]:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return {"messages": [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]}


def stored(folder: Path, made: PreTrainedTokenizerBase, *rows: dict[str, Any], loss: str = "answers") -> TokenStore:
    path = folder / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    settings = TextSettings.resolve({"validation_fraction": 0, "test_fraction": 0, "loss": loss, "screen": False})
    parts, report = read_parts([str(path)], settings, renderer=chat_renderer(made, loss))
    return build_store(parts, made, folder / "store", report=report.to_dict)


def learned(store: TokenStore, made: PreTrainedTokenizerBase, part: int = 0) -> tuple[str, list[str]]:
    """Return the text of a document of the store, and the texts of its runs of labels."""
    row = store.parts[part]
    ids = np.asarray(store.tokens[row["start"] : row["start"] + row["targets"] + 1], np.int64)
    is_context = np.zeros(len(ids), bool)
    is_context[0] = True
    for begin, end in store.context_of(part):
        is_context[begin + 1 : end + 1] = True
    edges = np.flatnonzero(np.diff(is_context, prepend=True, append=True))
    return made.decode(ids.tolist()), [
        made.decode(ids[a:b].tolist()) for a, b in zip(edges[::2], edges[1::2], strict=True)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_answer_is_learned_with_its_end_and_nothing_else(family: str, tmp_path: Path) -> None:
    """Turns with the same words, and words of a turn that occur in another one, don't confuse the mask."""
    made, end = FAMILIES[family](), ENDS[family]
    space = " " if family == "mistral" else ""
    text, answers = learned(stored(tmp_path, made, talk("Hi", "Hi", "Hi", "Hello.", "Why?", "Hi")), made)
    last = f"{space}Hi{end}" + ("<eos>" if family == "gemma" else "")
    assert answers == [f"{space}Hi{end}", f"{space}Hello.{end}", last]
    assert text.count(made.decode([made.bos_token_id or made.eos_token_id])) == (
        1 if made.bos_token_id is not None else text.count(end)
    ), "one beginning of text"
    assert not text.endswith(2 * end), "one end of text"


@pytest.mark.parametrize("family", FAMILIES)
def test_last_learns_no_mark_of_earlier_answers(family: str, tmp_path: Path) -> None:
    made = FAMILIES[family]()
    _, answers = learned(stored(tmp_path, made, talk("a", "b", "c", "d"), loss="last"), made)
    assert [each.replace("<eos>", "").strip() for each in answers] == [f"d{ENDS[family]}"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_may_begin_with_an_answer(family: str, tmp_path: Path) -> None:
    made = FAMILIES[family]()
    _, answers = learned(stored(tmp_path, made, talk("Welcome.", "c", "d", first="assistant")), made)
    assert [each.replace("<eos>", "").strip() for each in answers] == [f"Welcome.{ENDS[family]}", f"d{ENDS[family]}"]


def test_a_first_answer_that_the_template_cannot_ask_for_is_context(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] + ' ' + loop.index|string + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant ' + (messages|length + 1)|string + ': ' }}{% endif %}"
    )
    made = with_template("Start.\n" + template, "<eos>", None)()
    rows = [talk("Welcome.", "c", "d", first="assistant")]
    store = stored(tmp_path, made, *rows)
    text, answers = learned(store, made)
    assert answers[-1] == "d<eos>"
    assert "Welcome." in text


@pytest.mark.parametrize("family", FAMILIES)
def test_empty_turns_and_unicode(family: str, tmp_path: Path) -> None:
    """A combining mark, an emoji of several characters or Chinese at the border of prompt and answer."""
    made, end = FAMILIES[family](), ENDS[family]
    rows = [talk("", "b", "c", "", "d", "e"), talk("e", "\u0301👩\u200d🚀今天。\nx"), talk("今", "天")]
    store = stored(tmp_path, made, *rows)
    found = [[each.replace("<eos>", "").strip() for each in learned(store, made, part)[1]] for part in range(3)]
    assert sorted(found) == sorted([[f"b{end}", f"e{end}"], [f"\u0301👩\u200d🚀今天。\nx{end}"], [f"天{end}"]])


@pytest.mark.parametrize("family", FAMILIES)
def test_short_blocks_keep_every_answer_and_learn_in_every_block(family: str, tmp_path: Path) -> None:
    """No block has masked labels only, so no loss is 0 or NaN; no end mark is cut off."""
    made = FAMILIES[family]()
    rows = [
        talk("Who waited in the shallows? " * 20, "A heron."),
        talk("a " * 40, "b", "c " * 40, "d"),
        talk("p", "word " * 60),
    ]
    store = stored(tmp_path, made, *rows)
    blocks = pack(store, "train", 32, fill=True)
    assert blocks.learned.min() > 0
    labels = blocks.batch(np.arange(len(blocks))).labels
    ends = int((labels == made.convert_tokens_to_ids(ENDS[family])).sum())
    assert ends == 4, "four answers"
    assert int((labels != IGNORE).sum()) == store.num_targets("train")


def test_messages_that_a_template_leaves_out_are_counted(tmp_path: Path) -> None:
    """The template of Mistral's kind writes no system messages and no results of tools."""
    made = FAMILIES["mistral"]()
    row = talk("a", "b")
    row["messages"] = [{"role": "system", "content": "Be brief."}, *row["messages"]]
    called = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    tool = {
        "messages": [
            *talk("How warm?")["messages"],
            called,
            {"role": "tool", "content": "21"},
            *talk("", "So.")["messages"],
        ]
    }
    store = stored(tmp_path, made, row, tool)
    assert store.report["content_left_out"] == {
        "system message that the chat template changes or leaves out": 1,
        "tool message that the chat template changes or leaves out": 1,
        "call of a tool": 1,
    }


def test_a_template_without_a_system_role_says_so(tmp_path: Path) -> None:
    row = talk("a", "b")
    row["messages"] = [{"role": "system", "content": "Be brief."}, *row["messages"]]
    with pytest.raises(SourceError, match="1 dropped as the chat template refuses it \\(no system role\\)"):
        stored(tmp_path, FAMILIES["gemma"](), row)


def test_thoughts_that_a_template_removes_from_the_history(tmp_path: Path) -> None:
    """Such a template shows an answer in one form when it is given and in another one later."""
    made = with_template(THINKING, "<|end|>", None, "<|start|>")()
    with pytest.raises(TokenizerError, match="changes earlier messages") as caught:
        stored(tmp_path, made, talk("a", "b", "c", "d"))
    assert "--loss last" in caught.value.hint
    _, answers = learned(stored(tmp_path, made, talk("a", "b", "c", "d"), loss="last"), made)
    assert answers == ["<think>\n\n</think>\n\nd<|end|>"]
