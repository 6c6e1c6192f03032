"""A key/value cache whose rows have different lengths and join and leave at any time.

transformers' caches hold rows of equal length, so adding a row copies all others. Here each row has a slot and starts
at column 0. The rows in use are always the first ones: the last row replaces a row that is removed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicLayer

_GROWTH = 128
"""The cache grows in multiples of this many columns."""


class SlotCache(Cache):  # type: ignore[misc]
    """Keys and values of `rows` rows.

    Call `reading` before each forward pass and `read` after it. The model calls `update` for each layer.

    Args:
        slots: maximum number of rows.
        columns: maximum tokens per row.
    """

    def __init__(self, slots: int, columns: int) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.slots = slots
        self.columns = columns
        self.lengths: list[int] = []
        self._store: list[tuple[Tensor, Tensor]] = []  # of each layer, (slots, heads, columns so far, width)
        self._first = 0
        self._count = 0
        self._tokens = 0

    @property
    def rows(self) -> int:
        """Number of rows in use."""
        return len(self.lengths)

    def join(self) -> int:
        """Add an empty row at the end; return its number."""
        assert self.rows < self.slots, "no slot is free"
        self.lengths.append(0)
        return self.rows - 1

    @torch.inference_mode()
    def copy(self, row: int) -> int:
        """Add a copy of a row at the end; return its number."""
        new = self.join()
        length = self.lengths[row]
        for keys, values in self._store:
            keys[new, :, :length], values[new, :, :length] = keys[row, :, :length], values[row, :, :length]
        self.lengths[new] = length
        return new

    @torch.inference_mode()
    def leave(self, row: int) -> None:
        """Remove a row; the last row takes its slot."""
        last = self.rows - 1
        length, before = self.lengths[last], self.lengths[row]
        for keys, values in self._store:
            for store in (keys, values):
                if row != last:
                    store[row, :, :length] = store[last, :, :length]
                    store[row, :, length:before] = 0
                # The mask hides leftover values from the next row, but not NaN: 0 x NaN is NaN.
                store[last, :, :length] = 0
        self.lengths[row] = length
        self.lengths.pop()

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
        keys, values = self._stored(layer_idx, key_states, value_states, width)
        if len(set(lengths)) == 1:
            keys[rows, :, lengths[0] : width] = key_states
            values[rows, :, lengths[0] : width] = value_states
        else:
            for place, length in enumerate(lengths):
                row = self._first + place
                keys[row, :, length : length + self._tokens] = key_states[place]
                values[row, :, length : length + self._tokens] = value_states[place]
        return keys[rows, :, :width], values[rows, :, :width]

    def _stored(self, layer: int, keys: Tensor, values: Tensor, width: int) -> tuple[Tensor, Tensor]:
        while len(self._store) <= layer:
            self._store.append((self._empty(keys, 0), self._empty(values, 0)))
        stored = self._store[layer]
        if stored[0].shape[2] < width:
            columns = min(self.columns, -(-width // _GROWTH) * _GROWTH)
            grown = (self._empty(keys, columns), self._empty(values, columns))
            for new, old in zip(grown, stored, strict=True):
                new[:, :, : old.shape[2]] = old
            self._store[layer] = stored = grown
        return stored

    def _empty(self, like: Tensor, columns: int) -> Tensor:
        # Zeros, because uninitialised memory can hold NaN, which a mask does not hide.
        return like.new_zeros(self.slots, like.shape[1], columns, like.shape[3])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the length of the longest row in the current pass."""
        return max(self.lengths[self._first : self._first + self._count], default=0)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return (number of columns of the mask, offset 0)."""
        return self.get_seq_length() + query_length, 0
