"""Find the folder of an adapter and check its files. Opens no base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetale.config import read_settings_file
from finetale.errors import ModelError
from finetale.formatting import shell_command
from finetale.models import adapter_files, hub
from finetale.models.files import is_adapter
from finetale.models.locating import check_adapter, verify_adapter
from finetale.models.names import is_hub_id
from finetale.rundir import RunDirectory


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter whose files are checked, but whose tensors are not read yet.

    Attributes:
        path: the run, the folder or the Hub id, as a person gave it.
        folder: the folder in PEFT's layout.
        run: the run that trained it, if `path` is one.
        base: name of the base that it was trained on; None if unknown.
        base_sha256: SHA-256 of that base's weights; None for an adapter of another program.
        commit: commit on the Hub, if the adapter is from there.
    """

    path: str
    folder: Path
    run: RunDirectory | None
    base: str | None
    base_sha256: str | None
    commit: str | None = None

    @property
    def kind(self) -> str:
        """Where the adapter is: hub, run or local."""
        return "hub" if self.commit is not None else "local" if self.run is None else "run"

    @property
    def tokenizer(self) -> Path | None:
        """Folder of the adapter's own tokenizer; None if it has that of its base."""
        return self.folder if (self.folder / "tokenizer_config.json").is_file() else None

    def check_base(self, name: str, base: str, base_sha256: str) -> None:
        """Check that the adapter was trained on a base. An adapter without a SHA-256 passes.

        Args:
            name: name of the adapter for the message.
            base: name of the base.
            base_sha256: SHA-256 of its weights.

        Raises:
            ModelError: it was trained on other weights.
        """
        if self.base_sha256 in (None, base_sha256):
            return
        own = self.base or "its own base"
        raise ModelError(
            f"The adapter {name} was trained on {own} (SHA-256 {self.base_sha256[:12]}…), which is not {base} "
            f"(SHA-256 {base_sha256[:12]}…).",
            f"Serve {own} with --adapter, or the merged model with --also {name}={self.path}.",
        )


def find_adapter(path: str, *, offline: bool = False) -> AdapterFolder:
    """Return the adapter of a run, of an adapter folder or on the Hub (downloading it), with its files checked.

    Args:
        path: the run, the folder or the Hub id OWNER/NAME.

    Raises:
        ModelError: there is none, or it is corrupted.
        HubError: the Hub can't be reached or refuses.
    """
    place = Path(path).expanduser()
    run = RunDirectory(place)
    if run.is_run():
        folder = run.adapter
        settings = read_settings_file(run.config)
        if not is_adapter(folder):
            raise _without_adapter(path, str(settings.get("method", "full")))
        verify_adapter(folder, run)
        check_adapter(folder, path)
        base = settings.get("model")
        return AdapterFolder(path, folder, run, None if base is None else str(base), adapter_files.base_sha256(folder))
    commit = None
    if "/" in path and is_hub_id(path) and not place.exists():
        if not hub.holds_adapter(path, None, offline):
            raise _whole_model(path)
        place, commit, _ = hub.download(path, None, offline)
    elif not is_adapter(place):
        raise _not_an_adapter(path, place)
    else:
        verify_adapter(place, None)
    check_adapter(place, path)
    base, _ = adapter_files.named_base(place, path)
    return AdapterFolder(path, place, None, base, adapter_files.base_sha256(place), commit)


def _whole_model(path: str) -> ModelError:
    return ModelError(f"{path} is a whole model, not an adapter.", f"Serve it with --also NAME={path}.")


def _not_an_adapter(path: str, place: Path) -> ModelError:
    if (place / "config.json").is_file():
        return _whole_model(path)
    return ModelError(
        f"{path} is neither a run nor an adapter folder." if place.exists() else f"There is no folder {path}.",
        f"Give a run, a folder with {adapter_files.CONFIG_NAME} and {adapter_files.WEIGHTS_NAME}, or OWNER/NAME "
        "on the Hub.",
    )


def _without_adapter(path: str, method: str) -> ModelError:
    if method == "full":
        return ModelError(
            f"The run {path} has no adapter: it was trained with --method full.",
            f"Serve its model with --also NAME={path}.",
        )
    return ModelError(
        f"The run {path} has no adapter yet.", f"Continue with `{shell_command('finetale', 'resume', path)}`."
    )
