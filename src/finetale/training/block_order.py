"""The order of blocks in an epoch, from (number of blocks, seed, epoch). Does not know what a block is.

Up to LARGEST_STORED blocks, the order is NumPy's permutation, which is kept while its epoch lasts. Above, each place is
computed when it is needed, so a step costs the same with a billion blocks as with a million, and so does a resume. The
computed order is a Feistel network over the smallest power of two that holds all blocks. A result outside the range
is put in again until it is inside (cycle walking; Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains").
All steps are exact on 64-bit integers, so each machine computes the same order.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

LARGEST_STORED = 1 << 20
"""Maximum number of blocks with NumPy's permutation, which takes 8 bytes per block."""
_ROUNDS = 8
_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)

Places = NDArray[np.uint64]


def block_order(num_blocks: int, seed: int, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
    """Return the block numbers at places `start` to `stop` of an epoch. Over all places, each block occurs once."""
    if num_blocks <= LARGEST_STORED:
        return _stored(num_blocks, seed, epoch)[start:stop]
    return computed_order(num_blocks, seed, epoch, np.arange(start, stop, dtype=np.uint64))


@lru_cache(maxsize=2)  # a step can hold the end of one epoch and the beginning of the next
def _stored(num_blocks: int, seed: int, epoch: int) -> NDArray[np.int64]:
    order = np.random.default_rng([seed, epoch]).permutation(num_blocks)
    order.flags.writeable = False
    return order


def computed_order(num_blocks: int, seed: int, epoch: int, places: Places) -> NDArray[np.int64]:
    """Return the block numbers at some places, shape (places,). The places are below the number of blocks."""
    right_bits = (num_blocks - 1).bit_length() // 2
    left_bits = (num_blocks - 1).bit_length() - right_bits
    keys = np.frombuffer(hashlib.blake2b(f"{seed} {epoch} {num_blocks}".encode()).digest(), "<u8").astype(np.uint64)
    found = places.copy()
    waiting = np.arange(len(places))
    while len(waiting):
        found[waiting] = _network(found[waiting], keys, left_bits, right_bits)
        waiting = waiting[found[waiting] >= num_blocks]
    return found.astype(np.int64)


def _network(numbers: Places, keys: Places, left_bits: int, right_bits: int) -> Places:
    """Permute the numbers of `left_bits` + `right_bits` bits: each half is changed by a hash of the other in turn."""
    shift = np.uint64(right_bits)
    masks = [np.uint64((1 << bits) - 1) for bits in (left_bits, right_bits)]
    halves = [numbers >> shift, numbers & masks[1]]
    for turn in range(_ROUNDS):
        changed = turn % 2
        halves[changed] = halves[changed] ^ _hash(halves[1 - changed], keys[turn]) & masks[changed]
    return halves[0] << shift | halves[1]


def _hash(numbers: Places, key: np.uint64) -> Places:
    mixed = (numbers ^ key) * _MULTIPLIER
    mixed = (mixed ^ mixed >> np.uint64(32)) * _MULTIPLIER
    return mixed ^ mixed >> np.uint64(32)
