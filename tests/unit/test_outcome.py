"""Test the output of a finished run: nothing is cut at any width or in any script, and commands can be pasted."""

from __future__ import annotations

import re
import shlex
from io import StringIO
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from finetale.cli import outcome
from finetale.cli import run as command_line
from finetale.cli.outcome import print_comparison, print_outcome
from finetale.formatting import shell_command
from finetale.report import model_card, render_report
from finetale.rundir import RunDirectory, write_record
from finetale.schema import ComparisonFile, RunManifest, parse
from tiny import save_model

OLD = Path(__file__).parents[1] / "old_runs/version-1"
CHINESE = "从前有一座山，山上有一座庙，庙里有一个老和尚在讲故事。" * 4
EVIL = 'the lamp "$(touch pwned)" `id`; it\'s $HOME'


def comparison(text: str = CHINESE, prompt: str = CHINESE[:16], name: str = "读书人的故事" * 6) -> ComparisonFile:
    """Return the comparison of a real run with other samples and names."""
    whole = parse(ComparisonFile, (OLD / "comparison.json").read_bytes())
    sides = {
        key: side.model_copy(
            update={"name": name, "samples": [side.samples[0].model_copy(update={"text": text, "prompt": prompt})]}
        )
        for key, side in (("before", whole.before), ("after", whole.after))
    }
    return whole.model_copy(update={**sides, "prompts": [prompt], "verdict": f"On {name} it got better."})


def printed(content: ComparisonFile, width: int) -> str:
    file = StringIO()
    print_comparison(content, Console(file=file, width=width, highlight=False, legacy_windows=False))
    return file.getvalue()


def joined(drawn: str) -> str:
    """Return the output without frames, spaces and line breaks."""
    return re.sub(r"[\s│┃─━┏┓┗┛┡┩┴┳╇└┘╭╮╰╯“”…]", "", drawn)


@pytest.mark.parametrize("width", [40, 55, 56, 71, 72, 80, 120])
def test_nothing_is_cut_and_nothing_is_too_wide(width: int) -> None:
    drawn = printed(comparison(), width)
    assert max(cell_len(line) for line in drawn.splitlines()) <= width
    assert "…" not in drawn.replace(" …”", "").replace("…”", "")
    for figure in ("779.9", "641.2", "−17.8%"):
        assert figure in drawn
    for name in ("perplexity", "longest"):
        assert name in drawn


@pytest.mark.parametrize("width", [30, 40, 55])
def test_samples_and_names_are_complete_in_a_narrow_terminal(width: int) -> None:
    flat = joined(printed(comparison(), width))
    assert flat.count(CHINESE) == 2
    assert flat.count("读书人的故事" * 6) == 3


@pytest.mark.parametrize("width", [56, 80, 120])
def test_samples_are_complete_side_by_side(width: int) -> None:
    drawn = printed(comparison(), width)
    columns = [line.split("│") for line in drawn.splitlines() if line.startswith("│") and line.count("│") == 3]
    for column in (1, 2):
        assert "".join(line[column].strip() for line in columns) == CHINESE


@pytest.mark.parametrize("width", [40, 100])
def test_intervals_are_shown_at_every_width(width: int) -> None:
    whole = comparison()
    change = whole.change.model_copy(
        update={"test": whole.change.test.model_copy(update={"interval": (-60.1, -44.2)})}  # type: ignore[union-attr]
    )
    assert "−60.1%to−44.2%" in joined(printed(whole.model_copy(update={"change": change}), width)).replace("\n", "")


def test_the_next_command_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path / "my run; rm -r $HOME")
    write_record(run.comparison, comparison(prompt=EVIL))
    file = StringIO()
    monkeypatch.setattr(outcome, "stdout", lambda: Console(file=file, width=60, highlight=False))
    print_outcome(run, shell_command("finetale", "generate", "bundled", EVIL))
    lines = file.getvalue().splitlines()
    (command,) = [line.removeprefix("Next     ") for line in lines if line.startswith("Next")]
    assert shlex.split(command) == ["finetale", "generate", str(run.root), EVIL]
    assert shlex.split(lines[-1]) == ["finetale", "generate", "bundled", EVIL]


def test_commands_of_the_report_and_the_card_can_be_pasted() -> None:
    content = comparison(prompt=EVIL, name="my $(touch pwned) run")
    for manifest in (RunManifest(name="x", command=["finetale", "train", EVIL]), None):
        page = render_report(content, manifest=manifest)
        commands = [
            shlex.split(code.replace("&#34;", '"').replace("&#39;", "'").replace("&amp;", "&").replace("&gt;", ">"))
            for code in re.findall(r'<pre class="code">(finetale [^<]*)</pre>', page)
        ]
        where = "my $(touch pwned) run" if manifest is None else "."
        assert ["finetale", "generate", where, EVIL, "-n", "3"] in commands
        assert (["finetale", "train", EVIL] in commands) is (manifest is not None)
    card = model_card(RunManifest(name="x"), content, None)
    (shown,) = re.findall(r"```sh\n(.*)\n```", card)
    assert shlex.split(shown) == ["finetale", "generate", ".", EVIL, "-n", "3"]
    (python,) = re.findall(r"print\(generate\((.*?), max_new_tokens", card)
    assert eval(python) == EVIL


def test_runs_are_listed_below_each_other_in_a_narrow_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path / ("读书人的故事" * 5))
    run.update_manifest(status="finished", steps=12_345, seconds=75.0, base={"name": "[bold]gpt2"})
    write_record(run.comparison, comparison())
    for width in (40, 100):
        monkeypatch.setenv("COLUMNS", str(width))
        assert command_line(["runs", str(tmp_path)]) == 0
        shown = capsys.readouterr().out
        assert max(cell_len(line) for line in shown.splitlines()) <= width
        for text in ("finished", "[bold]gpt2", "12,345", "763.60", "680.01", "1 min 15 s"):
            assert text in shown
        assert str(run.root) in "".join(shown.split()) or width == 100


def test_check_prints_one_number_if_all_lengths_are_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": "a"}\n{"text": "abc"}\n', encoding="utf-8")
    command_line(["check", str(tmp_path / "a.jsonl"), "--tokenizer", str(save_model(tmp_path / "model")), "--quiet"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = lines[lines.index(["characters", "documents"]) + 1 :][:3]
    assert [row[:-2] for row in rows] == [["0"], ["1"], ["2", "–", "3"]]
