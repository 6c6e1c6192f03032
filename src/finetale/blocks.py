"""Pack a split of a token store into blocks of equal length, without loss. Knows nothing of models.

A document longer than a block is cut into segments that overlap by one token, so that each target occurs once. Shorter
documents stay whole and share blocks (best-fit decreasing, as in Ding et al. 2024, "Fewer Truncations Improve Language
Modeling"). If the blocks would be too empty, the emptiest are dissolved and their documents are cut to fill gaps.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetale.config import MIN_BLOCK_SIZE
from finetale.errors import ConfigError, SourceError
from finetale.formatting import plural
from finetale.tokens import TokenStore

IGNORE = -100
SEGMENT_DTYPE = np.dtype([("start", "<i8"), ("targets", "<i8"), ("part", "<i8"), ("skip", "<i8")])
_MAX_PADDING = 0.02


@dataclass(frozen=True)
class Batch:
    """Arrays of shape (batch, time), int64.

    `labels` are the next tokens, IGNORE where there is nothing to learn: padding, context of an example, repeated
    tokens. `positions` restart with each document. `documents` number the documents of a row
    from 0; padding counts as one more document. `parts` are indices into the store, -1 for padding.
    """

    inputs: NDArray[np.int64]
    labels: NDArray[np.int64]
    positions: NDArray[np.int64]
    documents: NDArray[np.int64]
    parts: NDArray[np.int64]


@dataclass(frozen=True)
class Blocks:
    """Blocks of one split. `segments` are in block order; block i consists of segments[offsets[i] : offsets[i + 1]].

    `begins` says whether beginning-of-text is part of the context in documents and in examples. Where it is not, only
    the first token of a text is predicted from it: it becomes a document of its own.
    """

    store: TokenStore
    block_size: int
    segments: NDArray[Any]
    offsets: NDArray[np.int64]
    begins: tuple[bool, bool] = (True, True)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_targets(self) -> int:
        """Number of targets in all blocks that are learned."""
        return int(learned_targets(self.store, self.segments).sum())

    @property
    def mean_targets(self) -> float:
        """Mean number of targets per block that are learned."""
        return self.num_targets / max(1, len(self))

    @property
    def padding_share(self) -> float:
        """Share of positions that are padding."""
        return 1.0 - float(self.segments["targets"].sum()) / max(1, len(self) * self.block_size)

    def targets_in(self, blocks: NDArray[np.int64]) -> int:
        """Return the number of targets in some of the blocks that are learned."""
        return int(self.learned[blocks].sum())

    @cached_property
    def learned(self) -> NDArray[np.int64]:
        """Number of targets of each block that are learned, shape (blocks,)."""
        totals = np.concatenate([[0], np.cumsum(learned_targets(self.store, self.segments))])
        found: NDArray[np.int64] = np.diff(totals[self.offsets])
        return found

    def subset(self, blocks: NDArray[np.int64]) -> Blocks:
        """Return some of the blocks, in the order given."""
        counts = np.diff(self.offsets)[blocks]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        chosen = self.segments[_ranges(self.offsets[blocks], counts)]
        return Blocks(self.store, self.block_size, chosen, offsets, self.begins)

    def batch(self, blocks: NDArray[np.int64]) -> Batch:
        """Return the arrays of some of the blocks, one row per block."""
        shape = (len(blocks), self.block_size)
        inputs, positions, documents = (np.zeros(shape, np.int64) for _ in range(3))
        labels = np.full(shape, IGNORE, np.int64)
        parts = np.full(shape, -1, np.int64)
        tokens, context, first_of_part = self.store.tokens, self.store.context, self.store.parts["start"]
        for row, block in enumerate(blocks):
            at = 0
            number = 0
            for start, count, part, skip in self._segments_of(int(block)).tolist():
                ids = tokens[start : start + count + 1]
                inputs[row, at : at + count] = ids[:-1]
                labels[row, at + skip : at + count] = ids[1 + skip :]
                if len(context):
                    first = np.searchsorted(context[:, 1], start + 1, "right")
                    last = np.searchsorted(context[:, 0], start + count + 1, "left")
                    for begin, end in (context[first:last] - (start + 1)).tolist():
                        labels[row, at + max(begin, 0) : at + min(end, count)] = IGNORE
                parts[row, at : at + count] = part
                if start == first_of_part[part] and not self.begins[int(self.store.is_example[part])]:
                    documents[row, at], at, count, number = number, at + 1, count - 1, number + 1
                positions[row, at : at + count] = np.arange(count)
                documents[row, at : at + count] = number
                at += count
                number += 1
            positions[row, at:] = np.arange(self.block_size - at)
            documents[row, at:] = number
        return Batch(inputs, labels, positions, documents, parts)

    def places(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the index of each label of `batch` in the store's tokens, shape (batch, time); -1 for padding."""
        places = np.full((len(blocks), self.block_size), -1, np.int64)
        for row, block in enumerate(blocks):
            at = 0
            for start, count, _, skip in self._segments_of(int(block)).tolist():
                places[row, at + skip : at + count] = np.arange(start + skip + 1, start + count + 1)
                at += count
        return places

    def names_in(self, blocks: Iterable[int], most: int = 5) -> str:
        """Return the names of the documents in some blocks: the first few, and the number of the others."""
        parts = dict.fromkeys(int(part) for i in blocks for part in self._segments_of(int(i))["part"])
        names = [self.store.name_of(part) for part in list(parts)[:most]]
        more = f" and {len(parts) - most} more" if len(parts) > most else ""
        return ", ".join(names) + more

    def _segments_of(self, block: int) -> NDArray[Any]:
        segments: NDArray[Any] = self.segments[self.offsets[block] : self.offsets[block + 1]]
        return segments


