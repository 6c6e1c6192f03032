"""Test structured output: every finished text has the form that was asked for, whatever the model and the tokenizer."""

from __future__ import annotations

import json
import queue
import random
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
import sentencepiece
import torch
from transformers import (
    BertTokenizer,
    ByT5Tokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from finetale import extras, models, tokens
from finetale.errors import RequestError
from finetale.generate.text import TextStream
from finetale.models import LoadedModel, Provenance
from finetale.server import wire
from finetale.server.answer import Served
from finetale.server.completion import Completion, Piece
from finetale.server.forms import Form, choice_form, json_form
from finetale.server.grammars import Constraint, Grammars
from finetale.server.model_spec import serve_model
from finetale.server.token_bytes import TokenBytes
from tiny import story, tokenizer

pytest.importorskip("llguidance")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["poet", "诗人", None, 3]},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,4}$"}, "maxItems": 3},
        "home": {"anyOf": [{"$ref": "#/$defs/place"}, {"type": "null"}]},
    },
    "required": ["name", "age", "kind", "tags", "home"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 5}},
            "required": ["city"],
            "additionalProperties": False,
        }
    },
}
CHINESE = "宝玉听了，不觉又喜又悲。黛玉笑道：“你又来了。”众人都笑起来，只见丫鬟送上茶来。"


def sentencepiece_tokenizer(folder: Path, kind: str, **settings: Any) -> PreTrainedTokenizerBase:
    folder.mkdir()
    texts = folder / "texts.txt"
    texts.write_text("\n".join(story(number) for number in range(20)) + '\n{"a": [1, 2]}', encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(texts),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=380,
        hard_vocab_limit=False,
        model_type=kind,
        minloglevel=2,
        **settings,
    )
    texts.unlink()
    config = LlamaConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return models.load_tokenizer(folder)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedTokenizerBase]:
    place = tmp_path_factory.mktemp("tokenizers")
    return {
        "bytes": tokenizer(),
        "chinese": tokens.train_tokenizer([CHINESE * 3, '{"姓名": "黛玉"}'], 400),
        "unigram": sentencepiece_tokenizer(place / "unigram", "unigram", byte_fallback=True),
        "bpe": sentencepiece_tokenizer(place / "bpe", "bpe", byte_fallback=True),
        "python": ByT5Tokenizer(),
        "no bytes": sentencepiece_tokenizer(place / "none", "bpe", character_coverage=1.0),
    }


