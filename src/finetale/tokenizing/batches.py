"""Encode the parts of documents batch by batch, alone or with other processes. The result does not depend on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from itertools import chain

from finetale.text.documents import Part
from finetale.tokenizing import Encoder, Ids, joined, pieces_of
from finetale.tokenizing.processes import EncodingProcesses, EncodingStoppedError

BATCH_CHARACTERS = 1_000_000
ALONE_CHARACTERS = 4_000_000
"""Number of characters that are encoded before other processes are started, because their start takes a second."""
LONGEST_SENT = 8_000_000
"""Maximum number of characters of a batch for another process. Memory holds one long document at a time."""

EncodedParts = tuple[list[Ids], list[list[tuple[int, int]]]]
"""The ids of each part, and the ranges of its ids that are context."""
EncodedBatch = tuple[list[Part], list[Ids], list[list[tuple[int, int]]]]


def batches(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Group parts into batches of about one million characters, or 4,096 parts."""
    batch: list[Part] = []
    size = 0
    for part in parts:
        batch.append(part)
        size += len(part.text)
        if size >= BATCH_CHARACTERS or len(batch) >= 4096:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode_parts(encoder: Encoder, batch: list[Part]) -> EncodedParts:
    """Encode parts. Drop parts that can't be masked."""
    running = iter(encoder.encode([part.text for part in batch if not part.context]))
    encoded, contexts = [], []
    for part in batch:
        example = encoder.encode_example(part.text, part.context) if part.context else (next(running), [])
        if example is None:
            part.dropped = part.dropped or "prompt and answer share a token"
            example = (encoder.encode([part.text])[0], [])
        encoded.append(example[0])
        contexts.append(example[1])
    return encoded, contexts


def encoded_batches(
    encoder: Encoder, grouped: Iterator[list[Part]], processes: int, warn: Callable[[str], None]
) -> Generator[EncodedBatch, None, None]:
    """Yield batches with the results of `encode_parts`, in order. Of a long text, other processes encode most.

    If one of the processes ends early, or can't be started, this process encodes the rest.

    Args:
        processes: number of other processes.
        warn: called with a sentence if one of them ends early.
    """
    done = 0
    for batch in grouped:
        done += _size(batch)
        yield (batch, *encode_parts(encoder, batch))
        if processes and done > ALONE_CHARACTERS and encoder.is_settled:
            break
    else:
        return
    del batch
    waiting: deque[tuple[list[Part], Future[list[Ids]]]] = deque()
    try:
        with EncodingProcesses(encoder.rules, processes) as others:
            for batch in grouped:
                if _size(batch) > LONGEST_SENT:
                    while waiting:
                        yield _first(waiting)
                    yield (batch, *encode_parts(encoder, batch))
                    continue
                pieces = [piece for part in batch for piece in pieces_of(part.text, part.context)]
                waiting.append((batch, others.encode(pieces)))
                if len(waiting) > processes:
                    yield _first(waiting)
            while waiting:
                yield _first(waiting)
    except EncodingStoppedError as error:
        warn(f"A process that tokenises the text {error}. The rest is tokenised without it.")
    for batch in chain((batch for batch, _ in waiting), grouped):
        yield (batch, *encode_parts(encoder, batch))


def _first(waiting: deque[tuple[list[Part], Future[list[Ids]]]]) -> EncodedBatch:
    """Wait for the first batch. It is removed if its process has encoded it."""
    batch, future = waiting[0]
    ids = iter(future.result())
    waiting.popleft()
    pairs = []
    for part in batch:
        pieces = [next(ids) for _ in pieces_of(part.text, part.context)]
        pairs.append(joined(pieces, part.text, part.context))
    return batch, [encoded for encoded, _ in pairs], [context for _, context in pairs]


def _size(batch: list[Part]) -> int:
    return sum(len(part.text) for part in batch)
