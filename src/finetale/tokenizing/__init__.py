"""Encode text as token ids, fast and in bounded memory. The ids equal those of the whole text in one piece.

A tokenizer that gets a text in one piece needs about 200 bytes per token, and its time per byte grows with the text.
Most tokenizers first cut a text at places that depend on the neighbouring characters only: before a single space, and
before a punctuation mark that follows a letter. For these, a regular expression cuts the text there, each different
piece is tokenised once, and the ids are joined. The tokenizer's parts and a comparison on the first text decide whether
this is correct for a tokenizer. Knows nothing of documents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = NDArray[np.int64]

_MARKS = "，。、；：？！,.;:!?”"
_PIECE = re.compile(rf"[\s\S][^ {_MARKS}]*(?:(?: (?!\S)|(?<=\s) |(?<![^\W\d_])[{_MARKS}])[^ {_MARKS}]*)*")
_CUT = re.compile(rf"(?<=\S)(?= \S)|(?<=[^\W\d_])(?=[{_MARKS}])")
_SLICE_CHARACTERS = 500_000
_MAX_PIECES = 300_000
_MAX_PIECE_CHARACTERS = 4_000_000
_CHARACTERS_AT_ONCE = 50_000
"""Number of characters of pieces that the tokenizer gets at once. It needs up to 200 bytes per token meanwhile."""
_COMPARED_CHARACTERS = 20_000
_PROBE = (
    "It's 12:30, I'll say “yes” – the naïve café's 3.14 km.  Two  spaces,\n\n and lines\tand tabs \n  x_y a1b2 "
    "今天我们去河边，好吗？好，走吧。Ещё раз: да! それはペン、です。 1,000 rows -- 'tis so... URL http://a.b/c?d=e end"
)


class Encoder:
    """Encodes texts without special tokens. The pieces of earlier texts are cached.

    Args:
        tokenizer: the tokenizer that defines the ids.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._pieces = PieceEncoder(tokenizer.backend_tokenizer) if _may_be_cut(tokenizer) else None
        self._compared = 0  # characters
        if self._pieces is not None and not self._agrees(self._pieces, [_PROBE * 3]):
            self._pieces = None

    @property
    def is_settled(self) -> bool:
        """Whether texts are cut into pieces and enough of them were compared, so that other processes may do it too."""
        return self._pieces is not None and self._compared >= _COMPARED_CHARACTERS

    @property
    def rules(self) -> str:
        """The tokenizer as JSON, for `EncodingProcesses`."""
        rules: str = self._tokenizer.backend_tokenizer.to_str()
        return rules

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text."""
        if not texts:
            return []
        if self._pieces is not None and self._compared < _COMPARED_CHARACTERS:
            sample = [text[:_COMPARED_CHARACTERS] for text in texts[:100]]
            self._compared += sum(map(len, sample))
            if not self._agrees(self._pieces, sample):
                self._pieces = None
        if self._pieces is None:
            return encode_batch(self._tokenizer, list(texts))
        return self._pieces.encode(texts)

    def encode_example(self, text: str, context: Sequence[tuple[int, int]]) -> tuple[Ids, list[tuple[int, int]]] | None:
        """Return the ids of a text, and the ranges of ids that hold its context.

        No token holds both context and answer. Context and answers are encoded one by one, as they are when a model
        gets a prompt and writes an answer, if the tokenizer treats a piece of a text like a whole one. Otherwise the
        text is encoded whole, and white space that a token shares with an answer counts as part of the answer. If a
        token would hold other characters of both, they are encoded one by one, provided that no character changes.

        Args:
            context: (start, stop) of characters, ascending and apart.

        Returns:
            None if a token holds characters of both, and they can't be encoded one by one.
        """
        if self._pieces is not None:
            return joined(self.encode(pieces_of(text, context)), text, context)
        if self._tokenizer.is_fast:
            found = _encode_whole(self._tokenizer, text, context)
        else:
            found = _encode_without_positions(self._tokenizer, text, context)
        return found or _encode_pieces(self._tokenizer, text, context)

    def ranges(self, text: str, places: Sequence[tuple[int, int]], ids: Ids) -> list[tuple[int, int]]:
        """Return the ranges of tokens at places of a text. If possible, only pieces around them are encoded."""
        if self._pieces is None:
            return token_ranges(self._tokenizer, text, places, ids)
        lengths, counts = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
        for part in _slices(text):
            pieces = _PIECE.findall(part)
            lengths.append(np.fromiter(map(len, pieces), np.int64, len(pieces)))
            counts.append(self._pieces.counts_of(pieces))
        characters, tokens = np.cumsum(np.concatenate(lengths)), np.cumsum(np.concatenate(counts))
        found = []
        for start, stop in places:
            first = int(np.searchsorted(characters, start, "right")) - 1
            last = int(np.searchsorted(characters, max(stop, start + 1), "left"))
            here, until = int(tokens[first]), int(tokens[last])
            at = int(characters[first])
            inside = text[at : int(characters[last])]
            ((a, b),) = token_ranges(self._tokenizer, inside, [(start - at, stop - at)], ids[here:until])
            found.append((here + a, here + b))
        return found

    def _agrees(self, pieces: PieceEncoder, texts: list[str]) -> bool:
        whole = encode_batch(self._tokenizer, texts)
        return all(map(np.array_equal, whole, pieces.encode(texts)))


class PieceEncoder:
    """Encodes texts in pieces. The ids of earlier pieces are cached.

    Args:
        backend: a tokenizer of the library tokenizers for which the cuts of this module do not change the ids.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._forget()

    def _forget(self) -> None:
        self._known = _Numbers()
        self._ids: NDArray[np.int32] = np.zeros(0, np.int32)  # of all pieces, one after the other
        self._starts: Ids = np.zeros(0, np.int64)  # by piece, index of its first id
        self._counts: Ids = np.zeros(0, np.int64)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text."""
        found: list[Ids] = []
        for group in _groups(texts, _SLICE_CHARACTERS):
            if len(group) == 1 and len(group[0]) > _SLICE_CHARACTERS:
                found.append(np.concatenate([self._encode_group([part])[0] for part in _slices(group[0])]))
            else:
                found += self._encode_group(group)
        return found

    def counts_of(self, pieces: list[str]) -> Ids:
        """Return the number of ids of each piece."""
        numbers = self._numbers_of(pieces)  # first, because new pieces have no counts yet
        return self._counts[numbers]

    def _encode_group(self, texts: list[str]) -> list[Ids]:
        pieces = [_PIECE.findall(text) for text in texts]
        numbers = self._numbers_of(list(chain.from_iterable(pieces)))
        counts = self._counts[numbers]
        ends = np.cumsum(counts)
        shifts = self._starts[numbers] - (ends - counts)
        ids = self._ids[np.repeat(shifts, counts) + np.arange(int(ends[-1]) if len(ends) else 0)].astype(np.int64)
        borders = np.concatenate([[0], ends])[np.cumsum([0, *map(len, pieces)])]
        return [ids[start:stop] for start, stop in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True)]

    def _numbers_of(self, pieces: list[str]) -> Ids:
        """Return the numbers of pieces. New pieces are tokenised."""
        if len(self._known) > _MAX_PIECES or self._known.characters > _MAX_PIECE_CHARACTERS:
            self._forget()
        numbers = np.fromiter(map(self._known.__getitem__, pieces), np.int64, len(pieces))
        if new := self._known.new:
            self._backend.no_truncation()
            self._backend.no_padding()
            ids, counts = [self._ids], [self._counts]
            for group in _groups(new, _CHARACTERS_AT_ONCE):
                encoded = [each.ids for each in self._backend.encode_batch_fast(group, add_special_tokens=False)]
                counts.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
                ids.append(np.fromiter(chain.from_iterable(encoded), np.int32, int(counts[-1].sum())))
            self._ids, self._counts = np.concatenate(ids), np.concatenate(counts)
            self._starts = np.cumsum(self._counts) - self._counts
            self._known.characters += sum(map(len, new))
            new.clear()
        return numbers


def _groups(texts: Sequence[str], characters: int) -> Iterator[list[str]]:
    """Group texts: at most a number of characters, or one longer text."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and size + len(text) > characters:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group