def learned_targets(store: TokenStore, segments: NDArray[Any]) -> NDArray[np.int64]:
    """Return the number of targets of each segment that are learned: neither skipped nor context."""
    starts, stops = segments["start"] + 1 + segments["skip"], segments["start"] + 1 + segments["targets"]
    found: NDArray[np.int64] = stops - starts - (store.context_before(stops) - store.context_before(starts))
    return found


def pack(store: TokenStore, split: str, block_size: int, *, fill: bool = False) -> Blocks:
    """Pack a split into blocks.

    An example with context that is longer than a block is cut into windows, so that each of its answers has as much of
    the text before it as fits. Other long documents are cut into segments that overlap by one token.

    Args:
        block_size: positions (inputs) per block.
        fill: cut documents to fill blocks if more than 2% of all positions would be padding (for training).
    """
    parts = store.parts_of(split)
    is_long_example = store.is_example[parts] & (store.parts["targets"][parts] > block_size)
    long_examples, parts = parts[is_long_example], parts[~is_long_example]
    starts, targets = store.parts["start"][parts], store.parts["targets"][parts]
    counts = -(-targets // block_size)  # segments of each part
    of = np.repeat(np.arange(len(parts)), counts)
    number = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)  # of a segment within its part
    segments = np.zeros(len(of), SEGMENT_DTYPE)
    segments["start"] = starts[of] + number * block_size
    segments["targets"] = np.minimum(block_size, targets[of] - number * block_size)
    segments["part"] = parts[of]
    if len(long_examples):
        segments = np.concatenate([segments, _windows_of_examples(store, long_examples, block_size)])
    return share_blocks(store, block_size, segments, fill=fill)


@dataclass(frozen=True)
class CutExamples:
    """What does not fit when the examples of a split are cut to blocks.

    Attributes:
        examples: number of examples that are longer than a block.
        shortened: number of them that lose context.
        lost_context: number of their context tokens that are in no block.
        cut_answers: number of answers that are longer than a block, and so are cut. All their tokens are learned.
    """

    examples: int = 0
    shortened: int = 0
    lost_context: int = 0
    cut_answers: int = 0

    def __add__(self, other: CutExamples) -> CutExamples:
        return CutExamples(*map(sum, zip(astuple(self), astuple(other), strict=True)))


