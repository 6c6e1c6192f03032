"""Test the Python interface: data in memory, events, cancelling, result objects, and notebooks."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pandas as pd
import pytest

import finetale as ft
from finetale.errors import InterruptedRun, SourceError
from finetale.schema import CheckResult, Evaluation, Event, PlanResult, StageEvent, TrainEvent
from tiny import save_model, story, write_stories

QUICK: dict[str, Any] = {
    "model": "base",
    "quiet": True,
    "max_steps": 3,
    "batch_size": 4,
    "precision": "fp32",
    "max_new_tokens": 4,
    "num_prompts": 1,
    "num_samples": 1,
    "tensorboard": False,
    "probe": False,
}
STORIES = [story(number) for number in range(24)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "base")
    return tmp_path


def test_texts_and_a_table_of_texts_give_the_same_run(folder: Path) -> None:
    first = ft.train(texts=STORIES, out="texts", **QUICK)
    second = ft.train(pd.DataFrame({"text": STORIES, "number": range(24)}), out="table", **QUICK)
    account = first.data.tokens
    assert account.read == account.trained + account.validation + account.test + account.dropped > 1000
    assert second.data.tokens == account
    assert first.data.text is not None
    assert first.data.text.documents == 24
    assert first.comparison.after.loss == second.comparison.after.loss
    for run, name in ((first, "the list of texts"), (second, "the table")):
        assert run.data.text.sources == [name]
        page = (folder / run.path / "report.html").read_text(encoding="utf-8")
        assert name in page
        assert "in-memory" not in page


def test_held_out_text_can_be_in_memory_too(folder: Path) -> None:
    write_stories(folder / "stories", 12)
    run = ft.train("stories", validation=[{"text": story(n)} for n in range(50, 55)], out="run", **QUICK)
    assert run.data.text is not None
    assert run.data.text.splits.validation.documents == 5
    assert run.data.text.splits.train.documents == 12


def test_a_run_has_events_metrics_and_readable_representations(folder: Path) -> None:
    write_stories(folder / "stories", 24)
    events: list[Event] = []
    run = ft.train("stories", out="run", on_event=events.append, **QUICK)
    steps = [event for event in events if isinstance(event, TrainEvent)]
    assert [event.step for event in steps] == [1, 2, 3]
    assert any(isinstance(event, StageEvent) for event in events)

    table = run.metrics
    rows = table.to_pylist()
    assert table.column_names[:3] == ["event", "step", "tokens"]
    assert [row["loss"] for row in rows if row["event"] == "train"] == [event.loss for event in steps]
    assert {row["event"] for row in rows} == {"train", "evaluation"}
    assert list(run.metrics.to_pandas().columns) == table.column_names

    assert repr(run) == f"<Run run: {run.comparison.verdict}>"
    assert repr(run.comparison) == f"<Comparison: {run.comparison.verdict}>"
    assert repr(run.comparison.after).startswith("<Figures of run: perplexity ")
    page = run._repr_html_()
    assert page.count("<svg") == 1
    assert "<table>" in page
    assert run.comparison.verdict.split(":")[0] in page

    writer = run.model
    assert run.model is writer
    assert repr(writer).startswith("<Writer run: ")
    assert "parameters" in writer._repr_html_()
    one = writer.generate("The lamp", n=2, max_new_tokens=3, seed=5)
    assert len(one) == 2
    assert writer.generate(["The lamp", "A heron"], n=2, max_new_tokens=3, seed=5)[0] == one


def test_functions_return_result_objects(folder: Path) -> None:
    write_stories(folder / "stories", 24)
    checked = ft.check("stories", model="base")
    assert isinstance(checked, CheckResult)
    assert checked.ok
    assert checked.text.documents == 24
    assert checked.tokens is not None
    assert repr(checked).startswith("<CheckResult: 24 documents, ")
    assert ft.check(texts=STORIES, model="base").tokens == checked.tokens

    planned = ft.plan("stories", **{key: value for key, value in QUICK.items() if key != "quiet"})
    assert isinstance(planned, PlanResult)
    assert planned.steps == 3
    assert repr(planned).startswith("<PlanResult: 3 steps, ")

    measured = ft.evaluate("base", texts=STORIES, block_size=32)
    assert isinstance(measured, Evaluation)
    assert measured.documents == 24
    assert measured.loss == pytest.approx(ft.evaluate("base", "stories", block_size=32).loss)

    compared = ft.compare("base", "base", texts=STORIES, block_size=32, num_prompts=1, num_samples=1, max_new_tokens=2)
    assert compared.improved is not True
    assert "<table>" in compared._repr_html_()


def test_a_run_cancelled_from_another_thread_resumes(folder: Path) -> None:
    write_stories(folder / "stories", 24)
    cancel = threading.Event()

    def watch(event: Event) -> None:
        if isinstance(event, TrainEvent) and event.step == 2:
            cancel.set()

    caught: list[BaseException] = []

    def work() -> None:
        try:
            ft.train("stories", out="run", on_event=watch, cancel=cancel, **QUICK)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(120)
    assert len(caught) == 1
    assert isinstance(caught[0], InterruptedRun)
    assert caught[0].message.startswith("Stopped by the caller. 2 of 3 steps are done and saved in ")
    assert repr(ft.Run("run")) == "<Run run: interrupted, 2 of 3 steps>"
    assert ft.resume("run", quiet=True).manifest.status == "finished"


def test_a_run_cancelled_before_its_first_step_resumes(folder: Path) -> None:
    write_stories(folder / "stories", 24)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(InterruptedRun, match="Stopped by the caller before the first step"):
        ft.train("stories", out="run", cancel=cancel, **QUICK)
    assert ft.resume("run", quiet=True).manifest.status == "finished"


def test_an_exception_in_a_callback_ends_the_run(folder: Path) -> None:
    write_stories(folder / "stories", 24)

    def fail(event: Event) -> None:
        if isinstance(event, TrainEvent):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ft.train("stories", out="run", on_event=fail, **QUICK)


def test_the_error_for_text_in_place_of_a_path_is_short(folder: Path) -> None:
    with pytest.raises(SourceError) as caught:
        ft.train("A story.\n" * 10_000, **QUICK)
    assert len(str(caught.value)) < 300
    with pytest.raises(SourceError, match="type dict can't be read"):
        ft.train({"text": STORIES[0]}, **QUICK)


def test_a_notebook_updates_a_single_display(folder: Path) -> None:
    write_stories(folder / "stories", 24)
    settings = {**QUICK, "quiet": False}
    notebook = nbformat.v4.new_notebook(  # type: ignore[no-untyped-call]
        cells=[
            nbformat.v4.new_code_cell(  # type: ignore[no-untyped-call]
                f"import finetale as ft\nrun = ft.train('stories', out='run', **{settings!r})\nrun"
            )
        ]
    )
    client = nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}})
    client.execute()
    outputs = notebook.cells[0].outputs
    shown = [output for output in outputs if output.output_type == "display_data"]
    results = [output for output in outputs if output.output_type == "execute_result"]
    assert len(shown) == 1
    assert "step 3 of 3" in shown[0].data["text/html"]
    assert "loss " in shown[0].data["text/html"]
    assert len(results) == 1
    assert "<svg" in results[0].data["text/html"]
    assert [output.text for output in outputs if output.output_type == "stream"] == []
