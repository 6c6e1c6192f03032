"""Merge an adapter into its base: write a model folder again, of a run, an adapter folder or an adapter on the Hub.

Also write a corrupted adapter of a run again.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from finetale import models
from finetale.config import Config, read_settings_file
from finetale.errors import RunError
from finetale.formatting import shell_command
from finetale.notify import Notify, stage, warn
from finetale.out_of_memory import memory_errors
from finetale.report import model_card
from finetale.rundir import RunDirectory, add_file, verify_folder, write_sealed_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@memory_errors()
def merge_adapter(
    name: str, out: Path | None, notify: Notify, *, revision: str | None = None, offline: bool = False
) -> Path:
    """Write the model that an adapter and its base give, in fp32; return its folder.

    Args:
        name: a run that trained an adapter, an adapter folder, or an adapter on the Hub.
        out: folder to write. None: `model/` of the run, which is replaced.
        revision: branch, tag or commit of an adapter on the Hub.

    Raises:
        RunError: there is no adapter, or `out` is missing or in use.
        ModelError: the adapter or its base can't be used.
        HubError: the Hub can't be reached or refuses.
    """
    run = RunDirectory(Path(name).expanduser())
    if not run.is_run():
        _check_is_adapter(name, revision, offline)
        _check_out(name, out)
        return _write(models.locate(name, revision=revision, offline=offline), out, notify)
    if not models.is_adapter(run.adapter):
        raise RunError(
            f"The run {name} has no adapter.", f"Its {run.model} is a whole model already, if it was trained fully."
        )
    if out is not None:
        _check_out(name, out)
        return _write(_of_run(name, run, offline), out, notify, run)
    with run.locked():
        folder = _write(_of_run(name, run, offline), run.model, notify, run)
        comparison = run.read_comparison() if run.comparison.is_file() else None
        data = run.read_data() if run.data.is_file() else None
        card = model_card(run.read_manifest(), comparison, data, settings=read_settings_file(run.config))
        add_file(folder, "README.md", card.encode())
    return folder


def _check_out(name: str, out: Path | None) -> None:
    if out is None:
        raise RunError(
            f"{name} is an adapter and not a run, so it is not clear where the merged model goes.",
            f"Name a folder: `{shell_command('finetale', 'merge', name, '--out', 'PATH')}`.",
        )
    out = out.expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists already.", "Choose another folder with --out.")


def _check_is_adapter(name: str, revision: str | None, offline: bool) -> None:
    """Refuse what is no adapter. Of the Hub, nothing is downloaded."""
    folder = Path(name).expanduser()
    on_hub = not folder.exists() and models.is_hub_id(name)
    if not (models.holds_adapter(name, revision, offline) if on_hub else models.is_adapter(folder)):
        raise RunError(
            f"{name} is neither a run nor an adapter.",
            "An adapter folder has adapter_config.json and adapter_model.safetensors.",
        )


def _of_run(name: str, run: RunDirectory, offline: bool) -> models.Located:
    """Locate the adapter of a run: in adapter/, or if that is corrupted, in the checkpoint of the best step."""
    problems = verify_folder(run.adapter)
    found = models.best_checkpoint(run) if problems else None
    if found is None or not found[2]:
        return models.locate_adapter(name, run.adapter, run, offline=offline)
    folder, step, _ = found
    warning = f"{run.adapter} is corrupted ({problems[0]}); the checkpoint of step {step} is used instead."
    return replace(models.locate_adapter(name, folder, run, offline=offline), warning=warning)


def _write(located: models.Located, out: Path | None, notify: Notify, run: RunDirectory | None = None) -> Path:
    assert out is not None
    out = out.expanduser()
    stage(notify, f"Merging {located.name} into its base")
    dropout = models.Dropout()
    if run is not None:
        dropout = models.Dropout.of(Config.resolve(read_settings_file(run.config)))
    loaded = models.load_located(located, dropout=dropout)
    if loaded.warning:
        warn(notify, loaded.warning)
    write_sealed_folder(out, lambda folder: models.save(loaded.model, loaded.tokenizer, folder))
    return out


def restore_adapter(run: RunDirectory, tokenizer: PreTrainedTokenizerBase, notify: Notify) -> None:
    """Write adapter/ of a run again from the checkpoint of the best step, if its files are missing or corrupted."""
    problems = verify_folder(run.adapter)
    if not problems:
        return
    what = f"is corrupted ({problems[0]})" if run.adapter.exists() else "is missing"
    found = models.best_checkpoint(run)
    if found is None or not found[2]:
        warn(notify, f"{run.adapter} {what}, and no checkpoint has its weights.")
        return
    checkpoint, step, _ = found

    def fill(folder: Path) -> None:
        tokenizer.save_pretrained(str(folder))
        for name in (models.adapter_files.CONFIG_NAME, models.adapter_files.WEIGHTS_NAME):
            shutil.copyfile(checkpoint / name, folder / name)

    warn(notify, f"{run.adapter} {what}; it is written again from the checkpoint of step {step}.")
    write_sealed_folder(run.adapter, fill)
