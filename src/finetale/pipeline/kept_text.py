"""The copy of its tokens that a run keeps, so that later stages need neither the text nor the cache.

The folder `tokens/` of a run is sealed. Its files are hard links to those of the cache if both are on one file system.
The folder is kept as long as the run, because a finished run can be trained further, compared and audited again. Runs
of older versions have no such folder. For them the text is read again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetale import cache, models, text
from finetale.config import Config
from finetale.errors import FinetaleError, RunError
from finetale.models import LoadedModel
from finetale.notify import Notify, warn
from finetale.rundir import RunDirectory, is_sealed, verify_folder, write_folder, write_sealed_folder
from finetale.text.fingerprint import is_elsewhere
from finetale.tokens import TokenStore, open_store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def keep_text(run: RunDirectory, store: TokenStore, config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """Save the tokens of a run's text in its directory, and the tokenizer if it was trained on the text."""

    def fill(folder: Path) -> None:
        for file in sorted(store.folder.iterdir()):
            _link(file, folder / file.name)

    write_folder(run.tokens, fill)  # with the seal of the cache
    if models.is_new(config.model) and config.tokenizer is None:
        write_sealed_folder(run.tokenizer, lambda folder: tokenizer.save_pretrained(str(folder)) and None)


def keep_inputs(run: RunDirectory, config: Config) -> Config:
    """Save text from standard input and from memory in a run that has not begun; return settings that name it."""

    def own(name: str) -> str:
        path = Path(name)
        if not cache.is_input(path) or not path.is_file():
            return name
        place = run.root / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            _link(path, place)
        return str(place.absolute())

    return config.with_sources(own)


def kept_text(run: RunDirectory, notify: Notify) -> TokenStore | None:
    """Return the tokens that a run keeps. Return None if there are none, or not those that it was trained on."""
    if run.tokens.is_symlink() or not run.tokens.is_dir():
        return None
    try:
        store = open_store(run.tokens)
    except (FinetaleError, OSError, ValueError) as error:
        reason = error.message if isinstance(error, FinetaleError) else str(error)
        warn(notify, f"{reason} The text is read again.")
        return None
    return store if store.info["sha256"] == run.read_manifest().data_sha256 else None


def kept_tokenizer(run: RunDirectory, notify: Notify) -> Any:
    """Return the tokenizer that a run keeps. Return None if there is none, or if it is corrupted."""
    if run.tokenizer.is_symlink() or not run.tokenizer.is_dir() or not is_sealed(run.tokenizer):
        return None
    if found := verify_folder(run.tokenizer):
        warn(notify, f"{run.tokenizer} is corrupted ({'; '.join(found[:3])}). The tokenizer is trained again.")
        return None
    return models.load_tokenizer(run.tokenizer)


def unchanged_text(run: RunDirectory, config: Config, notify: Notify) -> TokenStore | None:
    """Return the tokens that a run keeps, unless its text has changed.

    Files are compared by their SHA-256. Text that is gone counts as unchanged, and so do datasets and standard input,
    which are not read twice.
    """
    store = kept_text(run, notify)
    if store is None:
        return None
    now = text.fingerprint(config.sources, config)
    if now is not None:
        return store if now == store.info.get("fingerprint") else None
    local = [name for name in config.all_sources if not is_elsewhere(name)]
    if gone := [name for name in local if not Path(name).expanduser().exists() and name != text.BUNDLED_SOURCE]:
        warn(notify, f"The text {', '.join(gone[:3])} is gone. The run uses the tokens that it keeps.")
    return store


def check_fits(store: TokenStore, loaded: LoadedModel) -> None:
    """Refuse tokens that the model has no embedding for, as a run directory from a stranger may hold.

    Raises:
        RunError: the largest id is too large.
    """
    rows = int(loaded.model.get_input_embeddings().weight.shape[0])
    if store.largest_id >= rows:
        raise RunError(
            f"The tokens in {store.folder} hold the id {store.largest_id}, and the model has only {rows:,} embeddings.",
            "Delete this folder. Then the text is read again.",
        )


def _link(file: Path, place: Path) -> None:
    with contextlib.suppress(OSError):  # another file system, or one without hard links
        os.link(file, place)
        return
    shutil.copyfile(file, place)
