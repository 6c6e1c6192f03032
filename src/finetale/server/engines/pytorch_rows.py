"""Rows of a transformers model in PyTorch: the reference for every other engine."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from finetale.export import tracing
from finetale.generate.reading import STATES, cache_name, new_cache
from finetale.models import adapter_hooks
from finetale.models.adapter_hooks import LoadedAdapter
from finetale.server.engines import NoRoom
from finetale.server.engines.prefixes import SIZE, Prefixes
from finetale.server.engines.slots import SlotCache
from finetale.speed import attention

ALL_THREADS = torch.get_num_threads()
"""Number of torch threads at import, before a worker changes it; later threads would inherit the changed number."""
_FEWEST_COLUMNS = 128
_KEPT_BYTES = 2**28
"""Memory that beginnings of texts may take in any case if there is no limit."""


class TorchRows:
    """Rows of different lengths in one pass, for models whose code supports it.

    A row is in the cache for texts of up to 128, 256, 512 … tokens, and moves to the next one when it is full. A pass
    reads the rows of one cache. They may have different adapters. Copies of keys and values are kept for texts
    that begin alike, while their memory is not needed.

    Args:
        model: a causal language model that takes position_ids, a four-dimensional mask and a cache.
        context: maximum tokens per row.
        slots: maximum number of rows.
        memory: maximum bytes of keys and values; one row of `context` tokens may exceed it. None for no limit of the
            rows; beginnings of texts then take at most as much as the rows took, or 256 MiB.
    """

    name = "torch"
    threads = ALL_THREADS
    takes_adapters = True
    block = 32  # matrix products of 8 tokens take as long
    mixes = False

    def __init__(self, model: PreTrainedModel, *, context: int, slots: int = 16, memory: int | None = None) -> None:
        self.model = model.eval()
        self.slots = slots
        self._context = context
        self._memory = memory
        self._caches: dict[int, SlotCache] = {}  # by number of columns
        self._rows: list[tuple[SlotCache, int]] = []  # the cache of each row, and its number there
        self._adapters: list[LoadedAdapter | None] = []  # of each row
        self._texts: list[list[int]] = []  # of each row, as far as it is read
        self._kept = Prefixes()
        self._column_bytes = 0  # of one token's keys and values; 0 before the first pass
        self._most_bytes = 0  # of the rows since the last rest
        kind = getattr(model.config.get_text_config(), "_attn_implementation", "")
        # Eager attention adds its mask to the scores. PyTorch's takes a boolean mask too, which it would convert to
        # numbers in each layer.
        self._adds_mask = kind in ("eager", "sdpa", attention.NAME)
        if model.device.type == "cpu":
            # With a mask, transformers would copy the keys and values for each query head, for fear of a slow kernel on
            # GPUs. 32 tokens after 8,000 take a third of the time without the copy.
            os.environ.setdefault(tracing.GROUPED_HEADS, "1")

    def join(self, ids: Sequence[int] = (), adapter: LoadedAdapter | None = None) -> int:
        """Add a row that begins with the keys and values of the first tokens of `ids`, if they are known; see Rows."""
        assert len(self._rows) < self.slots, "no slot is free"
        cache = self._cache(1)
        self._rows.append((cache, cache.join()))
        self._adapters.append(adapter)
        self._texts.append([])
        return self._begin(len(self._rows) - 1, ids[: max(0, len(ids) - 1)])

    def _begin(self, row: int, ids: Sequence[int]) -> int:
        """Give an empty row the known first tokens of a text, in pieces; return their number."""
        kind = _kind(self._adapters[row])
        known = len(self._kept.find(kind, ids)) * SIZE
        if not known:
            return 0
        try:
            self._make_room(row, known)
        except NoRoom:
            return 0
        cache, place = self._rows[row]
        for piece in self._kept.find(kind, ids):  # those that were not dropped to make room
            cache.extend(place, piece)
        self._texts[row] += ids[: cache.lengths[place]]
        self._limit_kept()
        return cache.lengths[place]

    def copy(self, row: int) -> int:
        """Add a copy of a row."""
        cache, place = self._rows[row]
        self._check_room(cache)
        self._rows.append((cache, cache.take(cache, place)))
        self._adapters.append(self._adapters[row])
        self._texts.append(list(self._texts[row]))
        return len(self._rows) - 1

    def leave(self, row: int) -> None:
        """Remove a row."""
        self._vacate(row)
        last, adapter, text = self._rows.pop(), self._adapters.pop(), self._texts.pop()
        if row < len(self._rows):
            self._rows[row], self._adapters[row], self._texts[row] = last, adapter, text

    def rest(self) -> None:
        """Return the memory of keys and values."""
        self._kept.shrink(0)
        self._most_bytes = 0
        for cache in self._caches.values():
            cache.clear()

    @property
    def num_bytes(self) -> int:
        """Memory that keys and values take now, in bytes."""
        return self._row_bytes() + self._kept.num_bytes

    def _row_bytes(self) -> int:
        return sum(cache.num_bytes for cache in list(self._caches.values()))

    def _most_kept(self, more: int = 0) -> int:
        """Return how many bytes the kept beginnings may take when the rows take `more` bytes more than now."""
        if self._memory is None:
            return max(_KEPT_BYTES, self._most_bytes)
        return max(0, self._memory - self._row_bytes() - more)

    def _limit_kept(self) -> None:
        """Drop kept beginnings whose memory the rows have taken."""
        for cache in self._caches.values():
            if cache.slots:
                self._column_bytes = cache.num_bytes // (cache.slots * cache.columns)
        self._most_bytes = max(self._most_bytes, self._row_bytes())
        self._kept.shrink(self._most_kept())

    def read(self, rows: Sequence[int], ids: Sequence[Sequence[int]], *, every: bool = False) -> Tensor:
        """Read more tokens of some rows; see Rows. A pass reads rows of one cache that read as many tokens."""
        for row, more in zip(rows, ids, strict=True):
            self._make_room(row, len(more))
        used = [self._rows[row] for row in rows]
        before = [cache.lengths[place] for cache, place in used]
        try:
            scores = self._read_in_passes(used, [self._adapters[row] for row in rows], ids, every)
        except Exception:  # all or nothing: the caller reads each row again
            for (cache, place), length in zip(used, before, strict=True):
                cache.lengths[place] = length
            raise
        for row, more in zip(rows, ids, strict=True):
            self._add(row, more)
        self._limit_kept()
        return scores

    def _add(self, row: int, ids: Sequence[int]) -> None:
        """Record the tokens that were read, and keep what they complete for texts that begin alike.

        A copy of a whole text when it ends would stop the others for a fifth of a second after 8,000 tokens.
        """
        text, (cache, place) = self._texts[row], self._rows[row]
        first = len(text) // SIZE
        text += ids
        if len(text) // SIZE > first:
            with torch.inference_mode(), contextlib.suppress(MemoryError, RuntimeError):  # it is only for speed
                self._kept.keep(_kind(self._adapters[row]), text, first, partial(cache.views, place), self._most_kept())

    def _read_in_passes(
        self,
        used: Sequence[tuple[SlotCache, int]],
        adapters: Sequence[LoadedAdapter | None],
        ids: Sequence[Sequence[int]],
        every: bool,
    ) -> Tensor:
        """Return scores after reading more tokens of rows, given by their caches and numbers there."""
        passes: dict[tuple[int, int], list[int]] = {}
        for place, ((cache, _), more) in enumerate(zip(used, ids, strict=True)):
            passes.setdefault((cache.columns, len(more)), []).append(place)
        found: list[Tensor | None] = [None] * len(used)
        for places in passes.values():
            # A pass reads neighbouring slots.
            places.sort(key=lambda place: used[place][1])
            slots = [used[place][1] for place in places]
            breaks = [at for at in range(1, len(slots)) if slots[at] != slots[at - 1] + 1]
            for start, stop in pairwise([0, *breaks, len(slots)]):
                logits = self._read(
                    used[places[start]][0],
                    slots[start],
                    torch.tensor([ids[place] for place in places[start:stop]]),
                    [adapters[place] for place in places[start:stop]],
                    every,
                )
                for place, scores in zip(places[start:stop], logits, strict=True):
                    found[place] = scores
        return torch.cat([scores for scores in found if scores is not None]).float()

    def _read(
        self, cache: SlotCache, first: int, ids: Tensor, chosen: Sequence[LoadedAdapter | None], every: bool
    ) -> Tensor:
        """Return scores, (rows, tokens or 1, vocabulary), computed with the chosen adapter of each row."""
        positions, mask = cache.reading(first, *ids.shape)
        device = self.model.device
        with adapter_hooks.using(chosen, device):
            logits: Tensor = self.model(
                input_ids=ids.to(device),
                position_ids=positions.to(device),
                attention_mask=self._mask(mask),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=0 if every else 1,
            ).logits
        cache.read()
        return logits

    def _cache(self, tokens: int) -> SlotCache:
        """Return the cache for rows of this many tokens."""
        columns = _FEWEST_COLUMNS
        while columns < tokens:
            columns *= 2
        columns = min(columns, self._context)
        return self._caches.setdefault(columns, SlotCache(columns))

    def _make_room(self, row: int, tokens: int) -> None:
        """Move a row to a longer cache if its own one is too short for this many more tokens."""
        cache, place = self._rows[row]
        larger = self._cache(cache.lengths[place] + tokens)
        if larger is not cache:
            self._check_room(larger)
            moved = larger.take(cache, place)
            self._vacate(row)
            self._rows[row] = (larger, moved)

    def _vacate(self, row: int) -> None:
        """Free a row's slot of its cache; the last slot takes its place."""
        cache, place = self._rows[row]
        cache.leave(place)
        for other, pair in enumerate(self._rows):
            if pair == (cache, cache.rows):
                self._rows[other] = (cache, place)
        if not cache.rows and cache.columns > _FEWEST_COLUMNS:
            cache.clear()

    def _check_room(self, cache: SlotCache) -> None:
        """Drop kept beginnings in favour of one more row of a cache; raise NoRoom if there is still too little memory.

        Before the first pass its memory is unknown, and nothing is checked.
        """
        more = cache.slots_to_add * cache.columns * self._column_bytes
        if not more:
            return
        self._kept.shrink(self._most_kept(more))
        if self._memory is not None and len(self._rows) > 1 and self.num_bytes + more > self._memory:
            raise NoRoom

    def _mask(self, seen: Tensor) -> Tensor:
        seen = seen.to(self.model.device)
        if not self._adds_mask:
            return seen
        lowest = torch.finfo(self.model.dtype).min
        return torch.zeros(seen.shape, dtype=self.model.dtype, device=seen.device).masked_fill_(~seen, lowest)


