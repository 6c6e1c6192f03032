"""Guess the languages of a text from its script and its most frequent words. Knows nothing of documents.

charset-normalizer's coherence measure took a page of German for Swedish, and found no language in Chinese.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

SAMPLE_DOCUMENTS = 20
SAMPLE_CHARACTERS = 2000
MIN_CHARACTERS = 40  # a guess from a shorter document is unreliable

SCRIPTS = {
    "Japanese": re.compile("[\u3041-\u30ff]"),
    "Korean": re.compile("[\uac00-\ud7a3]"),
    "Chinese": re.compile("[\u4e00-\u9fff]"),
    "Greek": re.compile("[\u0370-\u03ff]"),
    "Hebrew": re.compile("[\u05d0-\u05ea]"),
    "Arabic script": re.compile("[\u0620-\u06ff]"),
    "Devanagari": re.compile("[\u0900-\u097f]"),
    "Thai": re.compile("[\u0e01-\u0e5b]"),
}
COMMON_WORDS = {
    "English": "the and of to a in was he that it his with as for had you she not but on",
    "German": "der die und das den dem ich nicht sie er es ist war ein eine zu mit sich auf von",
    "French": "le la les et des un une est que qui il elle dans pas pour ne ce en du je",
    "Spanish": "el la los las que y en de un una no se su por con para como lo más era",
    "Italian": "il la che di e un una non per si con le era del della gli come ma mi lo",
    "Portuguese": "o a que e de um uma não se do da os as em para com ele ela mas por",
    "Dutch": "de het een en van ik hij dat niet was zijn op te met voor er maar ze aan in",
    "Swedish": "och att det som en på är av för jag han den inte var med till hon sig de men",
    "Danish": "og at det der en på er af for jeg han den ikke var med til hun sig de men",
    "Polish": "i w nie na się że z do to jest jak co był po ale za od tak go już",
    "Czech": "a se na v je že to s z do byl ale jak tak by po pro si jsem co",
    "Turkish": "bir ve bu da de için ne çok ama gibi o ben daha var mi diye kadar olan her sonra",
    "Russian": "и в не на что я он с как это то она а но все его так был по из",
    "Ukrainian": "і в не на що я він з як це та вона а але її його так був по до",
}
WORD_SETS = {language: frozenset(words.split()) for language, words in COMMON_WORDS.items()}
WORD = re.compile(r"[^\W\d_]+")


def guess_language(text: str) -> str | None:
    """Return the name of the most likely language, or None if no language is likely."""
    num_letters = sum(1 for character in text if character.isalpha())
    for name, pattern in SCRIPTS.items():
        # Kana are a minority of the letters of Japanese, so the threshold is low, and Japanese comes before Chinese.
        if num_letters and len(pattern.findall(text)) > 0.15 * num_letters:
            return name
    words = WORD.findall(text.lower())
    hits = {language: sum(word in common for word in words) for language, common in WORD_SETS.items()}
    best = max(hits, key=lambda language: hits[language])
    return best if len(words) >= 5 and hits[best] >= 0.1 * len(words) else None


class LanguageSample:
    """The beginnings of the documents with the smallest hashes. The sample does not depend on the documents' order."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, str]] = []

    def offer_all(self, digests: Sequence[bytes], texts: Sequence[str]) -> None:
        """Add the documents with small enough hashes to the sample."""
        if len(self._heap) < SAMPLE_DOCUMENTS:
            chosen: Iterable[int] = range(len(digests))
        else:
            largest = (-self._heap[0][0]).to_bytes(8, "big")
            chosen = [number for number, digest in enumerate(digests) if digest < largest]
        for number in chosen:
            self._offer(digests[number], texts[number])

    def _offer(self, digest: bytes, text: str) -> None:
        if len(text) < MIN_CHARACTERS:
            return
        key = -int.from_bytes(digest[:8], "big")
        if len(self._heap) < SAMPLE_DOCUMENTS:
            heapq.heappush(self._heap, (key, text[:SAMPLE_CHARACTERS]))
        elif key > self._heap[0][0]:
            heapq.heapreplace(self._heap, (key, text[:SAMPLE_CHARACTERS]))

    def to_list(self) -> list[dict[str, Any]]:
        """Return the languages of the sampled documents, most frequent first."""
        found = Counter(guess_language(text) or "unknown" for _, text in self._heap)
        return [{"language": name, "sampled_documents": count} for name, count in found.most_common()]
