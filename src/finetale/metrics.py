"""Model + Blocks → sums and counts, and what follows from them. Knows nothing of reports.

Every figure is a sum divided by a count: nats a token (the loss), perplexity a token = exp(nats / tokens), perplexity a
word = exp(nats / words), bits a byte = nats / ln 2 / bytes (UTF-8). Intervals are percentile bootstraps (Efron 1979)
over documents, or over pieces of text where there are fewer than 20 documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetale import speed
from finetale.blocks import IGNORE, Blocks
from finetale.forward import PackedForward

PIECE = 128
MIN_DOCUMENTS = 20
_LARGEST_EXPONENT = 700.0

Floats = NDArray[np.float64]
Reduce = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Measurement:
    """Sums over one text.

    Per part of the text (documents, or parts of cut documents): `nats`, `tokens`, `words`, `bytes`; per piece of PIECE
    consecutive targets: `piece_nats`, `piece_tokens`. All arrays are float64.
    """

    nats: Floats
    tokens: Floats
    words: Floats
    bytes: Floats
    piece_nats: Floats
    piece_tokens: Floats

    @property
    def loss(self) -> float:
        """Nats a token."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def unit(self) -> str:
        """What the bootstrap draws: "document" or "piece"."""
        return "document" if len(self.nats) >= MIN_DOCUMENTS else "piece"

    def units(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Nats, tokens, words and bytes of each unit; pieces take their share of words and bytes by tokens."""
        if self.unit == "document":
            return self.nats, self.tokens, self.words, self.bytes
        share = self.piece_tokens / self.tokens.sum()
        return self.piece_nats, self.piece_tokens, share * self.words.sum(), share * self.bytes.sum()

    def summary(self, samples: int = 1000, seed: int = 0) -> dict[str, Any]:
        """Loss, perplexity, word perplexity and bits a byte with 95% intervals, and the counts behind them."""
        nats, tokens, words, size = (float(a.sum()) for a in (self.nats, self.tokens, self.words, self.bytes))
        drawn = bootstrap_sums(self.units(), samples, seed)
        return _figures(nats, tokens, words, size) | {
            "tokens": int(tokens),
            "words": int(words),
            "bytes": int(size),
            "documents": len(self.nats),
            "interval_unit": self.unit,
            "interval": _interval(*drawn) if len(self.units()[0]) > 1 else None,
        }


def measure(
    forward: PackedForward,
    blocks: Blocks,
    *,
    batch_size: int = 8,
    rank: int = 0,
    world: int = 1,
    reduce: Reduce | None = None,
    progress: Callable[[int, int], None] | None = None,
    between: Callable[[], None] | None = None,
) -> Measurement:
    """Sum the losses of all targets in blocks.

    Args:
        rank, world: this process takes every world-th batch.
        reduce: sums an array over processes.
        progress: told (batches done, batches).
        between: called between batches; may raise to stop.
    """
    num_parts = len(blocks.store.parts)
    num_pieces = -(-blocks.num_targets // PIECE)
    nats, counts = np.zeros(num_parts), np.zeros(num_parts)
    piece_nats, piece_counts = np.zeros(num_pieces), np.zeros(num_pieces)
    starts = list(range(0, len(blocks), batch_size))
    net = blocks.segments["targets"] - blocks.segments["skip"]
    sizes = np.concatenate([[0], np.cumsum(np.add.reduceat(net, blocks.offsets[:-1]))]).astype(np.int64)
    model = forward.model
    was_training = model.training
    model.eval()
    try:
        with speed.kept_memory(), torch.inference_mode():
            for done, start in enumerate(starts):
                if between is not None:
                    between()
                if done % world != rank:
                    continue
                chosen = np.arange(start, min(start + batch_size, len(blocks)))
                batch = blocks.batch(chosen)
                losses = forward.token_losses(batch).double().cpu().numpy()  # (batch, time)
                counted = batch.labels != IGNORE
                ids, where = np.unique(batch.parts[counted], return_inverse=True)
                nats[ids] += np.bincount(where, losses[counted])
                counts[ids] += np.bincount(where)
                pieces = (sizes[start] + np.arange(int(counted.sum()))) // PIECE
                first, last = int(pieces[0]), int(pieces[-1]) + 1
                piece_nats[first:last] += np.bincount(pieces - first, losses[counted])
                piece_counts[first:last] += np.bincount(pieces - first)
                if progress is not None:
                    progress(done + 1, len(starts))
    finally:
        model.train(was_training)
    if reduce is not None:
        nats, counts, piece_nats, piece_counts = (reduce(a) for a in (nats, counts, piece_nats, piece_counts))
    table = blocks.store.parts
    present = np.flatnonzero(counts)
    return Measurement(
        nats[present],
        counts[present],
        np.asarray(table["words"][present], np.float64),
        np.asarray(table["bytes"][present], np.float64),
        piece_nats,
        piece_counts,
    )


def bootstrap_sums(units: tuple[Floats, ...], samples: int, seed: int) -> list[Floats]:
    """Sums over bootstrap draws of units, the same draws for every array; each result has shape (samples,)."""
    number = len(units[0])
    stacked = np.stack(units, axis=1)  # (units, arrays)
    rng = np.random.default_rng(seed)
    sums = np.empty((samples, len(units)))
    for row in range(samples):
        sums[row] = np.bincount(rng.integers(0, number, number), minlength=number) @ stacked
    return list(sums.T)


def change(
    before: Measurement, after: Measurement, *, by_word: bool, samples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Change of perplexity in percent (negative is better), with a paired 95% interval.

    Args:
        by_word: compare perplexity a word, for models of different tokenizers; else a token.

    The interval draws the same documents for both models. It is None where they can't be paired: fewer than 20 documents
    and different tokenizers, or a single unit.
    """
    paired = before.unit == "document" or not by_word
    denominators = (before.words, after.words) if by_word else (before.tokens, after.tokens)
    log_ratio = after.nats.sum() / denominators[1].sum() - before.nats.sum() / denominators[0].sum()
    units_before, units_after = before.units(), after.units()
    interval = None
    if paired and len(units_before[0]) == len(units_after[0]) > 1:
        index = 2 if by_word else 1
        sums = bootstrap_sums((units_before[0], units_before[index], units_after[0], units_after[index]), samples, seed)
        ratios = _percent(sums[2] / sums[3] - sums[0] / sums[1])
        interval = [float(value) for value in np.percentile(ratios, [2.5, 97.5])]
    return {
        "percent": float(_percent(np.array(log_ratio))),
        "interval": interval,
        "excludes_zero": None if interval is None else interval[0] > 0 or interval[1] < 0,
        "per": "word" if by_word else "token",
    }


def perplexity(loss: float) -> float:
    """exp(loss), kept finite so that it can be written as JSON."""
    return math.exp(min(loss, _LARGEST_EXPONENT))


def _percent(log_ratio: Floats) -> Floats:
    return 100.0 * np.expm1(np.minimum(log_ratio, _LARGEST_EXPONENT))


def _figures(nats: float, tokens: float, words: float, size: float) -> dict[str, float]:
    return {
        "loss": nats / tokens,
        "perplexity": perplexity(nats / tokens),
        "word_perplexity": perplexity(nats / max(words, 1.0)),
        "bits_per_byte": nats / math.log(2) / max(size, 1.0),
    }


def _interval(nats: Floats, tokens: Floats, words: Floats, size: Floats) -> dict[str, list[float]]:
    rows = [_figures(*values) for values in zip(nats, tokens, words, size, strict=True)]
    return {
        name: [float(value) for value in np.percentile([row[name] for row in rows], [2.5, 97.5])] for name in rows[0]
    }