class _Numbers(dict[str, int]):
    """Numbers pieces in the order of their first occurrence. `new` lists those that are not tokenised yet."""

    def __init__(self) -> None:
        self.new: list[str] = []
        self.characters = 0

    def __missing__(self, piece: str) -> int:
        self[piece] = number = len(self)
        self.new.append(piece)
        return number


def encode_batch(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Ids]:
    """Return the ids of each text as one piece, without special tokens. Fast tokenizers use all cores."""
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [np.asarray(ids, dtype=np.int64) for ids in encoded]


def _encode_whole(
    tokenizer: PreTrainedTokenizerBase, text: str, context: Sequence[tuple[int, int]]
) -> tuple[Ids, list[tuple[int, int]]] | None:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.asarray(encoded["input_ids"], np.int64)
    is_context = np.zeros(len(ids), bool)
    for number, (start, stop) in enumerate(encoded["offset_mapping"]):
        inside = [(max(a, start), min(b, stop)) for a, b in context if a < stop and b > start]
        shared = sum(b - a for a, b in inside)
        if start == stop or shared == stop - start:
            # A token without characters, such as a prefix space, goes with the character that follows it.
            is_context[number] = shared > 0 or any(a <= start < b for a, b in context)
        elif any(not text[a:b].isspace() for a, b in inside):
            return None
    edges = np.flatnonzero(np.diff(is_context.astype(np.int8), prepend=0, append=0)).tolist()
    return ids, list(zip(edges[::2], edges[1::2], strict=True))


