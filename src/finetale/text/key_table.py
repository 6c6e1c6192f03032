"""Provide a compact hash table from 64-bit keys to numbers, for arrays of keys at once. Knows nothing of documents.

It uses open addressing with linear probing in one array of 4 bytes per slot, at most 60% full. A Python dictionary
would take about 150 bytes per key, and one call per look-up.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MIN_SLOT_BITS = 10
_MAX_LOAD = 0.6
_MIX = 0x9E3779B97F4A7C15

Keys = NDArray[np.uint64]
Numbers = NDArray[np.int64]


class KeyStore:
    """An array of keys that grows at its end. KeyTable refers to its entries by index."""

    def __init__(self) -> None:
        self._array: Keys = np.empty(1 << _MIN_SLOT_BITS, np.uint64)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def array(self) -> Keys:
        """All keys so far. Valid until the next `extend`."""
        return self._array[: self._size]

    def extend(self, keys: Keys) -> int:
        """Append keys; return the index of the first."""
        first, self._size = self._size, self._size + len(keys)
        if self._size > len(self._array):
            grown = np.empty(max(self._size, len(self._array) * 3 // 2), np.uint64)
            grown[:first] = self._array[:first]
            self._array = grown
        self._array[first : self._size] = keys
        return first


class KeyTable:
    """Finds keys of a store. Of several equal keys, it finds the one that was added.

    Args:
        keys: the store of the keys. `add` puts some of them into the table.
    """

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys
        self._bits = _MIN_SLOT_BITS
        self._slots = np.zeros(1 << self._bits, np.int32)  # index + 1; 0: empty
        self._used = 0

    def find(self, keys: Keys) -> Numbers:
        """Return the index of each key in the store, or -1 for keys that are not in the table."""
        found = np.full(len(keys), -1, np.int64)
        known = self._keys.array
        if not len(known) or not len(keys):
            return found
        waiting = np.arange(len(keys))
        places = self._places(keys)
        while len(waiting):
            entries = self._slots[places].astype(np.int64) - 1
            taken = entries >= 0
            waiting, places, entries = waiting[taken], places[taken], entries[taken]
            same = known[entries] == keys[waiting]
            found[waiting[same]] = entries[same]
            waiting, places = waiting[~same], (places[~same] + 1) & (len(self._slots) - 1)
        return found

    def add(self, entries: Numbers) -> None:
        """Put keys of the store into the table. They must differ from each other and from those in the table."""
        self._used += len(entries)
        if self._used > _MAX_LOAD * len(self._slots):
            entries = np.concatenate([self._slots[self._slots > 0].astype(np.int64) - 1, entries])
            while self._used > _MAX_LOAD * (1 << self._bits):
                self._bits += 1
            self._slots = np.zeros(1 << self._bits, np.int32)
        for start in range(0, len(entries), 1 << 20):
            self._put(entries[start : start + (1 << 20)])

    def _put(self, entries: Numbers) -> None:
        places = self._places(self._keys.array[entries])
        while len(entries):
            free = self._slots[places] == 0
            self._slots[places[free]] = entries[free] + 1  # if several go to one slot, the last one stays
            lost = self._slots[places] != entries + 1
            entries, places = entries[lost], (places[lost] + 1) & (len(self._slots) - 1)

    def _places(self, keys: Keys) -> Numbers:
        return ((keys * np.uint64(_MIX)) >> np.uint64(64 - self._bits)).astype(np.int64)


def occurs_twice(keys: Keys) -> NDArray[np.bool_]:
    """Return, for each key, whether it occurs more than once in the array."""
    ascending = np.sort(keys)  # much faster than argsort
    repeated = ascending[1:][ascending[1:] == ascending[:-1]]
    if not len(repeated):
        return np.zeros(len(keys), bool)
    return np.isin(keys, repeated)
