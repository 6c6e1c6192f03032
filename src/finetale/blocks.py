"""A token store's split → blocks of equal length, packed without loss. Knows nothing of models.

Documents longer than a block are cut into segments that overlap by one token, so that each target occurs once. Shorter
ones stay whole and share blocks (best-fit decreasing, as in Ding et al. 2024, "Fewer Truncations Improve Language
Modeling"); only where the blocks would stay too empty are the worst ones dissolved and their documents cut to fill gaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetale.errors import ConfigError, SourceError
from finetale.tokens import TokenStore

IGNORE = -100
SEGMENT_DTYPE = np.dtype([("start", "<i8"), ("targets", "<i8"), ("part", "<i8"), ("skip", "<i8")])
_MAX_PADDING = 0.02


@dataclass(frozen=True)
class Batch:
    """Arrays of shape (batch, time), int64.

    `labels` are the next tokens, IGNORE where there is nothing to learn; `positions` restart with each document;
    `documents` number the documents of a row from 0, padding being one of its own; `parts` are indices into the
    store, -1 for padding.
    """

    inputs: NDArray[np.int64]
    labels: NDArray[np.int64]
    positions: NDArray[np.int64]
    documents: NDArray[np.int64]
    parts: NDArray[np.int64]


@dataclass(frozen=True)
class Blocks:
    """Blocks of one split. `segments` in block order; block i holds segments[offsets[i] : offsets[i + 1]]."""

    store: TokenStore
    block_size: int
    segments: NDArray[Any]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_targets(self) -> int:
        """Targets in all blocks."""
        return int(self.segments["targets"].sum() - self.segments["skip"].sum())

    @property
    def padding_share(self) -> float:
        """Share of positions that hold no document."""
        return 1.0 - float(self.segments["targets"].sum()) / max(1, len(self) * self.block_size)

    def targets_in(self, blocks: NDArray[np.int64]) -> int:
        """Targets in some of the blocks."""
        return int(sum((self._segments_of(i)["targets"] - self._segments_of(i)["skip"]).sum() for i in blocks))

    def batch(self, blocks: NDArray[np.int64]) -> Batch:
        """The arrays of some of the blocks, one row each."""
        shape = (len(blocks), self.block_size)
        inputs, positions, documents = (np.zeros(shape, np.int64) for _ in range(3))
        labels = np.full(shape, IGNORE, np.int64)
        parts = np.full(shape, -1, np.int64)
        tokens = self.store.tokens
        for row, block in enumerate(blocks):
            at = 0
            segments = self._segments_of(int(block))
            for number, (start, count, part, skip) in enumerate(segments.tolist()):
                ids = tokens[start : start + count + 1]
                inputs[row, at : at + count] = ids[:-1]
                labels[row, at + skip : at + count] = ids[1 + skip :]
                positions[row, at : at + count] = np.arange(count)
                documents[row, at : at + count] = number
                parts[row, at : at + count] = part
                at += count
            positions[row, at:] = np.arange(self.block_size - at)
            documents[row, at:] = len(segments)
        return Batch(inputs, labels, positions, documents, parts)

    def _segments_of(self, block: int) -> NDArray[Any]:
        segments: NDArray[Any] = self.segments[self.offsets[block] : self.offsets[block + 1]]
        return segments


def pack(store: TokenStore, split: str, block_size: int, *, fill: bool = False) -> Blocks:
    """Pack a split into blocks.

    Args:
        block_size: positions (inputs) a block.
        fill: cut documents to fill blocks that would stay emptier than 2% on the whole (for training).
    """
    parts = store.parts_of(split)
    table = store.parts
    full: list[tuple[int, int, int, int]] = []
    rest: list[tuple[int, int, int, int]] = []
    for part in parts.tolist():
        start, targets = int(table["start"][part]), int(table["targets"][part])
        for at in range(0, targets, block_size):
            count = min(block_size, targets - at)
            (full if count == block_size else rest).append((start + at, count, part, 0))
    bins = [[segment] for segment in full] + _best_fit(rest, block_size, fill)
    return _assemble(store, block_size, bins)


def windows(store: TokenStore, split: str, window: int, stride: int) -> Blocks:
    """Sliding windows for evaluation: each target once, with at least window - stride tokens of context where there are.

    Raises:
        ConfigError: the stride is longer than the window.
    """
    if stride > window:
        raise ConfigError(
            f"stride {stride} is longer than the block of {window} tokens.", "Choose a stride up to the block size."
        )
    table = store.parts
    segments: list[tuple[int, int, int, int]] = []
    for part in store.parts_of(split).tolist():
        start, targets = int(table["start"][part]), int(table["targets"][part])
        done = 0
        while done < targets:
            stop = min(targets, window if done == 0 else done + stride)
            first = max(0, stop - window)
            segments.append((start + first, stop - first, part, done - first))
            done = stop
    whole = [[segment] for segment in segments if segment[1] == window]
    short = [segment for segment in segments if segment[1] < window]
    return _assemble(store, window, whole + _best_fit(short, window, fill=False))


def choose_block_size(store: TokenStore, positions: int | None, wanted: int | None) -> int:
    """The block size: what was asked for, else the model's positions up to 1024, halved while there are few blocks.

    Raises:
        ConfigError: more was asked for than the model has positions.
        SourceError: the training text is shorter than one block, or than any block.
    """
    targets = store.num_targets("train")
    check_positions(wanted, positions)
    if wanted is not None:
        if targets < wanted:
            raise SourceError(
                f"There is too little text for one block: {targets} training tokens, and block_size is {wanted}.",
                "Add text, or choose a smaller --block-size.",
            )
        return wanted
    size = min(positions or 1024, 1024)
    while size > 64 and targets < 8 * size:
        size //= 2
    if targets < 32:
        raise SourceError(
            f"There is too little text to train on: {targets} training tokens.",
            "Add text; a few thousand words are a start.",
        )
    return size


def choose_evaluation_size(positions: int | None, wanted: int | None) -> int:
    """The block size to evaluate with: what was asked for, else the model's positions up to 1024.

    Raises:
        ConfigError: more was asked for than the model has positions.
    """
    check_positions(wanted, positions)
    return wanted or min(positions or 1024, 1024)


def check_positions(block_size: int | None, positions: int | None) -> None:
    """Refuse a block size past the model's positions.

    Raises:
        ConfigError: names both.
    """
    if block_size is not None and positions is not None and block_size > positions:
        raise ConfigError(
            f"block_size {block_size} is larger than the model's {positions} positions.",
            f"Choose --block-size {positions} or less.",
        )


def _best_fit(
    segments: list[tuple[int, int, int, int]], size: int, fill: bool
) -> list[list[tuple[int, int, int, int]]]:
    """Best-fit decreasing in O(n): a bit mask says which amounts of free room some open block has."""
    bins: list[list[tuple[int, int, int, int]]] = []
    room: list[int] = []
    by_room: list[list[int]] = [[] for _ in range(size + 1)]
    mask = 0
    for segment in sorted(segments, key=lambda item: -item[1]):
        fitting = mask >> segment[1]
        if fitting:
            free = segment[1] + (fitting & -fitting).bit_length() - 1
            index = by_room[free].pop()
            if not by_room[free]:
                mask &= ~(1 << free)
        else:
            index, free = len(bins), size
            bins.append([])
            room.append(size)
        bins[index].append(segment)
        free -= segment[1]
        room[index] = free
        if free:
            by_room[free].append(index)
            mask |= 1 << free
    return _fill_gaps(bins, room, size) if fill else bins


def _fill_gaps(
    bins: list[list[tuple[int, int, int, int]]], room: list[int], size: int
) -> list[list[tuple[int, int, int, int]]]:
    """If blocks are too empty on the whole, dissolve the emptiest and cut their segments into the largest gaps."""
    crumb = min(16, max(1, size // 32))  # too short to be worth a cut
    content = len(bins) * size - sum(room)
    enough = -(-content // (size - crumb))
    if sum(room) <= _MAX_PADDING * len(bins) * size or len(bins) <= enough:
        return bins
    fullest_first = sorted(range(len(bins)), key=lambda index: room[index])
    kept, dissolved = fullest_first[:enough], fullest_first[enough:]
    pieces = [segment for index in dissolved for segment in bins[index]]
    for index in reversed(kept):
        while pieces and room[index] >= crumb:
            start, count, part, skip = pieces.pop()
            taken = min(count, room[index])
            if 0 < count - taken < crumb < taken - crumb:
                taken -= crumb
            bins[index].append((start, taken, part, skip))
            room[index] -= taken
            if taken < count:
                pieces.append((start + taken, count - taken, part, skip))
                if room[index]:
                    break
    return [bins[index] for index in kept] + _best_fit(pieces, size, fill=False)


def _assemble(store: TokenStore, size: int, bins: list[list[tuple[int, int, int, int]]]) -> Blocks:
    bins.sort(key=lambda items: items[0][0])  # reading order, so that a memory map is read forwards
    offsets = np.concatenate([[0], np.cumsum([len(items) for items in bins])]).astype(np.int64)
    segments = np.array([item for items in bins for item in items], dtype=SEGMENT_DTYPE)
    return Blocks(store, size, segments, offsets)