def cut_examples(store: TokenStore, split: str, block_size: int) -> CutExamples:
    """Return what does not fit when `pack` cuts the examples of a split."""
    parts = store.parts_of(split)
    long_parts = parts[store.is_example[parts] & (store.parts["targets"][parts] > block_size)]
    shortened = lost = cut = 0
    for part in long_parts.tolist():
        targets = int(store.parts[part]["targets"])
        covered = np.zeros(targets, bool)
        for begin, end, _ in _windows_of_example(store, part, block_size):
            covered[begin:end] = True
        answers = _answers_of(store, part)
        is_learned = np.zeros(targets, bool)
        for first, stop in answers:
            is_learned[first:stop] = True
        gone = int((~covered & ~is_learned).sum())
        lost += gone
        shortened += gone > 0
        cut += sum(stop - first > block_size for first, stop in answers)
        assert covered[is_learned].all(), f"an answer of part {part} is in no window"
    return CutExamples(len(long_parts), shortened, lost, cut)


def _windows_of_examples(store: TokenStore, parts: NDArray[np.int64], size: int) -> NDArray[Any]:
    """Return segments of up to `size` targets that hold each learned target of some examples once."""
    starts = store.parts["start"]
    rows = [
        (int(starts[part]) + begin, end - begin, part, done - begin)
        for part in parts.tolist()
        for begin, end, done in _windows_of_example(store, part, size)
    ]
    return np.array(rows, SEGMENT_DTYPE)


