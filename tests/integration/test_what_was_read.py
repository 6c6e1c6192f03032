"""Test that `check` and `train` report the columns and files of the text, with any file name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from finetale.cli import run
from tiny import save_model, story, write_stories

QUICK = (
    "--model",
    "base",
    "--max-steps",
    "1",
    "--max-new-tokens",
    "2",
    "--num-prompts",
    "1",
    "--no-tensorboard",
    "--no-probe",
)
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with base/."""
    monkeypatch.setenv("FINETALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "base")
    return tmp_path


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    def run_command(*words: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run([str(word) for word in words])
        out, err = capfd.readouterr()
        return code, out, err

    return run_command


def test_skipped_files_and_columns_are_reported(place: Path, call: Call) -> None:
    write_stories(place / "stories", 9)
    for number in range(7):
        (place / f"stories/{number}.psd").touch()
    rows = [{"text": story(number, 60), "title": "The mill by the river"} for number in range(30)]
    (place / "stories/more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "stories/link").symlink_to(place / "base", target_is_directory=True)
    files = "Read 10 of 17 files; left out: 7 of kinds that are not read (7 .psd); not entered or read: 1 linked folder"
    column = "The text of stories is the column 'text', with 9"
    code, out, _ = call("check", "stories", "--model", "base")
    assert code == 0
    assert f"note: {files}.\n  stories/0.psd\n  stories/link\n  stories/1.psd\n" in out
    assert f"note: {column}" in out
    assert "left out: 'title'" in out
    assert "All of it could be read." not in out
    code, _, err = call("train", "stories", *QUICK, "--out", "run")
    assert code == 0
    assert f"{files}: 0.psd, link, 1.psd, 2.psd, 3.psd, ….\n" in err
    assert column in err
    for name in ("run/report.html", "run/model/README.md"):
        content = (place / name).read_text(encoding="utf-8").replace("\\_", "_").replace("&#39;", "'").replace("\\", "")
        assert files in content
        assert column in content
    assert "Read 10 of" not in call("train", "stories", *QUICK, "--out", "quiet", "--quiet")[2]


def test_a_text_column_with_less_than_half_of_the_text_stops_training(place: Path, call: Call) -> None:
    rows = [{"scene": story(number, 60), "completion": "Yes, it is."} for number in range(30)]
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, err = call("train", "pairs.jsonl", *QUICK, "--out", "run")
    assert code == 1
    assert "the column 'completion' would be read as the text, but contains only" in err
    assert "hint: Choose one with --text-column scene or completion." in err
    assert not (place / "run").exists()
    assert call("check", "pairs.jsonl", "--model", "base")[0] == 1
    assert call("train", "pairs.jsonl", "--text-column", "scene", *QUICK, "--out", "run")[0] == 0


def test_check_shortens_a_long_list_of_files(place: Path, call: Call) -> None:
    (place / "many").mkdir()
    for number in range(1250):
        (place / f"many/{number:04}.txt").write_text(f"Tale {number}.")
    assert "\n… and 1,230 more files\n" in call("check", "many", "--model", "base")[1]


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_skip_unreadable_skips_unreadable_files(place: Path, call: Call) -> None:
    write_stories(place / "stories", 9)
    for name in ("a.txt", "b.txt"):
        (place / f"stories/{name}").symlink_to(place / "gone.txt")
    code, _, err = call("train", "stories", *QUICK, "--out", "run")
    assert code == 1
    assert "2 files or folders can't be read: " in err
    assert "stories/a.txt (No such file or directory)" in err
    assert "--skip-unreadable" in err
    code, _, err = call("train", "stories", *QUICK, "--out", "run", "--skip-unreadable")
    assert code == 0
    assert "warning: Read 9 of 11 files; left out: 2 that can't be read: a.txt, b.txt." in err
    assert json.loads((place / "run/data.json").read_text())["text"]["skipped"]["unreadable"] == 2


@pytest.mark.skipif(os.name != "posix", reason="bytes in file names")
def test_file_names_that_are_not_utf8_work_in_all_commands(place: Path, call: Call) -> None:
    folder = os.fsencode(place) + b"/caf\xe9"
    os.mkdir(folder)
    for number in range(9):
        with open(folder + b"/t\xe4le%d.txt" % number, "wb") as file:
            file.write(story(number, 60).encode())
    source = os.fsdecode(b"caf\xe9")
    code, out, _ = call("check", source, "--model", "base")
    assert (code, "caf\\xe9/t\\xe4le0.txt" in out) == (0, True)
    code, out, _ = call("check", source, "--model", "base", "--json")
    assert json.loads(out)["text"]["files"][0]["file"] == "caf\\xe9/t\\xe4le0.txt"
    assert call("train", source, *QUICK, "--out", "run")[0] == 0
    for name in ("run.json", "data.json", "comparison.json"):
        assert json.loads((place / "run" / name).read_bytes().decode("utf-8"))
    assert "caf\\xe9" in (place / "run/report.html").read_text(encoding="utf-8")
    for command in (["compare", "run"], ["report", "run"], ["evaluate", "run", source], ["runs"]):
        assert call(*command)[0] == 0


def test_names_of_chat_users_are_printed_but_not_in_the_model_card(place: Path, call: Call) -> None:
    lines = [
        f"{1 + day % 28:02}/{1 + day // 28:02}/2023, 2{hour}:15 - {name}: {story(day, 12 + hour)}"
        for day in range(80)
        for hour, name in enumerate(("Marabella", "Tobiasson"))
    ]
    (place / "talk.txt").write_text("\n".join(lines))
    code, _, err = call("train", "talk.txt", *QUICK, "--speaker", "Marabella", "--out", "run")
    assert code == 0
    assert (
        "2 people write in 80 conversations, cut at silences of 6 hours; the messages of --speaker are the "
        "answers: Marabella (50% of the messages), Tobiasson (50% of the messages)." in err
    )
    card = (place / "run/model/README.md").read_text(encoding="utf-8")
    assert "2 people write in 80 conversations" in card
    assert "Marabella" not in card
    assert "Tobiasson" not in card
    code, _, err = call("train", "talk.txt", *QUICK, "--speaker", "Nobody", "--out", "other")
    assert code == 1
    assert "has no messages of 'Nobody'; the people and their messages are 'Marabella' (80), 'Tobiasson' (80)." in err
    assert not (place / "other").exists()


def test_a_model_trained_with_templates_gets_no_chat_template(place: Path, call: Call) -> None:
    rows = [{"question": f"Who rowed {number}?", "answer": story(number, 20)} for number in range(30)]
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = r"Q: {question}\nA: {answer}"
    code, _, err = call("train", "pairs.jsonl", *QUICK, "--template", template, "--out", "run")
    assert code == 0
    assert "is the template with 'question → answer'; no other column holds text." in err
    assert "chat_template" not in (place / "run/model/tokenizer_config.json").read_text()
    assert not (place / "run/model/chat_template.jinja").exists()
    assert call("train", "pairs.jsonl", *QUICK, "--out", "chat")[0] == 0
    assert (place / "chat/model/chat_template.jinja").exists()
