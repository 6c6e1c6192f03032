"""Going on with a run that was stopped, as it was or with changes that were accepted."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetale import models, training
from finetale.config import Config, TextSettings, read_settings_file, with_new_names
from finetale.errors import ConfigError, InterruptedRun, RunError
from finetale.formatting import shell_command
from finetale.notify import Notify, note, stage, warn
from finetale.out_of_memory import memory_errors
from finetale.pipeline.disk import check_disk, plan_disk
from finetale.pipeline.kept_text import keep_text, kept_tokenizer, unchanged_text
from finetale.pipeline.prepare import Prepared, prepare
from finetale.pipeline.training_run import (
    check_base,
    describe,
    described_data,
    portable,
    settings_bytes,
    this_process,
    train_and_finish,
)
from finetale.rundir import RunDirectory, recover, sha256_of, write_bytes, write_record
from finetale.rundir.jsonfiles import json_bytes
from finetale.schema import AcceptedChange, RunManifest
from finetale.signals import Stopped, StopRequest
from finetale.training.optimizer import learning_rate

_BUDGET = ("epochs", "max_steps")
_FIXED = ("model", "revision", "tokenizer")
"""Settings that a run is compared by at its end."""
_SHAPE_TOKENS = {"sources", "vocab_size", *TextSettings.model_fields}
"""Settings without which the tokens that a run keeps would be others."""


@memory_errors()
def resume_run(
    path: str | Path,
    notify: Notify,
    *,
    accept_changes: bool = False,
    budget: Mapping[str, Any] | None = None,
) -> RunDirectory:
    """Go on with a run from its newest valid checkpoint, or finish what came after training.

    A finished run is left as it is, so that a loop that starts a run again until it is done ends well.

    Args:
        accept_changes: go on although the text or config.yaml is not what the run began with; run.json then says so.
        budget: `epochs` or `max_steps` in place of those that the run began with. A finished run goes on to these.

    Raises:
        ConfigError: `budget` names another setting.
        RunError: there is no run, its text or settings have changed, the new budget is spent already, or another
            process is at work on the run.
    """
    budget = {name: value for name, value in (budget or {}).items() if value is not None}
    others = sorted(set(budget) - set(_BUDGET))
    if others:
        raise ConfigError(
            f"A run can't go on with another {', '.join(others)}.",
            "Give epochs or max_steps; edit config.yaml and accept the changes for anything else.",
        )
    run = RunDirectory.open(path)
    manifest = run.read_manifest()  # a directory that can't be used is not touched
    if manifest.status == "finished" and run.report.is_file() and not budget:
        note(notify, _finished_message(run))
        return run
    with StopRequest(), run.locked():
        try:
            with StopRequest(at_once=True):
                prepared, checkpoint = _prepare_again(run, notify, accept_changes, budget)
        except Stopped as stopped:
            raise InterruptedRun(
                f"Stopped by {stopped} before anything new was done.",
                f"Go on with `{shell_command('finetale', 'resume', path)}`.",
            ) from None
        if run.read_manifest().base is None:  # it was stopped before it began
            check_disk(run.root, plan_disk(prepared))
            describe(run, prepared)
        elif budget:
            check_disk(run.root, plan_disk(prepared))
        run.update_manifest(status="running", error=None, process=this_process())
        return train_and_finish(run, prepared, notify, checkpoint)


def _finished_message(run: RunDirectory) -> str:
    manifest = run.read_manifest()
    return (
        f"{run.root} is finished already, after {manifest.steps:,} steps; nothing was done. See {run.report}, or train"
        f" on with `{shell_command('finetale', 'resume', run.root, '--epochs')} N`."
    )


def _prepare_again(
    run: RunDirectory, notify: Notify, accept_changes: bool, budget: Mapping[str, Any]
) -> tuple[Prepared, Path | None]:
    """Return a run as it was, with a new budget if there is one, and the checkpoint to go on from."""
    path, manifest = run.root, run.read_manifest()
    # A run that came from somewhere else does not say where to write on this machine.
    config = Config.resolve(read_settings_file(run.config), {"out": str(run.root)}).model_copy(
        update={"cache_dir": None}
    )
    unchanged = config
    if budget:
        config = Config.resolve(config.model_dump(exclude=set(_BUDGET)), budget)
    if manifest.base is None:
        return prepare(config, notify), None
    before = _settings_before(run, manifest)
    unasked = _changed_settings(unchanged, before)
    if before is None:
        unasked = ["its SHA-256 is not the one in run.json"]
    fixed = [name for name in _FIXED if name in (before or {}) and getattr(config, name) != (before or {})[name]]
    if fixed:
        raise RunError(
            f"{run.config} is not what the run began with: {'; '.join(unasked)}.",
            f"Put it back: {', '.join(fixed)} can't change within a run; train another one.",
        )
    if unasked and not accept_changes:
        raise RunError(
            f"{run.config} is not what the run began with: {'; '.join(unasked)}.",
            "Put it back, or take the new settings with --accept-changes.",
        )
    changes = [*unasked, *_changed_settings(config, _by_name(unchanged))]
    recover(run.root)
    recover(run.checkpoints)
    stage(notify, "Looking for a checkpoint")
    checkpoint, damaged = training.newest_valid_checkpoint(run)
    for line in damaged:
        warn(notify, line)
    # model/ may hold better weights than a lost checkpoint, so without a checkpoint the run begins again from its base.
    loaded = None
    if checkpoint is None and budget and manifest.status == "finished":
        raise RunError(
            f"{path} has no checkpoint that is whole, so it can't be trained on.",
            f"Start a new run from its model: `{shell_command('finetale', 'train', 'SOURCE', '--model', path)}`.",
        )
    if checkpoint is not None:
        loaded = models.load(models.name_of_folder(checkpoint), dropout=config.dropout)
    # The run's own tokens are those of the settings it began with.
    shaped_anew = _SHAPE_TOKENS & _changed_names(unchanged, before)
    kept = None if shaped_anew else unchanged_text(run, config, notify)
    tokenizer = kept_tokenizer(run, notify) if kept is not None and loaded is None else None
    prepared = prepare(config, notify, loaded=loaded, store=kept, tokenizer=tokenizer)
    if loaded is None:
        check_base(manifest, prepared.loaded)
    if budget and checkpoint is not None:
        note(notify, _new_schedule(path, prepared, training.read_state(checkpoint).step, manifest.total_steps))
    if prepared.store.info["sha256"] != manifest.data_sha256:
        what = _changed_files(run, prepared)
        if not accept_changes:
            raise RunError(
                f"The text of {path} has changed since the run began ({what}), so it can't go on as it was.",
                "Restore the text, go on with the new one by --accept-changes, or start a new run with "
                "`finetale train`.",
            )
        changes.append(f"the text: {what}")
        write_record(run.data, described_data(prepared))
    if kept is None:  # a new text, a run of an older version, or tokens that were corrupted
        keep_text(run, prepared.store, prepared.config, prepared.loaded.tokenizer)
    if changes:
        warn(notify, f"Going on with what has changed: {'; '.join(changes)}.")
        step = training.read_state(checkpoint).step if checkpoint is not None else 0
        # Settings left to auto are resolved now. config.yaml must have the resolved ones, or the next resume finds a
        # change.
        settings = settings_bytes(prepared.config)
        write_bytes(run.config, settings)
        run.update_manifest(
            config_sha256=hashlib.sha256(settings).hexdigest(),
            config=None,
            data_sha256=prepared.store.info["sha256"],
            changes=[*manifest.changes, AcceptedChange(step=step, what=changes)],
        )
    return prepared, checkpoint


def _settings_before(run: RunDirectory, manifest: RunManifest) -> dict[str, Any] | None:
    """Return the settings that a run began with, by name; None if config.yaml has changed and nothing else has them.

    run.json has them in version 1. Later versions compare the SHA-256 of config.yaml; where it differs, the newest
    checkpoint has the settings that its weights were trained with.
    """
    if manifest.config is not None:
        return with_new_names(manifest.config)
    if manifest.config_sha256 is None or sha256_of(run.config) == manifest.config_sha256:
        return {}
    for _, folder in run.saved_checkpoints():
        kept = folder / training.SETTINGS_NAME
        if kept.is_file():
            return _by_name(Config.resolve(read_settings_file(kept)))
    return None


def _by_name(config: Config) -> dict[str, Any]:
    """Return settings as JSON has them."""
    values: dict[str, Any] = json.loads(json_bytes(portable(config).model_dump(mode="json")))
    return values


def _changed_names(config: Config, before: dict[str, Any] | None) -> set[str]:
    """Return the names of the settings that differ from earlier ones; all of them where those are unknown."""
    if before is None:
        return set(Config.model_fields)
    return {line.split(" ", 1)[0] for line in _changed_settings(config, before)}


def _new_schedule(path: Path, prepared: Prepared, step: int, old_total: int | None) -> str:
    """Describe how a run goes on within its new budget, in one sentence.

    Raises:
        RunError: the new budget ends at or before the step that the run has reached.
    """
    config, total = prepared.config, prepared.budget.total_steps
    if total <= step:
        raise RunError(
            f"{path} has taken {step:,} steps, and the new budget ends after {total:,}.",
            "Give a larger --epochs or --max-steps; it counts from the beginning of the run.",
        )
    last = learning_rate(max(0, step - 1), max(old_total or total, step), config)
    following = learning_rate(step, total, config)
    return (
        f"Going on from step {step:,} to {total:,}. The {config.schedule} schedule now spans all {total:,} steps, so "
        f"the learning rate goes from {last:.2g} to {following:.2g}."
    )


def _changed_settings(config: Config, before: dict[str, Any] | None) -> list[str]:
    """Return the settings that differ from earlier ones, in words."""
    now, before = _by_name(config), before or {}
    with contextlib.suppress(ValidationError):  # values as an older version wrote them
        before = Config.model_validate({name: before[name] for name in before if name in now}).model_dump(
            mode="json", include=set(before)
        )
    # A setting that an older version did not know has its default now.
    names = sorted(name for name in before if now.get(name) != before[name])
    return [f"{name} is {_shown(now.get(name))}, was {_shown(before.get(name))}" for name in names]


def _shown(value: Any) -> str:
    return "auto" if value is None else str(value)


def _changed_files(run: RunDirectory, prepared: Prepared) -> str:
    """Which files of the text differ from those in data.json, in words."""
    before, now = run.read_data().file_sha256, described_data(prepared).file_sha256
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
