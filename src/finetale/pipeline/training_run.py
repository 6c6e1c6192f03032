"""Carry out a run from start to end: prepare, train, compare with the base, write the report."""

from __future__ import annotations

import contextlib
import datetime
import gc
import hashlib
import os
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetale import models, speed, tracking, training
from finetale.comparison import first_prompt
from finetale.config import Config, SamplingSettings, read_settings_file
from finetale.environment import hardware, peak_memory, versions
from finetale.errors import HubError, InterruptedRun, RunError
from finetale.formatting import shell_command
from finetale.generate import Generator
from finetale.launching import announce
from finetale.models import LoadedModel
from finetale.models.frozen import fast_products
from finetale.notify import Notify, stage
from finetale.out_of_memory import memory_errors
from finetale.pipeline.data import data_json, keep_standard_input
from finetale.pipeline.disk import check_disk, plan_disk
from finetale.pipeline.evaluating import compare_models, open_as_configured
from finetale.pipeline.kept_text import keep_inputs, keep_text, kept_text
from finetale.pipeline.merging import restore_adapter
from finetale.pipeline.prepare import Prepared, absolute_names, prepare, run_directory
from finetale.pipeline.processes import follow, training_of
from finetale.ranks import Ranks, joined
from finetale.report import model_card, write_report
from finetale.rundir import (
    LOCK_NAME,
    RunDirectory,
    add_file,
    is_sealed,
    write_bytes,
    write_record,
    write_sealed_folder,
)
from finetale.schema import BaseModelSource, BeginEvent, DataFile, Event, RunManifest
from finetale.signals import Stopped, StopRequest
from finetale.tracking import Trackers
from finetale.training import TrainState

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@memory_errors()
def train_run(config: Config, notify: Notify) -> RunDirectory:
    """Train a model, compare it with its base and write the report.

    Raises:
        FinetaleError: the run can't begin or continue. Until training begins, nothing is written.
        InterruptedRun: a signal stopped the run. It can be resumed.
    """
    with joined() as ranks:
        if not ranks.is_main:
            found = follow(ranks)
            assert found is not None
            return found
        with ranks.leading():
            return _train_run(config, notify, ranks)


def _train_run(config: Config, notify: Notify, ranks: Ranks) -> RunDirectory:
    config = config.for_new_run()
    run_directory(config)  # fail before the work if the directory can't be used
    with StopRequest(resumable=False):
        try:
            with StopRequest(at_once=True):
                config = keep_standard_input(config)
                prepared = prepare(config, notify)
        except Stopped as stopped:
            raise _kept_for_later(config, str(stopped)) from None
        with _taken(config) as run:
            check_disk(run.root, plan_disk(prepared))
            start_directory(run, prepared)
            return train_and_finish(run, prepared, notify, None, ranks)


def train_and_finish(
    run: RunDirectory, prepared: Prepared, notify: Notify, checkpoint: Path | None, ranks: Ranks
) -> RunDirectory:
    """Train from a checkpoint, or from the start if it is None; then compare with the base and write the report."""

    def start() -> tracking.Start:
        manifest = run.read_manifest()
        given = manifest.tracking_id or uuid.uuid4().hex[:12]
        run.update_manifest(tracking_id=given)
        settings = portable(prepared.config).model_dump(mode="json")
        return tracking.Start(given, manifest.name or run.root.name, settings, prepared.config.offline)

    announce(run.root)
    with _status(run), memory_errors(), Trackers(prepared.config.track, start, notify) as trackers:
        state = _train(run, prepared, notify, checkpoint, trackers, ranks)
        config = prepared.config.model_copy(update={"micro_batch_size": state.micro_batch_size})
        models.discard(prepared.loaded.model)
        gc.collect()  # free the optimizer and gradients too, because the comparison loads two models
        speed.release()
        finish(run, config, notify, state)
        trackers.figures = tracking.final_figures(run.read_comparison())
    return run


def finish(run: RunDirectory, config: Config, notify: Notify, state: TrainState | None = None) -> None:
    """Compare the run's model with its base and write comparison.json, the report and the model card.

    `finetale compare DIR` calls this with `state=None`. The manifest then stays unchanged.
    """
    manifest = run.read_manifest()
    with StopRequest() as stop:
        try:
            after = open_as_configured(models.name_of_folder(run.root), config, notify)
            if state is None:
                models.warn_if_unfinished(after.provenance, notify)
            before = load_base(manifest, config, after, notify)
            result = compare_models(
                before,
                after,
                config,
                notify,
                names=(_base_of(run, manifest).name, manifest.name or run.root.name),
                store=kept_text(run, notify),
                data_sha256=manifest.data_sha256,
                between=stop.check,
            )
        except InterruptedRun as stopped:
            if state is None:  # `finetale compare`: the earlier comparison is still valid
                raise Stopped(stop.requested) from None
            raise InterruptedRun(
                f"{stopped.message} Training is done and saved; only the comparison is missing.",
                f"Continue with `{shell_command('finetale', 'resume', run.root)}`.",
            ) from None
    write_record(run.comparison, result)
    stage(notify, "Writing the report")
    if state is not None:
        run.update_manifest(status="finished", finished=_now())
    card = model_card(run.read_manifest(), result, run.read_data(), settings=read_settings_file(run.config))
    if after.warning or not is_sealed(run.model):  # loaded from a checkpoint instead, or saved by an older version
        write_sealed_folder(run.model, lambda folder: models.save(after.model, after.tokenizer, folder))
    add_file(run.model, "README.md", card.encode())
    if config.has_adapter:
        restore_adapter(run, after.tokenizer, notify)
    write_report(run)


