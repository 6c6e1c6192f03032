"""How much of the held-out text stands in the training text too, passage by passage. Knows nothing of documents' texts.

Documents that are alike as a whole are found while they are read; this finds what only has passages in common: a draft and
its revision, a quotation, a document that was cut so that its copy's other end is trained on. Windows of 32 tokens are
compared by hashes of 64 bits, so it takes time linear in the text and 8 bytes a held-out token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

WINDOW = 32
"""Tokens of the shortest passage: some 20 words, more than chance or a turn of phrase."""
_CHUNK = 1 << 22
_FILTER_BITS = 24
_MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD], np.uint64
)

Hashes = NDArray[np.uint64]


def shared_tokens(tokens: NDArray[Any], parts: NDArray[Any], train: int) -> NDArray[np.int64]:
    """For each part, how many of its tokens stand in passages that training parts hold too; 0 for training parts.

    Args:
        tokens: of all parts, one after the other; each begins with a token that is no target.
        parts: table with `start`, `targets` and `split`, in the order of the tokens.
        train: what `split` says of training parts.
    """
    shared = np.zeros(len(parts), np.int64)
    held_out = np.flatnonzero(parts["split"] != train)
    own = {}
    for part in held_out.tolist():
        start = int(parts["start"][part]) + 1
        own[part] = _hashes(tokens[start : start + int(parts["targets"][part])])
    wanted = np.unique(np.concatenate([np.zeros(0, np.uint64), *own.values()]))
    if not len(wanted) or len(held_out) == len(parts):
        return shared
    seen = np.zeros(len(wanted), bool)
    maybe = np.zeros(1 << _FILTER_BITS, bool)
    shift = np.uint64(64 - _FILTER_BITS)
    maybe[wanted >> shift] = True
    is_train = np.repeat(parts["split"] == train, parts["targets"] + 1)
    for start in range(0, len(tokens), _CHUNK):
        hashes = _hashes(tokens[start : start + _CHUNK + WINDOW - 1])
        # A window that runs into the next part holds the tokens between them, and so is in no text.
        hashes = hashes[is_train[start : start + len(hashes)]]
        hashes = hashes[maybe[hashes >> shift]]
        places = np.searchsorted(wanted, hashes).clip(max=len(wanted) - 1)
        seen[places[wanted[places] == hashes]] = True
    for part, hashes in own.items():
        hits = seen[np.searchsorted(wanted, hashes)]
        # A token is covered if one of the windows that hold it was seen.
        edges = np.zeros(len(hashes) + WINDOW, np.int64)
        edges[: len(hashes)] += hits
        edges[WINDOW:] -= hits
        shared[part] = int((np.cumsum(edges) > 0).sum())
    return shared


def _hashes(tokens: NDArray[Any]) -> Hashes:
    """A hash of each window of WINDOW tokens: of 2 tokens from those of 1, of 4 from those of 2, and so on."""
    hashes: Hashes = tokens.astype(np.uint64) * _MULTIPLIERS[0]
    size = 1
    for multiplier in _MULTIPLIERS:
        if len(hashes) <= size:
            return np.zeros(0, np.uint64)
        hashes = (hashes[:-size] ^ (hashes[:-size] >> np.uint64(29))) * multiplier + hashes[size:]
        size *= 2
    return hashes
