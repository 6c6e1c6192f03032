"""Test trackers: what they get, and that none of them can delay or end a run.

The first tests replace the package wandb by a module that misbehaves. It is imported by the tracker's own process, as
the real one would be.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetale import tracking
from finetale.cli import run
from finetale.errors import InterruptedRun
from finetale.schema import EvaluationEvent, Event, SampleEvent, TrainEvent, WarningEvent
from finetale.tracking import Start, Trackers
from finetale.tracking.__main__ import without_secrets
from scene import TRAIN
from tiny import save_model, write_stories

KEY = "local-0123456789abcdef"
MODULE = """
import json, os, sys, time

HOW, LOG = os.environ["HOW"], open(os.environ["LOG"], "a")
print("a line that nobody asked for")


def note(*content):
    print(json.dumps(content), file=LOG, flush=True)


def Settings(**given):
    return given


class Run:
    class summary:
        update = staticmethod(lambda figures: note("summary", figures))

    def define_metric(self, name, step_metric):
        pass

    def log(self, values):
        if HOW == "dies" and values["step"] == 2:
            os._exit(3)
        if HOW == "hangs" and values["step"] == 2:
            time.sleep(600)
        note("log", values)

    def finish(self, exit_code):
        if HOW == "hangs at the end":
            time.sleep(600)
        note("finish", exit_code)


def init(**given):
    if HOW == "raises":
        raise RuntimeError("no login with " + os.environ["WANDB_API_KEY"] + "\\nand more")
    if HOW == "hangs at the start":
        time.sleep(600)
    note("init", given["id"], given["config"], sys.stdin.read())
    return Run()
"""
EVENTS: tuple[Event, ...] = (
    EvaluationEvent(step=0, loss=3.0, perplexity=20.0),
    *(TrainEvent(step=step, tokens=9 * step, loss=2.0, learning_rate=0.1, grad_norm=1.0) for step in (1, 2, 3)),
    SampleEvent(step=3, prompt="Once ", text="more"),
)
Misbehave = Callable[[str], Path]


@pytest.fixture
def wandb_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Misbehave:
    """Return a function that installs a wandb that behaves in a given way, and returns the file that it writes."""

    def install(how: str) -> Path:
        modules, log = tmp_path / "modules", tmp_path / "log.jsonl"
        modules.mkdir()
        (modules / "wandb.py").write_text(MODULE, encoding="utf-8")
        monkeypatch.syspath_prepend(modules)  # the run looks for the package, and does not import it
        for name, value in {"PYTHONPATH": str(modules), "HOW": how, "LOG": str(log), "WANDB_API_KEY": KEY}.items():
            monkeypatch.setenv(name, value)
        return log

    return install


def written(log: Path) -> list[list[object]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def track(warnings: list[Event]) -> float:
    """Send the events to wandb in a run that finishes; return the seconds that this took."""
    started = time.monotonic()
    with Trackers(["wandb"], lambda: Start("an-id", "tales", {"epochs": 3}), warnings.append) as trackers:
        listen = trackers.listener(warnings.append)
        for event in EVENTS:
            listen(event)
        trackers.figures = {"after/test/loss": 1.5}
    return time.monotonic() - started


def test_a_tracker_gets_settings_numbers_samples_and_final_figures(wandb_that: Misbehave) -> None:
    log, warnings = wandb_that("works"), list[Event]()
    track(warnings)
    assert warnings == []
    numbers = {"train/loss": 2.0, "train/learning_rate": 0.1, "train/grad_norm": 1.0}
    assert written(log) == [
        ["init", "an-id", {"epochs": 3}, ""],
        ["log", {"step": 0, "validation/loss": 3.0, "validation/perplexity": 20.0}],
        *(["log", {"step": step, **numbers}] for step in (1, 2, 3)),
        ["log", {"step": 3, "sample": "Once more"}],
        ["summary", {"after/test/loss": 1.5, "status": "finished"}],
        ["finish", 0],
    ]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", "RuntimeError: no login with ***"),
        ("dies", "its process ended (exit code 3)"),
        ("hangs", "it did not finish within 1 second of the end of the run"),
        ("hangs at the start", "it did not finish within 1 second of the end of the run"),
        ("hangs at the end", "it did not finish within 1 second of the end of the run"),
    ],
)
def test_a_tracker_that_fails_is_dropped_with_one_warning(
    wandb_that: Misbehave, how: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb_that(how)
    monkeypatch.setitem(tracking.PATIENCE_AT_END, "finished", 1.0 if "hangs" in how else 60.0)
    warnings: list[Event] = []
    assert track(warnings) < 60
    assert [event.message for event in warnings if isinstance(event, WarningEvent)] == [
        f"The tracker wandb was dropped: {message}. The run is not affected."
    ]


def test_a_tracker_that_hangs_is_dropped_during_training(
    wandb_that: Misbehave, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, warnings = wandb_that("hangs"), list[Event]()
    monkeypatch.setattr(tracking, "PATIENCE", 0.2)
    with Trackers(["wandb"], lambda: Start("an-id", "tales", {}), warnings.append) as trackers:
        listen = trackers.listener(warnings.append)
        deadline = time.monotonic() + 60
        while not warnings and time.monotonic() < deadline:
            listen(EVENTS[2])
            time.sleep(0.02)
        listen(EVENTS[3])
    (warning,) = warnings
    assert isinstance(warning, WarningEvent)
    assert warning.step == 2
    assert "it has not answered for 0.2 seconds" in warning.message
    assert not log.exists() or ["finish", 0] not in written(log)


@pytest.mark.parametrize(("error", "code"), [(InterruptedRun("Stopped."), 1), (ValueError("bad"), 1)])
def test_a_run_that_does_not_finish_closes_its_trackers(wandb_that: Misbehave, error: Exception, code: int) -> None:
    log, warnings = wandb_that("works"), list[Event]()
    with (
        pytest.raises(type(error)),
        Trackers(["wandb"], lambda: Start("an-id", "tales", {}), warnings.append),
    ):
        raise error
    assert warnings == []
    assert written(log)[-1] == ["finish", code]
    status = "interrupted" if isinstance(error, InterruptedRun) else "failed"
    assert written(log)[-2] == ["summary", {"status": status}]


def test_a_run_goes_on_without_a_tracker_that_dies(
    wandb_that: Misbehave, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = wandb_that("dies")
    monkeypatch.chdir(tmp_path)
    write_stories(tmp_path / "stories", 30, words=60)
    save_model(tmp_path / "base")
    assert run([*TRAIN, "--out", "run", "--track", "wandb"]) == 0
    assert capsys.readouterr().err.count("The tracker wandb was dropped: its process ended (exit code 3)") == 1
    events = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [event["step"] for event in events if event["event"] == "train"] == [1, 2, 3, 4, 5, 6]
    warnings = [event for event in events if event["event"] == "warning"]
    assert len(warnings) <= 1, "the process may also be found dead at the end"
    manifest = json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))
    assert manifest["status"] == "finished"
    assert written(log)[0][1] == manifest["tracking_id"]
    assert "\ntrack:\n- wandb\n" in (tmp_path / "run/config.yaml").read_text(encoding="utf-8")
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert len(files) > 10
    assert not any(KEY.encode() in file.read_bytes() for file in files)


def test_keys_and_credentials_are_replaced() -> None:
    environment = {"WANDB_API_KEY": KEY, "HF_TOKEN": "hf_abcdef", "HOME": "/home/anna", "AUTH": "x"}
    text = f"{KEY} and hf_abcdef in /home/anna at https://anna:secret@example.org/x"
    assert without_secrets(text, environment) == "*** and *** in /home/anna at https://***@example.org/x"


def test_a_tracker_that_is_unknown_or_not_installed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["train", "nothing", "--track", "neptune"]) in (1, 2)
    assert "wandb" in capsys.readouterr().err
    monkeypatch.setattr("finetale.extras.is_installed", lambda package: False)
    assert run(["train", "nothing", "--no-tensorboard", "--track", "wandb"]) == 1
    printed = capsys.readouterr().err
    assert "--track wandb needs the package wandb, which is not installed." in printed
    assert "pip install 'finetale[track-wandb]'" in printed


def numbers_of_mlflow(experiment: str, given: str) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) of each number of a run in MLflow's database."""
    from mlflow import MlflowClient

    client = MlflowClient()
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    assert run.data.tags["finetale.id"] == given
    assert run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == "0.003"
    assert [item.path for item in client.list_artifacts(run.info.run_id, "samples")]
    names = run.data.metrics
    return {name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] for name in names}