def load_base(manifest: RunManifest, config: Config, after: LoadedModel, notify: Notify) -> LoadedModel:
    """Load the base model of a run, with exactly the weights that the run started from.

    Raises:
        RunError: the base model has changed.
    """
    # A tokenizer given by --tokenizer replaced the base's own, which may not exist.
    shared = after.tokenizer if models.is_new(config.model) or config.tokenizer else None
    config = config.model_copy(update={"seed": config.seed if manifest.seed is None else manifest.seed})
    try:  # usually the base is on this machine already
        before = open_as_configured(config.model, config.model_copy(update={"offline": True}), notify, tokenizer=shared)
    except HubError:
        before = open_as_configured(config.model, config, notify, tokenizer=shared)
    check_base(manifest, before)
    return before


def open_base(name: str, after: LoadedModel, notify: Notify) -> LoadedModel:
    """Load the base model of a run whose own model is already loaded.

    Raises:
        RunError: there is no run, or its base model has changed.
    """
    run = RunDirectory.open(Path(name).expanduser())
    config = Config.resolve(read_settings_file(run.config))
    return load_base(run.read_manifest(), config, after, notify)


def _base_of(run: RunDirectory, manifest: RunManifest) -> BaseModelSource:
    if manifest.base is None:
        raise RunError(
            f"{run.root} was stopped before training began.",
            f"Start it with `{shell_command('finetale', 'resume', run.root)}`.",
        )
    return manifest.base


def check_base(manifest: RunManifest, loaded: LoadedModel) -> None:
    """Check that a model has the weights that a run started from.

    Raises:
        RunError: the SHA-256 of the weights differs.
    """
    base = manifest.base
    if base is None or loaded.provenance.sha256 != base.sha256:
        name = loaded.provenance.name if base is None else base.name
        raise RunError(
            f"The base model {name} has changed since the run began (SHA-256 differs).",
            "Compare the run with another model by `finetale compare BASE RUN --text SOURCE`, or train again.",
        )


def _train(
    run: RunDirectory,
    prepared: Prepared,
    notify: Notify,
    checkpoint: Path | None,
    trackers: Trackers,
    ranks: Ranks,
) -> TrainState:
    config, loaded = prepared.config, prepared.loaded
    budget = prepared.budget
    resume_step = training.read_state(checkpoint).step if checkpoint is not None else None
    metrics = training.MetricsFile(run.metrics, resume_step)
    files: list[Any] = [metrics]
    if config.tensorboard:
        files.append(training.TensorBoardFile(run.tensorboard, resume_step))

    def record(event: Event) -> None:
        metrics(event)
        notify(event)

    prompt = config.prompts[0] if config.prompts else first_prompt(prepared.store, loaded.tokenizer)
    sampling = config.narrow(SamplingSettings).model_copy(update={"max_new_tokens": min(60, config.max_new_tokens)})

    def sample(model: PreTrainedModel, between: Callable[[], None]) -> list[tuple[str, str]]:
        generator = Generator(model, loaded.tokenizer)
        with fast_products(model):
            return [(prompt, generator.generate([prompt], sampling, truncate=True, between=between)[0][0].text)]

    loop = training_of(run, prepared, checkpoint, ranks)
    loop.listeners = [*files, notify, trackers.listener(record)]
    loop.sample, loop.settings_file = sample, settings_bytes(config)
    notify(
        BeginEvent(
            step=resume_step or 0,
            total=budget.total_steps,
            targets=prepared.train.num_targets,
            run=str(run.root),
        )
    )
    run.update_manifest(total_steps=budget.total_steps)
    started = time.perf_counter()
    try:
        place = {"run": str(run.root.absolute()), "checkpoint": None if checkpoint is None else checkpoint.name}
        ranks.publish(place | {"shard": config.shard})
        with ranks.together():  # the other processes load the run
            pass
        state = loop.run(checkpoint)
    finally:
        for file in files:
            file.close()
        state = loop.state
        run.update_manifest(
            steps=state.step,
            best_step=state.best_step,
            best_loss=state.best_loss,
            targets=state.tokens,
            train_seconds=round(state.seconds, 3),
            tokens_per_second=round(state.tokens / state.seconds, 1) if state.seconds else None,
            peak_memory_bytes=peak_memory(),
            seconds=round((run.read_manifest().seconds or 0.0) + time.perf_counter() - started, 3),
        )
    return state


