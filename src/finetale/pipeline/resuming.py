"""Resume a run that was stopped, unchanged or with accepted changes."""

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
from finetale.config.method import ADAPTER_SETTINGS
from finetale.errors import ConfigError, InterruptedRun, RunError
from finetale.formatting import plural, shell_command
from finetale.notify import Notify, note, stage, warn
from finetale.out_of_memory import memory_errors
from finetale.pipeline.disk import check_disk, plan_disk
from finetale.pipeline.kept_text import keep_text, kept_tokenizer, unchanged_text
from finetale.pipeline.prepare import Prepared, prepare
from finetale.pipeline.processes import follow
from finetale.pipeline.training_run import (
    check_base,
    describe,
    described_data,
    portable,
    settings_bytes,
    this_process,
    train_and_finish,
)
from finetale.ranks import Ranks, joined
from finetale.rundir import RunDirectory, recover, sha256_of, write_bytes, write_record
from finetale.rundir.jsonfiles import json_bytes
from finetale.schema import AcceptedChange, BaseModelSource, RunManifest
from finetale.signals import Stopped, StopRequest
from finetale.training.optimizer import learning_rate

_BUDGET = ("epochs", "max_steps")
_FIXED = ("model", "revision", "tokenizer", "new_tokens", "method", *ADAPTER_SETTINGS)
"""Settings that a run must keep, because its final comparison or its checkpoints depend on them."""
_SHAPE_TOKENS = {"sources", "vocab_size", "new_tokens", *TextSettings.model_fields}
"""Settings that determine the tokens. If one changes, the run can't use the tokens that it keeps."""


@memory_errors()
def resume_run(
    path: str | Path,
    notify: Notify,
    *,
    accept_changes: bool = False,
    budget: Mapping[str, Any] | None = None,
    shard: bool | None = None,
) -> RunDirectory:
    """Resume a run from its newest valid checkpoint. If training is done, only finish the comparison and the report.

    A finished run stays unchanged. A script can therefore call this in a loop until the run is finished.

    Args:
        accept_changes: resume although the text or config.yaml has changed since the run began. run.json records the
            changes.
        shard: whether to divide the weights among the processes. None: as before.
        budget: new `epochs` or `max_steps`. With them, training continues in a finished run too.

    Raises:
        ConfigError: `budget` contains another setting.
        RunError: there is no run, its text or settings have changed, the run has reached the new budget already, or
            another process uses the run.
    """
    budget = {name: value for name, value in (budget or {}).items() if value is not None}
    others = sorted(set(budget) - set(_BUDGET))
    if others:
        raise ConfigError(
            f"These settings can't be changed when a run is resumed: {', '.join(others)}.",
            "Give only epochs or max_steps. For other settings, edit config.yaml and set accept_changes.",
        )
    with joined() as ranks:
        if not ranks.is_main:
            return follow(ranks) or RunDirectory.open(path)
        with ranks.leading():
            return _resume_run(path, notify, accept_changes, budget, shard, ranks)


def _resume_run(
    path: str | Path,
    notify: Notify,
    accept_changes: bool,
    budget: Mapping[str, Any],
    shard: bool | None,
    ranks: Ranks,
) -> RunDirectory:
    run = RunDirectory.open(path)
    manifest = run.read_manifest()  # before the lock, so that an invalid directory stays untouched
    if manifest.status == "finished" and run.report.is_file() and not budget:
        note(notify, _finished_message(run))
        return run
    with StopRequest(), run.locked():
        try:
            with StopRequest(at_once=True):
                prepared, checkpoint = _prepare_again(run, notify, accept_changes, budget, shard)
        except Stopped as stopped:
            raise InterruptedRun(
                f"Stopped by {stopped} before training continued.",
                f"Continue with `{shell_command('finetale', 'resume', path)}`.",
            ) from None
        if run.read_manifest().base is None:  # stopped before training began
            check_disk(run.root, plan_disk(prepared))
            describe(run, prepared)
        elif budget:
            check_disk(run.root, plan_disk(prepared))
        run.update_manifest(status="running", error=None, process=this_process())
        return train_and_finish(run, prepared, notify, checkpoint, ranks)


