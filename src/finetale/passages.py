"""Measure how much of the held-out text also occurs in the training text, by passages. Knows nothing of tokens.

Reading finds documents that repeat as a whole. This finds documents that share passages: a draft and its revision, a
quotation, a document that was cut so that its other end is trained on. The unit is a word, or one character of Chinese
and Japanese, without regard to case, punctuation and white space. The result therefore does not depend on a tokenizer.

Words are kept as hashes of 32 bits in temporary files, 4 bytes per word. Windows of WINDOW words are compared by hashes
of 64 bits. Memory is 300 MB at most, plus 8 bytes for each different window in common and a bit for each held-out word.
Time is linear in the text up to about a gigabyte. Beyond that the files are read several times, each time for another
range of the hashes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from finetale.schema import SharedPassages, SharedText
from finetale.text.words import SYLLABLES, unit_of

WINDOW = 20
"""Number of words of the shortest passage that counts. It is longer than a coincidence or a common phrase."""
_SPLITS = ("train", "validation", "test", "watched")
_CHARACTERS = 1 << 18
"""Number of characters that are hashed at once. They fit into the processor's cache."""
_CHUNK = 1 << 20
"""Number of windows that are compared at once."""
_CHUNK_BEFORE = 32
"""Number of windows before a chunk that can reach into it, rounded up to whole bytes of bits."""
_MIN_BITS, _MAX_BITS = 16, 30
_MAX_CANDIDATES = 1 << 22
"""Expected number of windows of the training text that share a bit of the table with held-out text by chance."""
_BREAK = "\x1e"
"""Ends a part. Its hash is 0, which no word has."""
_TABLE_SIZE = 0x32400
"""Number of characters in the tables. No assigned character above them is part of a word."""
_IDEOGRAPHS_OF_PLANES_2_AND_3 = 0x20000
_WITHOUT_SPACES = (range(0x0E00, 0x0F00), range(0x1000, 0x10A0), range(0x1780, 0x1800))
"""Thai and Lao, Burmese, Khmer. Their vowel signs count as separators, because a sentence would be one word."""
_SAMPLE_CHARACTERS = 1_000
"""Number of characters of each piece by which its unit is recognised."""
_BASE = 0x9E3779B97F4A7C15
_MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD], np.uint64
)

Hashes = NDArray[np.uint64]
Words = NDArray[np.uint32]


