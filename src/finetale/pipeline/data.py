"""Sources + tokenizer → token store, from the cache where it holds the same text already."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetale import __version__, text, tokens
from finetale.blocks import choose_block_size
from finetale.config import Config, TextSettings
from finetale.errors import FinetaleError, RunError, SourceError
from finetale.notify import Notify, counted, stage
from finetale.rundir import write_bytes, write_folder
from finetale.tokens import TokenStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_HASHES = 10_000
"""Files named in data.json with their hash; a text of more is known by its tokens alone."""


def _tell_documents(notify: Notify, message: str, count: int) -> None:
    stage(notify, message, done=count, unit="documents")


def tokenise(config: Config, tokenizer: PreTrainedTokenizerBase, notify: Notify) -> TokenStore:
    """The token store of a config's sources: opened if the cache holds it, else built."""
    key = _key(config, tokens.tokenizer_hash(tokenizer), notify)
    root = tokens.cache_root(config.cache_dir)
    if key is not None:
        folder = root / "tokens" / key
        if (folder / "store.json").is_file():
            return tokens.open_store(folder)
        # A store appears whole or not at all, so a folder without this file is a damaged one.
        if folder.is_dir() and not (folder / "store.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
    else:  # a stream can't be hashed before it is read
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="stream-", dir=root)) / "store"

    progress = partial(_tell_documents, notify, "Reading and tokenising the text")
    stage(notify, "Reading and tokenising the text")
    try:
        parts, report = text.read_parts(config.sources, config, offline=config.offline)
        store = tokens.build_store(parts, tokenizer, folder, report=report.to_dict, progress=progress, keep=True)
    except BaseException as error:
        if key is None:
            shutil.rmtree(folder.parent, ignore_errors=True)
        if isinstance(error, OSError):
            raise RunError(
                f"The token cache in {root} can't be written: {error}.",
                "Free some disk space, or choose another place with --cache-dir.",
            ) from error
        raise
    if key is None:
        kept = root / "tokens" / f"stream-{_hash_of(config, store.info['sha256'], list(config.sources))}"
        kept.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # there already
            folder.replace(kept)
        shutil.rmtree(folder.parent, ignore_errors=True)
        store = tokens.open_store(kept)
    return store


def trained_tokenizer(config: Config, notify: Notify) -> PreTrainedTokenizerBase:
    """The byte-level BPE tokenizer of a new: model, trained on the training text (cached)."""
    from finetale.models import load_tokenizer

    key = _key(config, f"bpe-{config.vocab_size}", notify)
    folder = tokens.cache_root(config.cache_dir) / "tokenizers" / key if key else None
    if folder is not None and folder.is_dir():
        return load_tokenizer(folder)
    message = "Training a tokenizer on the text"
    stage(notify, message)
    parts, _ = text.read_parts(config.sources, config, offline=config.offline)
    texts = counted(tokens.training_texts(parts), partial(_tell_documents, notify, message))
    tokenizer = tokens.train_tokenizer(texts, config.vocab_size)
    if folder is not None:
        write_folder(folder, lambda target: tokenizer.save_pretrained(str(target)), keep=True)
    return tokenizer


def check_text(config: Config, notify: Notify) -> dict[str, Any]:
    """`finetale check`: the data report with all problems, and the token account if a tokenizer can be had.

    Tokens are counted with the model's tokenizer. When no model was named and the default one is not on this machine,
    they are not, and `no_tokens` says so.
    """
    config = keep_standard_input(config)
    progress = partial(_tell_documents, notify, "Reading the text")
    stage(notify, "Reading the text")
    parts, report = text.read_parts(config.sources, config, on_problem="collect", offline=config.offline)
    result: dict[str, Any] = {"tokens": None, "dropped": [], "warnings": [], "tokenizer": None, "no_tokens": None}
    result["refused"] = None
    named = bool({"model", "tokenizer"} & config.model_fields_set)
    try:
        tokenizer = tokenizer_for(config, notify, offline=config.offline or not named)
    except FinetaleError:
        if named:
            raise
        for _ in counted(parts, progress):
            pass
        why = "name a model with --model (bundled is here); gpt2, the default, is not on this machine, and nothing is downloaded unasked"
        return result | {"no_tokens": why, "text": report.to_dict()}
    with tempfile.TemporaryDirectory() as folder:
        try:
            store = tokens.build_store(
                parts, tokenizer, Path(folder) / "store", report=report.to_dict, progress=progress
            )
        except SourceError:  # no text at all; what stands in the way says more
            if not any(problem["fatal"] for problem in report.to_dict()["problems"]):
                raise
            return result | {"text": report.to_dict()}
        counts = {"tokens": store.account["tokens"], "dropped": store.account["dropped"], "warnings": store.warnings}
        told = store.report
        try:
            choose_block_size(store, None, config.block_size)
        except SourceError as error:
            result["refused"] = f"{error.message} {error.hint}"
    return result | counts | {"tokenizer": config.tokenizer or config.model, "text": told}


def tokenizer_for(config: Config, notify: Notify, *, offline: bool) -> PreTrainedTokenizerBase:
    """The tokenizer a run with these settings would use, without its model's weights."""
    from finetale import models

    if config.tokenizer is not None:
        return models.load_tokenizer(config.tokenizer, offline=offline)
    if models.is_new(config.model):
        models.check_name(config.model)
        return trained_tokenizer(config, notify)
    return models.load_tokenizer(config.model, revision=config.revision, offline=offline)


def keep_standard_input(config: Config) -> Config:
    """Standard input can be read only once, so it is put into a file of the cache that later stages can open."""
    fields = ("sources", "validation", "test")
    if not any("-" in getattr(config, field) for field in fields):
        return config
    data = text.read_standard_input()
    path = tokens.cache_root(config.cache_dir) / "stdin" / f"{hashlib.sha256(data).hexdigest()}.txt"
    write_bytes(path, data)
    kept = {field: tuple(str(path) if item == "-" else item for item in getattr(config, field)) for field in fields}
    return config.model_copy(update=kept)


def data_json(config: Config, store: TokenStore, blocks: dict[str, Any]) -> dict[str, Any]:
    """Content of data.json: the token account, what the blocks look like, the files' hashes, and the report on the text."""
    hashes = text.file_hashes(config.sources, config)
    files = None
    if hashes is not None and len(hashes) <= _MOST_HASHES:
        files = {name if role == "train" else f"{name} ({role})": content for (role, name), content in hashes}
    described = {"blocks": blocks, "warnings": store.warnings, "file_sha256": files, "text": store.report}
    return {"schema_version": 1} | store.account | described


def _key(config: Config, what: str, notify: Notify) -> str | None:
    """Hash of the sources' bytes, the settings that shape the text, and the tokenizer; None for streams."""

    def progress(done: int, total: int) -> None:
        stage(notify, "Comparing the text with what is known", done=done >> 20, total=total >> 20, unit="MB")

    fingerprint = text.fingerprint(config.sources, config, progress)
    if fingerprint is None:
        return None
    return _hash_of(config, fingerprint, what)


def _hash_of(config: Config, *what: Any) -> str:
    """Hash of what is given, the settings that shape the text, and how stores are written."""
    settings = config.narrow(TextSettings).model_dump(mode="json")
    values = [__version__, tokens.STORE_VERSION, settings, *what]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]