def _finished_message(run: RunDirectory) -> str:
    manifest = run.read_manifest()
    return (
        f"{run.root} is finished already, after {plural(manifest.steps, 'step')}. Nothing was done. See "
        f"{run.report}, or train longer with `{shell_command('finetale', 'resume', run.root, '--epochs')} N`."
    )


def _prepare_again(
    run: RunDirectory, notify: Notify, accept_changes: bool, budget: Mapping[str, Any], shard: bool | None
) -> tuple[Prepared, Path | None]:
    """Return the prepared run, with its new budget if there is one, and the checkpoint to resume from."""
    path, manifest = run.root, run.read_manifest()
    # A run that was copied from another machine must not use that machine's paths.
    config = Config.resolve(read_settings_file(run.config), {"out": str(run.root)}).model_copy(
        update={"cache_dir": None}
    )
    unchanged = config
    if budget:
        config = Config.resolve(config.model_dump(exclude=set(_BUDGET)), budget)
    for_this_machine = {} if shard is None else {"shard": shard}
    if manifest.base is None:
        return prepare(config.model_copy(update=for_this_machine), notify), None
    _check_base_is_there(path, manifest.base, config, notify)
    before = _settings_before(run, manifest)
    unasked = _changed_settings(unchanged, before)
    if before is None:
        unasked = ["its SHA-256 differs from the one in run.json"]
    now, known = _by_name(config), before or {}
    fixed = [name for name in _FIXED if name in known and now[name] != known[name]]
    if fixed:
        raise RunError(
            f"{run.config} has changed since the run began: {'; '.join(unasked)}.",
            f"Restore the file, or start a new run: {', '.join(fixed)} can't change within a run.",
        )
    if unasked and not accept_changes:
        raise RunError(
            f"{run.config} has changed since the run began: {'; '.join(unasked)}.",
            "Restore the file, or accept the new settings with --accept-changes.",
        )
    changes = [*unasked, *_changed_settings(config, _by_name(unchanged))]
    recover(run.root)
    recover(run.checkpoints)
    stage(notify, "Looking for a checkpoint")
    checkpoint, damaged = training.newest_valid_checkpoint(run)
    for line in damaged:
        warn(notify, line)
    # Without a checkpoint the run starts again from its base. The weights in model/ may be from a later step, so they
    # are not a starting point.
    loaded = None
    if checkpoint is None and budget and manifest.status == "finished":
        raise RunError(
            f"{path} has no valid checkpoint, so its training can't continue.",
            f"Start a new run from its model: `{shell_command('finetale', 'train', 'SOURCE', '--model', path)}`.",
        )
    if checkpoint is not None and not config.has_adapter:
        loaded = models.load(models.name_of_folder(checkpoint), dropout=models.Dropout.of(config))
    # The tokens that the run keeps were made with the settings that it began with.
    shaped_anew = _SHAPE_TOKENS & _changed_names(unchanged, before)
    kept = None if shaped_anew else unchanged_text(run, config, notify)
    tokenizer = kept_tokenizer(run, notify) if kept is not None and loaded is None else None
    config = config.model_copy(update=for_this_machine)
    prepared = prepare(config, notify, loaded=loaded, store=kept, tokenizer=tokenizer)
    if loaded is None:  # the run starts again, or goes on with an adapter of its base
        check_base(manifest, prepared.loaded)
    if budget and checkpoint is not None:
        note(notify, _new_schedule(path, prepared, training.read_state(checkpoint).step, manifest.total_steps))
    if prepared.store.info["sha256"] != manifest.data_sha256:
        what = _changed_files(run, prepared)
        if not accept_changes:
            raise RunError(
                f"The text of {path} has changed since the run began ({what}).",
                "Restore the text, accept the new text with --accept-changes, or start a new run with "
                "`finetale train`.",
            )
        changes.append(f"the text: {what}")
        write_record(run.data, described_data(prepared))
    if kept is None:  # new text, a run of an older version, or corrupted tokens
        keep_text(run, prepared.store, prepared.config, prepared.loaded.tokenizer)
    if changes:
        warn(notify, f"Continuing with these changes: {'; '.join(changes)}.")
        step = training.read_state(checkpoint).step if checkpoint is not None else 0
        # Automatic settings are resolved now. Without the resolved values in config.yaml, the next resume would find
        # changes.
        settings = settings_bytes(prepared.config)
        write_bytes(run.config, settings)
        run.update_manifest(
            config_sha256=hashlib.sha256(settings).hexdigest(),
            config=None,
            data_sha256=prepared.store.info["sha256"],
            changes=[*manifest.changes, AcceptedChange(step=step, what=changes)],
        )
    return prepared, checkpoint


