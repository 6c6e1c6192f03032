"""Turn sources into a token store, or open the one that the cache already holds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from finetale import __version__, cache, text, tokenizer_report, tokens
from finetale.blocks import CutExamples, check_enough, choose_block_size, cut_examples
from finetale.chat import chat_renderer, chat_template_of
from finetale.config import Config, TextSettings
from finetale.errors import FinetaleError, RunError, SourceError
from finetale.notify import Notify, counted, stage, warn
from finetale.passages import PassageFinder
from finetale.round_trip import TextSample
from finetale.rundir import temporary_name, write_bytes, write_sealed_folder
from finetale.schema import CheckResult, DataFile, TokenizerFit
from finetale.text.documents import SPLITS, Part, Split, digest_of
from finetale.token_count import TokenCounter, look_ahead
from finetale.tokenizing.batches import batches
from finetale.tokenizing.processes import default_processes
from finetale.tokens import TokenStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
Spans = tuple[tuple[int, int], ...]
_MAX_HASHES = 10_000
"""Maximum number of files that data.json lists with their SHA-256."""
_held_inputs: dict[Path, cache.Hold | None] = {}
"""Texts from standard input and from memory that this process uses, locked until it ends."""


def _report_documents(notify: Notify, message: str, count: int) -> None:
    stage(notify, message, done=count, unit="documents")


def tokenise(config: Config, tokenizer: PreTrainedTokenizerBase, notify: Notify) -> TokenStore:
    """Return the token store of a config's sources. Build it unless the cache holds a valid one.

    Raises:
        RunError: the cache can't be written.
    """
    root, limit = cache.cache_root(config.cache_dir), cache.size_limit()
    fingerprint = _fingerprint(config, notify)
    makers = (tokens.tokenizer_hash(tokenizer), chat_template_of(tokenizer))
    key = _hash_of(config, fingerprint, *makers) if fingerprint is not None else None
    folder = root / "tokens" / key if key is not None else None
    if folder is not None and (cached := _open_cached(folder, tokens.open_store, notify)) is not None:
        return cached

    progress = partial(_report_documents, notify, "Reading and tokenising the text")
    stage(notify, "Reading and tokenising the text")
    # The key of a stream is known only after reading.
    temporary = temporary_name(root / "tokens" / "stream")
    try:
        renderer = chat_renderer(tokenizer, config.loss, config.tokenizer or config.model)
        parts, report = text.read_parts(config.sources, config, offline=config.offline, renderer=renderer)
        store = tokens.build_store(
            parts,
            tokenizer,
            folder or temporary / "store",
            report=report.to_dict,
            progress=progress,
            keep=True,
            fingerprint=fingerprint,
            shares=[mix.share for mix in config.mixes],
            processes=default_processes(),
            warn=partial(warn, notify),
        )
        if folder is None:
            folder = root / "tokens" / f"stream-{_hash_of(config, store.info['sha256'], list(config.sources))}"
            if (cached := _open_cached(folder, tokens.open_store, notify)) is not None:
                return cached
            with contextlib.suppress(OSError):  # another process has put the same store there
                store.folder.replace(folder)
        store = tokens.open_store(folder, cache.hold(folder))
        cache.evict(root, limit)
    except OSError as error:
        raise _cache_error(root, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return store


def retokenise(
    store: TokenStore,
    old: PreTrainedTokenizerBase,
    new: PreTrainedTokenizerBase,
    config: Config,
    notify: Notify,
) -> TokenStore:
    """Return the held-out text of a store as tokens of another tokenizer, from its own tokens.

    Args:
        old: the tokenizer of the store.

    Raises:
        RunError: the old tokenizer does not give the text back exactly, or the cache can't be written.
    """
    root, limit = cache.cache_root(config.cache_dir), cache.size_limit()
    folder = root / "tokens" / _hash_of(config, store.info["sha256"], "held-out", tokens.tokenizer_hash(new))
    if (cached := _open_cached(folder, tokens.open_store, notify)) is not None:
        return cached
    stage(notify, "Tokenising the held-out text")
    try:
        tokens.build_store(_decoded(store, old, new), new, folder, report=dict, keep=True)
        store = tokens.open_store(folder, cache.hold(folder))
        cache.evict(root, limit)
    except OSError as error:
        raise _cache_error(root, error) from error
    return store


def _decoded(store: TokenStore, tokenizer: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase) -> Iterator[Part]:
    """Yield the held-out and watched parts of a store as text. End-of-text within an example becomes that of `new`.

    Raises:
        RunError: the learned text has not the length of the original.
    """
    special = tokens.special_tokens_of(tokenizer)
    old_end, new_end = (str(each.convert_ids_to_tokens(tokens.begin_and_end(each)[1])) for each in (tokenizer, new))
    splits: list[tuple[str, Split, int | None]] = [(split, split, None) for split in SPLITS[1:]]
    splits += [(name, "watched", number) for number, name in enumerate(store.watched)]
    for name_of_split, split, beside in splits:
        for part in store.parts_of(name_of_split).tolist():
            row, name = store.parts[part], store.name_of(part)
            whole, context = _decoded_pieces(store, tokenizer, part)
            learned = tokens.learned_pieces(whole, context, special)
            size = sum(len(piece.encode("utf-8", "surrogatepass")) for piece in learned)
            if (size, sum(len(piece.split()) for piece in learned)) != (int(row["bytes"]), int(row["words"])):
                raise RunError(
                    f"The text is gone or has changed, and the run's tokenizer does not give {name} back exactly.",
                    "Restore the text, or name other text with --text.",
                )
            source, line = name.rsplit(":", 1)
            digest = digest_of(whole.encode("utf-8", "surrogatepass")).hex()
            if context:
                whole, context = _with_end(whole, context, old_end, new_end)
            yield Part(
                whole,
                source,
                int(line),
                split,
                digest,
                None,
                ends=bool(row["ends"]),
                context=context,
                is_example=bool(context),
                beside=beside,
            )


def _decoded_pieces(store: TokenStore, tokenizer: PreTrainedTokenizerBase, part: int) -> tuple[str, Spans]:
    """Return the text of a part, and the (start, stop) of the characters that are its context."""
    ids = store.ids(part).tolist()

    def text_until(place: int) -> str:
        decoded: str = tokenizer.decode(ids[:place], clean_up_tokenization_spaces=False)
        return decoded

    spans = tuple((len(text_until(start)), len(text_until(stop))) for start, stop in store.context_of(part).tolist())
    return text_until(len(ids)), spans


def _with_end(whole: str, context: Spans, old: str, new: str) -> tuple[str, Spans]:
    """Replace one end-of-text by another in a text with context."""

    def moved(place: int) -> int:
        return place + whole.count(old, 0, place) * (len(new) - len(old))

    return whole.replace(old, new), tuple((moved(start), moved(stop)) for start, stop in context)


def _cache_error(root: Path, error: OSError) -> RunError:
    return RunError(
        f"The token cache in {root} can't be written: {error.strerror or error}.",
        "Free some disk space, or choose another place with --cache-dir.",
    )


def _open_cached(folder: Path, opened: Callable[[Path, cache.Hold], T], notify: Notify) -> T | None:
    """Open an entry of the cache. Return None if there is none. Report and delete an entry that is corrupted."""
    hold = cache.hold(folder)
    if hold is None:
        return None
    found = cache.problems(folder)
    if not found:
        try:
            return opened(folder, hold)
        except (FinetaleError, OSError, ValueError) as error:
            found = [error.message if isinstance(error, FinetaleError) else str(error)]
    warn(notify, f"{folder} in the cache is corrupted ({'; '.join(found[:3])}), so it is made again.")
    with contextlib.suppress(OSError):
        if hold.is_of(folder):  # not the one that another process has made since
            cache.remove(folder)
    hold.release()
    return None


def trained_tokenizer(config: Config, notify: Notify) -> PreTrainedTokenizerBase:
    """Return the byte-level BPE tokenizer of a new: model. Train it on the training text unless the cache holds it."""
    from finetale.models import load_tokenizer

    root, limit = cache.cache_root(config.cache_dir), cache.size_limit()
    fingerprint = _fingerprint(config, notify)
    folder = None
    if fingerprint is not None:
        folder = root / "tokenizers" / _hash_of(config, fingerprint, f"bpe-{config.vocab_size}")
    if folder is not None:
        cached = _open_cached(folder, lambda path, hold: load_tokenizer(path), notify)
        if cached is not None:
            return cached
    message = "Training a tokenizer on the text"
    stage(notify, message)
    renderer = chat_renderer(None, config.loss)
    parts, _ = text.read_parts(config.sources, config, offline=config.offline, renderer=renderer)
    texts = counted(tokens.training_texts(parts), partial(_report_documents, notify, message))
    tokenizer = tokens.train_tokenizer(texts, config.vocab_size)
    if folder is not None:
        write_sealed_folder(folder, lambda target: tokenizer.save_pretrained(str(target)), keep=True)
        cache.evict(root, limit)
    return tokenizer


def check_text(config: Config, notify: Notify, *, exact_tokens: bool = False) -> CheckResult:
    """Return what `finetale check` shows: the data report with all problems, and the token account.

    Tokens are counted with the model's tokenizer; of a long text, a sample of them unless `exact_tokens`. If no model
    was named and the default one is not on this machine, there is no account, and `no_tokens` gives the reason.
    """
    config = keep_standard_input(config)
    progress = partial(_report_documents, notify, "Reading the text")
    stage(notify, "Reading the text")
    result: dict[str, Any] = {"tokens": None, "dropped": [], "warnings": [], "tokenizer": None, "no_tokens": None}
    result["refused"] = None
    named = bool({"model", "tokenizer"} & config.model_fields_set)
    try:
        tokenizer: PreTrainedTokenizerBase | None = tokenizer_for(config, notify, offline=config.offline or not named)
    except FinetaleError:
        if named:
            raise
        tokenizer = None
    renderer = chat_renderer(tokenizer, config.loss, config.tokenizer or config.model)
    parts, report = text.read_parts(
        config.sources, config, on_problem="collect", offline=config.offline, renderer=renderer
    )
    named_tokenizer = config.tokenizer or config.model
    sample = tokenizer_report.new_sample()
    if named and tokenizer is not None and not config.model.startswith("new:"):
        parts = _sampled(parts, sample)
    if tokenizer is None:
        shared = _shared_passages(counted(parts, progress), None, None)
        result["no_tokens"] = (
            "gpt2, the default model, is not on this machine, and `check` downloads nothing without being asked. Name "
            "a model with --model, such as bundled"
        )
        return CheckResult.model_validate(result | {"text": report.to_dict() | {"shared_passages": shared}})
    if not (exact_tokens or config.mix or config.watch):  # a share is chosen by its exact number of tokens
        parts, is_long = look_ahead(parts)
        if is_long:
            counter = TokenCounter(tokenizer)
            shared = _shared_passages(counted(parts, progress), counter, tokenizer)
            count = counter.result()
            result |= {"tokens": count.account, "dropped": count.dropped, "warnings": count.warnings}
            result |= {"estimated": count.error is not None, "tokens_error": count.error, "tokenizer": named_tokenizer}
            result["tokenizer_fit"] = _fit(tokenizer, sample, notify)
            try:
                check_enough(count.account["trained"], count.account["trained"], config.block_size)
            except SourceError as error:
                result["refused"] = f"{error.message} {error.hint}"
            return CheckResult.model_validate(result | {"text": report.to_dict() | {"shared_passages": shared}})
    with tempfile.TemporaryDirectory() as folder:
        try:
            store = tokens.build_store(
                parts,
                tokenizer,
                Path(folder) / "store",
                report=report.to_dict,
                progress=progress,
                shares=[mix.share for mix in config.mixes],
            )
        except SourceError:  # there is no text, because of a fatal problem
            if not any(problem["fatal"] for problem in report.to_dict()["problems"]):
                raise
            return CheckResult.model_validate(result | {"text": report.to_dict()})
        counts = {"tokens": store.account["tokens"], "dropped": store.account["dropped"], "warnings": store.warnings}
        reported = store.report
        try:
            choose_block_size(store, None, config.block_size)
        except SourceError as error:
            result["refused"] = f"{error.message} {error.hint}"
    result["tokenizer_fit"] = _fit(tokenizer, sample, notify)
    return CheckResult.model_validate(result | counts | {"tokenizer": named_tokenizer, "text": reported})


def _sampled(parts: Iterator[Part], sample: TextSample) -> Iterator[Part]:
    """Yield parts, and add the training text among them to a sample."""
    for part in parts:
        if part.split == "train" and part.dropped is None and not part.is_mixed:
            sample.add(part.text)
        yield part


def _fit(tokenizer: PreTrainedTokenizerBase, sample: TextSample, notify: Notify) -> TokenizerFit | None:
    if not sample.units:
        return None
    stage(notify, "Comparing the tokenizer with one trained on the text")
    return tokenizer_report.measure(tokenizer, sample)


def _shared_passages(
    parts: Iterator[Part], counter: TokenCounter | None, tokenizer: PreTrainedTokenizerBase | None
) -> dict[str, Any]:
    """Return the passages that splits share, and give the parts to a counter of tokens."""
    special = tokens.special_tokens_of(tokenizer)
    with tempfile.TemporaryDirectory() as place, PassageFinder(Path(place)) as finder:
        for batch in batches(parts):
            if counter is not None:
                counter.add(batch)
            finder.add(
                [
                    (part.split, "\n".join(tokens.learned_pieces(part.text, part.context, special)))
                    for part in batch
                    if part.dropped is None and not part.is_mixed
                ]
            )
            batch.clear()  # so that memory does not hold a long document while the next one is read
        return finder.compare().to_dict()


def tokenizer_for(config: Config, notify: Notify, *, offline: bool) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a run with these settings, without loading the model's weights."""
    from finetale import models

    if config.tokenizer is not None:
        found = models.load_tokenizer(config.tokenizer, offline=offline)
    elif models.is_new(config.model):
        models.check_name(config.model)
        found = trained_tokenizer(config, notify)
    else:
        found = models.load_tokenizer(config.model, revision=config.revision, offline=offline)
    if config.new_tokens:
        models.add_new_tokens(found, models.read_new_tokens(config.new_tokens))
    return found