def _encode_without_positions(
    tokenizer: PreTrainedTokenizerBase, text: str, context: Sequence[tuple[int, int]]
) -> tuple[Ids, list[tuple[int, int]]] | None:
    """Do the same for a tokenizer in Python, which does not report the positions of its tokens.

    A border lies between two tokens if the ids of the text up to it are the first ids of the whole text.
    """
    (ids,) = encode_batch(tokenizer, [text])

    def number_before(*places: int) -> int | None:
        """Return the number of tokens before the first of these places that lies between two tokens."""
        for place in places:
            (before,) = encode_batch(tokenizer, [text[:place]])
            if np.array_equal(before, ids[: len(before)]):
                return len(before)
        return None

    ranges = []
    for start, stop in context:
        first = number_before(start, stop - len(text[start:stop].lstrip())) if start else 0
        last = number_before(stop, start + len(text[start:stop].rstrip())) if stop < len(text) else len(ids)
        if first is None or last is None:
            return None
        if first < last:
            ranges.append((first, last))
    return ids, ranges


def _encode_pieces(
    tokenizer: PreTrainedTokenizerBase, text: str, context: Sequence[tuple[int, int]]
) -> tuple[Ids, list[tuple[int, int]]] | None:
    """Encode context and answers one by one. None if the text then reads otherwise, such as with an added space."""
    encoded = encode_batch(tokenizer, pieces_of(text, context))
    ids, ranges = joined(encoded, text, context)
    whole = encode_batch(tokenizer, [text])[0]
    before, after = (tokenizer.decode(each.tolist(), clean_up_tokenization_spaces=False) for each in (whole, ids))
    return (ids, ranges) if before == after else None


def _borders(text: str, context: Sequence[tuple[int, int]]) -> list[int]:
    return sorted({0, len(text), *(place for span in context for place in span)})


def pieces_of(text: str, context: Sequence[tuple[int, int]]) -> list[str]:
    """Cut a text where its context starts and stops."""
    return [text[start:stop] for start, stop in pairwise(_borders(text, context))]


def joined(encoded: Sequence[Ids], text: str, context: Sequence[tuple[int, int]]) -> tuple[Ids, list[tuple[int, int]]]:
    """Return the ids of all `pieces_of` a text, and the ranges of ids that hold its context."""
    if not context and encoded:
        return encoded[0], []
    at = dict(zip(_borders(text, context), np.cumsum([0, *map(len, encoded)]).tolist(), strict=True))
    ranges = [(at[start], at[stop]) for start, stop in context]
    return np.concatenate([np.zeros(0, np.int64), *encoded]), [each for each in ranges if each[0] < each[1]]


def token_ranges(
    tokenizer: PreTrainedTokenizerBase, text: str, places: Sequence[tuple[int, int]], ids: Ids
) -> list[tuple[int, int]]:
    """Return the range of tokens (start, stop) that holds each place of a text.

    Args:
        places: ranges of characters.
        ids: the tokens of the text.

    Returns:
        One range per place. The range covers all tokens if the tokenizer reports no positions.
    """
    whole = [(0, len(ids))] * len(places)
    if not tokenizer.is_fast:
        return whole
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2)
    if len(spans) != len(ids):
        return whole
    starts = np.searchsorted(spans[:, 1], [start for start, _ in places], "right")
    stops = np.searchsorted(spans[:, 0], [stop for _, stop in places], "left")
    return [(int(a), int(max(a + 1, b))) for a, b in zip(starts, stops, strict=True)]


def _slices(text: str) -> Iterator[str]:
    """Cut a long text at some of the places where `_PIECE` cuts it."""
    start = 0
    while start < len(text):
        cut = _CUT.search(text, start + _SLICE_CHARACTERS) if start + _SLICE_CHARACTERS < len(text) else None
        stop = cut.start() if cut else len(text)
        yield text[start:stop]
        start = stop


def _may_be_cut(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer's parts guarantee that the cuts of this module do not change the ids."""
    if not tokenizer.is_fast:
        return False
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    added = rules.get("added_tokens") or []
    if any(
        token["lstrip"] or token["rstrip"] or token["single_word"] or _CUT.search(token["content"]) for token in added
    ):
        return False
    model = rules["model"]
    if model["type"] not in ("BPE", "WordPiece") or model.get("dropout"):
        return False
    steps = _steps(rules.get("pre_tokenizer"), "pretokenizers")
    if not steps or any(step["type"] not in _SAFE_STEPS or step.get("add_prefix_space") for step in steps):
        return False
    return all(step["type"] in ("NFC", "BertNormalizer") for step in _steps(rules.get("normalizer"), "normalizers"))


_SAFE_STEPS = ("ByteLevel", "Split", "Digits", "Punctuation", "BertPreTokenizer")


def _steps(rule: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer, with sequences flattened."""
    if rule is None:
        return []
    return [step for each in rule[name] for step in _steps(each, name)] if rule["type"] == "Sequence" else [rule]