def _windows_of_example(store: TokenStore, part: int, size: int) -> list[tuple[int, int, int]]:
    """Return windows of up to `size` targets that hold each learned target of an example once.

    A window ends with an answer and begins as early as its size allows. It takes further answers if its first one still
    has half a window of context, or all that there is. An answer longer than a window is cut into windows that each
    have a quarter of context.

    Returns:
        (begin, end, done) of each window: its range of targets, and the first target that no window before it has.
    """
    windows: list[tuple[int, int, int]] = []
    done = 0
    answers = _answers_of(store, part)
    while answers:
        first, stop = max(answers[0][0], done), answers[0][1]
        if stop - first > size:
            begin = max(0, first - size // 4)
            end = begin + size
        else:
            end = stop
            for _, later in answers[1:]:
                if later > size and later - first > size // 2:
                    break
                end = later
            begin = max(0, end - size)
        windows.append((begin, end, max(first, begin)))
        done = end
        answers = [answer for answer in answers if answer[1] > done]
    return windows


def _answers_of(store: TokenStore, part: int) -> list[tuple[int, int]]:
    """Return the ranges of targets of an example that are learned, counted from its first target."""
    targets = int(store.parts[part]["targets"])
    found, at = [], 0
    for begin, end in store.context_of(part).tolist():
        if begin > at:
            found.append((at, begin))
        at = end
    return [*found, (at, targets)] if at < targets else found


def windows(store: TokenStore, split: str, window: int, stride: int) -> Blocks:
    """Cut a split into sliding windows for evaluation. Each target occurs once.

    A target has at least window - stride tokens of context, unless its document has fewer before it.

    Raises:
        ConfigError: the stride is longer than the window.
    """
    return share_blocks(store, window, window_segments(store, store.parts_of(split), window, stride))


def window_segments(store: TokenStore, parts: NDArray[np.int64], window: int, stride: int) -> NDArray[Any]:
    """Return the segments of `windows`, with dtype SEGMENT_DTYPE, in the order of the parts.

    Raises:
        ConfigError: the stride is longer than the window.
    """
    check_stride(stride, window)
    rows: list[tuple[int, int, int, int]] = []
    table = store.parts
    for part, start, targets in zip(
        parts.tolist(), table["start"][parts].tolist(), table["targets"][parts].tolist(), strict=True
    ):
        done = 0
        while done < targets:
            stop = min(targets, window if done == 0 else done + stride)
            first = max(0, stop - window)
            rows.append((start + first, stop - first, part, done - first))
            done = stop
    return np.array(rows, SEGMENT_DTYPE)


def choose_block_size(store: TokenStore, positions: int | None, wanted: int | None) -> int:
    """Return the block size: `wanted`, else the model's positions up to 1024, halved while there are few blocks.

    It is not halved below the length of the longest example.

    Raises:
        ConfigError: `wanted` exceeds the model's positions.
        SourceError: the training text is shorter than one block, or than any block.
    """
    check_positions(wanted, positions)
    lengths = store.parts["targets"][store.parts_of("train")]
    longest_example = int(max(lengths[store.is_example[store.parts_of("train")]], default=0))
    check_enough(store.num_targets("train"), int(lengths.sum()), wanted)
    if wanted is not None:
        return wanted
    size = min(positions or 1024, 1024)
    while size > 64 and lengths.sum() < 8 * size and longest_example <= size // 2:
        size //= 2
    return size


def check_enough(learned: int, targets: int, wanted: int | None) -> None:
    """Refuse a training text that is shorter than one block, or than any block.

    Args:
        learned: number of training tokens that are learned.
        targets: number of training tokens, with those that are read as context.
        wanted: the block size if it was given.

    Raises:
        SourceError: there is too little text.
    """
    if wanted is not None and targets < wanted:
        raise SourceError(
            f"There is too little text for one block: {targets} training tokens, and block_size is {wanted}.",
            "Add text, or choose a smaller --block-size.",
        )
    if wanted is None and learned < 32:
        raise SourceError(
            f"There is too little text to train on: {learned} training tokens.",
            "Add text; a few thousand words are a start.",
        )


def choose_evaluation_size(positions: int | None, wanted: int | None) -> int:
    """Return the block size of an evaluation: `wanted`, else the model's positions up to 1024.

    Raises:
        ConfigError: `wanted` exceeds the model's positions.
    """
    check_positions(wanted, positions)
    return wanted or min(positions or 1024, 1024)


def check_stride(stride: int, window: int) -> None:
    """Refuse a stride that would skip tokens.

    Raises:
        ConfigError: the stride is longer than the window.
    """
    if stride > window:
        raise ConfigError(
            f"stride {stride} is longer than the block of {window} tokens.", "Choose a stride up to the block size."
        )


def check_positions(block_size: int | None, positions: int | None) -> None:
    """Refuse a block size that exceeds the model's positions, and a model with too few positions for any block.

    Raises:
        ConfigError: the block size is larger, or the model has fewer than `MIN_BLOCK_SIZE` positions.
    """
    if positions is not None and positions < MIN_BLOCK_SIZE:
        raise ConfigError(
            f"The model has {plural(positions, 'position')}, and a block needs at least {MIN_BLOCK_SIZE}.",
            "Choose a model with more positions (n_positions or max_position_embeddings in its config.json).",
        )
    if block_size is not None and positions is not None and block_size > positions:
        raise ConfigError(
            f"block_size {block_size} is larger than the model's {positions} positions.",
            f"Choose --block-size {positions} or less.",
        )


def share_blocks(store: TokenStore, size: int, segments: NDArray[Any], *, fill: bool = False) -> Blocks:
    """Give each full segment its own block and let shorter ones share. The blocks are in reading order."""
    full = segments["targets"] == size
    alone, short = np.flatnonzero(full), np.flatnonzero(~full)
    bins = _best_fit(segments["targets"][short], size)
    bins.members = short[bins.members]
    if fill and not store.is_example[segments["part"][short]].any():  # a cut would part an answer from its prompt
        segments, bins = _fill_gaps(segments, bins, size)
    order = np.concatenate([alone, bins.members])
    counts = np.concatenate([np.ones(len(alone), np.int64), bins.counts])
    first = np.cumsum(counts) - counts
    reading = np.argsort(segments["start"][order[first]], kind="stable")  # a memory map is read forwards
    counts = counts[reading]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Blocks(store, size, segments[order[_ranges(first[reading], counts)]], offsets)


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of consecutive ranges, joined: `counts` numbers from each of `starts`."""
    ends = np.cumsum(counts)
    found: NDArray[np.int64] = np.repeat(starts - (ends - counts), counts)
    found += np.arange(len(found))
    return found


@dataclass
class _Bins:
    """Segments that share blocks: the indices of all of them, block by block, and the number of them in each block."""

    members: NDArray[np.int64]
    counts: NDArray[np.int64]


def _best_fit(lengths: NDArray[np.int64], size: int) -> _Bins:
    """Let segments share blocks by best-fit decreasing.

    Segments of one length are placed together, as many as the tightest blocks take: a block that takes one of them is
    the tightest for the next one, until none fits. So the time depends on the number of different lengths, and memory
    holds a few numbers per segment. A bit mask records which amounts of free space occur among the open blocks.
    """
    order = np.argsort((size - lengths).astype(np.min_scalar_type(size)), kind="stable")  # faster with few bits
    values, numbers = np.unique(lengths, return_counts=True)
    bin_of = np.empty(len(lengths), np.int64)
    by_room = [array("q") for _ in range(size + 1)]
    mask = at = num_bins = 0
    for length, number in zip(values[::-1].tolist(), numbers[::-1].tolist(), strict=True):
        waiting = number
        while waiting:
            fitting = mask >> length
            free = length + (fitting & -fitting).bit_length() - 1 if fitting else size
            per_bin = free // length
            wanted = -(-waiting // per_bin)
            if fitting:
                taken = by_room[free][-wanted:]
                taken.reverse()
                del by_room[free][-wanted:]
                if not by_room[free]:
                    mask &= ~(1 << free)
            else:
                taken = array("q", range(num_bins, num_bins + wanted))
                num_bins += wanted
            placed = min(waiting, per_bin * len(taken))
            bin_of[at : at + placed] = np.repeat(taken, per_bin)[:placed]
            at, waiting = at + placed, waiting - placed
            in_last = placed - per_bin * (len(taken) - 1)
            for room, bins in ((free - per_bin * length, taken[:-1]), (free - in_last * length, taken[-1:])):
                if room and bins:
                    by_room[room].extend(bins)
                    mask |= 1 << room
    return _grouped(order, bin_of, num_bins)


def _grouped(segments: NDArray[np.int64], bin_of: NDArray[np.int64], num_bins: int) -> _Bins:
    """Group segments by the number of their block. Within a block they keep their order."""
    return _Bins(segments[np.argsort(bin_of, kind="stable")], np.bincount(bin_of, minlength=num_bins))


def _fill_gaps(segments: NDArray[Any], bins: _Bins, size: int) -> tuple[NDArray[Any], _Bins]:
    """If too many positions are padding, dissolve the emptiest blocks and cut their segments into the largest gaps."""
    num_bins = len(bins.counts)
    if not num_bins:
        return segments, bins
    first = np.cumsum(bins.counts) - bins.counts
    content = np.add.reduceat(segments["targets"][bins.members], first)
    total = int(content.sum())
    crumb = min(16, max(1, size // 32))  # shorter pieces are not worth a cut
    enough = -(-total // (size - crumb))
    if num_bins * size - total <= _MAX_PADDING * num_bins * size or num_bins <= enough:
        return segments, bins
    fullest_first = np.argsort(-content, kind="stable")
    kept, dissolved = fullest_first[:enough], fullest_first[enough:]
    waiting = segments[bins.members[_ranges(first[dissolved], bins.counts[dissolved])]]
    left = len(waiting)  # the last ones are cut first
    rest: tuple[int, int, int, int] | None = None  # of a segment that was cut
    pieces, bin_of_pieces = array("q"), array("q")
    for number in range(enough - 1, -1, -1):
        room = size - int(content[kept[number]])
        while (rest or left) and room >= crumb:
            if rest is None:
                left -= 1
                rest = waiting[left].item()
            start, count, part, skip = rest
            taken = min(count, room)
            if 0 < count - taken < crumb < taken - crumb:
                taken -= crumb  # leave a rest that is not too short
            pieces.extend((start, taken, part, skip))
            bin_of_pieces.append(number)
            room -= taken
            rest = (start + taken, count - taken, part, skip) if taken < count else None
            if rest:
                break
        if rest is None and not left:
            break
    cut = np.frombuffer(pieces, SEGMENT_DTYPE) if pieces else np.zeros(0, SEGMENT_DTYPE)
    uncut = np.concatenate([waiting[:left], np.array([rest] if rest else [], SEGMENT_DTYPE)])
    more = _best_fit(uncut["targets"], size)
    members = [bins.members[_ranges(first[kept], bins.counts[kept])], len(segments) + np.arange(len(cut))]
    bin_of = [np.repeat(np.arange(enough), bins.counts[kept]), np.frombuffer(bin_of_pieces, np.int64)]
    filled = _grouped(np.concatenate(members), np.concatenate(bin_of), enough)
    filled.members = np.concatenate([filled.members, len(segments) + len(cut) + more.members])
    filled.counts = np.concatenate([filled.counts, more.counts])
    return np.concatenate([segments, cut, uncut]), filled