def _kind(adapter: LoadedAdapter | None) -> int:
    """Return a number that differs for rows that may not share keys and values."""
    return 0 if adapter is None else adapter.number


class SeparateRows:
    """Rows with a separate pass and cache each, for models that do not support batches. Arguments as for TorchRows."""

    name = "torch, one at a time"
    threads = ALL_THREADS
    takes_adapters = True
    block = 1
    mixes = False

    def __init__(self, model: PreTrainedModel, *, slots: int = 16) -> None:
        self.model = model.eval()
        self.slots = slots
        self._caches: list[DynamicCache] = []
        self._adapters: list[LoadedAdapter | None] = []

    def join(self, ids: Sequence[int] = (), adapter: LoadedAdapter | None = None) -> int:
        """Add an empty row. No beginnings of texts are kept."""
        self._caches.append(new_cache(self.model))
        self._adapters.append(adapter)
        return 0

    def copy(self, row: int) -> int:
        """Add a copy of a row."""
        self._caches.append(copy.deepcopy(self._caches[row]))
        self._adapters.append(self._adapters[row])
        return len(self._caches) - 1

    def leave(self, row: int) -> None:
        """Remove a row."""
        last, adapter = self._caches.pop(), self._adapters.pop()
        if row < len(self._caches):
            self._caches[row], self._adapters[row] = last, adapter

    def rest(self) -> None:
        """Do nothing: a row that leaves returns its memory."""

    @property
    def num_bytes(self) -> int:
        """Memory that keys and values take now, in bytes."""
        values = [value for cache in self._caches for layer in cache.layers for value in vars(layer).values()]
        tensors = [item for value in values for item in (value if isinstance(value, list) else [value])]
        return sum(item.numel() * item.element_size() for item in tensors if isinstance(item, Tensor))

    def read(self, rows: Sequence[int], ids: Sequence[Sequence[int]], *, every: bool = False) -> Tensor:
        """Read more tokens of some rows; see Rows."""
        found = []
        for row, more in zip(rows, ids, strict=True):
            with adapter_hooks.using([self._adapters[row]]):
                scores = self._read(self._caches[row], torch.tensor([more], device=self.model.device))
            found.append(scores if every else scores[-1:])
        return torch.cat(found).float()

    def _read(self, cache: DynamicCache, ids: Tensor) -> Tensor:
        """Return the scores after each token of `ids`, (1, tokens)."""
        name = cache_name(self.model)
        # A model that keeps a state takes several tokens only at the beginning of a text.
        pieces = torch.split(ids, 1, dim=1) if name == STATES and cache.has_previous_state() else (ids,)
        return torch.cat([self.model(input_ids=piece, use_cache=True, **{name: cache}).logits[0] for piece in pieces])


