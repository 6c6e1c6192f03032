"""Turn documents into a token store on disk, with an account of every token. Knows nothing of models.

A document with the ids t1 … tn is stored as `begin t1 … tn end`. All ids but the first are targets. So each token is a
target exactly once, and so is one end-of-text per document. The context of an example is read and not learned. Where a
document is cut into parts of several splits, only its last part has an end-of-text. The store is memory-mapped,
sealed, and cached under a hash of text, tokenizer and settings.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from finetale.cache import Hold, problems
from finetale.errors import RunError, SourceError, TokenizerError
from finetale.formatting import plural
from finetale.mixture import Mixture
from finetale.passages import PassageFinder
from finetale.round_trip import TextSample, changes
from finetale.rundir import read_json, write_json, write_sealed_folder
from finetale.signals import leave_open
from finetale.text.documents import size_in_utf8
from finetale.text.words import count_words
from finetale.tokenizing import Encoder
from finetale.tokenizing.batches import batches, encode_parts, encoded_batches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finetale.text import Part

SPLITS = ("train", "validation", "test", "dropped")
STORE_VERSION = 7
END_OF_TEXT = "<|endoftext|>"
_BYTES_AT_ONCE = 1 << 22
_PROBE = "The quick brown fox, 12 jumps; 你好 — naïve?"


def begin_and_end(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return the ids of beginning-of-text and end-of-text.

    GPT-2 uses one id for both. BERT-like tokenizers of Chinese GPT-2 models use [CLS] and [SEP].

    Raises:
        TokenizerError: the tokenizer has no token that can end a text.
    """
    end = _first(tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id)
    begin = _first(tokenizer.bos_token_id, tokenizer.cls_token_id, end)
    if end is None or begin is None:
        raise TokenizerError(
            "The tokenizer has no end-of-text token (no eos, sep or bos token).",
            "Set `eos_token` in its tokenizer_config.json, or choose another with --tokenizer.",
        )
    return begin, end


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer that is empty or loses text.

    Raises:
        TokenizerError: the vocabulary is empty, nothing is left of a sentence, or no token can end a text.
    """
    special = set(tokenizer.all_special_ids)
    if len(tokenizer) <= len(special):
        raise TokenizerError(
            f"The tokenizer of {name} is empty: its vocabulary has {len(tokenizer)} entries.",
            "Its files are missing or corrupted. Choose a complete tokenizer with --tokenizer.",
        )
    ids = [i for i in tokenizer.encode(_PROBE, add_special_tokens=False) if i not in special]
    if not ids or not tokenizer.decode(ids).strip():
        raise TokenizerError(
            f"The tokenizer of {name} loses text: nothing is left of an English sentence that it encodes and decodes.",
            "Its vocabulary or merges are missing or corrupted. Choose a complete tokenizer with --tokenizer.",
        )
    begin_and_end(tokenizer)


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of what a tokenizer does: its vocabulary, merges, rules and special tokens."""
    digest = hashlib.sha256()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # Calling a tokenizer changes its truncation and padding.
        rules = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
        digest.update(json.dumps(rules, sort_keys=True).encode())
    else:
        digest.update(type(tokenizer).__name__.encode())
        digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    digest.update(repr(begin_and_end(tokenizer)).encode())
    return digest.hexdigest()


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer, the kind that GPT-2 has. It encodes any byte, and decoding is exact.

    Args:
        texts: training texts. Their order does not change the result.
        vocab_size: largest number of entries. Little text gives fewer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    abandon = threading.Event()
    fed = itertools.takewhile(lambda text: not abandon.is_set(), texts)
    leave_open(lambda: raw.train_from_iterator(fed, trainer), abandon)
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
    return tokenizer


