"""Choose passages of mixed text until each source has its share of the training tokens. Knows nothing of tokenizers.

The share is that of all training tokens per epoch, so one's own T tokens and a share s need T × s / (1 - s) tokens of
the source. A hash of each passage orders the passages, and the first ones are taken. So the choice is spread over the
whole source, more own text adds passages and replaces none, and a passage that is added to the source displaces one at
most. The last passage is cut, so that the share is met to a few tokens. Texts wait in a temporary file; memory holds
about 300 bytes per passage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from finetale.text import Part
from finetale.text.documents import digest_of


@dataclass(slots=True)
class _Held:
    """A passage that waits: its part without the text, the place of the text in the file, and its tokens.

    Attributes:
        order: hash of the text, by which passages are chosen.
        learned: number of its tokens that are learned.
    """

    part: Part
    start: int
    size: int
    order: bytes
    learned: int


class Mixture:
    """Holds back passages of mixed text, and gives those that are to be trained on.

    Use it as a context manager, which deletes its temporary file.

    Args:
        path: a new file for the texts.
        shares: by number of the source, its share of all training tokens, above 0; their sum is below 1.
    """

    def __init__(self, path: Path, shares: Sequence[float]) -> None:
        self._path = path
        self._file = path.open("w+b")
        self._shares = shares
        self._held: list[_Held] = []
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def hold(self, part: Part, learned: int) -> None:
        """Take in a passage. `learned` is the number of its tokens that are learned."""
        data = part.text.encode("utf-8", "surrogatepass")
        self._file.write(data)
        self._held.append(_Held(replace(part, text=""), self._end, len(data), digest_of(data), learned))
        self._end += len(data)

    def chosen(self, own: int) -> Iterator[Part]:
        """Yield the passages to train on, in the order in which they were read.

        Args:
            own: number of training tokens of the user's own text.
        """
        available = [0] * len(self._shares)
        for each in self._held:
            available[each.part.beside or 0] += each.learned
        wanted = wanted_tokens(own, self._shares, available)
        taken = [0] * len(self._shares)
        cuts: dict[int, float] = {}  # by index of a held passage, the share of it that is taken
        for index in sorted(range(len(self._held)), key=lambda index: self._held[index].order):
            each = self._held[index]
            source = each.part.beside or 0
            missing = wanted[source] - taken[source]
            if missing <= 0 or not each.learned:
                continue
            is_whole = each.learned <= missing
            if not is_whole and each.part.is_example:  # an example is never cut
                is_whole = 2 * missing >= each.learned
                taken[source] = wanted[source]
                if not is_whole:
                    continue
            cuts[index] = 1.0 if is_whole else missing / each.learned
            taken[source] += each.learned
        for index in sorted(cuts):
            yield from self._passage(self._held[index], cuts[index])

    def _passage(self, held: _Held, part_taken: float) -> Iterator[Part]:
        """Yield a passage, or its beginning up to a space."""
        self._file.seek(held.start)
        text = self._file.read(held.size).decode("utf-8", "surrogatepass")
        if part_taken >= 1:
            yield replace(held.part, text=text)
            return
        stop = round(len(text) * part_taken)
        stop = max(text.rfind(" ", stop // 2, stop + 1), text.rfind("\n", stop // 2, stop + 1)) if stop else 0
        stop = stop if stop > 0 else round(len(text) * part_taken)
        if text[:stop].strip():
            personal = tuple((a, min(b, stop)) for a, b in held.part.personal if a < stop)
            yield replace(held.part, text=text[:stop], ends=False, personal=personal)


def wanted_tokens(own: int, shares: Sequence[float], available: Sequence[int]) -> list[int]:
    """Return how many tokens of each source to train on.

    A source that has too little text is used whole. The shares of the others hold for the total that then results.

    Args:
        own: number of training tokens of the user's own text.
        shares: by source, its share of all training tokens.
        available: by source, the tokens that it has.
    """
    whole: set[int] = set()
    total = float(own)
    for source in sorted(range(len(shares)), key=lambda source: available[source] / shares[source]):
        rest = 1 - sum(share for number, share in enumerate(shares) if number not in whole)
        total = (own + sum(available[number] for number in whole)) / rest
        if available[source] >= shares[source] * total:
            break
        whole.add(source)
    return [available[n] if n in whole else round(share * total) for n, share in enumerate(shares)]