@contextlib.contextmanager
def _taken(config: Config) -> Iterator[RunDirectory]:
    """Lock the directory of a new run. At the end, remove the directory if it is empty."""
    run = run_directory(config)
    with run.locked():
        try:
            run_directory(config)  # check again: another run may have used the directory meanwhile
            yield run
        finally:
            if not run.holds_anything():
                shutil.rmtree(run.root, ignore_errors=True)


def _kept_for_later(config: Config, signal: str) -> BaseException:
    """Save the settings of a run that was stopped before training, and return the exception to raise.

    Saves nothing if this would replace an existing run or if the text came from standard input.
    """
    begun = run_directory(config)
    unread = "-" in config.all_sources  # standard input can't be read again
    if begun.is_run() or unread:
        return Stopped(signal)
    with _taken(config) as run:
        write_bytes(run.config, settings_bytes(absolute_names(keep_inputs(run, config))))
        run.update_manifest(
            status="interrupted", process=this_process(), created=_now(), seed=config.seed, steps=0, base=None
        )
    return InterruptedRun(
        f"Stopped by {signal} before the first step. The settings were saved in {run.root}.",
        f"Start the run with `{shell_command('finetale', 'resume', run.root)}`.",
    )


def portable(config: Config) -> Config:
    """Return the settings without those of this machine and this run, so that another run can use them."""
    return config.model_copy(update={"out": None, "name": None, "overwrite": False, "cache_dir": None})


def settings_bytes(config: Config) -> bytes:
    """Return the content of a run's config.yaml."""
    return portable(config).to_yaml().encode()


def start_directory(run: RunDirectory, prepared: Prepared) -> None:
    """Replace the content of the run directory by the files of a new run: settings, data report, tokens, manifest."""
    # Rename the old files to ignored names, the manifest last. At any moment the directory then contains a complete
    # run or none. The directory itself stays, because it may be a link or a mount point.
    items = [item for item in run.root.iterdir() if item.name != LOCK_NAME]
    aside = []
    for item in sorted(items, key=lambda item: item == run.manifest):
        if not item.name.endswith(".tmp"):
            item = item.rename(item.with_name(f".{item.name}.{os.getpid()}.tmp"))
        aside.append(item)
    for item in aside:
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink()
    try:
        describe(run, prepared)
    except BaseException:
        for file in (run.manifest, run.config, run.data):  # the manifest first
            file.unlink(missing_ok=True)
        for folder in (run.tokens, run.tokenizer):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def describe(run: RunDirectory, prepared: Prepared) -> None:
    """Write the files of a run before training. The manifest comes last, because it marks the directory as a run."""
    config = portable(prepared.config)
    settings = settings_bytes(config)
    write_bytes(run.config, settings)
    write_record(run.data, described_data(prepared))
    keep_text(run, prepared.store, prepared.config, prepared.loaded.tokenizer)
    run.update_manifest(
        status="running",
        process=this_process(),
        name=run.root.name,
        created=_now(),
        finished=None,
        seed=config.seed,
        steps=0,
        best_step=0,
        base=prepared.loaded.provenance.to_dict(),
        trained=trained_part(prepared),
        data_sha256=prepared.store.info["sha256"],
        config_sha256=hashlib.sha256(settings).hexdigest(),
        config=None,
        speed=speed.applied(prepared.loaded.model)
        | prepared.tuned.route.to_dict()
        | {"probe": prepared.tuned.probe.to_dict()},
        versions=versions(),
        hardware=hardware(),
        command=["finetale", *sys.argv[1:]] if Path(sys.argv[0]).name == "finetale" else None,
    )


def trained_part(prepared: Prepared) -> dict[str, Any]:
    """Return which weights a run trains, for run.json."""
    config = prepared.config
    trained = sum(p.numel() for p in prepared.loaded.model.parameters() if p.requires_grad)
    found: dict[str, Any] = {"method": config.method, "parameters": trained}
    if config.has_adapter:
        found |= {"rank": config.rank, "alpha": config.alpha, "layers": list(config.lora_targets)}
    return found


def described_data(prepared: Prepared) -> DataFile:
    """Return the content of a run's data.json."""
    return data_json(prepared.config, prepared.store, prepared.blocks_json())


@contextlib.contextmanager
def _status(run: RunDirectory) -> Iterator[None]:
    """Update the status in run.json if the run is interrupted or fails."""
    try:
        yield
    except (InterruptedRun, KeyboardInterrupt):
        run.update_manifest(status="interrupted")
        raise
    except Exception as error:
        with contextlib.suppress(OSError):  # a full disk must not hide the original error
            run.update_manifest(status="failed", error=f"{type(error).__name__}: {error}")
        raise


def this_process() -> dict[str, Any]:
    """Return PID and host name, which distinguish a killed run from a running one."""
    return {"pid": os.getpid(), "host": platform.node()}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
