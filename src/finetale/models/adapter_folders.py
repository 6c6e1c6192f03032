"""Find the folder of an adapter and check its files. Opens no base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetale.config import read_settings_file
from finetale.errors import ModelError
from finetale.formatting import shell_command
from finetale.models import adapters
from finetale.models.files import is_adapter
from finetale.models.locating import check_adapter, verify_adapter
from finetale.models.names import is_hub_id
from finetale.rundir import RunDirectory


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter whose files are checked, but whose tensors are not read yet.

    Attributes:
        path: the run or the folder, as a person gave it.
        folder: the folder in PEFT's layout.
        run: the run that trained it, if `path` is one.
        base: name of the base that it was trained on; None if unknown.
        base_sha256: SHA-256 of that base's weights; None for an adapter of another program.
    """

    path: str
    folder: Path
    run: RunDirectory | None
    base: str | None
    base_sha256: str | None

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


def find_adapter(path: str) -> AdapterFolder:
    """Return the adapter of a run or of an adapter folder, with its files checked.

    Raises:
        ModelError: there is none, or it is corrupted.
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
        return AdapterFolder(path, folder, run, None if base is None else str(base), adapters.base_sha256(folder))
    if not is_adapter(place):
        raise _not_an_adapter(path, place)
    verify_adapter(place, None)
    check_adapter(place, path)
    base, _ = adapters.named_base(place, path)
    return AdapterFolder(path, place, None, base, adapters.base_sha256(place))


def _not_an_adapter(path: str, place: Path) -> ModelError:
    if (place / "config.json").is_file():
        return ModelError(f"{path} is a whole model, not an adapter.", f"Serve it with --also NAME={path}.")
    if not place.exists() and is_hub_id(path):
        command = shell_command("hf", "download", path, "--local-dir", "adapter")
        return ModelError(f"There is no folder {path}.", f"Download an adapter of the Hub first: `{command}`.")
    return ModelError(
        f"{path} is neither a run nor an adapter folder." if place.exists() else f"There is no folder {path}.",
        f"Give a run, or a folder with {adapters.CONFIG_NAME} and {adapters.WEIGHTS_NAME}.",
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
