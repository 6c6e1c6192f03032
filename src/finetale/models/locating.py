"""Find the files of a model on this machine or on the Hub, and check them. Reads no weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetale.config import read_settings_file
from finetale.errors import HubError, ModelError
from finetale.formatting import shell_command
from finetale.models import adapter_files, gguf
from finetale.models.cards import read_license
from finetale.models.files import (
    check_config,
    check_files,
    check_is_folder,
    is_adapter,
    positions_of,
    read_config,
)
from finetale.models.hub import download
from finetale.models.names import BUNDLED_FOLDER, BUNDLED_NAME, check_name, is_hub_id
from finetale.models.safety import check_tensors
from finetale.rundir import MANIFEST_NAME, RunDirectory, is_sealed, read_json, verify_folder


@dataclass(frozen=True)
class Located:
    """A model whose files are on this machine and checked, but whose weights are not read yet."""

    name: str
    kind: str
    folder: Path
    revision: str | None
    config: dict[str, Any]
    warning: str | None = None
    file: Path | None = None
    """The GGUF file that holds the model; then `folder` is the folder that it is in."""
    adapter: Path | None = None
    """Folder of an adapter that is merged into the weights when they are read."""
    base: str | None = None
    """Name of the model that the adapter is merged into, with its commit if it is on the Hub: NAME@COMMIT."""
    base_sha256: str | None = None
    """SHA-256 of the weights that the adapter was trained on, if it is known."""
    tokenizer: Path | None = None
    """Folder of the tokenizer, if that of the weights does not have it."""
    foreign_tokenizer: bool | None = None
    """Whether that tokenizer is another one than that of the weights, if it is known."""
    license: str | None = None
    """Licence of the weights, if their card states one."""

    @property
    def source(self) -> Path:
        """The path that the tokenizer is loaded from."""
        return self.file or self.folder

    @property
    def positions(self) -> int | None:
        """The length of the longest sequence that the model has positions for; None without a limit."""
        return positions_of(self.config)


def locate(name: str, *, revision: str | None = None, offline: bool = False) -> Located:
    """Find a model (downloading it if it is on the Hub) and check its files.

    The name of an adapter means its base with the adapter merged into it.

    Args:
        revision: branch, tag or commit on the Hub.

    Raises:
        ModelError: the model is missing, is not a causal language model, has only pickles, or needs code of its own.
        HubError: the Hub can't be reached or refuses.
    """
    return _locate(name, revision, offline)


def _locate(name: str, revision: str | None, offline: bool, adapter: str | None = None) -> Located:
    """Find a model.

    Args:
        adapter: name of the adapter whose base the model is.
    """
    check_name(name)
    path = Path(name).expanduser()
    if name == BUNDLED_NAME:
        return _checked(name, "bundled", BUNDLED_FOLDER, None)
    if (file := gguf.gguf_file(path)) is not None:
        return _of_gguf(name, file)
    if path.is_dir():
        run = RunDirectory(path)
        if run.is_run():
            return _of_run(name, run, offline, adapter)
        if is_adapter(path):
            _refuse_nested(name, adapter)
            return locate_adapter(name, path, offline=offline)
        if is_sealed(path) and (problems := verify_folder(path, links=True)):
            raise ModelError(
                f"The model in {name} is corrupted ({problems[0]}).",
                f"Give the run's directory instead of its model folder, or delete {path / MANIFEST_NAME} "
                "if the change was intended.",
            )
        return _checked(name, "local", path, None)
    check_is_folder(name, path)
    return _of_hub(name, revision, offline, adapter)


def _of_hub(name: str, revision: str | None, offline: bool, adapter: str | None = None) -> Located:
    found = download(name, revision, offline, check_adapter=lambda: _refuse_nested(name, adapter))
    if is_adapter(found.folder):
        _refuse_nested(name, adapter)
        return _of_adapter(name, "hub", found.folder, found.commit, offline)
    return replace(_checked(name, "hub", found.folder, found.commit), license=found.license)


def _of_gguf(name: str, path: Path) -> Located:
    header = gguf.check_gguf(path)
    warnings = [gguf.precision_warning(path, header), gguf.tokenizer_warning(path, header)]
    warning = " ".join(each for each in warnings if each) or None
    return Located(name, "gguf", path.parent, None, gguf.read_config(header, path), warning, path)


def _of_run(name: str, run: RunDirectory, offline: bool, adapter: str | None) -> Located:
    """Locate the model of a run.

    If it is missing or corrupted, use the run's adapter with its base, else the checkpoint of its best step, else the
    newest intact checkpoint.
    """
    unsealed = (run.model / "config.json").is_file() and not (run.model / MANIFEST_NAME).exists()  # of an older version
    problems = [] if unsealed else verify_folder(run.model)
    if not problems:
        return _checked(name, "run", run.model, None)
    what = f"is corrupted ({problems[0]})" if run.model.exists() else "is missing"
    if is_sealed(run.adapter) and not verify_folder(run.adapter):
        _refuse_nested(name, adapter)
        located = locate_adapter(name, run.adapter, run, offline=offline)
        return replace(located, warning=f"{run.model} {what}; the adapter and its base are used instead.")
    if (found := best_checkpoint(run)) is not None:
        folder, step, _ = found
        if is_adapter(folder):
            _refuse_nested(name, adapter)
            located = locate_adapter(name, folder, run, offline=offline)
        else:
            located = _checked(name, "run", folder, None)
        return replace(located, warning=f"{run.model} {what}; the checkpoint of step {step} is used instead.")
    if not run.model.exists():
        raise ModelError(
            f"The run {name} has no model yet.", f"Continue with `{shell_command('finetale', 'resume', name)}`."
        )
    raise ModelError(
        f"The model of the run {name} is corrupted ({problems[0]}), and so is every checkpoint.",
        f"Restore the file, or delete {run.model / MANIFEST_NAME} and give {run.model} if the change was intended.",
    )


def best_checkpoint(run: RunDirectory) -> tuple[Path, int, bool] | None:
    """Return the checkpoint of the best step of a run if it is intact, else the newest intact one.

    Returns:
        Its folder, its step, and whether that is the best step. None if no checkpoint is intact.
    """
    whole = [(step, folder) for step, folder in run.saved_checkpoints() if not verify_folder(folder)]
    if not whole:
        return None
    best = read_json(whole[0][1] / "state.json").get("best_step")
    step, folder = min(whole, key=lambda item: (item[0] != best, -item[0]))
    return folder, step, step == best


def locate_adapter(name: str, folder: Path, run: RunDirectory | None = None, *, offline: bool = False) -> Located:
    """Locate the adapter in a folder, and its base.

    Args:
        run: the run that the adapter belongs to, whose settings name the base. None: that of the adapter's parent
            folder, else the adapter itself names the base.

    Raises:
        ModelError: the adapter is corrupted or of another kind, or its base is unknown or missing.
        HubError: the Hub refuses the base.
    """
    kind = "local" if run is None else "run"
    verify_adapter(folder, run)
    parents = (RunDirectory(parent) for parent in (folder.parent, folder.parent.parent))
    run = run or next((parent for parent in parents if parent.is_run()), None)
    return _of_adapter(name, kind, folder, None, offline, run)


def verify_adapter(folder: Path, run: RunDirectory | None) -> None:
    """Check an adapter folder against its checksums, if it has them.

    Raises:
        ModelError: it is corrupted.
    """
    if problems := verify_folder(folder, links=run is None) if is_sealed(folder) else []:
        raise ModelError(f"The adapter {folder} is corrupted ({problems[0]}).", _restore_hint(folder, run))


def check_adapter(folder: Path, name: str) -> None:
    """Check that an adapter folder has its files, and is of a kind that Finetale reads.

    Raises:
        ModelError: it does not.
    """
    adapter_files.check_files(name, [file.name for file in folder.iterdir()])
    check_tensors(name, folder)
    adapter_files.read_settings(folder, name)


def _restore_hint(folder: Path, run: RunDirectory | None) -> str:
    run = run or RunDirectory(folder.parent)
    if folder == run.adapter and run.is_run():
        command = shell_command("finetale", "compare", run.root)
        return f"`{command}` writes it again from the checkpoint of the best step."
    return f"Restore the file, or delete {folder / MANIFEST_NAME} if the change was intended."


def _of_adapter(
    name: str, kind: str, folder: Path, commit: str | None, offline: bool, run: RunDirectory | None = None
) -> Located:
    check_adapter(folder, name)
    base, revision = adapter_files.named_base(folder, name)
    foreign = None
    if run is not None:
        settings = read_settings_file(run.config)
        base, revision = str(settings.get("model", base)), settings.get("revision")
        foreign = settings.get("tokenizer") is not None
    download_hint = f"Download the adapter with `{shell_command('hf', 'download', name, '--local-dir', 'adapter')}`, "
    if base is None:
        raise ModelError(
            f"The adapter {name} does not name its base.",
            f"{download_hint}and name its base in adapter/{adapter_files.CONFIG_NAME}."
            if kind == "hub"
            else f"Name it in {folder / adapter_files.CONFIG_NAME}.",
        )
    try:
        if kind == "hub":  # an adapter from elsewhere must not choose a folder of this machine
            located = _base_on_hub(name, base, revision, offline)
        else:
            beside = str(folder.parent / base) if base.startswith(".") else base
            located = _locate(beside, revision, offline, adapter=name)
    except HubError as error:
        raise HubError(f"The base of the adapter {name} can't be used: {error.message}", error.hint) from None
    except ModelError as error:
        if kind == "hub":
            hint = f"{download_hint}and name another base in adapter/{adapter_files.CONFIG_NAME}."
        elif run is not None:
            hint = "Put the base back."
        else:
            unseal = f", and delete its {MANIFEST_NAME}" if is_sealed(folder) else ""
            hint = f"Put the base back, or give its place in {folder / adapter_files.CONFIG_NAME}{unseal}."
        raise ModelError(f"The base of the adapter {name} can't be used: {error.message}", hint) from None
    places = [folder] if run is None else [folder, run.adapter]
    return replace(
        located,
        name=name,
        kind=kind,
        revision=commit,
        adapter=folder,
        base=f"{base}@{located.revision}" if located.revision else base,
        base_sha256=adapter_files.base_sha256(folder),
        tokenizer=next((place for place in places if (place / "tokenizer_config.json").is_file()), None),
        foreign_tokenizer=foreign,
    )


def _base_on_hub(name: str, base: str, revision: str | None, offline: bool) -> Located:
    """Locate the base that an adapter on the Hub names."""
    if base == BUNDLED_NAME:
        return _locate(base, None, offline)
    if not is_hub_id(base):
        raise ModelError(f"{base[:200]!r} is a folder of the machine that it was trained on.", "")
    return _of_hub(base, revision, offline, adapter=name)


def _refuse_nested(name: str, adapter: str | None) -> None:
    """Refuse an adapter as the base of another one."""
    if adapter is not None:
        raise ModelError(f"{name} is an adapter too; merge it into its own base first.", "")


def _checked(name: str, kind: str, folder: Path, revision: str | None) -> Located:
    files = sorted(file.name for file in folder.iterdir())
    config: Any = {}
    if "config.json" in files:
        config = read_config(folder / "config.json")
        check_config(name, config)  # first, because the kind of model is the more helpful message
    check_files(name, files)
    layers = next((config[key] for key in ("num_hidden_layers", "n_layer", "num_layers") if key in config), None)
    check_tensors(name, folder, layers)
    return Located(name, kind, folder, revision, config, license=read_license(folder))
