"""Merge an adapter into its base: write a model folder again, of a run or of an adapter folder."""

from __future__ import annotations

from pathlib import Path

from finetale import models
from finetale.config import read_settings_file
from finetale.errors import RunError
from finetale.formatting import shell_command
from finetale.notify import Notify, stage, warn
from finetale.out_of_memory import memory_errors
from finetale.report import model_card
from finetale.rundir import RunDirectory, add_file, write_sealed_folder


@memory_errors()
def merge_adapter(name: str, out: Path | None, notify: Notify) -> Path:
    """Write the model that an adapter and its base give, in fp32; return its folder.

    Args:
        name: a run that trained an adapter, or an adapter folder.
        out: folder to write. None: `model/` of the run, which is replaced.

    Raises:
        RunError: there is no adapter, or `out` is missing or in use.
        ModelError: the adapter or its base can't be used.
    """
    run = RunDirectory(Path(name).expanduser())
    if not run.is_run():
        return _write(name, run.root, None, out, notify)
    if not models.is_adapter(run.adapter):
        raise RunError(
            f"The run {name} has no adapter.", f"Its {run.model} is a whole model already, if it was trained fully."
        )
    if out is not None:
        return _write(name, run.adapter, run, out, notify)
    with run.locked():
        folder = _write(name, run.adapter, run, run.model, notify)
        comparison = run.read_comparison() if run.comparison.is_file() else None
        data = run.read_data() if run.data.is_file() else None
        card = model_card(run.read_manifest(), comparison, data, settings=read_settings_file(run.config))
        add_file(folder, "README.md", card.encode())
    return folder


def _write(name: str, adapter: Path, run: RunDirectory | None, out: Path | None, notify: Notify) -> Path:
    if not models.is_adapter(adapter):
        raise RunError(
            f"{name} is neither a run nor an adapter folder.",
            "An adapter folder has adapter_config.json and adapter_model.safetensors.",
        )
    if out is None:
        raise RunError(
            f"{name} is an adapter folder, so it is not clear where the merged model goes.",
            f"Name a folder: `{shell_command('finetale', 'merge', name, '--out', 'PATH')}`.",
        )
    out = out.expanduser()
    if (run is None or out != run.model) and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists already.", "Choose another folder with --out.")
    stage(notify, f"Merging {name} into its base")
    dropout = None if run is None else read_settings_file(run.config).get("dropout")
    loaded = models.load_located(models.locate_adapter(name, adapter, run), dropout=dropout)
    if loaded.warning:
        warn(notify, loaded.warning)
    write_sealed_folder(out, lambda folder: models.save(loaded.model, loaded.tokenizer, folder))
    return out