@dataclass(frozen=True)
class TokenStore:
    """The tokens of all parts in one memory-mapped array, and a table of the parts.

    The table has one row per part. Its columns: `start` (index of the part's beginning-of-text in `tokens`), `targets`
    (number of ids after the first), `split` (see `split_index`), `words`, `bytes` (of the learned text in UTF-8),
    `ends` (1 if the document ends with this part), `source` (index into the names of files or datasets), `line` (first
    line in the file, or number of the record), `is_repeat` (1 if the document repeats an earlier one).

    Attributes:
        folder: the folder of the store.
        info: the content of its store.json.
        hold: what keeps the folder from being evicted from the cache.
    """

    folder: Path
    info: dict[str, Any]
    hold: Hold | None = field(default=None, repr=False, compare=False)

    @cached_property
    def tokens(self) -> NDArray[Any]:
        dtype = np.dtype(self.info["dtype"])
        path = self.folder / "tokens.bin"
        if path.stat().st_size == 0:
            return np.zeros(0, dtype)
        return np.memmap(path, dtype=dtype, mode="r")

    @cached_property
    def parts(self) -> NDArray[Any]:
        parts: NDArray[Any] = np.load(self.folder / "parts.npy", mmap_mode="r", allow_pickle=False)
        return parts

    @cached_property
    def personal(self) -> NDArray[np.int64]:
        """Ranges of `tokens` with personal data, as (start, stop) in ascending order, shape (findings, 2)."""
        ranges: NDArray[np.int64] = np.load(self.folder / "personal.npy", allow_pickle=False)
        return ranges

    @cached_property
    def context(self) -> NDArray[np.int64]:
        """Ranges of `tokens` that are read and not learned, (start, stop), ascending and apart, shape (ranges, 2)."""
        path = self.folder / "context.npy"  # older versions had no examples
        ranges: NDArray[np.int64] = np.load(path, allow_pickle=False) if path.exists() else np.zeros((0, 2), np.int64)
        return ranges

    def context_before(self, places: Any) -> NDArray[np.int64]:
        """Return the number of tokens of context before places in `tokens`. `places` is an array of indices."""
        if not len(self.context):
            return np.zeros(np.shape(places), np.int64)
        starts, stops = self.context[:, 0], self.context[:, 1]
        lengths = np.concatenate([[0], np.cumsum(stops - starts)])
        number = np.searchsorted(starts, places, "left")  # ranges that begin before the place
        last = np.maximum(number - 1, 0)
        beyond = np.where(number > 0, np.maximum(stops[last] - places, 0), 0)
        found: NDArray[np.int64] = lengths[number] - beyond
        return found

    @cached_property
    def is_example(self) -> NDArray[np.bool_]:
        """Whether each part is an example with context, shape (parts,)."""
        starts = np.asarray(self.parts["start"])
        found: NDArray[np.bool_] = self.context_before(starts + self.parts["targets"] + 1) > self.context_before(starts)
        return found

    @cached_property
    def largest_id(self) -> int:
        """The largest id; -1 without tokens. The file is read, because all pages of a map would stay in memory."""
        largest = -1
        with (self.folder / "tokens.bin").open("rb") as file:
            while data := file.read(_BYTES_AT_ONCE):
                largest = max(largest, int(np.frombuffer(data, self.info["dtype"]).max()))
        return largest

    def name_of(self, part: int) -> str:
        """Return where a part comes from, as file:line."""
        row = self.parts[part]
        return f"{self._sources[int(row['source'])]}:{int(row['line'])}"

    @cached_property
    def _sources(self) -> list[str]:
        names: list[str] = read_json(self.folder / "sources.json")["names"]
        return names

    def parts_of(self, split: str) -> NDArray[np.int64]:
        """Return the indices of the parts in a split, or of "all" parts, in reading order."""
        if split == "all":
            return np.arange(len(self.parts))
        return np.flatnonzero(self.parts["split"] == split_index(split))

    @property
    def watched(self) -> list[str]:
        """The names of the splits with watched text, one per source."""
        return [watched_split(number) for number in range(self.info.get("num_watched", 0))]

    def num_targets(self, split: str) -> int:
        """Return the number of targets in a split that are learned."""
        rows = self.parts[self.parts_of(split)]
        starts, stops = rows["start"] + 1, rows["start"] + rows["targets"] + 1
        context = self.context_before(stops) - self.context_before(starts)
        return int(rows["targets"].sum() - context.sum())

    def ids(self, part: int) -> NDArray[np.int64]:
        """Return the ids of one part, without beginning-of-text and end-of-text."""
        row = self.parts[part]
        stop = int(row["start"]) + 1 + int(row["targets"]) - int(row["ends"])
        return np.asarray(self.tokens[int(row["start"]) + 1 : stop], dtype=np.int64)

    def context_of(self, part: int) -> NDArray[np.int64]:
        """Return the ranges of `ids` of a part that are context, (start, stop), ascending."""
        start = int(self.parts[part]["start"]) + 1
        stop = start + int(self.parts[part]["targets"])
        first = np.searchsorted(self.context[:, 1], start, "right")
        last = np.searchsorted(self.context[:, 0], stop, "left")
        found: NDArray[np.int64] = self.context[first:last] - start
        return found

    def has_text_of(self, other: TokenStore) -> bool:
        """Whether two stores, of any tokenizers, were made from the same text with the same splits."""
        if self.info.get("fingerprint") and self.info.get("fingerprint") == other.info.get("fingerprint"):
            return True
        columns = ["split", "ends", "words", "bytes"]
        return bool(np.array_equal(self.parts[columns], other.parts[columns]))

    @property
    def account(self) -> dict[str, Any]:
        """The account of all targets: `tokens` (as `TokenAccount` in the schema), and `dropped` by reason."""
        return {"tokens": self.info["tokens"], "dropped": self.info["dropped"]}

    @property
    def report(self) -> dict[str, Any]:
        """The data report of the text that the store was made from."""
        report: dict[str, Any] = self.info["report"]
        return report

    @property
    def warnings(self) -> list[str]:
        """Warnings about the text and the tokenizer, as sentences."""
        warnings: list[str] = self.info["warnings"]
        return warnings