def keep_standard_input(config: Config) -> Config:
    """Save standard input, which can be read only once, in a file of the cache that later stages can open."""
    if "-" not in config.all_sources:
        return config
    root, limit = cache.cache_root(config.cache_dir), cache.size_limit()
    data = text.read_standard_input()
    suffix = text.suffix_of_records(data) if config.documents == "auto" else "txt"
    path = root / "stdin" / f"{hashlib.sha256(data).hexdigest()}.{suffix}"
    write_bytes(path, data)
    _held_inputs[path] = cache.hold(path)
    cache.evict(root, limit)
    return config.with_sources(lambda name: str(path) if name == "-" else name)


def _check_kept_inputs(config: Config) -> None:
    """Check that text from standard input or from memory is unchanged since it was saved in the cache.

    Raises:
        SourceError: its SHA-256 differs from the one in the name of its file.
    """
    for path in map(Path, config.all_sources):
        if not cache.is_input(path):
            continue
        if _held_inputs.get(path) is None:
            _held_inputs[path] = cache.hold(path)
        if cache.is_damaged_input(path):
            raise SourceError(
                f"The text saved in {path} is corrupted (its SHA-256 differs from the one in its name).",
                "Delete the file and give the text again.",
            )


def data_json(config: Config, store: TokenStore, blocks: dict[str, Any]) -> DataFile:
    """Return the content of data.json: token account, shape of the blocks, hashes of the files, report on the text."""
    hashes = text.file_hashes(config.sources, config)
    files = None
    if hashes is not None and len(hashes) <= _MAX_HASHES:
        files = {name if role == "train" else f"{name} ({role})": content for (role, name), content in hashes}
    account = store.account
    if config.block_size is not None:
        account = _without_lost_context(account, cut_in_run(store, config.block_size, config.stride), config.block_size)
    described = {"blocks": blocks, "warnings": store.warnings, "file_sha256": files, "text": store.report}
    return DataFile.model_validate(account | described)


