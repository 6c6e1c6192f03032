"""Test that examples are recognised, rendered with a chat template, masked exactly, and cut without losing answers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples import marked, read
from finetale.answers import exercises
from finetale.blocks import IGNORE, cut_examples, pack
from finetale.chat import PLAIN_TEMPLATE, ChatRenderer, chat_renderer, conversation_prompt
from finetale.comparison import first_prompt
from finetale.config import TextSettings
from finetale.errors import SourceError, TokenizerError
from finetale.models import lead_of, with_lead
from finetale.server.completion import Vocabulary
from finetale.text import read_parts
from finetale.text.conversations import Message, UnusableExample
from finetale.text.findings import text_notes
from finetale.tokens import TokenStore, build_store, train_tokenizer
from tiny import tokenizer

ASK, ANSWER = "Who sat by the river?", "The old man."
PLAIN = f"[User:\n{ASK}\n\nAssistant:\n]{ANSWER}"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write(folder: Path, rows: list[Any], kind: str = "jsonl") -> Path:
    path = folder / f"pairs.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


def messages(*contents: str) -> list[Message]:
    """Return alternating messages of user and assistant."""
    roles = ("user", "assistant")
    return [Message(roles[i % 2], content, i % 2 == 1) for i, content in enumerate(contents)]


# -- the forms of examples

FORMS: dict[str, tuple[dict[str, Any], str, str]] = {
    "prompt, completion": ({"prompt": ASK, "completion": ANSWER}, PLAIN, "prompt → completion"),
    "question, answer": ({"question": ASK, "answer": ANSWER}, PLAIN, "question → answer"),
    "Alpaca": (
        {"instruction": ASK, "input": "The river.", "output": ANSWER},
        f"[User:\n{ASK}\n\nThe river.\n\nAssistant:\n]{ANSWER}",
        "instruction + input → output",
    ),
    "OpenAI": (
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASK},
                      {"role": "assistant", "content": ANSWER}]},
        f"[Be brief.\n\nUser:\n{ASK}\n\nAssistant:\n]{ANSWER}",
        "messages",
    ),
    "content in parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": ASK}]},
                      {"role": "assistant", "content": ANSWER}]},
        PLAIN,
        "messages",
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": ASK}, {"from": "gpt", "value": ANSWER}]},
        PLAIN,
        "conversations",
    ),
    "TRL": (
        {"prompt": [{"role": "user", "content": ASK}], "completion": [{"role": "assistant", "content": ANSWER}]},
        PLAIN,
        "prompt → completion",
    ),
    "user, assistant": ({"user": ASK, "assistant": ANSWER}, PLAIN, "user → assistant"),
    "system column": (
        {"system": "Be brief.", "prompt": ASK, "response": ANSWER},
        f"[Be brief.\n\nUser:\n{ASK}\n\nAssistant:\n]{ANSWER}",
        "system + prompt → response",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_recognised_and_reported(form: str, kind: str, tmp_path: Path) -> None:
    if (form, kind) == ("content in parts", "parquet"):
        pytest.skip("a column of Parquet holds texts or lists, not both")
    row, expected, columns = FORMS[form]
    parts, report = read(write(tmp_path, [row] * 3, kind))
    assert [marked(part) for part in parts] == [expected] * 3
    assert report["columns"][0]["taken"] == columns
    assert (report["examples"]["documents"], report["examples"]["answers"]) == (3, 3)
    assert any("3 examples with 3 answers: the answers are learned" in note.what for note in text_notes(report))


def test_columns_can_be_named_and_others_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("frage,antwort,notiz\nWer?,Der alte Mann.,nur eine kleine Notiz\n")
    parts, report = read(path, prompt_column="frage", completion_column="antwort")
    assert [marked(part) for part in parts] == ["[User:\nWer?\n\nAssistant:\n]Der alte Mann."]
    assert report["columns"][0]["left_out"][0]["name"] == "notiz"
    with pytest.raises(SourceError, match="has no column 'nope'; its columns are 'frage', 'antwort', 'notiz'"):
        read(path, prompt_column="nope", completion_column="antwort")


def test_a_text_column_has_priority_and_can_be_chosen(tmp_path: Path) -> None:
    parts, report = read(write(tmp_path, [{"text": "A long story of a heron.", "prompt": "p", "completion": "c"}]))
    assert [marked(part) for part in parts] == ["A long story of a heron."]
    assert report["examples"] is None
    parts, _ = read(write(tmp_path, [{"prompt": ASK, "completion": ANSWER}]), text_column="completion")
    assert [marked(part) for part in parts] == [ANSWER]


def test_conversations_of_several_turns(tmp_path: Path) -> None:
    talk = [{"role": "assistant" if i % 2 else "user", "content": f"m{i}"} for i in range(5)]
    path = write(tmp_path, [{"messages": talk}])
    assert marked(read(path)[0][0]) == "[User:\nm0\n\nAssistant:\n]m1[\n\nUser:\nm2\n\nAssistant:\n]m3"
    assert marked(read(path, loss="last")[0][0]) == "[User:\nm0\n\nAssistant:\nm1\n\nUser:\nm2\n\nAssistant:\n]m3"
    assert marked(read(path, loss="all")[0][0]) == "User:\nm0\n\nAssistant:\nm1\n\nUser:\nm2\n\nAssistant:\nm3"
    assert read(path)[1]["content_left_out"] == {"message after the last answer": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [{"role": "narrator", "content": "x"}]}, r"messages\[0\] has the role 'narrator'"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\] has no role"),
        ({"messages": ["x"]}, r"messages\[0\] is not a message"),
        ({"messages": [{"role": "user", "content": 5}]}, r"the content of messages\[0\] is not text"),
        ({"messages": "x"}, "column 'messages' is not a list of messages"),
        ({"other": "x"}, "has no column 'messages'"),
    ],
)
def test_the_error_for_an_invalid_message_has_the_line(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": ASK}, {"role": "assistant", "content": ANSWER}]}
    with pytest.raises(SourceError, match=rf"pairs\.jsonl:2: {reason}"):
        read(write(tmp_path, [good, row]))


def test_examples_without_an_answer_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": ASK, "completion": ANSWER},
        {"prompt": ASK, "completion": " "},
        {"prompt": ASK, "completion": None},
    ]
    parts, report = read(write(tmp_path, rows))
    assert [part.dropped for part in parts] == [None, "no answer", "no answer"]
    characters = 2 * len(f"{ASK}\n\n")
    assert report["dropped"] == [{"reason": "no answer", "documents": 2, "characters": characters}]


def test_answers_that_are_numbers_are_read(tmp_path: Path) -> None:
    rows = [{"question": ASK, "answer": 4}, {"question": ASK, "answer": 2.5}, {"question": ASK, "answer": float("nan")}]
    parts, report = read(write(tmp_path, rows))
    assert [marked(part) for part in parts[:2]] == [PLAIN.replace(ANSWER, "4"), PLAIN.replace(ANSWER, "2.5")]
    assert [part.dropped for part in parts] == [None, None, "no answer"]
    assert report["columns"][0]["taken"] == "question → answer"
    with pytest.raises(SourceError, match="column 'answer' holds an object, not text") as caught:
        read(write(tmp_path, [rows[0], {"question": ASK, "answer": {"a": "b"}}]))
    assert "--completion-column" in caught.value.hint


def test_content_of_messages_other_than_text_is_counted(tmp_path: Path) -> None:
    picture = {"type": "image_url", "image_url": {"url": "x"}}
    talk = [
        {"role": "user", "content": [{"type": "text", "text": ASK}, picture]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]},
        {"role": "tool", "content": "A man."},
        {"role": "assistant", "content": ANSWER, "reasoning_content": "Let me look."},
    ]
    parts, report = read(write(tmp_path, [{"messages": talk}] * 2))
    assert marked(parts[0]) == f"[User:\n{ASK}\n\nTool:\nA man.\n\nAssistant:\n]{ANSWER}"
    assert report["content_left_out"] == {"image": 2, "call of a tool": 2, "thought of the assistant": 2}


def test_an_answer_of_weight_0_is_context(tmp_path: Path) -> None:
    talk = [{"role": "assistant" if i % 2 else "user", "content": f"m{i}"} for i in range(4)]
    talk[1]["weight"] = 0  # type: ignore[assignment]
    parts, report = read(write(tmp_path, [{"messages": talk}]))
    assert marked(parts[0]) == "[User:\nm0\n\nAssistant:\nm1\n\nUser:\nm2\n\nAssistant:\n]m3"
    assert report["examples"]["answers"] == 1


def test_examples_are_held_out_whole(tmp_path: Path) -> None:
    rows = [{"prompt": f"{ASK} {i}", "completion": ANSWER} for i in range(8)]
    parts, _ = read(write(tmp_path, rows), validation_fraction=0.1, test_fraction=0.1)
    splits = [part.split for part in parts]
    assert (splits.count("validation"), splits.count("test"), splits.count("train")) == (1, 1, 6)
    assert all(part.context and part.ends for part in parts)
    again, _ = read(write(tmp_path, rows[::-1]), validation_fraction=0.1, test_fraction=0.1)
    assert [part.split for part in again] == splits[::-1]


def test_a_shared_system_message_does_not_make_near_repeats(tmp_path: Path) -> None:
    system = "You tell tales by the river, kindly and in few words, to children who want to go to bed soon. " * 9
    rows = [
        {"system": system, "prompt": f"Tell me of the {animal} that was seen at noon.", "response": f"It was {kind}."}
        for animal, kind in (("heron", "as grey as a post"), ("dog", "old and deaf by now"), ("hen", "in the reeds"))
    ]
    near = {"screen": True, "deduplicate": "near", "test_fraction": 0.34}
    parts, report = read(write(tmp_path, rows), **near)
    assert [part.dropped for part in parts] == [None] * 3
    assert report["near_duplicates"]["documents"] == report["near_overlap"]["documents"] == 0
    parts, report = read(write(tmp_path, [*rows, rows[0] | {"response": "It was as grey as a post !"}]), **near)
    assert report["near_duplicates"]["documents"] + report["near_overlap"]["documents"] == 1


def test_a_chat_template_writes_no_markers_into_the_text(tmp_path: Path) -> None:
    for loss in ("answers", "all"):
        (tmp_path / loss).mkdir()
        store = chat_store(tmp_path / loss, [[ASK, ANSWER, ASK, ANSWER]], loss)
        assert store.warnings == []
        assert int(store.parts["bytes"][0]) >= 2 * len(ANSWER)


def test_special_tokens_do_not_count_as_bytes_of_answers(tmp_path: Path) -> None:
    store = chat_store(tmp_path, [[ASK, ANSWER, ASK, ANSWER]])
    assert (store.tokens == 0).sum() == 3  # at the beginning, at the end, and after the first answer
    assert (int(store.parts["bytes"][0]), int(store.parts["words"][0])) == (2 * len(ANSWER), 6)


def test_only_answers_count_as_shared_passages(tmp_path: Path) -> None:
    prompt = " ".join(f"word{i}" for i in range(60))
    rows = [{"prompt": prompt, "completion": f"{ANSWER} {n} " + " ".join(f"a{n}b{i}" for i in range(30))}
            for n in range(8)]  # fmt: skip
    settings = TextSettings.resolve({"validation_fraction": 0, "test_fraction": 0.3})
    parts, report = read_parts([str(write(tmp_path, rows))], settings, renderer=chat_renderer(tokenizer(), "answers"))
    store = build_store(parts, tokenizer(), tmp_path / "store", report=report.to_dict)
    assert store.report["shared_passages"]["test"]["words"] > 0
    assert store.report["shared_passages"]["test"]["shared"] == 0


def test_the_split_of_an_example_does_not_depend_on_the_template(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": f"{ASK} {i}", "completion": ANSWER} for i in range(60)])
    settings = TextSettings.resolve({"validation_fraction": 0.2, "test_fraction": 0.2})
    splits = []
    for template in (PLAIN_TEMPLATE, CHATML):
        parts, _ = read_parts([str(path)], settings, renderer=ChatRenderer(template, {}, "answers", "x"))
        splits.append([part.split for part in parts])
    assert splits[0] == splits[1]
    assert len(set(splits[0])) == 3


# -- chat templates


def test_answers_are_found_by_the_difference_of_prefixes() -> None:
    renderer = ChatRenderer(CHATML, {"eos_token": "<|im_end|>"}, "answers", "x")
    rendered = renderer(messages("a", "b", "c", "d"))
    learned = [rendered.text[stop : next_start] for (_, stop), (next_start, _) in zip(
        rendered.context, [*rendered.context[1:], (len(rendered.text), 0)], strict=True)]  # fmt: skip
    assert learned == ["b<|im_end|>", "d"]  # the token store ends the last answer
    assert rendered.answers == 2


def test_end_of_text_at_the_end_of_a_conversation_only() -> None:
    template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
        "{{ '<|assistant|>\n' if add_generation_prompt else eos_token }}"
    )
    rendered = ChatRenderer(template, {"eos_token": "<|endoftext|>"}, "answers", "x")(messages("a", "b", "c", "d"))
    (first, start), (stop, last) = rendered.context
    assert (first, rendered.text[start:stop], rendered.text[last:]) == (0, "b<|end|>", "d<|end|>\n")


def test_generation_marks_in_a_template_select_the_answers() -> None:
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] }}!{% endgeneration %}{% else %}{{ m['content'] }}{% endif %} {% endfor %}"
    )
    rendered = ChatRenderer(template, {}, "last", "x")(messages("a", "b", "c", "d"))
    assert [rendered.text[a:b] for a, b in rendered.context] == ["user: a assistant: b! user: c assistant: "]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (
            "{% for m in messages %}{{ loop.length }}{{ m['content'] }} {% endfor %}",
            "does not begin with the text of its prompt",
        ),
        (
            "{% for m in messages %}{{ m['content'] if loop.last or m['role'] == 'user' else '…' }} {% endfor %}",
            "changes earlier messages",
        ),
    ],
)
def test_a_template_that_cannot_be_masked_exactly_is_refused(template: str, why: str) -> None:
    with pytest.raises(TokenizerError, match=f"can't be masked exactly: .*{why}") as caught:
        ChatRenderer(template, {}, "answers", "x")(messages("a", "b", "c", "d"))
    assert "--loss" in caught.value.hint
    assert ChatRenderer(template, {}, "all", "x")(messages("a", "b")).context == ()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ raise_exception('') }}", "TemplateError"),
        ("{{ messages[0]['content'] + 5 }}", "can only concatenate str"),
    ],
)
def test_a_conversation_that_the_template_refuses_is_dropped(fault: str, reason: str) -> None:
    template = "{% if messages[0]['role'] == 'system' %}" + fault + "{% endif %}x"
    with pytest.raises(UnusableExample, match=rf"the chat template refuses it \({reason}"):
        ChatRenderer(template, {}, "answers", "x")([Message("system", "s", False), *messages("a", "b")])


def test_a_template_that_is_not_jinja_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"The chat template of x is invalid: .*\(line 1\)"):
        ChatRenderer("{% for m in messages %}", {}, "answers", "x")(messages("a", "b"))


# -- tokens and blocks


def chat_store(folder: Path, rows: list[list[str]], loss: str = "answers") -> TokenStore:
    talks = [
        {"messages": [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(row)]}
        for row in rows
    ]
    settings = TextSettings.resolve({"validation_fraction": 0, "test_fraction": 0, "loss": loss})
    path = write(folder, talks)
    parts, report = read_parts([str(path)], settings, renderer=chat_renderer(tokenizer(), loss))
    return build_store(parts, tokenizer(), folder / "store", report=report.to_dict)


def learned_of(store: TokenStore) -> list[int]:
    """Return the places of the learned tokens in the store, by brute force."""
    places = []
    for row in store.parts:
        inside = range(int(row["start"]) + 1, int(row["start"]) + int(row["targets"]) + 1)
        places += [place for place in inside if not any(a <= place < b for a, b in store.context.tolist())]
    return places


@pytest.mark.parametrize("template", [CHATML, PLAIN_TEMPLATE, "{{ bos_token }}" + CHATML])
def test_the_server_and_the_command_line_read_the_same_tokens_as_training(template: str, tmp_path: Path) -> None:
    reader: Any = train_tokenizer([f"{ASK} {ANSWER}"], 300)
    reader.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    reader.chat_template = template
    talk = [{"role": "user", "content": ASK}, {"role": "assistant", "content": ANSWER}]
    settings = TextSettings.resolve({"validation_fraction": 0, "test_fraction": 0})
    parts, report = read_parts(
        [str(write(tmp_path, [{"messages": talk}]))], settings, renderer=chat_renderer(reader, "answers")
    )
    store = build_store(parts, reader, tmp_path / "store", report=report.to_dict)
    trained = store.tokens[: learned_of(store)[0]].tolist()
    prompt = conversation_prompt(reader, [Message("user", ASK, False)], "x")
    assert with_lead(reader(prompt, add_special_tokens=False)["input_ids"], lead_of(reader, True), 0) == trained
    assert Vocabulary(reader, len(reader), 64, bos_before_text=True).encode_chat(talk[:1]) == trained


def test_the_learned_answer_excludes_text_added_by_the_template(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": ASK, "completion": ANSWER}])
    wanted = {"validation_fraction": 0, "test_fraction": 0, "template": "Q: {prompt}\nA: {completion}\n###"}
    parts, report = read_parts([str(path)], TextSettings.resolve(wanted))
    store = build_store(parts, tokenizer(), tmp_path / "store", report=report.to_dict)
    (asked,) = exercises(store, tokenizer(), 3, ("train",))
    assert (asked.prompt, asked.reference) == (f"Q: {ASK}\nA:", f" {ANSWER}")


def test_the_first_prompt_is_the_shortest_of_some_examples(tmp_path: Path) -> None:
    store = chat_store(tmp_path, [[ASK, ANSWER], ["Who?", ANSWER], ["Write to ann@example.org", ANSWER]])
    assert first_prompt(store, tokenizer()) == "User:\nWho?\n\nAssistant:\n"


@pytest.mark.parametrize("marked", [True, False])
def test_labels_equal_the_answer_mask_of_transformers(marked: bool, tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    reader: Any = train_tokenizer([f"{ASK} {ANSWER} {number}" for number in range(9)], 300)
    reader.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    reader.eos_token = "<|im_end|>"
    reader.chat_template = template if marked else CHATML
    rng = random.Random(4)
    words = ["The", "lamp", "stood,", "and", "12", "boats", "—", "“naïve”?", "no!", "", "two\n\nlines", "你好", "(x)"]
    talks = []
    for _ in range(30):
        contents = [
            " ".join(["x", *rng.choices(words, k=rng.randint(1, 9))]).strip() for _ in range(rng.choice([2, 6]))
        ]
        talks.append([{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)])
    settings = TextSettings.resolve({"validation_fraction": 0, "test_fraction": 0, "deduplicate": "off"})
    path = write(tmp_path, [{"messages": talk} for talk in talks])
    parts, report = read_parts([str(path)], settings, renderer=chat_renderer(reader, "answers"))
    store = build_store(parts, reader, tmp_path / "store", report=report.to_dict)
    reader.chat_template = template
    learned = set(learned_of(store))
    for talk, row in zip(talks, store.parts, strict=True):
        theirs = reader.apply_chat_template(talk, return_assistant_tokens_mask=True, return_dict=True)
        places = range(int(row["start"]) + 1, int(row["start"]) + 1 + int(row["targets"]))
        number = len(places)  # without the line end after the last answer
        assert len(theirs["input_ids"]) == number + 1
        assert [int(store.tokens[place]) for place in places] == theirs["input_ids"][:number]
        assert [int(place in learned) for place in places] == theirs["assistant_masks"][:number]


def test_token_counts_with_context_add_up(tmp_path: Path) -> None:
    store = chat_store(tmp_path, [[ASK, ANSWER], [ASK, ANSWER, ASK, ANSWER]])
    tokens = store.account["tokens"]
    assert tokens["trained"] == len(learned_of(store)) == store.num_targets("train")
    assert tokens["context"] == int(np.diff(store.context).sum()) > 0
    assert tokens["read"] == tokens["trained"] + tokens["context"] == int(store.parts["targets"].sum())
    answer = len(tokenizer()(ANSWER, add_special_tokens=False)["input_ids"])
    assert tokens["trained"] == 3 * (answer + 1)  # each answer with an end-of-text
    assert int(store.parts["bytes"][0]) == len(ANSWER.encode())


@pytest.mark.parametrize("size", [16, 24, 48, 64, 200, 1000])
def test_every_token_of_an_answer_is_a_label_once(size: int, tmp_path: Path) -> None:
    long_answer = "A heron waited in the shallows, grey and patient as a fence post. " * 6
    rows = [
        [ASK, ANSWER],
        [ASK * 9, ANSWER],
        [ASK, long_answer],
        [ASK * 9, long_answer, ASK, ANSWER],
        [text for i in range(20) for text in (f"{ASK} {i}", f"{ANSWER} {i}")],
    ]
    store = chat_store(tmp_path, rows)
    blocks = pack(store, "train", size, fill=True)
    everything = np.arange(len(blocks))
    batch, places = blocks.batch(everything), blocks.places(everything)
    found = places[batch.labels != IGNORE]
    assert sorted(found.tolist()) == learned_of(store)
    assert (store.tokens[found] == batch.labels[batch.labels != IGNORE]).all()
    assert blocks.num_targets == len(found) == sum(blocks.targets_in(np.array([i])) for i in range(len(blocks)))
    cut = cut_examples(store, "train", size)
    assert cut.examples == int((store.parts["targets"] > size).sum())
    if size <= 64:
        assert cut.lost_context > 0  # of the question of 9 copies
    if size == 1000:
        assert (cut.examples, cut.lost_context, cut.cut_answers) == (0, 0, 0)
        assert len(blocks.segments) == len(rows)  # a packed example is never cut


def test_an_answer_that_fits_is_never_split(tmp_path: Path) -> None:
    store = chat_store(tmp_path, [[ASK * 20, ANSWER], [text for i in range(30) for text in (f"{ASK} {i}", ANSWER)]])
    blocks = pack(store, "train", 32)
    for index in range(len(blocks)):
        batch = blocks.batch(np.array([index]))
        ends = np.flatnonzero(batch.labels[0] == 0)  # end-of-text ends every answer
        assert len(ends) >= 1
    assert cut_examples(store, "train", 32).cut_answers == 0
