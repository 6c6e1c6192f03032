"""Count the tokens of a text without keeping them. Of a long text, count a sample and estimate the rest.

Counting is slower than reading, so `finetale check` of a large text would spend most of its time on it. The first
EXACT_BYTES are counted. Of what follows, one unit in SAMPLE_EVERY is counted: a short part, or a slice of a long one.
The others are estimated from their bytes, by the tokens per byte of the sample. The choice of the units comes from a
fixed seed, so the same text gives the same estimate. Examples with context are all counted. Knows nothing of models and
files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finetale.round_trip import TextSample
from finetale.text.documents import SPLITS, size_in_utf8
from finetale.tokenizing import Encoder
from finetale.tokenizing.batches import encode_parts
from finetale.tokens import begin_and_end, check_known, tokenizer_warnings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finetale.text import Part

EXACT_BYTES = 20_000_000
"""Number of bytes of text, in UTF-8, up to which all tokens are counted."""
SAMPLE_EVERY = 16
_FIRST_UNITS = 50
"""Number of units after EXACT_BYTES that are all counted, so that the error of the estimate can be computed."""
_SLICE_CHARACTERS = 20_000
_SEED = 1
_Z = 1.96  # 95% of a normal distribution


@dataclass
class TokenCount:
    """The tokens of a text.

    Attributes:
        account: tokens by use, as in the account of a token store.
        dropped: documents and tokens by the reason why they were dropped.
        warnings: warnings about the text and the tokenizer, as sentences.
        error: half of the width of the 95% interval of the tokens read. None if all tokens were counted.
    """

    account: dict[str, int]
    dropped: list[dict[str, Any]]
    warnings: list[str]
    error: int | None


@dataclass
class _Tally:
    """Tokens that were counted, bytes of the units that were not, and number of documents or parts."""

    tokens: int = 0
    bytes: int = 0
    parts: int = 0


@dataclass
class _Sample:
    """The units after EXACT_BYTES: (tokens, bytes) of those that were counted, and the number of all."""

    counted: list[tuple[int, int]] = field(default_factory=list)
    units: int = 0

    def rate(self) -> float:
        """Return the tokens per byte."""
        tokens, size = map(sum, zip(*self.counted, strict=True))
        return tokens / max(1, size)

    def error(self) -> int:
        """Return half of the width of the 95% interval of the estimated tokens (ratio estimator)."""
        number, rest = len(self.counted), self.units - len(self.counted)
        rate = self.rate()
        variance = sum((tokens - rate * size) ** 2 for tokens, size in self.counted) / max(1, number - 1)
        return math.ceil(_Z * math.sqrt(variance * rest * (1 + rest / number)))


class TokenCounter:
    """Counts the tokens of parts.

    Args:
        tokenizer: the tokenizer that defines the tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._encoder = Encoder(tokenizer)
        self._begin, self._end = begin_and_end(tokenizer)
        self._markers = {tokenizer.convert_ids_to_tokens(marker) for marker in (self._begin, self._end)}
        unknown = tokenizer.unk_token_id
        self._unknown = unknown if unknown not in (self._begin, self._end) else None
        self._seen = {"unknown": 0, "markers": 0, "ids": 0}
        self._text = TextSample()
        self._context = 0
        self._bytes = 0
        self._tallies = {split: _Tally() for split in SPLITS}
        self._dropped: dict[str, _Tally] = {}
        self._sample = _Sample()
        self._chosen = np.random.default_rng(_SEED).integers(0, SAMPLE_EVERY, 4096).tolist()  # by group of units

    def add(self, parts: Sequence[Part]) -> None:
        """Count parts of documents."""
        whole: list[Part] = []
        units: list[tuple[_Tally, str]] = []
        for part in parts:
            if part.dropped is None:
                self._text.add(part.text)
            size = len(part.text) if part.text.isascii() else size_in_utf8(part.text)
            self._bytes += size
            if self._bytes <= EXACT_BYTES or part.context:
                whole.append(part)
            else:
                units += self._choose_units(part, size)
        encoded, contexts = encode_parts(self._encoder, whole)
        self._watch([ids for part, ids in zip(whole, encoded, strict=True) if not part.is_example])
        self._watch([ids for part, ids in zip(whole, encoded, strict=True) if part.is_example], markers=False)
        for part, ids, unlearned in zip(whole, encoded, contexts, strict=True):
            tally = self._tally(part, bool(len(ids)))
            tally.tokens += len(ids) + part.ends if len(ids) else 0
            if part.dropped is None:
                context = sum(stop - start for start, stop in unlearned)
                tally.tokens -= context
                self._context += context
        encoded = self._encoder.encode([unit for _, unit in units])
        self._watch(encoded)
        for (tally, unit), ids in zip(units, encoded, strict=True):
            tally.tokens += len(ids)
            self._sample.counted.append((len(ids), size_in_utf8(unit)))

    def result(self) -> TokenCount:
        """Return the tokens of all parts.

        Raises:
            SourceError: there is no text.
            TokenizerError: more than a fifth of the text is unknown to the tokenizer.
        """
        seen = dict(self._seen)
        rate = self._sample.rate() if self._sample.counted else 0.0
        numbers = {name: self._estimate(tally, rate) for name, tally in self._tallies.items()}
        gone = {reason: self._estimate(tally, rate) for reason, tally in self._dropped.items()}
        read = sum(numbers.values()) + self._context + sum(gone.values())
        check_known(seen, self._tokenizer)
        estimated = self._sample.units > len(self._sample.counted)
        if estimated:
            seen["unknown"] = round(seen["unknown"] * read / max(1, seen["ids"]))
            seen["ids"] = read
        return TokenCount(
            {
                "read": read,
                "trained": numbers["train"],
                "validation": numbers["validation"],
                "test": numbers["test"],
                "watched": 0,  # with mixed or watched text, all tokens are counted in a store
                "context": self._context,
                "unused": 0,
                "dropped": sum(gone.values()),
            },
            [
                {"reason": reason, "documents": self._dropped[reason].parts, "tokens": number}
                for reason, number in sorted(gone.items())
            ],
            tokenizer_warnings(seen, self._tokenizer, self._text),
            self._sample.error() if estimated else None,
        )

    @staticmethod
    def _estimate(tally: _Tally, rate: float) -> int:
        return tally.tokens + round(tally.bytes * rate)

    def _tally(self, part: Part, has_tokens: bool) -> _Tally:
        """Return where the tokens of a part are counted, and count the part."""
        if part.dropped is None and has_tokens:
            tally = self._tallies[part.split]
        else:
            tally = self._dropped.setdefault(part.dropped or "empty", _Tally())
        tally.parts += 1
        return tally

    def _choose_units(self, part: Part, size: int) -> list[tuple[_Tally, str]]:
        """Return the units of a part that are to be counted, and where. Count the bytes of the others."""
        tally = self._tally(part, bool(part.text))
        tally.tokens += part.ends if part.text else 0
        chosen = [unit for unit in _units(part.text) if self._choose()]
        tally.bytes += size - sum(map(size_in_utf8, chosen))
        for marker in self._markers:
            if marker in part.text:
                self._seen["markers"] += part.text.count(marker) - sum(unit.count(marker) for unit in chosen)
        return [(tally, unit) for unit in chosen]

    def _choose(self) -> bool:
        """Return whether to count the next unit: one at random in each SAMPLE_EVERY."""
        number = self._sample.units
        self._sample.units += 1
        group, at = divmod(number, SAMPLE_EVERY)
        return number < _FIRST_UNITS or at == self._chosen[group % len(self._chosen)]

    def _watch(self, encoded: list[NDArray[np.int64]], *, markers: bool = True) -> None:
        """Count unknown ids and, unless a chat template wrote them, markers of the end of a text."""
        ids = np.concatenate([np.zeros(0, np.int64), *encoded])
        if self._unknown is not None:
            self._seen["unknown"] += int(np.count_nonzero(ids == self._unknown))
        if markers:
            self._seen["markers"] += int(np.count_nonzero((ids == self._begin) | (ids == self._end)))
        self._seen["ids"] += len(ids)


def look_ahead(parts: Iterator[Part]) -> tuple[Iterator[Part], bool]:
    """Return the parts, and whether they have more than EXACT_BYTES, after reading as many."""
    head: list[Part] = []
    size = 0
    for part in parts:
        head.append(part)
        size += size_in_utf8(part.text)
        if size > EXACT_BYTES:
            break
    head.reverse()

    def all_parts() -> Iterator[Part]:
        while head:
            yield head.pop()
        yield from parts

    return all_parts(), size > EXACT_BYTES


def _units(text: str) -> Iterator[str]:
    """Cut a long text into slices, before a space if there is one."""
    if len(text) <= _SLICE_CHARACTERS:
        yield text
        return
    start = 0
    while start < len(text):
        stop = start + _SLICE_CHARACTERS
        if stop < len(text) and (space := text.rfind(" ", start + 1, stop)) > 0:
            stop = space
        yield text[start:stop]
        start = stop
