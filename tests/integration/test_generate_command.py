"""Test `finetale generate`: sources of prompts, invalid prompts, JSON Lines, and the interactive session."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import finetale as ft
from commands import EXECUTABLE, environment
from finetale.cli import run
from finetale.config import Config
from finetale.errors import ConfigError, GenerationError
from finetale.surrogates import quoted
from tiny import save_model

SHORT = ("--max-new-tokens", "6", "--seed", "3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("generate") / "model", scale=0.5).parent


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def call(capsys: pytest.CaptureFixture[str], *words: str, stdin: Path | None = None, code: int = 0) -> tuple[str, str]:
    """Run `finetale generate model WORDS` with a file as standard input; return its stdout and stderr."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch, open(stdin or os.devnull, "rb") as file:
        patch.setattr(sys, "stdin", io.TextIOWrapper(file))
        found = run(["generate", "model", *words, *SHORT])
    out, err = capsys.readouterr()
    assert found == code, err
    return out, err


def prompts_of(out: str) -> list[str]:
    return [sample["prompt"] for sample in json.loads(out)["samples"]]


@pytest.mark.usefixtures("here")
def test_prompts_from_words_options_files_and_standard_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_bytes("\ufeffThe lamp\r\n\r\n  Füße \nlast".encode())
    objects = tmp_path / "objects.jsonl"
    objects.write_text('{"prompt": "two\\nlines"}\n\n{"prompt": "B", "more": 1}\n', encoding="utf-8")
    expected = ["The lamp", "  Füße ", "last"]
    assert prompts_of(call(capsys, "--prompts-file", str(lines), "--json")[0]) == expected
    assert prompts_of(call(capsys, "--json", stdin=lines)[0]) == expected
    assert prompts_of(call(capsys, "--prompts-file", "-", "--json", stdin=lines)[0]) == expected
    assert prompts_of(call(capsys, "-", "--json", stdin=objects)[0]) == [objects.read_text(encoding="utf-8")]
    for source in ({"stdin": objects}, {}):
        words = () if source else ("--prompts-file", str(objects))
        assert prompts_of(call(capsys, *words, "--json", **source)[0]) == ["two\nlines", "B"]
    mixed = ("a b", "--prompt", "Once", "--prompt", "c d", "--prompts-file", str(lines), "--json")
    assert prompts_of(call(capsys, *mixed)[0]) == ["a b", "Once", "c d", *expected]
    (tmp_path / "empty").touch()
    assert prompts_of(call(capsys, "--json", stdin=tmp_path / "empty")[0]) == [
        ""
    ]  # empty input: one text from an empty prompt
    _, err = call(capsys, "--prompts-file", "-", stdin=tmp_path / "empty", code=1)
    assert "standard input holds no prompt" in err


@pytest.mark.usefixtures("here")
def test_a_prompt_without_quotes_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    _, err = call(capsys, "Once", "upon", "a", "time", code=1)
    assert "no quotes: its 4 words" in err
    assert "finetale generate model 'Once upon a time'" in err
    assert "--prompt Once --prompt upon --prompt a" in err
    out, _ = call(capsys, "Once upon", "a time", "--json")  # two quoted prompts
    assert prompts_of(out) == ["Once upon", "a time"]
    assert prompts_of(call(capsys, "Once", "--json")[0]) == ["Once"]
    assert prompts_of(call(capsys, "从前有一个人", "山上有座庙", "--json")[0]) == ["从前有一个人", "山上有座庙"]
    _, err = call(capsys, "$(touch", "x)", code=1)
    assert "'$(touch x)'" in err  # the hint is quoted for the shell


@pytest.mark.usefixtures("here")
def test_a_prompt_that_is_the_path_of_a_file_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "my prompts.jsonl"
    file.write_text('{"prompt": "The lamp"}\n', encoding="utf-8")
    _, err = call(capsys, str(file), code=1)
    error, hint = err.splitlines()
    assert error == f"error: The prompt {quoted(str(file))} is the path of a file."
    assert hint == (
        f"hint: Read a prompt per line from it with --prompts-file '{file}', or use the path itself as a prompt with "
        f"--prompt '{file}'."
    )
    assert prompts_of(call(capsys, "--prompt", str(file), "--truncate", "--json")[0]) == [str(file)]
    assert prompts_of(call(capsys, "--prompts-file", str(file), "--json")[0]) == ["The lamp"]
    for text in (
        str(tmp_path),
        str(tmp_path / "none.txt"),
        "a b " * 200,
    ):  # a folder, a missing file, longer than any file name
        assert prompts_of(call(capsys, text, "--truncate", "--json")[0]) == [text]