def cut_in_run(store: TokenStore, block_size: int, stride: int | None) -> CutExamples:
    """Return what does not fit when a run cuts its examples to blocks. Sliding windows read held-out text whole."""
    splits = SPLITS if stride is None else SPLITS[:1]
    return sum((cut_examples(store, split, block_size) for split in splits), CutExamples())


def _without_lost_context(account: dict[str, Any], cut: CutExamples, block_size: int) -> dict[str, Any]:
    """Return an account in which context that fits into no block counts as dropped."""
    lost = cut.lost_context
    if not lost:
        return account
    reason = f"context that does not fit into a block of {block_size:,} tokens"
    row = {"reason": reason, "documents": cut.shortened, "tokens": lost}
    counts = account["tokens"] | {
        "context": account["tokens"]["context"] - lost,
        "dropped": account["tokens"]["dropped"] + lost,
    }
    return {"tokens": counts, "dropped": [*account["dropped"], row]}


def _fingerprint(config: Config, notify: Notify) -> str | None:
    """Return the hash of the bytes of the sources' files; None for streams."""
    _check_kept_inputs(config)

    def progress(done: int, total: int) -> None:
        stage(notify, "Comparing the text with the cache", done=done >> 20, total=total >> 20, unit="MiB")

    return text.fingerprint(config.sources, config, progress)


def _hash_of(config: Config, *what: Any) -> str:
    """Return a hash of the arguments, the settings that determine the text, and the format of token stores."""
    settings = config.narrow(TextSettings).model_dump(mode="json")
    values = [__version__, tokens.STORE_VERSION, settings, *what]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]
