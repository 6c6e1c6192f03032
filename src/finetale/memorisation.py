"""Find the passages of the training text that a model has memorised. Knows nothing of reports.

A model has memorised a passage if, given the text before it, greedy decoding continues with exactly that passage. One
pass over the text finds all such passages: as long as every token is the likeliest one, generating and reading are the
same ("discoverable memorisation", Carlini et al. 2022, with prefixes of any length). Easily guessed passages do not
count. A passage has 8 tokens or more, and the base model must have given it a probability below 2^-64, which is that of
about 16 tokens of a story. Personal data is shorter, so passages of 4 tokens or more with a probability below 2^-20
are reported as well, for the caller to filter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetale import speed
from finetale.blocks import IGNORE, SEGMENT_DTYPE, Blocks, learned_targets, share_blocks, window_segments
from finetale.forward import PackedForward
from finetale.tokens import TokenStore

MIN_TOKENS, MIN_BITS = 8, 64.0
"""Minimum length of a memorised passage, and minimum bits that the base needs for it."""
MIN_TOKENS_OF_SHORT, MIN_BITS_OF_SHORT = 4, 20.0
"""The same for passages that count only if they are personal data."""
GUESSED_BITS = 4.0
"""Bits per token if there is no base with the same tokens: about what GPT-2 needs for stories."""

_MAX_NATS = 100.0
"""Limit on the loss of one token, so that sums stay finite."""

Progress = Callable[[int, int], None]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Passage:
    """A memorised passage: tokens[start : start + tokens] of the store, and the bits that its base needs for it."""

    part: int
    start: int
    tokens: int
    bits: float


@dataclass(frozen=True)
class Audit:
    """The result of an audit, with the passages that need the most bits first.

    Attributes:
        tokens: tokens that were looked through.
        of_tokens: tokens of the splits.
        passages: the memorised passages.
        short: passages that count only if they are personal data, because they are short or easy to guess.
    """

    tokens: int
    of_tokens: int
    passages: list[Passage]
    short: list[Passage]


def audit(
    after: PackedForward,
    before: PackedForward | None,
    store: TokenStore,
    splits: tuple[str, ...],
    *,
    window: int,
    budget: int,
    seed: int = 0,
    risk_first: bool = True,
    batch_size: int = 8,
    progress: Progress | None = None,
    between: Callable[[], None] | None = None,
) -> Audit:
    """Look for passages of some splits that a model has memorised.

    Args:
        after: the model to audit.
        before: the model it was trained from, with the same tokens. If None, each token counts 4 bits.
        window: tokens per window. Each token has at least a quarter of that as context, unless its document has less.
        budget: number of tokens to look through, drawn with `seed`.
        risk_first: look through personal data and repeats first.
        progress: called with (batches done, number of batches) of the pass over `after`.
        between: called between batches; may raise to stop.
    """
    parts = np.concatenate([store.parts_of(split) for split in splits])
    segments = window_segments(store, parts, window, max(1, window * 3 // 4))
    chosen = _choose(segments, store, budget, seed, risk_first=risk_first)
    places, hits = _read(
        after,
        share_blocks(store, window, chosen),
        batch_size,
        lambda forward, batch: forward.hits(batch).cpu().numpy(),
        progress,
        between,
    )
    runs = _runs(places, hits.astype(bool))
    bits = runs[:, 1] * GUESSED_BITS
    if before is not None and len(runs):
        first = chosen["start"] + chosen["skip"] + 1
        order = np.argsort(first)
        # All windows from the one in which a run begins to the one in which it ends.
        begin = np.searchsorted(first[order], runs[:, 0], "right") - 1
        end = np.searchsorted(first[order], runs.sum(axis=1) - 1, "right") - 1
        needed = order[np.unique(np.concatenate([np.arange(a, b + 1) for a, b in zip(begin, end, strict=True)]))]
        places, nats = _read(
            before,
            share_blocks(store, window, chosen[needed]),
            batch_size,
            lambda forward, batch: forward.token_losses(batch).cpu().double().numpy(),
            None,
            between,
        )
        # The base may give a token the probability 0.
        nats = np.nan_to_num(nats, nan=0.0, posinf=_MAX_NATS).clip(max=_MAX_NATS)
        sums = np.concatenate([[0.0], np.cumsum(nats)])
        starts = np.searchsorted(places, runs[:, 0])
        bits = (sums[starts + runs[:, 1]] - sums[starts]) / np.log(2)
    part_starts = store.parts["start"]
    order = np.argsort(-bits, kind="stable")
    found = [
        Passage(int(np.searchsorted(part_starts, start, "right")) - 1, start, length, round(float(each), 1))
        for (start, length), each in zip(runs[order].tolist(), bits[order].tolist(), strict=True)
        if each >= MIN_BITS_OF_SHORT
    ]
    passages = [passage for passage in found if passage.bits >= MIN_BITS and passage.tokens >= MIN_TOKENS]
    short = [passage for passage in found if passage.bits < MIN_BITS or passage.tokens < MIN_TOKENS]
    read = int(learned_targets(store, chosen).sum())
    return Audit(read, int(learned_targets(store, segments).sum()), passages, short)


def _choose(segments: NDArray[Any], store: TokenStore, budget: int, seed: int, *, risk_first: bool) -> NDArray[Any]:
    """Draw segments of about `budget` tokens; with `risk_first`, those with personal data first, then repeats."""
    order = np.random.default_rng(seed).permutation(len(segments))
    if risk_first:
        first, last = segments["start"] + segments["skip"] + 1, segments["start"] + segments["targets"]
        # A segment holds personal data if the first finding that ends after its start begins before its end.
        ends = np.append(store.personal[:, 1], np.iinfo(np.int64).max)
        begins = np.append(store.personal[:, 0], np.iinfo(np.int64).max)
        is_personal = begins[np.searchsorted(ends, first, "right")] <= last
        is_repeat = store.parts["is_repeat"][segments["part"]].astype(bool)
        rank = np.where(is_personal, 0, np.where(is_repeat, 1, 2))
        order = order[np.argsort(rank[order], kind="stable")]
    before = np.cumsum(learned_targets(store, segments)[order])
    number = int(np.searchsorted(before, budget)) + 1
    return np.sort(segments[order[:number]], order=["start", "skip"]).astype(SEGMENT_DTYPE)


def _read(
    forward: PackedForward,
    blocks: Blocks,
    batch_size: int,
    look: Callable[[PackedForward, Any], NDArray[Any]],
    progress: Progress | None,
    between: Callable[[], None] | None,
) -> tuple[Integers, NDArray[Any]]:
    """Return (places, values) of all targets in the blocks, in order of place."""
    places: list[Integers] = [np.zeros(0, np.int64)]
    values: list[NDArray[Any]] = [np.zeros(0)]
    model = forward.model
    was_training = model.training
    model.eval()
    starts = range(0, len(blocks), batch_size)
    try:
        with speed.kept_memory(), torch.inference_mode():
            for done, start in enumerate(starts, 1):
                if between is not None:
                    between()
                chosen = np.arange(start, min(start + batch_size, len(blocks)))
                batch = blocks.batch(chosen)
                counted = batch.labels != IGNORE
                values.append(look(forward, batch)[counted])
                places.append(blocks.places(chosen)[counted])
                if progress is not None:
                    progress(done, len(starts))
    finally:
        model.train(was_training)
    found, order = np.unique(np.concatenate(places), return_index=True)
    return found, np.concatenate(values)[order]


def _runs(places: Integers, hits: NDArray[np.bool_]) -> Integers:
    """Return (start, length) of each run of MIN_TOKENS_OF_SHORT or more hits in a row, shape (runs, 2)."""
    found = places[hits]
    if not len(found):
        return np.zeros((0, 2), np.int64)
    breaks = np.flatnonzero(np.diff(found) != 1) + 1
    starts = np.concatenate([[0], breaks])
    lengths = np.diff(np.concatenate([starts, [len(found)]]))
    runs = np.stack([found[starts], lengths], axis=1)
    return runs[lengths >= MIN_TOKENS_OF_SHORT]
