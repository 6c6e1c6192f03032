"""Test mixed and watched text with the commands: a run, a resumed run, and a comparison without the texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from finetale import library, pipeline
from finetale.cli import run
from finetale.models import BUNDLED_NAME
from finetale.report.views import forgetting
from finetale.schema import ACCOUNT_PARTS, Change, FigureIntervals, Figures, WatchedFigures
from tiny import save_model, write_stories

QUICK = (
    *("--batch-size", "4", "--learning-rate", "3e-3", "--precision", "fp32", "--max-new-tokens", "4"),
    *("--num-samples", "1", "--num-prompts", "1", "--no-tensorboard", "--audit-tokens", "100", "--no-probe", "--quiet"),
)
BESIDE = ("--mix", "general:0.2", "--mix", "more.jsonl:0.05", "--watch", "news.jsonl")


def records(number: int, what: str) -> str:
    texts = [f"{what} {n}: " + " ".join(f"{what} {n * k % 89}" for k in range(30)) for n in range(number)]
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with a tiny model, three kinds of text, and a finished run."""
    folder = tmp_path_factory.mktemp("mixing")
    patch = pytest.MonkeyPatch()
    patch.setenv("FINETALE_CACHE", str(folder / "cache"))
    patch.chdir(folder)
    try:
        write_stories(folder / "stories", 60)
        (folder / "general").mkdir()
        (folder / "general" / "all.jsonl").write_text(records(200, "fact"))
        (folder / "more.jsonl").write_text(records(100, "law"))
        (folder / "news.jsonl").write_text(records(20, "news"))
        save_model(folder / "base")
        words = ["train", "stories", "--model", "base", "--out", "run", "--max-steps", "8", *BESIDE, *QUICK]
        assert run(words) == 0
    finally:
        patch.undo()
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_account_names_mixed_and_watched_text(here: Path) -> None:
    data = read(here / "run" / "data.json")
    tokens = data["tokens"]
    assert tokens["read"] == sum(tokens[name] for name in ACCOUNT_PARTS)
    assert min(tokens["unused"], tokens["watched"]) > 0
    shares = [entry["tokens"] / tokens["trained"] for entry in data["text"]["mixed"]]
    assert shares == pytest.approx([0.2, 0.05], abs=0.005)
    names = sorted(Path(name).name for name in data["file_sha256"])
    assert [name for name in names if "(" in name] == ["all.jsonl (mix)", "more.jsonl (mix)", "news.jsonl (watch)"]


def test_the_comparison_has_the_watched_text(here: Path) -> None:
    comparison = read(here / "run" / "comparison.json")
    [watched] = comparison["watched"]
    assert Path(watched["source"]).name == "news.jsonl"
    assert watched["before"]["documents"] == watched["after"]["documents"] == 20
    assert watched["before"]["tokens"] == read(here / "run" / "data.json")["tokens"]["watched"]
    ratio = watched["after"]["perplexity"] / watched["before"]["perplexity"]
    assert watched["change"]["percent"] == pytest.approx(100 * (ratio - 1))
    assert watched["change"]["interval"] is not None


def test_report_and_card_show_both(here: Path) -> None:
    card = (here / "run" / "model" / "README.md").read_text()
    report = (here / "run" / "report.html").read_text()
    tokens = read(here / "run" / "data.json")["tokens"]
    for page in (card, report):
        assert "perplexity per token, news.jsonl" in page
        assert f"Of the {tokens['trained']:,} training tokens" in page
        assert "are from general" in page
    assert str(here) not in card
    assert "Watched text, not trained on" in report
    assert "mixed text beyond its share" in report
    assert "trained + validation + test + watched + unused + dropped" in card


def test_check_and_plan_print_both(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "stories", *BESIDE, "--model", "base"]) == 0
    printed = capsys.readouterr().out
    tokens = read(here / "run" / "data.json")["tokens"]
    assert f"{tokens['watched']:,} watched + {tokens['unused']:,} unused + 0 dropped" in printed
    assert f"note: Of the {tokens['trained']:,} training tokens" in printed
    assert "note: news.jsonl is watched and not trained on (20 documents)." in printed
    assert run(["plan", "stories", *BESIDE, "--model", "base", *QUICK]) == 0
    printed = capsys.readouterr().out
    assert f"Beside    Of the {tokens['trained']:,} training tokens" in printed