def _check_base_is_there(path: Path, base: BaseModelSource, config: Config, notify: Notify) -> None:
    """Refuse to continue an adapter whose base is gone, before any work. Without an adapter, warn.

    Raises:
        RunError: the base of the adapter is gone.
    """
    if base.kind not in ("local", "run", "gguf") or Path(config.model).expanduser().exists():
        return
    message = f"The base model of {path} is gone: there is no {config.model} any more."
    if config.has_adapter:
        raise RunError(message, "Put it back: the adapter is trained beside it.")
    warn(notify, f"{message} Put it back before training ends, because the final comparison needs it.")


def _settings_before(run: RunDirectory, manifest: RunManifest) -> dict[str, Any] | None:
    """Return the settings that a run began with, by name. Empty if config.yaml still has them, None if they are lost.

    In version 1, run.json contains them. Later versions compare the SHA-256 of config.yaml. If it differs, the newest
    checkpoint contains the settings that its weights were trained with.
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
    """Return the settings as JSON values."""
    values: dict[str, Any] = json.loads(json_bytes(portable(config).model_dump(mode="json")))
    return values


def _changed_names(config: Config, before: dict[str, Any] | None) -> set[str]:
    """Return the names of the settings that differ from earlier ones; all names if the earlier ones are unknown."""
    if before is None:
        return set(Config.model_fields)
    return {line.split(" ", 1)[0] for line in _changed_settings(config, before)}


def _new_schedule(path: Path, prepared: Prepared, step: int, old_total: int | None) -> str:
    """Describe the rest of a run with its new budget.

    Raises:
        RunError: the run has reached the new budget already.
    """
    config, total = prepared.config, prepared.budget.total_steps
    if total <= step:
        raise RunError(
            f"{path} has done {plural(step, 'step')} already, and the new budget ends after {total:,}.",
            "Give a larger --epochs or --max-steps. Both count from the beginning of the run.",
        )
    last = learning_rate(max(0, step - 1), max(old_total or total, step), config)
    following = learning_rate(step, total, config)
    return (
        f"Continuing from step {step:,} to {total:,}. The {config.schedule} schedule now spans all {total:,} steps, so "
        f"the learning rate changes from {last:.2g} to {following:.2g}."
    )


def _changed_settings(config: Config, before: dict[str, Any] | None) -> list[str]:
    """Describe each setting that differs from its earlier value."""
    now, before = _by_name(config), before or {}
    with contextlib.suppress(ValidationError):  # invalid values of an older version are compared unchanged
        before = Config.model_validate({name: before[name] for name in before if name in now}).model_dump(
            mode="json", include=set(before)
        )
    # Settings that the older version did not have are left out.
    names = sorted(name for name in before if now.get(name) != before[name])
    return [f"{name} is {_shown(now.get(name))}, was {_shown(before.get(name))}" for name in names]


def _shown(value: Any) -> str:
    return "auto" if value is None else str(value)


def _changed_files(run: RunDirectory, prepared: Prepared) -> str:
    """Describe which files of the text differ from those in data.json."""
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
