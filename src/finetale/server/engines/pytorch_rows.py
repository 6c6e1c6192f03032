"""Rows of a transformers model in PyTorch: the reference for every other engine."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from finetale.server.engines.slots import SlotCache

ALL_THREADS = torch.get_num_threads()
"""Number of torch threads at import, before a worker changes it; later threads would inherit the changed number."""


class TorchRows:
    """Rows of different lengths in one pass, for models whose code supports it.

    Args:
        model: a causal language model that takes position_ids, a four-dimensional mask and a cache.
        context: maximum tokens per row.
        slots: maximum number of rows.
    """

    name = "torch"
    threads = ALL_THREADS

    def __init__(self, model: PreTrainedModel, *, context: int, slots: int = 16) -> None:
        self.model = model.eval()
        self.slots = slots
        self._cache = SlotCache(slots, context)
        # Eager attention adds its mask to the scores; other implementations take a boolean mask.
        self._adds_mask = getattr(model.config.get_text_config(), "_attn_implementation", "") == "eager"

    def join(self) -> int:
        """Add an empty row."""
        return self._cache.join()

    def copy(self, row: int) -> int:
        """Add a copy of a row."""
        return self._cache.copy(row)

    def leave(self, row: int) -> None:
        """Remove a row."""
        self._cache.leave(row)

    def read(self, first: int, ids: Sequence[Sequence[int]], *, every: bool = False) -> Tensor:
        """Read more tokens of consecutive rows; see Rows. Rows with different numbers of tokens are read one by one."""
        if len({len(row) for row in ids}) == 1:
            return self._read(first, torch.tensor(ids), every)
        return torch.cat([self._read(first + place, torch.tensor([row]), every) for place, row in enumerate(ids)])

    def _read(self, first: int, ids: Tensor, every: bool) -> Tensor:
        positions, mask = self._cache.reading(first, *ids.shape)
        device = self.model.device
        logits: Tensor = self.model(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            attention_mask=self._mask(mask),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=0 if every else 1,
        ).logits
        self._cache.read()
        return logits.flatten(0, 1).float()

    def _mask(self, seen: Tensor) -> Tensor:
        seen = seen.to(self.model.device)
        if not self._adds_mask:
            return seen
        lowest = torch.finfo(self.model.dtype).min
        return torch.zeros(seen.shape, dtype=self.model.dtype, device=seen.device).masked_fill_(~seen, lowest)


class SeparateRows:
    """Rows with a separate pass and cache each, for models that do not support batches. Arguments as for TorchRows."""

    name = "torch, one at a time"
    threads = ALL_THREADS

    def __init__(self, model: PreTrainedModel, *, slots: int = 16) -> None:
        self.model = model.eval()
        self.slots = slots
        self._caches: list[DynamicCache] = []

    def join(self) -> int:
        """Add an empty row."""
        self._caches.append(DynamicCache(config=self.model.config))
        return len(self._caches) - 1

    def copy(self, row: int) -> int:
        """Add a copy of a row."""
        self._caches.append(copy.deepcopy(self._caches[row]))
        return len(self._caches) - 1

    def leave(self, row: int) -> None:
        """Remove a row."""
        last = self._caches.pop()
        if row < len(self._caches):
            self._caches[row] = last

    def read(self, first: int, ids: Sequence[Sequence[int]], *, every: bool = False) -> Tensor:
        """Read more tokens of consecutive rows; see Rows."""
        found = []
        for place, row in enumerate(ids):
            cache = self._caches[first + place]
            logits: Tensor = self.model(
                input_ids=torch.tensor([row], device=self.model.device), past_key_values=cache, use_cache=True
            ).logits
            found.append(logits[0] if every else logits[0, -1:])
        return torch.cat(found).float()