class PassageFinder:
    """Collect the words of all parts, then compare the splits.

    Use it as a context manager, which deletes its temporary files.

    Args:
        folder: an existing folder for the temporary files.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = {split: folder / f".{split}.words.tmp" for split in _SPLITS}
        self._files = {split: path.open("w+b") for split, path in self._paths.items()}
        self._words = dict.fromkeys(_SPLITS, 0)
        self._sampled = {"word": 0, "character": 0}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for split, file in self._files.items():
            file.close()
            self._paths[split].unlink(missing_ok=True)

    def add(self, parts: Sequence[tuple[str, str]]) -> None:
        """Add parts of documents, as (split, text). Adding many short ones at once is faster."""
        by_split: dict[str, list[str]] = {}
        for split, text in parts:
            by_split.setdefault(split, []).append(text)
        for split, texts in by_split.items():
            for piece in _pieces(texts):
                hashes = word_hashes(piece)
                number = int(np.count_nonzero(hashes))
                self._words[split] += number
                self._sampled[unit_of(piece[:_SAMPLE_CHARACTERS])] += number
                self._files[split].write(hashes.tobytes())

    def compare(self) -> SharedPassages:
        """Count the words of validation, test and watched text in passages that also occur in the training text."""
        for file in self._files.values():
            file.flush()
        held_out = _SPLITS[1:]
        number = sum(self._words[split] for split in held_out)
        # By split, a bit for each window that also occurs in the training text.
        hits = {split: np.zeros(-(-self._paths[split].stat().st_size // 32), np.uint8) for split in held_out}
        if number and self._words["train"]:
            size, range_bits = _size_of_table(self._words["train"], number)
            for number_of_range in range(1 << range_bits):
                common = self._common(size, range_bits, number_of_range)
                for split in held_out:
                    self._mark(split, common, hits[split])
        validation, test, watched = (
            SharedText(words=self._words[split], shared=self._covered(split, hits[split])) for split in held_out
        )
        unit = "characters" if self._sampled["character"] > self._sampled["word"] else "words"
        shared = SharedPassages(unit=unit, window=WINDOW, validation=validation, test=test)
        return shared.model_copy(update={"watched": watched}) if watched.words else shared

    def _common(self, size: int, range_bits: int, number: int) -> Hashes:
        """Return the hashes of those windows of the training text that may also be in held-out text, ascending.

        A bit table, indexed by bits of a hash, marks the windows of the held-out text.

        Args:
            size: the table has 2 to this power bits.
            range_bits: number of the first bits of a hash that are the number of its range.
            number: the range to which the hashes are restricted.
        """
        bits = np.zeros(1 << size - 3, np.uint8)

        def within(hashes: Hashes) -> Hashes:
            return hashes[hashes >> np.uint64(64 - range_bits) == number] if range_bits else hashes

        def places_of(hashes: Hashes) -> NDArray[np.int64]:
            places: NDArray[np.int64] = (hashes << np.uint64(range_bits) >> np.uint64(64 - size)).astype(np.int64)
            return places

        for split in _SPLITS[1:]:
            for words, hashes in self._windows(split):
                places = places_of(within(hashes[_is_whole(words)]))
                for bit in range(8):  # one bit at a time, because |= ignores repeated places
                    bits[places[places & 7 == bit] >> 3] |= np.uint8(1 << bit)
        found: list[Hashes] = [np.zeros(0, np.uint64)]
        for _, hashes in self._windows("train"):
            hashes = within(hashes)
            places = places_of(hashes)
            # A window across two parts holds a break, so it equals no window of held-out text.
            found.append(hashes[bits[places >> 3] >> (places & 7).astype(np.uint8) & 1 == 1])
            if sum(map(len, found[1:])) > _MAX_CANDIDATES:
                found = [np.unique(np.concatenate(found))]
        return np.unique(np.concatenate(found))

    def _mark(self, split: str, common: Hashes, hits: NDArray[np.uint8]) -> None:
        """Set the bit of each window of a split whose hash is in `common`."""
        if not len(common):
            return
        for start, (words, hashes) in zip(range(0, 8 * len(hits), _CHUNK), self._windows(split), strict=True):
            places = np.searchsorted(common, hashes).clip(max=len(common) - 1)
            found = np.packbits((common[places] == hashes) & _is_whole(words))
            hits[start // 8 : start // 8 + len(found)] |= found

    def _covered(self, split: str, hits: NDArray[np.uint8]) -> int:
        """Count the words of a split that are within a window whose bit is set."""
        covered = 0
        number = self._paths[split].stat().st_size // 4
        for start in range(0, number if hits.any() else 0, _CHUNK):
            first = max(0, start - _CHUNK_BEFORE)
            stop = min(start + _CHUNK, number)
            is_hit = np.unpackbits(hits[first // 8 : -(-stop // 8)])[: stop - first]
            edges = np.zeros(len(is_hit) + WINDOW, np.int64)
            edges[: len(is_hit)] += is_hit
            edges[WINDOW:] -= is_hit
            covered += int(np.count_nonzero(np.cumsum(edges)[start - first : stop - first]))
        return covered

    def _windows(self, split: str) -> Iterator[tuple[Words, Hashes]]:
        """Yield words, and the hashes of the _CHUNK windows that begin at them."""
        file, path = self._files[split], self._paths[split]
        number = path.stat().st_size // 4
        for start in range(0, number, _CHUNK):
            file.seek(4 * start)
            words = np.frombuffer(file.read(4 * (_CHUNK + WINDOW - 1)), np.uint32)
            yield words, _window_hashes(words)


def _size_of_table(trained: int, held_out: int) -> tuple[int, int]:
    """Return (size, range_bits) for `_common`, so that few windows of the training text are found by chance.

    Args:
        trained: number of words of the training text.
        held_out: number of words of all other text.
    """
    by_chance = trained * held_out // _MAX_CANDIDATES
    size = min(max(_MIN_BITS, (64 * held_out - 1).bit_length(), by_chance.bit_length()), _MAX_BITS)
    return size, max(0, -((size - by_chance.bit_length()) // 2))


def word_hashes(text: str) -> Words:
    """Hash each word of a text, in order: 0 for a _BREAK, never 0 for a word."""
    terms, inside, single, is_break = _terms(text.replace("'", "").replace("’", ""))
    # A word begins if the previous character is not part of a word, or if one of the two is a single-character word.
    border = np.ones(len(inside) + 1, bool)
    border[1:-1] = ~(inside[1:] & inside[:-1]) | single[1:] | single[:-1]
    starts = np.flatnonzero(inside & border[:-1])
    stops = np.flatnonzero(inside & border[1:]) + 1
    sums = np.zeros(len(terms) + 1, np.uint64)
    np.cumsum(terms, out=sums[1:])
    _, inverses = _powers()
    mixed = (sums[stops] - sums[starts]) * inverses[starts]
    mixed = (mixed ^ mixed >> np.uint64(29)) * _MULTIPLIERS[1]
    hashes: Words = np.maximum((mixed >> np.uint64(32)).astype(np.uint32), 1)
    hashes[is_break[starts]] = 0
    return hashes


def _terms(text: str) -> tuple[Hashes, NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return, for each character, its term in the hash of its word, and whether it is in a word, alone, and a _BREAK.

    ASCII characters take a path with arrays of bytes, which is faster; the others are then filled in.
    """
    powers = _powers()[0][: len(text)]
    if text.isascii():
        values = np.frombuffer(text.encode().translate(_ascii_table()), np.uint8)
        is_break = values == ord(_BREAK)
        return values * powers, values != 0, is_break, is_break
    lower, alone = _tables()
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    outside = np.flatnonzero(codes > 127)
    if 4 * len(outside) > len(codes):
        codes = np.minimum(codes, _TABLE_SIZE - 1)
        wide = lower[codes]
        return wide * powers, wide != 0, alone[codes], codes == ord(_BREAK)
    narrow = codes.astype(np.uint8)
    narrow[outside] = 0
    values = np.frombuffer(narrow.tobytes().translate(_ascii_table()), np.uint8)
    is_break = values == ord(_BREAK)
    terms, inside, single = values * powers, values != 0, is_break.copy()
    codes = np.minimum(codes[outside], _TABLE_SIZE - 1)
    terms[outside] = lower[codes] * powers[outside]
    inside[outside] = lower[codes] != 0
    single[outside] = alone[codes]
    return terms, inside, single, is_break