@pytest.mark.usefixtures("here")
def test_jsonl_and_json_have_the_same_samples(capsys: pytest.CaptureFixture[str]) -> None:
    prompts = [f"The lamp {number}" for number in range(20)]
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    whole = json.loads(call(capsys, *words, "-n", "2", "--json")[0])["samples"]
    lines = [json.loads(line) for line in call(capsys, *words, "-n", "2", "--jsonl")[0].splitlines()]
    assert len(lines) == 40
    assert lines == whole
    for wrong in (("--json", "--jsonl"), ("--stream", "--jsonl")):
        call(capsys, "a b", *wrong, code=1)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("p.jsonl", b'{"prompt": "fine"}\n{"prompt": "a \\ud83d b"}\n', "p.jsonl:2 holds a lone surrogate"),
        ("p.jsonl", b'{"prompt": "\\ud83d\\ud83d"}\n', "p.jsonl:1 holds 2 lone surrogates"),
        ("p.txt", b"fine\nf\xe4hre\n", "p.txt:2 is not UTF-8 (byte 0xE4)"),
        ("p.jsonl", b'{"prompt": 5}\n', "p.jsonl:1 is not a JSON object with a text"),
        ("p.jsonl", b"\n[1]\n", "p.jsonl:2 is not a JSON object"),
        ("p.txt", b"\n \n", "holds no prompt"),
    ],
)
def test_prompts_with_invalid_text_are_refused(
    name: str, data: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    file.write_bytes(data)
    _, err = call(capsys, "--prompts-file", str(file), code=1)
    assert words in err
    assert "hint:" in err
    assert "Traceback" not in err
    if "surrogate" in words or "UTF-8" in words:
        _, err = call(capsys, stdin=file, code=1)
        assert words.replace(name, "standard input") in err


@pytest.mark.usefixtures("here")
def test_arguments_with_invalid_bytes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    word = os.fsdecode(b"a b\xff c")
    for words in ((word,), ("--prompt", word)):
        _, err = call(capsys, *words, code=1)
        assert "The prompt 'a b\\udcff c' holds a byte that is not UTF-8 (0xFF after 3 characters)." in err
    _, err = call(capsys, "a b", "--stop", os.fsdecode(b"\xff"), code=1)
    assert "not UTF-8 (0xFF" in err
    with pytest.raises(ConfigError, match="lone surrogate"):  # when a run starts, not when it samples at its end
        Config.resolve({"prompts": ["a \ud83d b"]})


def test_prompts_of_the_python_interface(folder: Path) -> None:
    writer = ft.load(folder / "model")
    options = {"max_new_tokens": 6, "seed": 3}
    one, two = (writer.generate(prompt, n=2, **options) for prompt in ("The lamp", "A heron"))
    assert [len(one), len(two)] == [2, 2]
    assert all(isinstance(text, str) for text in one)
    assert writer.generate(["The lamp", "A heron"], n=2, **options) == [one, two]
    assert writer.generate(("A heron",), n=2, **options) == [two]
    assert writer.generate([], **options) == []
    for bad, words in (
        ("a \ud83d b", "lone surrogate"),
        (["fine", "\udcff"], "lone surrogate"),
        ([5], "Prompt 1 is 5, not a text"),
        (5, "Prompt 1 is 5, not a text"),
        (None, "Prompt 1 is None, not a text"),
    ):
        with pytest.raises(GenerationError, match=words):
            writer.generate(bad, **options)  # type: ignore[call-overload]
    with pytest.raises(GenerationError, match="lone surrogate"):
        writer.stream("a \ud83d b")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_an_interactive_session_in_a_terminal(here: Path) -> None:
    import pty

    save_model(here / "long", positions=4096)
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [EXECUTABLE, "generate", "long", "--max-new-tokens", "4", "--quiet"],
        cwd=here,
        env=environment(here / "home") | {"TERM": "dumb"},
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    shown = ""

    def until(words: str) -> str:
        """Read until the terminal shows some words; return the new output."""
        nonlocal shown
        before = len(shown)
        while words not in shown[before:]:
            shown += os.read(leader, 65_536).decode()
        return shown[before:]

    def type_in(line: str) -> str:
        os.write(leader, line.encode())
        return until("\n> ")

    until("\n> ")
    first = type_in("The lamp\n")
    assert first.count("The lamp") == 2  # the echo of the terminal, and the prompt with its continuation
    assert "Ctrl-D" in type_in("/help\n")
    assert "/temperature 0.8" in type_in("/settings\n")
    type_in("/temperature 0\n")
    assert "/temperature 0.0" in type_in("/temperature\n")
    assert "error: temperature = '-1'" in type_in("/temperature -1\n")
    greedy = [type_in("A heron\n").rpartition("A heron")[2] for _ in range(2)]
    assert greedy[0] == greedy[1]  # the new temperature is used
    type_in("/max_new_tokens 4000\n")
    os.write(leader, b"x y\n")
    until("x y\r\nx y")  # generation has started
    os.kill(process.pid, signal.SIGINT)  # stops the text, but not the session
    assert " …\r\n" in until("\n> ")
    os.write(leader, b"\x04")
    assert process.wait(60) == 0
    os.close(leader)
    assert "Traceback" not in shown
