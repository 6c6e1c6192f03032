"""The Modelfile of Ollama: the template in Go's notation must give the text of the model's own template."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace

import pytest

from finetale.chat import PLAIN_TEMPLATE, conversation_prompt
from finetale.export.modelfile import go_template, modelfile
from finetale.models import LoadedModel
from finetale.text.conversations import Message
from tiny import loaded

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ 'SYSTEM {\"be\"} kind\n' }}{% endif %}" + CHATML
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{{ '<turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{{ m['content'] | trim + '</turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
SYSTEM_IN_FIRST_TURN = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>' + messages[0]['content'] + '<</SYS>>' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + (system if loop.first else '') + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CONVERSATIONS = (
    [("user", 'Hi "there" {{ you }}')],
    [("user", "a\nb"), ("assistant", "yes"), ("user", "你好")],
    [("system", "Be brief."), ("user", "one"), ("assistant", "1"), ("user", "two")],
)
_ACTION = re.compile(r"\{\{ (.*?) \}\}(?=\{\{|$)", re.DOTALL)


def model_with(template: str | None) -> LoadedModel:
    """Return a tiny model whose tokenizer has a chat template."""
    tokenizer = copy.deepcopy(loaded().tokenizer)
    tokenizer.chat_template = template
    return replace(loaded(), tokenizer=tokenizer)


def rendered_by_go(template: str, conversation: list[tuple[str, str]]) -> str:
    """Return what Go's text/template prints, for the notation that `go_template` uses."""
    body, end, ask = template.partition("{{ end }}{{ end }}")
    assert body.startswith("{{ range $number, $each := .Messages }}")
    assert end
    text = ""
    branches = re.split(r'\{\{ (?:else )?if eq \$each\.Role "(\w+)" \}\}', body)[1:]
    by_role = dict(zip(branches[::2], branches[1::2], strict=True))
    for number, (role, content) in enumerate(conversation):
        piece = by_role.get(role, "")
        opening = re.match(r"\{\{ if eq \$number 0 \}\}(.*?)\{\{ end \}\}", piece, re.DOTALL)
        if opening:
            piece = (opening[1] if number == 0 else "") + piece[opening.end() :]
        text += _printed(piece, content)
    return text + _printed(ask, "")


def _printed(piece: str, content: str) -> str:
    found = _ACTION.findall(piece)
    assert sum(len(each) + 6 for each in found) == len(piece), "no text stands outside of actions"
    return "".join(content if each == "$each.Content" else json.loads(each) for each in found)


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, CHATML, DEFAULT_SYSTEM, GEMMA, SYSTEM_IN_FIRST_TURN])
def test_the_template_for_ollama_gives_the_same_text(template: str) -> None:
    made = model_with(template)
    written = go_template(made)
    assert written is not None
    for conversation in CONVERSATIONS[: 2 if template is GEMMA else 3]:
        messages = [Message(role, content, False) for role, content in conversation]
        assert rendered_by_go(written, conversation) == conversation_prompt(made.tokenizer, messages, "it")


def test_a_template_that_counts_messages_is_left_to_ollama() -> None:
    counting = "{% for m in messages %}{{ loop.index|string + m['content'] }}{% endfor %}"
    assert go_template(model_with(counting)) is None
    written = modelfile("m.gguf", model_with(counting))
    assert "TEMPLATE" not in written
    assert "can't be expressed" in written


def test_a_base_model_continues_the_prompt_with_the_sampling_of_training() -> None:
    assert modelfile("m.gguf", model_with(None)).splitlines() == [
        "FROM ./m.gguf",
        'TEMPLATE """{{ .Prompt }}"""',
        'PARAMETER stop "<|endoftext|>"',
        "PARAMETER temperature 0.8",
        "PARAMETER top_p 0.95",
        "PARAMETER top_k 0",
        "PARAMETER repeat_penalty 1.0",
        "PARAMETER num_ctx 64",
    ]