def watched_split(number: int) -> str:
    """Return the name of the split with the watched text of a source, by its number from 0."""
    return f"watched {number + 1}"


def split_index(split: str) -> int:
    """Return the number of a split in the table of parts: the index into SPLITS, and for watched text what follows."""
    name, _, number = split.partition(" ")
    return SPLITS.index(split) if name != "watched" else len(SPLITS) + int(number) - 1


PART_DTYPE = np.dtype(
    [
        ("start", "<i8"),
        ("targets", "<i8"),
        ("split", "<u1"),
        ("ends", "<u1"),
        ("source", "<u4"),
        ("words", "<i8"),
        ("bytes", "<i8"),
        ("line", "<i8"),
        ("is_repeat", "<u1"),
    ]
)

_CONTENT_DTYPE = np.dtype(
    [("start", "<i8"), ("targets", "<i8"), ("split", "<u1"), ("ends", "<u1"), ("words", "<i8"), ("bytes", "<i8")]
)


_ROWS_AT_ONCE = 1 << 18


class _Table:
    """Writes the table of the parts row by row, in the format of `np.save`, so that memory never holds all of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows = 0

    def __enter__(self) -> Self:
        self._file = self._path.open("wb")
        self._write_header()
        return self

    def __exit__(self, *error: object) -> None:
        with self._file:
            self._file.seek(0)
            self._write_header()

    def append(self, rows: Sequence[tuple[int, ...]]) -> None:
        self._file.write(np.array(rows, PART_DTYPE).tobytes())
        self._rows += len(rows)

    def _write_header(self) -> None:
        """Write the header, which NumPy pads so that its length is the same for any number of rows."""
        facts = {"descr": np.lib.format.dtype_to_descr(PART_DTYPE), "fortran_order": False, "shape": (self._rows,)}
        np.lib.format.write_array_header_1_0(self._file, facts)


def _described(path: Path) -> Iterator[bytes]:
    """Yield those columns of a table of parts that say what the text is, some rows at a time."""
    table = np.load(path, mmap_mode="r", allow_pickle=False)
    for start in range(0, len(table), _ROWS_AT_ONCE):
        rows = table[start : start + _ROWS_AT_ONCE]
        described = np.empty(len(rows), _CONTENT_DTYPE)
        for name in _CONTENT_DTYPE.names or ():
            described[name] = rows[name]
        yield described.tobytes()


def build_store(
    parts: Iterator[Part],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    report: Callable[[], dict[str, Any]],
    progress: Callable[[int], None] | None = None,
    keep: bool = False,
    fingerprint: str | None = None,
    shares: Sequence[float] = (),
    processes: int = 0,
    warn: Callable[[str], None] = lambda message: None,
) -> TokenStore:
    """Tokenise parts into a store at `folder`, written atomically and sealed.

    Args:
        parts: documents or contiguous parts of documents, with their split.
        report: called after the last part; its result is saved with the store.
        progress: called with the number of parts so far.
        keep: leave a store that another process has put at `folder` in the meantime.
        fingerprint: hash of the files that the parts come from; saved with the store.
        shares: by number of the source, the share of mixed text in the training tokens.
        processes: number of processes that encode the text beside this one, if it is long and none of it is mixed.
            The store does not depend on it.
        warn: called with a sentence if one of these processes ends early.

    Raises:
        SourceError: the parts can't be read, or hold no text.
        TokenizerError: more than a fifth of the text is unknown to the tokenizer.
    """
    begin, end = begin_and_end(tokenizer)
    encoder = Encoder(tokenizer)
    largest = max(tokenizer.get_vocab().values())  # ids may have gaps
    dtype = np.uint16 if largest < 2**16 else np.uint32
    rows: list[tuple[int, ...]] = []
    sources: dict[str, int] = {}
    dropped: Counter[str] = Counter()
    dropped_tokens: Counter[str] = Counter()
    personal, context = array("q"), array("q")  # two numbers per range, because a text can have millions
    seen = {"unknown": 0, "markers": 0, "ids": 0}
    sample = TextSample()
    unknown = tokenizer.unk_token_id if tokenizer.unk_token_id not in (begin, end) else None
    special = special_tokens_of(tokenizer)

    trained: Counter[int | None] = Counter()  # learned tokens, by number of the mixed source; None: the user's own text
    learned_in: Counter[int] = Counter()  # learned tokens, by number of the split
    passages: Counter[int | None] = Counter()
    unused: Counter[int | None] = Counter()  # tokens of mixed text that are not trained on

    def chosen_batches(mixture: Mixture) -> Iterator[list[Part]]:
        """Yield all parts but mixed text, which comes last; then the passages of it to train on."""
        for batch in batches(parts):
            mixed = [part for part in batch if part.is_mixed and part.dropped is None]
            for part, ids, unlearned in zip(mixed, *encode_parts(encoder, mixed), strict=True):
                targets = len(ids) + part.ends if len(ids) else 0
                if part.dropped is None and targets:
                    unused[part.beside] += targets
                    mixture.hold(part, targets - _length(unlearned))
                else:
                    dropped[part.dropped or "empty"] += 1
                    dropped_tokens[part.dropped or "empty"] += targets
            if others := [part for part in batch if not part.is_mixed or part.dropped is not None] if mixed else batch:
                yield others
        yield from batches(mixture.chosen(trained[None]))

    def fill(target: Path) -> None:
        position = num_parts = 0
        content = hashlib.sha256()
        first, last = np.array([begin]), np.array([end])
        with (
            PassageFinder(target) as finder,
            Mixture(target / ".mixture.tmp", shares) as mixture,
            (target / "tokens.bin").open("wb") as file,
            _Table(target / "parts.npy") as table,
            closing(encoded_batches(encoder, chosen_batches(mixture), 0 if shares else processes, warn)) as numbered,
        ):
            for batch, encoded, contexts in numbered:
                kept: list[tuple[str, str]] = []
                pieces: list[NDArray[np.int64]] = []
                if unknown is not None:
                    seen["unknown"] += sum(int(np.count_nonzero(ids == unknown)) for ids in encoded)
                for part, ids in zip(batch, encoded, strict=True):
                    if not part.is_example:  # chat templates write markers
                        seen["markers"] += int(np.count_nonzero((ids == begin) | (ids == end)))
                seen["ids"] += sum(map(len, encoded))
                for part, ids, unlearned in zip(batch, encoded, contexts, strict=True):
                    targets = len(ids) + part.ends if len(ids) else 0
                    if part.dropped is not None or not targets:
                        reason = part.dropped or "empty"
                        dropped[reason] += 1
                        dropped_tokens[reason] += targets
                        continue
                    sample.add(part.text)
                    pieces += (first, ids, last) if part.ends else (first, ids)
                    learned = learned_pieces(part.text, part.context, special)
                    kept.append((part.split, "\n".join(learned)))
                    size = sum(map(size_in_utf8, learned))
                    split = split_index(watched_split(part.beside or 0) if part.split == "watched" else part.split)
                    learned_in[split] += targets - _length(unlearned)
                    if part.split == "train":
                        trained[part.beside] += targets - _length(unlearned)
                        passages[part.beside] += 1
                        unused[part.beside] -= targets if part.is_mixed else 0
                    source = sources.setdefault(part.source, len(sources))
                    words = sum(map(count_words, learned))
                    rows.append(
                        (position, targets, split, int(part.ends), source, words, size, part.line, int(part.is_repeat))
                    )
                    if part.personal:
                        for ends in encoder.ranges(part.text, part.personal, ids):
                            personal.extend(position + 1 + end for end in ends)
                    for ends in unlearned:
                        context.extend(position + 1 + end for end in ends)
                    position += targets + 1
                if pieces:
                    data = np.concatenate(pieces, dtype=dtype, casting="unsafe").tobytes()
                    file.write(data)
                    content.update(data)
                table.append(rows)
                num_parts += len(rows)
                rows.clear()
                finder.add(kept)
                if progress is not None:
                    progress(num_parts)
            shared = finder.compare()
        np.save(target / "personal.npy", np.array(personal).reshape(-1, 2), allow_pickle=False)
        ranges_of_context = np.array(context).reshape(-1, 2)
        np.save(target / "context.npy", ranges_of_context, allow_pickle=False)
        write_json(target / "sources.json", {"names": list(sources)})
        # The hash covers the tokens and not the names of files: a text that was moved is the same text.
        for described in _described(target / "parts.npy"):
            content.update(described)
        if context:
            content.update(ranges_of_context.tobytes())
        totals = {name: learned_in[number] for number, name in enumerate(SPLITS[:3])}
        watched = {split: tokens for split, tokens in learned_in.items() if split >= len(SPLITS)}
        account = {
            "trained": totals["train"],
            "validation": totals["validation"],
            "test": totals["test"],
            "watched": sum(watched.values()),
            "context": int(np.diff(ranges_of_context).sum()),
            "unused": unused.total(),
            "dropped": dropped_tokens.total(),
        }
        reported = report()
        for number, entry in enumerate(reported.get("mixed", ())):
            entry |= {"passages": passages[number], "tokens": trained[number], "of_tokens": trained.total()}
            entry["is_short"] = not unused[number] and trained[number] < int(entry["share"] * trained.total())
        info = {
            "version": STORE_VERSION,
            "dtype": np.dtype(dtype).str,
            "sha256": content.hexdigest(),
            "fingerprint": fingerprint,
            "num_watched": max(watched, default=len(SPLITS) - 1) - len(SPLITS) + 1,
            "tokens": {"read": sum(account.values())} | account,
            "dropped": [
                {"reason": reason, "documents": count, "tokens": dropped_tokens[reason]}
                for reason, count in sorted(dropped.items())
            ],
            "warnings": tokenizer_warnings(seen, tokenizer, sample),
            "report": reported | {"shared_passages": shared.to_dict()},
        }
        check_known(seen, tokenizer)
        write_json(target / "store.json", info)

    write_sealed_folder(folder, fill, keep=keep)
    return open_store(folder)


def _length(ranges: Sequence[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in ranges)


def special_tokens_of(tokenizer: PreTrainedTokenizerBase | None) -> re.Pattern[str]:
    """Return a pattern of the special tokens of a tokenizer, which a chat template writes between messages."""
    if tokenizer is None:
        return re.compile(r"(?!)")
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    names = sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")


def learned_pieces(text: str, context: Sequence[tuple[int, int]], special: re.Pattern[str]) -> list[str]:
    """Return the pieces of a text that are learned. In an example, `special` is not text, and is cut out."""
    if not context:
        return [text]
    borders = [0, *(place for span in context for place in span), len(text)]
    return [special.sub("", text[start:stop]) for start, stop in zip(borders[::2], borders[1::2], strict=True)]


def open_store(folder: Path, hold: Hold | None = None) -> TokenStore:
    """Open a store written by `build_store` after verifying the SHA-256 of its files.

    Args:
        hold: the lock on the store's entry of the cache; the store keeps it as long as it is used.

    Raises:
        RunError: the store is missing, corrupted or inconsistent.
    """
    if not (folder / "store.json").is_file():
        raise RunError(f"{folder / 'store.json'} is missing.", "Delete this folder if it is there.")
    if found := problems(folder):
        raise RunError(f"The tokens in {folder} are corrupted ({'; '.join(found[:3])}).", "Delete this folder.")
    store = TokenStore(folder, read_json(folder / "store.json"), hold)
    if not _is_consistent(store):
        raise RunError(f"The tokens in {folder} are inconsistent.", "Delete this folder.")
    return store


def _is_consistent(store: TokenStore) -> bool:
    """Whether the parts of a store cover its tokens. A store from a stranger may be sealed and wrong."""
    info = store.info
    kinds = {"version": int, "dtype": str, "sha256": str, "tokens": dict, "dropped": list, "warnings": list}
    kinds["report"] = dict
    if not all(isinstance(info.get(key), kind) for key, kind in kinds.items()) or info["dtype"] not in ("<u2", "<u4"):
        return False
    try:
        parts, ranges, names, context = store.parts, store.personal, store._sources, store.context
        tokens = store.tokens
    except (OSError, ValueError, KeyError, RunError):
        return False
    if parts.dtype != PART_DTYPE or parts.ndim != 1 or ranges.dtype != np.int64 or ranges.shape[1:] != (2,):
        return False
    if context.dtype != np.int64 or context.shape[1:] != (2,):
        return False
    starts, targets = parts["start"], parts["targets"]
    ends = np.cumsum(targets + 1)
    return bool(
        (targets > 0).all()
        and (starts == ends - targets - 1).all()
        and (ends[-1] if len(ends) else 0) == len(tokens)
        and np.isin(parts["split"], [*range(len(SPLITS) - 1), *map(split_index, store.watched)]).all()
        and (parts["source"] < len(names)).all()
        and (ranges >= 0).all()
        and (ranges <= len(tokens)).all()
        and (np.diff(context.ravel()) >= 0).all()
        and (context >= 0).all()
        and (context <= len(tokens)).all()
    )


def _first(*ids: int | None) -> int | None:
    return next((i for i in ids if i is not None), None)


def tokenizer_warnings(seen: dict[str, int], tokenizer: PreTrainedTokenizerBase, sample: TextSample) -> list[str]:
    """Return warnings as sentences.

    Args:
        seen: the numbers of ids, of unknown ones, and of markers of a text's end.
        sample: a sample of the text, which is compared with what encoding and decoding makes of it.
    """
    warnings = []
    marker = tokenizer.convert_ids_to_tokens(begin_and_end(tokenizer)[1])
    if seen["markers"]:
        warnings.append(
            f"The text holds {plural(seen['markers'], 'end-of-text marker')} ({marker}). "
            f"The model takes them for ends of documents. To split the text there, set --documents '{marker}'."
        )
    if seen["unknown"]:
        share = seen["unknown"] / max(1, seen["ids"])
        warnings.append(
            f"The tokenizer does not know {plural(seen['unknown'], 'token')} of the text "
            f"({share:.2%}) and read {tokenizer.unk_token} there."
        )
    if (changed := changes(tokenizer, sample.units)) is not None:
        warnings.append(changed.sentence())
    return warnings


def check_known(seen: dict[str, int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a text without tokens, or of which the tokenizer does not know a fifth. `seen` as in `tokenizer_warnings`.

    Raises:
        SourceError: there are no tokens.
        TokenizerError: more than a fifth of them are unknown.
    """
    if not seen["ids"]:
        raise SourceError("The sources hold no text.", "Check the path, or the text column with --text-column.")
    if seen["unknown"] > 0.2 * seen["ids"]:
        raise TokenizerError(
            f"The tokenizer does not know {seen['unknown'] / seen['ids']:.0%} of the text.",
            "Choose a model whose tokenizer was made for the language of the text.",
        )


def training_texts(parts: Iterable[Part]) -> Iterator[str]:
    """Yield the texts of the training parts, to train a tokenizer on. Mixed text is not for it."""
    return (part.text for part in parts if part.split == "train" and part.dropped is None and not part.is_mixed)
