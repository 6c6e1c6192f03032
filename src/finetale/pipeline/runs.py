"""The one path: text → blocks → training → comparison → report, and going on where it stopped."""

from __future__ import annotations

import contextlib
import datetime
import gc
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finetale import models, speed, training
from finetale.config import Config, SamplingSettings, read_settings_file
from finetale.environment import hardware, peak_memory, versions
from finetale.errors import HubError, InterruptedRun, RunError
from finetale.generate import Generator
from finetale.models import LoadedModel
from finetale.pipeline.data import Notify, data_json, keep_standard_input, stage
from finetale.pipeline.disk import check_disk, plan_disk
from finetale.pipeline.judge import compare_models, open_model
from finetale.pipeline.prepare import Prepared, absolute_names, prepare, run_directory
from finetale.report import model_card, write_report
from finetale.rundir import LOCK_NAME, RunDirectory, add_file, read_json, recover, write_bytes, write_json
from finetale.signals import Stopped, StopRequest
from finetale.training import Training, TrainState


def train_run(config: Config, notify: Notify) -> RunDirectory:
    """Train a model as the settings say, compare it with its base, write the report.

    Raises:
        FinetaleError: whatever stands in the way; before training begins nothing is written.
        InterruptedRun: a signal came; the run can be resumed.
    """
    run_directory(config)  # what stands in the way is better known before the work
    with StopRequest():
        try:
            with StopRequest(at_once=True):
                config = keep_standard_input(config)
                prepared = prepare(config, notify)
        except Stopped as stopped:
            raise _kept_for_later(config, str(stopped)) from None
        with _taken(config) as run:
            check_disk(run.root, plan_disk(prepared))
            _start_directory(run, prepared)
            return _train_and_finish(run, prepared, notify, None)


def resume_run(path: str | Path, notify: Notify, *, accept_changes: bool = False) -> RunDirectory:
    """Go on with a run from its newest valid checkpoint, or finish what came after training.

    Args:
        accept_changes: go on although the text or config.yaml is not what the run began with; run.json then says so.

    Raises:
        RunError: there is no run, its text or settings have changed, or another process is at work on it.
    """
    run = RunDirectory.open(path)
    run.read_manifest()  # a directory that can't be used is not touched
    with StopRequest(), run.locked():
        try:
            with StopRequest(at_once=True):
                prepared, checkpoint = _prepare_again(run, notify, accept_changes)
        except Stopped as stopped:
            raise InterruptedRun(
                f"Stopped by {stopped} before anything new was done.", f"Go on with `finetale resume {path}`."
            ) from None
        if not run.read_manifest().get("base"):  # it was stopped before it began
            _start_directory(run, prepared)
        run.update_manifest(status="running", error=None, process=_process())
        return _train_and_finish(run, prepared, notify, checkpoint)


def _prepare_again(run: RunDirectory, notify: Notify, accept_changes: bool) -> tuple[Prepared, Path | None]:
    """A run as it was, and the checkpoint to go on from."""
    path, manifest = run.root, run.read_manifest()
    # A run that came from somewhere else does not say where to write on this machine.
    config = Config.resolve(read_settings_file(run.config), {"out": str(run.root)})
    config = config.model_copy(update={"cache_dir": None})
    if manifest.get("status") == "finished" and run.report.is_file():
        raise RunError(
            f"{path} is finished already.",
            f"See {run.report}, or train on from it: `finetale train SOURCE --model {path}`.",
        )
    if not manifest.get("base"):
        return prepare(config, notify), None
    changes = _changed_settings(config, manifest.get("config") or {})
    if changes and not accept_changes:
        raise RunError(
            f"{run.config} is not what the run began with: {'; '.join(changes)}.",
            "Put it back, or take the new settings with --accept-changes.",
        )
    recover(run.root)
    recover(run.checkpoints)
    checkpoint, damaged = training.newest_valid_checkpoint(run)
    for line in damaged:
        notify({"event": "warning", "message": line})
    # model/ may hold better weights than a lost checkpoint, so without a checkpoint the run begins again from its base.
    loaded = None
    if checkpoint is not None:
        loaded = models.load(models.name_of_folder(checkpoint), dropout=config.dropout)
    prepared = prepare(config, notify, loaded=loaded)
    if loaded is None:
        _check_base(manifest, prepared.loaded)
    if prepared.store.info["sha256"] != manifest.get("data_sha256"):
        what = _changed_files(run, prepared)
        if not accept_changes:
            raise RunError(
                f"The text of {path} has changed since the run began ({what}), so it can't go on as it was.",
                "Restore the text, go on with the new one by --accept-changes, or start a new run with `finetale train`.",
            )
        changes.append(f"the text: {what}")
        write_json(run.data, _data(prepared))
    if changes:
        notify({"event": "warning", "message": f"Going on with what has changed: {'; '.join(changes)}."})
        step = training.read_state(checkpoint).step if checkpoint is not None else 0
        run.update_manifest(
            config=_portable(prepared.config).model_dump(mode="json"),
            data_sha256=prepared.store.info["sha256"],
            changes=[*manifest.get("changes", ()), {"step": step, "what": changes}],
        )
    return prepared, checkpoint


