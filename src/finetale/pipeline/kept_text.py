"""The tokens that a run keeps of its text, so that later stages need neither the text nor the cache.

They lie in the run's `tokens/`, sealed, and are hard links to the files of the cache where both are on one file system.
They stay as long as the run does: a finished run can go on, be compared with other models and be looked through again.
Runs of older versions have none; for them the text is read again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetale import models, text
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
    """Put the tokens of a run's text into its directory, and the tokenizer if it was trained on the text."""

    def fill(folder: Path) -> None:
        for file in sorted(store.folder.iterdir()):
            _link(file, folder / file.name)

    write_folder(run.tokens, fill)  # with the seal of the cache
    if models.is_new(config.model) and config.tokenizer is None:
        write_sealed_folder(run.tokenizer, lambda folder: tokenizer.save_pretrained(str(folder)) and None)


def kept_text(run: RunDirectory, notify: Notify) -> TokenStore | None:
    """Return the tokens that a run keeps; None if it has none, or not those it was trained on."""
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
    """Return the tokenizer that was trained for a run; None if it keeps none, or a corrupted one."""
    if run.tokenizer.is_symlink() or not run.tokenizer.is_dir() or not is_sealed(run.tokenizer):
        return None
    if found := verify_folder(run.tokenizer):
        warn(notify, f"{run.tokenizer} is corrupted ({'; '.join(found[:3])}). The tokenizer is trained again.")
        return None
    return models.load_tokenizer(run.tokenizer)


def unchanged_text(run: RunDirectory, config: Config, notify: Notify) -> TokenStore | None:
    """Return the tokens that a run keeps if its text is unchanged, or can't be read again; else None.

    Datasets and standard input are not read twice. Files and folders are compared by their SHA-256.
    """
    store = kept_text(run, notify)
    if store is None:
        return None
    names = (*config.sources, *config.validation, *config.test)
    now = text.fingerprint(config.sources, config)
    if now is not None:
        return store if now == store.info.get("fingerprint") else None
    local = [name for name in names if not is_elsewhere(name)]
    if gone := [name for name in local if not Path(name).expanduser().exists() and name != text.BUNDLED_SOURCE]:
        warn(notify, f"The text {', '.join(gone[:3])} is gone. The run uses the tokens that it keeps.")
    return store


def check_fits(store: TokenStore, loaded: LoadedModel) -> None:
    """Refuse tokens that a model has no embedding for. A run directory may come from a stranger.

    Raises:
        RunError: names the largest id.
    """
    rows = int(loaded.model.get_input_embeddings().weight.shape[0])
    if store.largest_id >= rows:
        raise RunError(
            f"The tokens in {store.folder} hold the id {store.largest_id}, and the model knows {rows:,}.",
            "Delete this folder; the text is then read again.",
        )


def _link(file: Path, place: Path) -> None:
    with contextlib.suppress(OSError):  # another file system, or one without hard links
        os.link(file, place)
        return
    shutil.copyfile(file, place)