class WholeRows:
    """Rows without a cache, for models whose code supports none. Each pass reads a whole text again."""

    name = "torch, without a cache"
    threads = ALL_THREADS
    takes_adapters = True
    block = 1
    mixes = False
    num_bytes = 0

    def __init__(self, model: PreTrainedModel, *, slots: int = 16) -> None:
        self.model = model.eval()
        self.slots = slots
        self._texts: list[list[int]] = []
        self._adapters: list[LoadedAdapter | None] = []

    def join(self, ids: Sequence[int] = (), adapter: LoadedAdapter | None = None) -> int:
        """Add an empty row."""
        self._texts.append([])
        self._adapters.append(adapter)
        return 0

    def copy(self, row: int) -> int:
        """Add a copy of a row."""
        self._texts.append(list(self._texts[row]))
        self._adapters.append(self._adapters[row])
        return len(self._texts) - 1

    def leave(self, row: int) -> None:
        """Remove a row."""
        last, adapter = self._texts.pop(), self._adapters.pop()
        if row < len(self._texts):
            self._texts[row], self._adapters[row] = last, adapter

    def rest(self) -> None:
        """Do nothing: no keys and values are kept."""

    def read(self, rows: Sequence[int], ids: Sequence[Sequence[int]], *, every: bool = False) -> Tensor:
        """Read more tokens of some rows; see Rows."""
        found = []
        for row, more in zip(rows, ids, strict=True):
            self._texts[row] += more
            whole = torch.tensor([self._texts[row]], device=self.model.device)
            with adapter_hooks.using([self._adapters[row]]):
                logits: Tensor = self.model(input_ids=whole, use_cache=False).logits
            found.append(logits[0, -len(more) :] if every else logits[0, -1:])
        return torch.cat(found).float()
