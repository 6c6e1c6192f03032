"""Measure the baselines of a base model on held-out text: bits per byte of compressors and of a 5-gram model.

    python recipes/baselines.py TRAIN HELDOUT --tokenizer bundled

The compressors receive only the held-out text, as one stream. The 5-gram model is interpolated Kneser-Ney (Chen &
Goodman 1999) with one discount per order, counted on the tokens of TRAIN. Like the loss of a language model, its loss
counts every token of a document and one end-of-text token. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zstandard

from finetale import models, text, tokenizing, tokens
from finetale.config import TextSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]

_MIX = np.uint64(0x9E3779B97F4A7C15)  # an odd multiplier that spreads the bits of a hash


def texts_of(source: str) -> list[str]:
    """Return all documents of a source, not split."""
    settings = TextSettings(validation_fraction=0, test_fraction=0, long_document=10**9)
    parts, _ = text.read_parts((source,), settings)
    return [part.text for part in parts if part.dropped is None]


def compressors(texts: list[str]) -> dict[str, float]:
    """Return bits per byte of general compressors at a strong setting, with documents joined by a blank line."""
    data = "\n\n".join(texts).encode()
    sizes = {
        "gzip -9": len(gzip.compress(data, 9)),
        "xz -9e": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
        "zstd -19": len(zstandard.ZstdCompressor(level=19).compress(data)),
    }
    return {name: round(8 * size / len(data), 4) for name, size in sizes.items()}


@dataclass(frozen=True)
class Order:
    """Counts of the n-grams of one order, by hash. The context of an n-gram is its first n - 1 tokens."""

    grams: Hashes
    counts: NDArray[np.int64]
    contexts: Hashes
    totals: NDArray[np.int64]
    types: NDArray[np.int64]
    discount: float


class KneserNey:
    """An interpolated Kneser-Ney n-gram model over a stream of token ids.

    Args:
        stream: ids of the training text, shape (tokens,).
        vocabulary: number of ids.
        order: longest n-gram.
    """

    def __init__(self, stream: NDArray[np.int64], vocabulary: int, order: int) -> None:
        self.vocabulary = vocabulary
        hashes = _ngram_hashes(stream, order)
        self.orders: list[Order] = []
        for n in range(1, order + 1):
            grams, first, counts = np.unique(hashes[n], return_index=True, return_counts=True)
            if n < order:  # count the different tokens before an n-gram, not its occurrences
                _, longer = np.unique(hashes[n + 1], return_index=True)
                grams, first, counts = np.unique(hashes[n][longer], return_index=True, return_counts=True)
                first = longer[first]
            context, place = np.unique(_earlier(hashes[n - 1])[first], return_inverse=True)
            once, twice = int((counts == 1).sum()), int((counts == 2).sum())
            self.orders.append(
                Order(
                    grams,
                    counts,
                    context,
                    np.bincount(place, weights=counts).astype(np.int64),
                    np.bincount(place),
                    once / (once + 2 * twice) if once else 0.5,
                )
            )

    def losses(self, stream: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the negative log-likelihood of each token but the first in nats, shape (tokens - 1,)."""
        hashes = _ngram_hashes(stream, len(self.orders))
        probability = np.full(len(stream), 1 / self.vocabulary)
        for n, order in enumerate(self.orders, start=1):
            counts, _ = _look_up(order.grams, order.counts, hashes[n])
            before = _earlier(hashes[n - 1])
            totals, seen = _look_up(order.contexts, order.totals, before)
            types, _ = _look_up(order.contexts, order.types, before)
            total = np.maximum(totals, 1)
            mixed = np.maximum(counts - order.discount, 0) / total + order.discount * types / total * probability
            probability = np.where(seen, mixed, probability)
        losses: NDArray[np.float64] = -np.log(probability[1:])
        return losses


def _ngram_hashes(stream: NDArray[np.int64], order: int) -> list[Hashes]:
    """Return the hash of the n tokens that end at each position, for n = 0 to order, each of shape (tokens,)."""
    ids = stream.astype(np.uint64) + np.uint64(1)
    hashes = [np.zeros(len(stream), np.uint64)]
    for _ in range(order):
        mixed = _earlier(hashes[-1]) * _MIX + ids
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(32)
        hashes.append(mixed)
    return hashes


def _earlier(hashes: Hashes) -> Hashes:
    """Shift hashes by one position. The first is then 0, the hash of no tokens."""
    return np.concatenate([np.zeros(1, np.uint64), hashes[:-1]])


def _look_up(keys: Hashes, values: NDArray[np.int64], wanted: Hashes) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found: NDArray[np.bool_] = keys[place] == wanted
    return np.where(found, values[place], 0), found


def stream_of(texts: list[str], tokenizer: Any) -> NDArray[np.int64]:
    """Return the ids of all documents in one array, with an end-of-text token before the first and after each."""
    _, end = tokens.begin_and_end(tokenizer)
    pieces = [np.array([end])]
    for start in range(0, len(texts), 256):
        for ids in tokenizing.encode_batch(tokenizer, texts[start : start + 256]):
            pieces += [ids, np.array([end])]
    return np.concatenate(pieces).astype(np.int64)


def baselines(known: list[str], unseen: list[str], tokenizer: Any, order: int = 5) -> dict[str, float]:
    """Return bits per byte on unseen texts by name of the baseline."""
    model = KneserNey(stream_of(known, tokenizer), max(tokenizer.get_vocab().values()) + 1, order)
    nats = float(model.losses(stream_of(unseen, tokenizer)).sum())
    size = sum(len(item.encode()) for item in unseen)
    return compressors(unseen) | {f"{order}-gram, Kneser-Ney": round(nats / math.log(2) / size, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", help="text the base was trained on")
    parser.add_argument("heldout", help="other text")
    parser.add_argument("--tokenizer", default="bundled", help="bundled, a model folder, a run directory or a Hub id")
    arguments = parser.parse_args()
    tokenizer = models.load_tokenizer(arguments.tokenizer)
    print(json.dumps(baselines(texts_of(arguments.train), texts_of(arguments.heldout), tokenizer)))


if __name__ == "__main__":
    main()
