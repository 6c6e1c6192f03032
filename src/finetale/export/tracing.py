"""Give a model the form that converters can trace: its cache and mask are tensors among its arguments and results."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, DynamicLayer, PreTrainedModel
from transformers.utils import logging

from finetale import speed

GROUPED_HEADS = "TRANSFORMERS_SDPA_FORCE_GQA"
"""Variable of transformers: whether PyTorch's attention gets grouped keys and values as they are."""


class _GivenCache(Cache):  # type: ignore[misc]
    """A cache that takes the past keys and values and returns the new ones, each (rows, heads, tokens, width)."""

    def __init__(self, past: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.past = past
        self.present: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Append the new keys and values to the past; return all of them."""
        keys = torch.cat([self.past[layer_idx][0], key_states], 2)
        values = torch.cat([self.past[layer_idx][1], value_states], 2)
        self.present += [keys, values]
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens in the past."""
        return self.past[0][0].shape[2]

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return (number of columns of the mask, offset 0)."""
        return self.get_seq_length() + query_length, 0


class Explicit(nn.Module):
    """A model that takes its cache and mask as tensor arguments."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor) -> Any:
        """Return (logits, then keys and values of each layer)."""
        cache = _GivenCache(list(zip(past[::2], past[1::2], strict=True)))
        columns, tokens = attention_mask.shape[1], input_ids.shape[1]
        causal = torch.arange(columns) <= (torch.arange(tokens) + (columns - tokens))[:, None]
        visible = causal[None, None] & attention_mask[:, None, None, :].bool()  # (rows, 1, tokens, columns)
        mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
        logits = self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        ).logits
        return logits, *cache.present


def cache_shapes(model: PreTrainedModel) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return, for each layer, (heads, width) of the keys and of the values."""
    cache = DynamicCache()
    model(input_ids=torch.ones(1, 2, dtype=torch.int64), past_key_values=cache, use_cache=True)
    return [
        ((layer.keys.shape[1], layer.keys.shape[3]), (layer.values.shape[1], layer.values.shape[3]))
        for layer in cache.layers
    ]


@contextlib.contextmanager
def traceable(model: PreTrainedModel) -> Iterator[None]:
    """Put a model inside the context on the CPU, without Finetale's speed layer, gradients or messages.

    Converters recognise attention in transformers' own code only.
    """
    with (
        speed.suspended(model),
        _on_the_cpu(model),
        torch.inference_mode(False),
        torch.no_grad(),
        silent(),
        _copying_grouped_heads(),
    ):
        yield


@contextlib.contextmanager
def _on_the_cpu(model: PreTrainedModel) -> Iterator[None]:
    """Move a model to the CPU inside the context. OpenVINO converts it from there."""
    device = model.device
    model.to("cpu")
    try:
        yield
    finally:
        model.to(device)


@contextlib.contextmanager
def _copying_grouped_heads() -> Iterator[None]:
    """Let transformers copy keys and values for each query head inside the context.

    The engine of PyTorch avoids the copies, but OpenVINO recognises attention only with them.
    """
    before = os.environ.pop(GROUPED_HEADS, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[GROUPED_HEADS] = before


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Suppress the output and warnings of conversion and compression."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