def _changed_settings(config: Config, before: dict[str, Any]) -> list[str]:
    """Settings that differ from those in run.json, in words."""
    now = _portable(config).model_dump(mode="json")
    names = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
    return [f"{name} is {now.get(name)}, was {before.get(name)}" for name in names]


def _changed_files(run: RunDirectory, prepared: Prepared) -> str:
    """Which files of the text differ from those in data.json, in words."""
    before, now = read_json(run.data).get("file_sha256"), _data(prepared)["file_sha256"]
    if before is None or now is None or before == now:
        return "its tokens differ"
    kinds = {
        "changed": [name for name in before if name in now and before[name] != now[name]],
        "new": [name for name in now if name not in before],
        "missing": [name for name in before if name not in now],
    }
    lines = [
        f"{kind}: {', '.join(names[:3])}" + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
        for kind, names in kinds.items()
        if names
    ]
    return "; ".join(lines)


def _train_and_finish(run: RunDirectory, prepared: Prepared, notify: Notify, checkpoint: Path | None) -> RunDirectory:
    with _status(run):
        state = _train(run, prepared, notify, checkpoint)
        config = prepared.config.model_copy(update={"micro_batch_size": state.micro_batch_size})
        gc.collect()  # of optimizer and gradients, for the comparison loads two models of its own
        finish(run, config, notify, state)
    return run


def finish(run: RunDirectory, config: Config, notify: Notify, state: TrainState | None = None) -> None:
    """Compare the run's model with its base and write comparison.json, the report and the model card.

    Also `finetale compare DIR`: then `state` is None and the run's other figures stay.
    """
    manifest = run.read_manifest()
    with StopRequest() as stop:
        try:
            after = open_model(models.name_of_folder(run.root), config, notify)
            before = load_base(manifest, config, after, notify)
            result = compare_models(
                before,
                after,
                config,
                notify,
                names=(manifest["base"]["name"], manifest["name"]),
                data_sha256=manifest.get("data_sha256"),
                between=stop.check,
            )
        except InterruptedRun as stopped:
            raise InterruptedRun(
                f"{stopped.message} Training is done and saved; only the comparison is missing.",
                f"Go on with `finetale resume {run.root}`.",
            ) from None
    write_json(run.comparison, result)
    stage(notify, "Writing the report")
    if state is not None:
        run.update_manifest(status="finished", finished=_now())
    card = model_card(run.read_manifest(), result, json.loads(run.data.read_text(encoding="utf-8")))
    add_file(run.model, "README.md", card.encode())
    write_report(run)


def load_base(manifest: dict[str, Any], config: Config, after: LoadedModel, notify: Notify) -> LoadedModel:
    """The base a run started from, the very same weights.

    Raises:
        RunError: the base is another one by now.
    """
    # A tokenizer given by --tokenizer replaced the base's own, which may not exist.
    shared = after.tokenizer if models.is_new(config.model) or config.tokenizer else None
    config = config.model_copy(update={"seed": manifest["seed"]})
    try:  # what the run began from is on this machine
        before = open_model(config.model, config.model_copy(update={"offline": True}), notify, tokenizer=shared)
    except HubError:
        before = open_model(config.model, config, notify, tokenizer=shared)
    _check_base(manifest, before)
    return before


def _check_base(manifest: dict[str, Any], loaded: LoadedModel) -> None:
    if loaded.provenance.sha256 != manifest["base"]["sha256"]:
        raise RunError(
            f"The base model {manifest['base']['name']} has changed since the run began (SHA-256 differs).",
            "Compare the run with another model: `finetale compare BASE RUN --text SOURCE`; or train again.",
        )