def _pieces(texts: Sequence[str]) -> Iterator[str]:
    """Yield texts, each with a _BREAK at its end, in pieces of about _CHARACTERS. Texts in ASCII come first."""
    for is_ascii in (True, False):
        group: list[str] = []
        size = 0
        for text in texts:
            if text.isascii() is not is_ascii:
                continue
            if len(text) >= _CHARACTERS:
                yield from _cut(text)
                yield _BREAK
                continue
            if size + len(text) >= _CHARACTERS:
                yield _BREAK.join(group) + _BREAK
                group, size = [], 0
            group.append(text)
            size += len(text) + 1
        if group:
            yield _BREAK.join(group) + _BREAK


def _cut(text: str) -> Iterator[str]:
    """Cut a text into pieces of about _CHARACTERS, between words where there is a space or a line break."""
    start = 0
    while start < len(text):
        stop = start + _CHARACTERS
        if stop < len(text):
            stop = max(text.rfind(" ", start, stop), text.rfind("\n", start, stop), text.rfind(_BREAK, start, stop)) + 1
            if stop <= start:
                stop = start + _CHARACTERS
        yield text[start:stop]
        start = stop


def _is_whole(words: Words) -> NDArray[np.bool_]:
    """Return, for each word, whether the window that begins there is within one part."""
    breaks = np.concatenate([[0], np.cumsum(words == 0)])
    whole: NDArray[np.bool_] = breaks[WINDOW:] == breaks[: max(0, len(breaks) - WINDOW)]
    return whole


def _window_hashes(words: Words) -> Hashes:
    """Hash each window of WINDOW words. Windows of 2, 4, 8 and 16 words are made from halves, the last from 16 + 4."""
    hashes: Hashes = words.astype(np.uint64) * _MULTIPLIERS[0]
    of_four = hashes
    for multiplier, size in zip(_MULTIPLIERS[:4], (1, 2, 4, 8), strict=True):
        hashes = _join(hashes, hashes, size, multiplier)
        if size == 2:
            of_four = hashes
    return _join(hashes, of_four, 16, _MULTIPLIERS[4])


def _join(first: Hashes, second: Hashes, size: int, multiplier: np.uint64) -> Hashes:
    """Hash windows of `size` words together with the windows of `second` that follow them."""
    following = second[size:]
    before = first[: len(following)]
    joined: Hashes = (before ^ before >> np.uint64(29)) * multiplier + following
    return joined


@cache
def _ascii_table() -> bytes:
    """Return the value of each byte: an ASCII character in lower case, or 0 if it is in no word."""
    word = [code for code in range(128) if chr(code).isalnum() or chr(code) in ("_", _BREAK)]
    return bytes(ord(chr(code).lower()) if code in word else 0 for code in range(256))


@cache
def _tables() -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return (value of each character in lower case, 0 outside of words; whether it is a single-character word)."""
    lower = np.zeros(_TABLE_SIZE, np.uint64)
    alone = np.zeros(_TABLE_SIZE, bool)
    for code in range(_TABLE_SIZE - 1):
        character = chr(code)
        if character.isalnum() or character == "_":
            lowered = character.lower()
            lower[code] = ord(lowered) if len(lowered) == 1 else code
        elif unicodedata.category(character)[0] == "M" and not any(code in script for script in _WITHOUT_SPACES):
            lower[code] = code
    alone[_IDEOGRAPHS_OF_PLANES_2_AND_3:] = True
    for match in re.finditer(f"[{SYLLABLES}]", "".join(map(chr, range(0x10000)))):
        alone[match.start()] = True
    lower[ord(_BREAK)] = ord(_BREAK)
    alone[ord(_BREAK)] = True
    return lower, alone


@cache
def _powers() -> tuple[Hashes, Hashes]:
    """Return (powers of _BASE, powers of its inverse) modulo 2^64, starting with power 0."""
    factors = np.full((2, _CHARACTERS + 1), [[_BASE], [pow(_BASE, -1, 1 << 64)]], np.uint64)
    factors[:, 0] = 1
    powers, inverses = np.cumprod(factors, axis=1, dtype=np.uint64)
    return powers, inverses
