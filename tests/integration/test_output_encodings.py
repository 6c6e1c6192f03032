"""Test the commands with other output encodings: unsupported characters are replaced."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from commands import EXECUTABLE, environment
from finetale.cli import run
from tiny import save_model, write_stories

ENCODINGS = ("ascii", "latin-1", "cp1252", "utf-8")
FAST = ("--max-steps", "2", "--batch-size", "2", "--block-size", "64", "--max-new-tokens", "8", "--audit-tokens", "0")
STORIES = "Geschichten – für alle"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encodings")
    write_stories(folder / STORIES, 12)
    save_model(folder / "model", positions=128)
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def call(encoding: str, *words: str, code: int = 0) -> tuple[str, str]:
    """Run a command whose streams use an encoding with strict errors, like a console; return stdout and stderr."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", write_through=True) for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        patch.setenv("COLUMNS", "200")
        found = run(list(words))
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)  # type: ignore[attr-defined]
    assert found == code, (found, out, err)
    return out, err


def test_a_whole_run_in_ascii(here: Path) -> None:
    train = ("train", STORIES, "--model", "model", "--out", "run", *FAST, "--prompt", "Füße … 你好 −")
    out, err = call("ascii", *train)
    assert "Fusse ... ?? -" in out  # accents are removed; ? replaces characters without an ASCII equivalent
    assert "Training for 2 steps" in err
    comparison = json.loads((here / "run/comparison.json").read_text(encoding="utf-8"))
    assert comparison["prompts"] == ["Füße … 你好 −"]  # files are always UTF-8
    for words in (("report", "run"), ("runs", ".")):
        call("ascii", *words)
    found = json.loads(call("ascii", "compare", "run", "--json")[0])
    assert found["prompts"] == ["Füße … 你好 −"]  # JSON escapes unsupported characters


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_commands_replace_unsupported_characters(encoding: str) -> None:
    out, _ = call(encoding, "check", STORIES)
    assert "documents" in out
    prompt = "She said “no” – für 你"
    expected = {
        "ascii": 'She said "no" - fur ?',
        "latin-1": 'She said "no" - für ?',
        "cp1252": "She said “no” – für ?",
        "utf-8": prompt,
    }[encoding]
    assert call(encoding, "generate", "model", prompt, "--max-new-tokens", "4")[0].startswith(expected)
    out, _ = call(encoding, "generate", "model", prompt, "--max-new-tokens", "4", "--json")
    assert json.loads(out)["samples"][0]["prompt"] == prompt
    for words in (("--help",), ("train", "--help"), ("doctor",), ("evaluate", "model", STORIES, "--block-size", "64")):
        call(encoding, *words)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_errors_keep_their_exit_code(encoding: str) -> None:
    _, err = call(encoding, "evaluate", "nichts – für/你", STORIES, code=1)
    assert "error:" in err
    assert {"ascii": "nichts - fur/?", "latin-1": "nichts - für/?", "cp1252": "nichts – für/?"}.get(
        encoding, "你"
    ) in err


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_progress_in_a_terminal_without_unicode(here: Path) -> None:
    import pty

    leader, follower = pty.openpty()
    env = environment(here / "home") | {"PYTHONIOENCODING": "ascii", "TERM": "xterm"}
    train = ("train", STORIES, "--model", "model", "--out", "in-a-terminal", *FAST)
    process = subprocess.Popen(
        [EXECUTABLE, *train], cwd=here, env=env, stdin=subprocess.DEVNULL, stdout=follower, stderr=follower
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 65_536)
        except OSError:  # Linux raises it when the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(leader)
    assert process.wait(240) == 0, shown.decode("ascii")
    assert b"2/2" in shown
    assert shown.isascii()


def test_everything_the_package_prints_has_a_replacement() -> None:
    import finetale
    from finetale.cli.streams import _ascii

    folder = Path(finetale.__file__).parent
    files = [
        *folder.glob("display/*.py"),
        *folder.glob("config/*.py"),
        *folder.glob("cli/*.py"),
        *folder.glob("report/*.py"),
    ]
    assert len(files) > 20
    used = {char for file in files if file.name != "streams.py" for char in file.read_text(encoding="utf-8")}
    unreadable = {char for char in used if not char.isascii() and _ascii(char) in ("?", "")}
    assert unreadable == set()
