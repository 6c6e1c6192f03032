"""A key/value cache whose rows have different lengths and join and leave at any time.

transformers' caches hold rows of equal length, so adding a row copies all others. Here each row has a slot of a fixed
number of columns and starts at column 0. The rows in use are always the first ones: the last row replaces a row that is
removed. TorchRows holds one such cache for each power of two, so that a long text does not make all slots long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicLayer


class SlotCache(Cache):  # type: ignore[misc]
    """Keys and values of rows with at most `columns` tokens.

    Call `reading` before each forward pass and `read` after it. The model calls `update` for each layer.
    """

    def __init__(self, columns: int) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.columns = columns
        self.lengths: list[int] = []
        self._store: list[tuple[Tensor, Tensor]] = []  # of each layer, (slots, heads, columns, width)
        self._first = 0
        self._count = 0
        self._tokens = 0

    @property
    def rows(self) -> int:
        """Number of rows in use."""
        return len(self.lengths)

    @property
    def num_bytes(self) -> int:
        """Memory of the keys and values, in bytes."""
        return sum(tensor.numel() * tensor.element_size() for pair in self._store for tensor in pair)

    @property
    def slots(self) -> int:
        """Number of rows that there is memory for."""
        return self._store[0][0].shape[0] if self._store else 0

    @property
    def slots_to_add(self) -> int:
        """Number of slots that one more row adds."""
        return 0 if self.rows < self.slots else _more(self.slots) - self.slots

    def join(self) -> int:
        """Add an empty row at the end; return its number."""
        self.lengths.append(0)
        return self.rows - 1

    def take(self, other: SlotCache, row: int) -> int:
        """Add a copy of another cache's row at the end; return its number."""
        new = self.join()
        self.extend(new, other.views(row, 0, other.lengths[row]))
        return new

    def views(self, row: int, start: int, stop: int) -> list[tuple[Tensor, Tensor]]:
        """Return a row's keys and values of each layer from a token to before another, (1, heads, tokens, width)."""
        if start == stop:  # a row that has not read yet may have no slot
            return []
        return [(keys[row, None, :, start:stop], values[row, None, :, start:stop]) for keys, values in self._store]

    @torch.inference_mode()
    def extend(self, row: int, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Append keys and values of more tokens, those of each layer, to a row."""
        for layer, pair in enumerate(pairs):
            for mine, theirs in zip(self._stored(layer, *pair), pair, strict=True):
                mine[row, None, :, self.lengths[row] : self.lengths[row] + theirs.shape[2]] = theirs
        if pairs:
            self.lengths[row] += pairs[0][0].shape[2]

    @torch.inference_mode()
    def leave(self, row: int) -> None:
        """Remove a row; the last row takes its slot."""
        last = self.rows - 1
        length, before = self.lengths[last], self.lengths[row]
        for keys, values in self._store:
            for store in (keys, values):
                # A row that has not read yet may have no slot.
                if row != last and length:
                    store[row, :, :length] = store[last, :, :length]
                if row != last and before > length:
                    store[row, :, length:before] = 0
                if length:  # the mask hides leftover values from the next row, but not NaN: 0 x NaN is NaN
                    store[last, :, :length] = 0
        self.lengths[row] = length
        self.lengths.pop()

    def clear(self) -> None:
        """Return the memory. Only without rows."""
        assert not self.lengths, "a row is in use"
        self._store.clear()

    def reading(self, first: int, count: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Prepare a pass that reads `tokens` more tokens of each of `count` rows from `first` on.

        Returns:
            (position_ids, (count, tokens); mask, (count, 1, tokens, columns), True where a token is visible).
        """
        self._first, self._count, self._tokens = first, count, tokens
        before = torch.tensor(self.lengths[first : first + count])
        positions = before[:, None] + torch.arange(tokens)
        width = int(before.max()) + tokens
        mask = torch.arange(width) <= positions[:, None, :, None]
        return positions, mask

    def read(self) -> None:
        """Add the tokens of the finished pass to the lengths of its rows."""
        for row in range(self._first, self._first + self._count):
            self.lengths[row] += self._tokens

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Store the new keys and values, (count, heads, tokens, width); return all columns up to them."""
        rows = slice(self._first, self._first + self._count)
        lengths = self.lengths[rows]
        width = max(lengths) + self._tokens
        keys, values = self._stored(layer_idx, key_states, value_states)
        if len(set(lengths)) == 1:
            keys[rows, :, lengths[0] : width] = key_states
            values[rows, :, lengths[0] : width] = value_states
        else:
            for place, length in enumerate(lengths):
                row = self._first + place
                keys[row, :, length : length + self._tokens] = key_states[place]
                values[row, :, length : length + self._tokens] = value_states[place]
        return keys[rows, :, :width], values[rows, :, :width]

    def _stored(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tensors of a layer, with a slot for each row."""
        while len(self._store) <= layer:
            self._store.append((self._empty(keys, 0), self._empty(values, 0)))
        stored = self._store[layer]
        slots = stored[0].shape[0]
        if slots < self.rows:
            while slots < self.rows:
                slots = _more(slots)
            grown = (self._empty(keys, slots), self._empty(values, slots))
            for new, old in zip(grown, stored, strict=True):
                new[: len(old)] = old
            self._store[layer] = stored = grown
        return stored

    def _empty(self, like: Tensor, slots: int) -> Tensor:
        # Zeros, because uninitialised memory can hold NaN, which a mask does not hide.
        return like.new_zeros(slots, like.shape[1], self.columns, like.shape[3])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the length of the longest row in the current pass."""
        return max(self.lengths[self._first : self._first + self._count], default=0)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return (number of columns of the mask, offset 0)."""
        return self.get_seq_length() + query_length, 0


def _more(slots: int) -> int:
    """Return the next larger number of slots."""
    return slots + max(1, slots // 2)
