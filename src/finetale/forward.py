"""Batch → loss of every token, with the documents of a packed row kept apart. Knows nothing of training or evaluation.

How documents are kept apart depends on the model's code, so it is not believed but tried: a small batch of two packed
documents must give the logits of the two alone. transformers keeps them apart by restarting positions when it gets no
attention mask; where that fails an explicit mask is tried; where that fails too, each document gets a row of its own.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING

import numpy as np
import torch

from finetale import speed
from finetale.blocks import IGNORE, Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOLERANCE = 1e-3
_BY_POSITION = "restarting positions"
_BY_MASK = "explicit mask"
_BY_ROW = "a row each"


class PackedForward:
    """Computes token losses of packed batches.

    Args:
        model: any causal language model; may be wrapped (DDP) as long as it forwards the same arguments.
        precision: "fp32", or "bf16" for autocast.
        isolation: how documents are kept apart; found by trying when None.
    """

    def __init__(self, model: torch.nn.Module, *, precision: str = "fp32", isolation: str | None = None) -> None:
        self.model = model
        self.precision = precision
        self.device = next(model.parameters()).device
        self.isolation = isolation or find_isolation(model)

    def token_losses(self, batch: Batch) -> torch.Tensor:
        """Negative log likelihood in nats of each target, fp32, shape (batch, time); 0 where labels are IGNORE."""
        labels = self._tensor(batch.labels)
        with self._autocast():
            logits = _logits(
                self.model,
                self._tensor(batch.inputs),
                self._tensor(batch.positions),
                self._tensor(batch.documents),
                self.isolation,
            )  # (batch, time, vocabulary)
        return speed.cross_entropy(logits.flatten(0, 1), labels.flatten(), IGNORE).view_as(labels)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def find_isolation(model: PreTrainedModel) -> str:
    """How this model keeps packed documents apart, found by comparing packed and separate logits."""
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().weight.shape[0]
    first = torch.arange(7) % vocabulary
    second = (torch.arange(5) * 3 + 1) % vocabulary
    inputs = torch.cat([first, second])[None].to(device)
    positions = torch.cat([torch.arange(7), torch.arange(5)])[None].to(device)
    documents = torch.cat([torch.zeros(7), torch.ones(5)])[None].long().to(device)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            alone = _logits(model, inputs, positions, documents, _BY_ROW)[0].float()
            scale = alone.abs().max().clamp(min=1.0)
            for isolation in (_BY_POSITION, _BY_MASK):
                try:
                    packed = _logits(model, inputs, positions, documents, isolation)[0].float()
                except (TypeError, ValueError, RuntimeError):
                    continue
                if bool((packed - alone).abs().max() <= _TOLERANCE * scale):
                    return isolation
    finally:
        model.train(was_training)
    return _BY_ROW


def _logits(
    model: torch.nn.Module, inputs: torch.Tensor, positions: torch.Tensor, documents: torch.Tensor, isolation: str
) -> torch.Tensor:
    if isolation == _BY_ROW:
        return _logits_by_row(model, inputs, documents)
    arguments: dict[str, torch.Tensor] = {"position_ids": positions}
    if isolation == _BY_MASK:
        same = documents[:, :, None] == documents[:, None, :]
        arguments["attention_mask"] = (same & torch.ones_like(same).tril())[:, None]  # (batch, 1, query, key)
        if "position_ids" not in inspect.signature(model.forward).parameters:
            del arguments["position_ids"]
    logits: torch.Tensor = model(input_ids=inputs, use_cache=False, **arguments).logits
    return logits


def _logits_by_row(model: torch.nn.Module, inputs: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    """Unpack documents into rows padded on the right, which causal attention can't see, and pack the logits again."""
    pieces = []
    for row, numbers in zip(inputs, documents, strict=True):
        _, lengths = torch.unique_consecutive(numbers, return_counts=True)
        pieces += list(row.split(lengths.tolist()))
    rows = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)
    logits = model(input_ids=rows, use_cache=False).logits
    flat = torch.cat([logits[index, : len(piece)] for index, piece in enumerate(pieces)])
    return flat.view(*inputs.shape, -1)