def numbers_of_trackio(project: str, given: str) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) of each number of a run in Trackio's database."""
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs(project)
    assert run.name == f"run-{given[:6]}"
    assert run.config["learning_rate"] == 0.003
    rows = SQLiteStorage.get_logs(project, run_id=run.id)
    assert any("sample" in row for row in rows)
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if "/" in name:
                found.setdefault(name, []).append((row["step"], value))
    return found


def records_of(content: bytes) -> Iterator[bytes]:
    """Yield the records of a .wandb file: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    at, record = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # padding
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def numbers_of_wandb(folder: Path, given: str) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) of each number in the files that wandb wrote offline."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, list[tuple[int, float]]] = {}
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    assert [file.name for file in files] == [f"run-{given}.wandb"] * 2
    for file in files:
        for data in records_of(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            row = {item.nested_key[0] if item.nested_key else item.key: item.value_json for item in record.history.item}
            row |= {item.key: item.value_json for item in record.summary.update if item.key.startswith("after/")}
            for name, value in row.items():
                if "/" in name:
                    found.setdefault(name, []).append((int(row.get("step", 0)), json.loads(value)))
    return found


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_run_and_its_continuation_are_one_run_in_the_store_of_the_client(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"), "HOME": str(tmp_path)}
    for variable, value in places.items():
        monkeypatch.setenv(variable, value)
    pytest.importorskip(name)  # after the variables, which Trackio reads when it is imported
    write_stories(tmp_path / "stories", 30, words=60)
    save_model(tmp_path / "base")
    assert run([*TRAIN, "--out", "run", "--track", name, "--quiet"]) == 0
    assert run(["resume", "run", "--max-steps", "8", "--quiet"]) == 0
    manifest = json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))
    given = manifest["tracking_id"]
    if name == "wandb":
        found = numbers_of_wandb(tmp_path, given)
    elif name == "mlflow":
        found = numbers_of_mlflow("finetale", given)
    else:
        found = numbers_of_trackio("finetale", given)
    events = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert not [event for event in events if event["event"] == "warning"]
    for group, kind in (("train", "train"), ("validation", "evaluation")):
        expected = [(event["step"], event["loss"]) for event in events if event["event"] == kind]
        assert len(expected) >= 4
        assert dict(found[f"{group}/loss"]) == pytest.approx(dict(expected))
    comparison = json.loads((tmp_path / "run/comparison.json").read_text(encoding="utf-8"))
    final = found["after/validation/perplexity"][-1][1]
    assert final == pytest.approx(comparison["after"]["validation"]["perplexity"])
    assert {"train/learning_rate", "train/grad_norm", "train/tokens_per_second"} <= set(found)