KINDS = ["bytes", "chinese", "unigram", "bpe", "python", "no bytes"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_tokens_are_their_text(kind: str, tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    used = tokenizers[kind]
    words = TokenBytes(used, len(used))
    assert all(words.bytes[token] == b"" for token in words.special)
    assert len({data for data in words.bytes if data}) > 100
    for text in ("The lamp stood", '{"name": "lamp"}', " two  spaces"):
        ids = words.encode(text)
        assert b"".join(words.bytes[token] for token in ids) == (text.encode() if ids else b"")
        assert ids or kind == "no bytes"


def test_a_text_that_no_token_can_write_has_no_ids(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    used = tokenizers["no bytes"]
    assert TokenBytes(used, len(used)).encode("詩") == []


def grammars(used: PreTrainedTokenizerBase) -> Grammars:
    return Grammars(used, len(used), (tokens.begin_and_end(used)[1],))


def walk(constraint: Constraint, used: PreTrainedTokenizerBase, seed: int, most: int) -> tuple[str, bool]:
    """Choose allowed tokens at random; return the text, and whether it ended by itself."""
    end = constraint._ends[0]
    chance = random.Random(seed)
    text, ended = TextStream(used, [constraint.anchor], ()), False
    for _ in range(most):
        allowed = constraint.mask().nonzero()[:, 0].tolist()
        assert constraint.failure is None
        if not allowed:  # the vocabulary cannot write what must follow
            break
        token = chance.choice(allowed)
        if token == end:
            ended = True
            break
        constraint.accept(token)
        if constraint.failure is not None:
            assert "tokens cannot write" in constraint.failure.message
            break
        text.add(token)
        if constraint.complete:
            ended = True
            break
    text.finish()
    return text.text, ended


def has_form(form: Form, text: str) -> bool:
    if form.kind == "regex":
        return re.fullmatch(form.source, text, re.DOTALL) is not None
    jsonschema.validate(json.loads(text), json.loads(form.source))
    return True


FORMS = {
    "person": json_form(PERSON, "guided_json"),
    "object": json_form({"type": "object", "maxProperties": 2}, "response_format"),
    "no space": json_form({"type": "array", "items": {"type": "number"}, "maxItems": 4}, "guided_json", None),
    "constant": json_form({"const": {"lamp": ["stood", "诗"]}}, "guided_json"),
    "regex": Form("regex", r"(lamp|boat)s? [0-9]{2,4}[\n.]", "guided_regex"),
    "space": Form("regex", " {1,3}lamp", "guided_regex"),
    "choice": choice_form(
        ["yes", "no", "a (b) [c] {1,2} x.y/z", "诗人", "line\nbreak", '"quoted" \\'], "guided_choice"
    ),
}


LEAST = {("object", kind): 3 for kind in KINDS} | {(name, "no bytes"): 0 for name in ("constant", "choice", "person")}
"""Least number of texts that end, of 30. The vocabulary without bytes cannot write all texts."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMS)
def test_each_text_that_ends_has_its_form(name: str, kind: str, tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    form, used = FORMS[name], tokenizers[kind]
    base = grammars(used).constraint(form)
    ended = 0
    for seed in range(30):
        text, done = walk(base.copy(), used, seed, 120)
        if done:
            assert has_form(form, text), (seed, text)
            ended += 1
    assert ended >= LEAST.get((name, kind), 10), ended


# Engines


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer()),
        n_positions=256,
        n_embd=32,
        n_layer=1,
        n_head=2,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=0,
    )
    tiny = GPT2LMHeadModel(config).eval()
    loaded = LoadedModel(tiny, tokenizer(), Provenance("tiny", "local", None, "0" * 64, tiny.num_parameters()))
    model = serve_model("tiny", loaded, slots=8, max_waiting=64)
    yield model
    model.close(5)


def ask(served: Served, **values: Any) -> list[tuple[str, str]]:
    """Return the text and finish_reason of each choice."""
    body = {"model": "tiny", "prompt": "The lamp", "max_tokens": 150} | values
    completion = Completion(wire.read(wire.CompletionRequest, json.dumps(body).encode()), served.vocabulary)
    pieces: queue.Queue[Piece | Exception | None] = queue.Queue()
    served.worker.submit(completion, "test", pieces.put)
    texts = [""] * completion.request.count
    reasons = [""] * completion.request.count
    while (piece := pieces.get(timeout=60)) is not None:
        if isinstance(piece, Exception):
            raise piece
        texts[piece.index] += piece.text
        reasons[piece.index] = piece.finish_reason or reasons[piece.index]
    return list(zip(texts, reasons, strict=True))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"stream": True},
        {"temperature": 2.0, "logprobs": 3},
        {"temperature": 0.0},
        {"top_k": 2, "top_p": 0.5},
        {"min_p": 0.5, "repetition_penalty": 1.5},
        {"stop": ["a", '"', "}"]},  # they would cut the text
        {"presence_penalty": 2.0, "logit_bias": {"0": 100}},  # the bias asks for the end of the text
    ],
)
def test_an_engine_writes_the_form(more: dict[str, Any], served: Served) -> None:
    ended = 0
    for seed in range(3):
        found = ask(served, n=6, seed=seed, guided_json=PERSON, **more)
        assert found == ask(served, n=6, seed=seed, guided_json=PERSON, **more)
        for text, reason in found:
            if reason == "stop":
                jsonschema.validate(json.loads(text), PERSON)
                ended += 1
            else:
                assert reason == "length"
    assert ended > 0 or more.get("temperature") == 0


def test_constrained_and_other_rows_do_not_change_each_other(served: Served) -> None:
    alone = ask(served, n=2, seed=1), ask(served, n=2, seed=1, guided_regex="(yes|no){1,50}")
    found: dict[int, list[tuple[str, str]]] = {}

    def run(number: int, **values: Any) -> None:
        found[number] = ask(served, n=2, seed=1, **values)

    threads = [
        threading.Thread(target=run, args=(0,)),
        threading.Thread(target=run, args=(1,), kwargs={"guided_regex": "(yes|no){1,50}"}),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found[0], found[1]) == alone
    assert all(re.fullmatch("(yes|no){1,50}", text) for text, reason in found[1] if reason == "stop")


def test_a_text_is_complete_as_soon_as_nothing_can_follow(served: Served) -> None:
    (text, reason), *_ = ask(served, guided_choice=["lamp"], max_tokens=8)
    assert (text, reason) == ("lamp", "stop")


def test_a_text_that_is_cut_is_not_called_complete(served: Served) -> None:
    for text, reason in ask(served, guided_json={"type": "string", "minLength": 100}, max_tokens=20, n=8):
        assert reason == "length"
        with pytest.raises(json.JSONDecodeError):
            json.loads(text)


def test_the_end_may_come_where_the_text_is_complete(served: Served) -> None:
    found = ask(served, guided_regex="a+", n=8, max_tokens=50, logit_bias={"0": 50})
    assert all((text.strip("a"), reason) == ("", "stop") and text for text, reason in found)


def test_a_grammar_in_either_notation(served: Served) -> None:
    for grammar in ('root ::= ("yes" | "no") " " num\nnum ::= [0-9] [0-9]?', 'start: ("yes" | "no") " " /[0-9]{1,2}/'):
        for text, reason in ask(served, guided_grammar=grammar, n=8):
            assert reason == "stop"
            assert re.fullmatch("(yes|no) [0-9]{1,2}", text)


def test_a_grammar_cannot_name_the_end_of_text(served: Served) -> None:
    """A grammar of llguidance can name tokens; the end would then come in an unfinished text."""
    grammar = 'start: <[0-399]> "lamp"'
    for text, reason in ask(served, guided_grammar=grammar, n=4, max_tokens=60, logit_bias={"0": 100}):
        assert reason == "stop"
        assert text.endswith("lamp")


def test_equal_forms_are_compiled_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = served.vocabulary.grammars
    first = kept.constraint(choice_form(["x"], "guided_choice"))
    monkeypatch.setattr(kept, "_compile", None)
    again = kept.constraint(choice_form(["x"], "guided_choice"))
    assert again.mask().tolist() == first.mask().tolist()


# Refusals


@pytest.mark.parametrize(
    ("values", "parameter", "words"),
    [
        ({"guided_regex": "("}, "guided_regex", "unclosed group"),
        ({"guided_regex": "(?=a)a"}, "guided_regex", "look-around"),
        ({"guided_regex": ""}, "guided_regex", "is empty"),
        ({"guided_regex": r"[^\s\S]"}, "guided_regex", "allows no text"),
        ({"guided_regex": "(" * 4000 + "a" + ")" * 4000}, "guided_regex", "nest"),
        ({"guided_regex": "a" * 8193}, "guided_regex", "8,193 characters; the maximum is 8,192"),
        ({"guided_grammar": "start: foo"}, "guided_grammar", "unknown name"),
        ({"guided_grammar": "hello world"}, "guided_grammar", "Expected ::="),
        ({"guided_grammar": 'root ::= "\\'}, "guided_grammar", ""),
        ({"guided_grammar": "root ::= " + "(" * 3000 + '"a"' + ")" * 3000}, "guided_grammar", "recursion"),
        ({"guided_grammar": 'start: a\na: a "x"'}, "guided_grammar", "allows no text"),
        ({"guided_choice": []}, "guided_choice", "at least 1"),
        ({"guided_choice": [""]}, "guided_choice", "empty"),
        ({"guided_choice": ["x" * 70_000]}, "guided_choice", "maximum is 65,536"),
        ({"guided_json": "{"}, "guided_json", "not JSON"),
        ({"guided_json": {"type": "strin"}}, "guided_json", "Invalid type"),
        ({"guided_json": {"$ref": "#"}}, "guided_json", "allows no text"),
        ({"guided_json": {"$ref": "http://example.com/x"}}, "guided_json", "http://example.com/x"),
        ({"guided_json": {"type": "array", "uniqueItems": True}}, "guided_json", "uniqueItems"),
        ({"guided_json": {"description": "x" * 70_000}}, "guided_json", "maximum is 65,536"),
        ({"guided_json": False}, "guided_json", "must be a JSON schema that allows a value"),
        ({"guided_json": "[1]"}, "guided_json", "must be a JSON schema that allows a value"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "unclosed group"),
        ({"structured_outputs": {"regex": 3}}, "structured_outputs.regex", "string"),
        ({"structured_outputs": {}}, "structured_outputs", "needs json, regex"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs.regex", "can't be combined with"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema is required"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strin"}}}},
            "response_format.json_schema.schema",
            "Invalid type",
        ),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice", "can't be combined with guided_regex"),
        (
            {"response_format": {"type": "json_object"}, "guided_json": {}},
            "guided_json",
            "can't be combined with response_format",
        ),
    ],
)
def test_a_form_that_is_invalid_is_refused(values: dict[str, Any], parameter: str, words: str, served: Served) -> None:
    started = time.thread_time()
    with pytest.raises(RequestError) as caught:
        ask(served, **values)
    assert time.thread_time() - started < 2
    assert (caught.value.status, caught.value.parameter) == (400, parameter)
    assert words in caught.value.message
    assert len(caught.value.message) < 500


def test_a_deep_schema_is_refused() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(400):
        schema = {"type": "array", "items": schema}
    with pytest.raises(ValueError, match="guided_json: is nested deeper than 64 levels"):
        json_form(schema, "guided_json")


EXPENSIVE = {
    "repeated": {"guided_regex": "a{100000}"},
    "nested": {"guided_regex": "(((a{1,100}){1,100}){1,100}){1,100}"},
    "automaton": {"guided_regex": r"(.*a.{30}|.*b.{40}|[^\n]*c.{20})+"},
    "ambiguous": {
        "guided_grammar": "start: r0\n" + "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(60)) + 'r60: "a"'
    },
    "optional": {"guided_json": {"properties": {f"property_{i:05}": {"type": "string"} for i in range(1500)}}},
    "required": {
        "guided_json": {
            "properties": {f"p{i}": {} for i in range(1500)},
            "required": [f"p{i}" for i in range(1500)],
        }
    },
    "tree": {
        "guided_json": {
            "$ref": "#/$defs/a30",
            "$defs": {"a0": {"properties": {"x": {"type": "string"}}}}
            | {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i - 1}"}] * 2} for i in range(1, 31)},
        }
    },
    "items": {"guided_json": {"type": "array", "items": {"type": "array", "minItems": 1000}, "minItems": 1000}},
}


@pytest.mark.parametrize("name", EXPENSIVE)
def test_an_expensive_form_takes_limited_time_and_memory(name: str, served: Served) -> None:
    process = psutil.Process()
    before, started = process.memory_info().rss, time.process_time()
    for seed in range(2):
        problem = None
        try:
            ask(served, n=2, seed=seed, **EXPENSIVE[name])
        except RequestError as error:
            problem = error
        assert problem is None or (problem.status, problem.parameter) == (400, *EXPENSIVE[name])
    assert time.process_time() - started < 10
    assert process.memory_info().rss - before < 200e6
    assert ask(served, max_tokens=3)[0][1]  # the engine works


def test_without_llguidance_the_extra_is_named(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "is_installed", lambda package: package != "llguidance")
    with pytest.raises(RequestError) as caught:
        ask(served, guided_regex="a")
    assert (caught.value.status, caught.value.parameter) == (400, "guided_regex")
    assert "pip install 'finetale[serve]'" in caught.value.message
    assert ask(served, response_format={"type": "text"}, max_tokens=2)


def test_a_vocabulary_that_cannot_write_json_is_refused(tmp_path: Path) -> None:
    """BERT's tokens begin with a space, unless they continue a word."""
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *'你好{}":,abc', *(f"##{letter}" for letter in "abc")]
    (tmp_path / "vocab.txt").write_text("\n".join(entries) + "\n", encoding="utf-8")
    used = BertTokenizer(str(tmp_path / "vocab.txt"))
    own = Grammars(used, len(used), (3,))
    with pytest.raises(RequestError, match="allows no text that the model's tokens can write"):
        own.constraint(json_form({"type": "object"}, "guided_json"))
    assert walk(own.constraint(choice_form(["abc"], "guided_choice")), used, 0, 5) == ("abc", True)


def test_a_tokenizer_that_changes_tokens_by_their_neighbours_is_refused() -> None:
    class Spaced:
        def __init__(self) -> None:
            self.inner = tokenizer()

        def __len__(self) -> int:
            return len(self.inner)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def decode(self, ids: list[int], **options: Any) -> str:
            return str(self.inner.decode(ids[:3], **options))

    with pytest.raises(RequestError, match="tokenizer does not allow structured output"):
        grammars(Spaced()).constraint(choice_form(["a"], "guided_choice"))  # type: ignore[arg-type]


def test_a_deep_value_with_an_escape_is_read() -> None:
    body = b'{"model": "x", "metadata": {"a": ' + b"[" * 400 + b'"\\u0041"' + b"]" * 400 + b"}}"
    assert wire.read(wire.CompletionRequest, body).model == "x"
    with pytest.raises(RequestError, match="surrogate"):
        wire.read(wire.CompletionRequest, body.replace(b"0041", b"d800"))