def _train(run: RunDirectory, prepared: Prepared, notify: Notify, checkpoint: Path | None) -> TrainState:
    config, loaded = prepared.config, prepared.loaded
    schedule = prepared.schedule
    resume_step = training.read_state(checkpoint).step if checkpoint is not None else None
    listeners: list[Any] = [training.MetricsFile(run.metrics, resume_step)]
    if config.tensorboard:
        listeners.append(training.TensorBoardFile(run.tensorboard, resume_step))
    prompt = config.prompts[0] if config.prompts else "Once upon a time"
    sampling = config.narrow(SamplingSettings).model_copy(update={"max_new_tokens": min(60, config.max_new_tokens)})

    def sample(between: Callable[[], None]) -> list[tuple[str, str]]:
        generator = Generator(loaded.model, loaded.tokenizer)
        return [(prompt, generator.generate([prompt], sampling, truncate=True, between=between)[0][0].text)]

    loop = Training(
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        train_blocks=prepared.train,
        validation_blocks=prepared.validation,
        settings=config,
        evaluation=config,
        directory=run,
        schedule=schedule,
        precision=config.precision,
        compiled=config.compile == "on",
        listeners=[*listeners, notify],
        sample=sample,
    )
    notify(
        {
            "event": "begin",
            "step": resume_step or 0,
            "total": schedule.total_steps,
            "targets": prepared.train.num_targets,
            "run": str(run.root),
        }
    )
    run.update_manifest(total_steps=schedule.total_steps)
    started = time.perf_counter()
    try:
        state = loop.run(checkpoint)
    finally:
        for listener in listeners:
            listener.close()
        state = loop.state
        run.update_manifest(
            steps=state.step,
            best_step=state.best_step,
            best_loss=state.best_loss,
            targets=state.tokens,
            train_seconds=round(state.seconds, 3),
            tokens_per_second=round(state.tokens / state.seconds, 1) if state.seconds else None,
            peak_memory_bytes=peak_memory(),
            seconds=round(run.read_manifest().get("seconds", 0) + time.perf_counter() - started, 3),
        )
    return state


@contextlib.contextmanager
def _taken(config: Config) -> Iterator[RunDirectory]:
    """The directory of a new run, locked; it goes again if nothing was put into it."""
    run = run_directory(config)
    try:
        with run.locked():
            run_directory(config)  # again: another run may have taken the place meanwhile
            yield run
    finally:
        if run.root.is_dir() and not run.holds_anything():
            shutil.rmtree(run.root, ignore_errors=True)


def _kept_for_later(config: Config, signal: str) -> BaseException:
    """What to raise after a stop before training: the settings stand in a run directory, unless a run is there that they would replace."""
    begun = run_directory(config)
    if begun.is_run():
        return Stopped(signal)
    with _taken(config) as run:
        run.update_manifest(
            status="interrupted", process=_process(), created=_now(), seed=config.seed, steps=0, base=None
        )
        write_bytes(run.config, _portable(absolute_names(config)).to_yaml().encode())
    return InterruptedRun(
        f"Stopped by {signal} before the first step; the settings are kept in {run.root}.",
        f"Begin with `finetale resume {run.root}`.",
    )


def _portable(config: Config) -> Config:
    """Without the places of this machine and run, so that its settings can be taken for another run."""
    return config.model_copy(update={"out": None, "name": None, "overwrite": False, "cache_dir": None})


def _start_directory(run: RunDirectory, prepared: Prepared) -> None:
    """Fill the run directory with everything that is known before training, in place of what is there."""
    for item in run.root.iterdir():  # the folder itself may be a link or a mount
        if item.name == LOCK_NAME:
            continue
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink()
    try:
        _describe(run, _portable(prepared.config), prepared)
    except BaseException:
        for file in (run.manifest, run.config, run.data):
            file.unlink(missing_ok=True)
        raise


def _describe(run: RunDirectory, config: Config, prepared: Prepared) -> None:
    run.update_manifest(
        status="running",
        process=_process(),
        name=run.root.name,
        created=_now(),
        finished=None,
        seed=config.seed,
        steps=0,
        best_step=0,
        base=prepared.loaded.provenance.to_dict(),
        data_sha256=prepared.store.info["sha256"],
        config=json.loads(config.model_dump_json()),
        speed=speed.applied(prepared.loaded.model)
        | prepared.tuned.route.to_dict()
        | {"probe": prepared.tuned.probe.to_dict()},
        versions=versions(),
        hardware=hardware(),
        command=" ".join(["finetale", *sys.argv[1:]]) if Path(sys.argv[0]).name == "finetale" else None,
    )
    write_bytes(run.config, config.to_yaml().encode())
    write_json(run.data, _data(prepared))


def _data(prepared: Prepared) -> dict[str, Any]:
    return data_json(prepared.config, prepared.store, prepared.blocks_json())


@contextlib.contextmanager
def _status(run: RunDirectory) -> Iterator[None]:
    """Keep run.json's status true, whatever ends the run."""
    try:
        yield
    except (InterruptedRun, KeyboardInterrupt):
        run.update_manifest(status="interrupted")
        raise
    except Exception as error:
        with contextlib.suppress(OSError):  # a full disk must not hide what went wrong first
            run.update_manifest(status="failed", error=f"{type(error).__name__}: {error}")
        raise


def _process() -> dict[str, Any]:
    """Who is at work on a run, so that a run that was killed is not taken for a running one."""
    return {"pid": os.getpid(), "host": platform.node()}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