def test_check_prints_the_share_without_a_tokenizer(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(["check", "stories", *BESIDE]) == 0
    printed = capsys.readouterr().out
    assert "note: 20% of the training tokens will be from general." in printed


def test_a_stopped_run_resumes_to_the_same_weights(here: Path) -> None:
    words = ["train", "stories", "--model", "base", "--max-steps", "8", "--save-every", "4", *BESIDE, *QUICK]
    assert run([*words, "--out", "whole"]) == 0
    shutil.copytree(here / "whole", here / "again")
    manifest = read(here / "again" / "run.json")
    (here / "again" / "run.json").write_text(json.dumps(manifest | {"status": "interrupted"}))
    for name in ("report.html", "comparison.json"):
        (here / "again" / name).unlink()
    shutil.rmtree(here / "again" / "model")
    for folder in (here / "again" / "checkpoints").iterdir():
        if folder.name != "step-00000004":
            shutil.rmtree(folder)
    assert run(["resume", "again", "--quiet"]) == 0
    weights = [(here / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "again")]
    assert weights[0] == weights[1]
    first, second = (read(here / name / "comparison.json") for name in ("whole", "again"))
    assert first["watched"] == second["watched"]
    assert first["watched"]


def test_compare_works_after_all_texts_were_deleted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(here / "run", here / "bare" / "run")
    before = read(here / "run" / "comparison.json")
    moved = [here / name for name in ("stories", "general", "more.jsonl", "news.jsonl", "cache")]
    for path in moved:
        path.rename(path.with_name(f"{path.name}.away"))
    try:
        assert run(["compare", "bare/run", "--max-new-tokens", "4", "--quiet"]) == 0
        after = read(here / "bare" / "run" / "comparison.json")
        assert run(["report", "bare/run"]) == 0
    finally:
        shutil.rmtree(here / "cache", ignore_errors=True)
        for path in moved:
            path.with_name(f"{path.name}.away").rename(path)
    assert after["watched"] == before["watched"]
    assert "news.jsonl" in capsys.readouterr().out


def test_a_base_with_another_tokenizer_is_measured_on_the_watched_text(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", BUNDLED_NAME, "run", "--max-new-tokens", "4", "--quiet", "--json"]) == 0
    [watched] = json.loads(capsys.readouterr().out)["watched"]
    assert watched["change"]["per"] == "byte"
    assert watched["before"]["bytes"] == watched["after"]["bytes"] > 0
    assert watched["before"]["tokens"] != watched["after"]["tokens"]


def test_python_accepts_a_mapping_and_texts(here: Path) -> None:
    resolved = library.resolve("stories", None, {"mix": {"general": 0.1}, "watch": ["A text.\nOf two lines."]})
    assert resolved.mix == ("general:0.1",)
    assert resolved.watch[0].endswith(".jsonl")


def test_standard_input_can_be_mixed_in(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"A general text.\n" * 500)))
    config = library.resolve("stories", None, {"mix": "-:0.1", "model": str(here / "base")})
    result = pipeline.check_text(config, lambda event: None)
    assert result.text.mixed[0].source == "standard input"
    assert (result.text.mixed[0].tokens or 0) > 0


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--mix", "general:0"], "the share 0 of general is not above 0 and below 1"),
        (["--mix", "general:1.5"], "the share 1.5 of general is not above 0 and below 1"),
        (["--mix", "general"], "'general' has no share; write SOURCE:SHARE"),
        (["--mix", "C:\\text"], "has no share; write SOURCE:SHARE"),
        (["--mix", "C:\\text:0.05"], "C:\\text: there is no such file or folder."),
        (["--mix", "gone.txt:0.05"], "gone.txt: there is no such file or folder."),
        (["--watch", "gone.txt"], "gone.txt: there is no such file or folder."),
        (["--mix", "general:0.05", "--watch", "general"], "mix and watch both name general"),
    ],
)
def test_bad_values_are_refused_before_any_work(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], problem: str
) -> None:
    assert run(["train", "stories", "--model", "base", "--out", "bad", *words, *QUICK]) == 1
    assert problem in " ".join(capsys.readouterr().err.split())
    assert not (here / "bad").exists()


# The sentence on forgetting


def watched(percent: float, span: tuple[float, float] | None) -> WatchedFigures:
    interval = FigureIntervals(loss=(1.0, 2.0)) if span else None
    before = Figures(loss=3.0, perplexity=20.0, bits_per_byte=1.0, tokens=9, bytes=30, documents=6, interval=interval)
    after = before.model_copy(update={"perplexity": 20.0 * (1 + percent / 100)})
    excludes = None if span is None else span[0] > 0 or span[1] < 0
    change = Change(percent=percent, interval=span, excludes_zero=excludes)
    return WatchedFigures(source="/home/me/news.txt", before=before, after=after, change=change)


def test_a_clear_rise_is_reported_in_one_sentence() -> None:
    assert forgetting(watched(12.0, (8.0, 16.0))) == (
        "It forgot: on news.txt, which it was not trained on, perplexity per token rose from 20.0 to 22.4 (+12.0%, 95% "
        "interval +8.0% to +16.0%). Mixing in such text with --mix makes it forget less."
    )
    assert "rose from 20.0 to 24.0 (+20.0%)" in forgetting(watched(20.0, None))


@pytest.mark.parametrize(
    ("percent", "span"), [(12.0, (-1.0, 25.0)), (-12.0, (-16.0, -8.0)), (-12.0, None), (9.0, None), (0.0, None)]
)
def test_without_a_clear_rise_there_is_no_sentence(percent: float, span: tuple[float, float] | None) -> None:
    assert forgetting(watched(percent, span)) == ""
