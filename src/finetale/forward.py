"""Compute the loss of every token of a batch, and isolate the documents of a packed row from each other.

How to isolate documents depends on the model's code, so `find_route` tests it: a small batch of two packed documents
has to give the same logits as each document alone. It tries, in this order, the speed layer's attention, which receives
the borders of the documents; restarting positions without an attention mask, as transformers does; an explicit mask;
and, if all of these fail, one row per document. It also tests whether the logits are exactly the last hidden states
times the output layer. If so, the loss is computed without keeping all logits. Does not know about training or
evaluation.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetale import speed
from finetale.blocks import IGNORE, Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Integers = NDArray[np.int64]
_TOLERANCE = 1e-3
_BY_BORDERS = "borders told to the attention"
_BY_POSITION = "restarting positions"
_BY_MASK = "explicit mask"
_BY_ROW = "a row each"


@dataclass(frozen=True)
class Route:
    """How a model's losses are computed.

    `isolation` says how documents are kept apart; `head` whether the logits are the last hidden states times the output
    layer; `tied` whether these weights embed the tokens too, and nothing else is done to them.
    """

    isolation: str
    head: bool = False
    tied: bool = False

    @property
    def packs(self) -> bool:
        """Whether the attention receives the borders of the documents."""
        return self.isolation == _BY_BORDERS

    def to_dict(self) -> dict[str, str]:
        """Return a description for run.json."""
        return {"documents": self.isolation, "logits": "a chunk at a time" if self.head else "whole"}


class PackedForward:
    """Computes token losses of packed batches.

    Args:
        model: any causal language model; may be wrapped (DDP) as long as it forwards the same arguments.
        precision: "fp32", or "bf16" for autocast.
        route: how the losses are computed; found by trying when None.
        compiled: run the model through torch.compile, with shapes that stay the same from batch to batch.
    """

    def __init__(
        self, model: torch.nn.Module, *, precision: str = "fp32", route: Route | None = None, compiled: bool = False
    ) -> None:
        self.model = model
        self.precision = precision
        self.device = next(model.parameters()).device
        self.route = route or find_route(model)
        if not hasattr(model, "get_output_embeddings"):  # wrapped, and the wrapper has to see the pass
            self.route = Route(self.route.isolation)
        self._compiled = torch.compile(_module(model, self.route), dynamic=False) if compiled else None

    def token_losses(self, batch: Batch) -> torch.Tensor:
        """Negative log likelihood in nats of each target, fp32, shape (batch, time); 0 where labels are IGNORE.

        Without gradients; training takes `loss`.
        """
        labels = _on(self.device, batch.labels)
        with self.autocast(), torch.no_grad():
            if self.route.head:
                states, head = self._outputs(batch), _head(self.model)
                losses = speed.linear_cross_entropy(
                    states.flatten(0, 1), head.weight, head.bias, labels.flatten(), IGNORE
                )
            else:
                logits = self._outputs(batch)  # (batch, time, vocabulary)
                losses = speed.cross_entropy(logits.flatten(0, 1), labels.flatten(), IGNORE)
        return losses.view_as(labels)

    def hits(self, batch: Batch) -> torch.Tensor:
        """Return whether each target has the largest logit, shape (batch, time); False where there is no target."""
        labels = _on(self.device, batch.labels)
        with self.autocast(), torch.no_grad():
            outputs = self._outputs(batch)
            if self.route.head:
                head = _head(self.model)
                found = speed.most_likely(outputs.flatten(0, 1), head.weight, head.bias).view(labels.shape)
                return found == labels
            # Logits in bf16 are often equal; any of the largest may be taken.
            logits = outputs.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
            return (logits >= outputs.amax(-1)) & (labels != IGNORE)

    def loss(self, batch: Batch, scale: float = 1.0) -> torch.Tensor:
        """Return the sum of the losses of a batch times `scale`, fp32, with gradients."""
        labels = _on(self.device, batch.labels).flatten()
        with self.autocast():
            if not self.route.head:
                logits = self._outputs(batch)
                return speed.cross_entropy(logits.flatten(0, 1), labels, IGNORE).sum() * scale
            head = _head(self.model)
            tied = speed.TiedWeights(head.weight) if self.route.tied and head.weight.requires_grad else None
            states = self._outputs(batch, tied).flatten(0, 1)
            return speed.summed_cross_entropy(
                states, head.weight, head.bias, labels, IGNORE, scale, tied, self._compiled is not None
            )

    def _outputs(self, batch: Batch, tied: speed.TiedWeights | None = None) -> torch.Tensor:
        return _outputs(self.model, batch, self.route, tied, self._compiled)

    def loss_bytes(self, tokens: int, vocabulary: int) -> int:
        """Return the memory of the loss besides what autograd keeps (logits or their gradient), in bytes."""
        each = 2 if self.precision == "bf16" else 4
        if self.route.head:
            copies = 1 if self.device.type == "cpu" else 1 + 3 * 4 // each  # in fp32, whole, besides the chunk itself
            return copies * speed.chunk_bytes(tokens, vocabulary, each, self.device)
        # The logits' gradient in their own type on a CPU (speed.cross_entropy), three fp32 arrays elsewhere.
        return (each if self.device.type == "cpu" else 3 * 4) * vocabulary * tokens

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the autocast context of a pass. Around several passes it keeps the bf16 copies of the weights."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def no_autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context of a backward pass within `autocast`, which uses the types of the forward pass."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, enabled=False)
        return contextlib.nullcontext()


def find_route(model: PreTrainedModel) -> Route:
    """Find out how to compute a model's losses, by comparison with the logits of each document alone."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    lengths = (7, 5)
    inputs = np.concatenate([np.arange(7), np.arange(5) * 3 + 1]) % vocabulary
    positions = np.concatenate([np.arange(length) for length in lengths])
    rows = [row[None].astype(np.int64) for row in (inputs, inputs, positions, np.repeat([0, 1], lengths), inputs)]
    batch = Batch(*rows)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            alone = _outputs(model, batch, Route(_BY_ROW)).float()
            scale = alone.abs().max().clamp(min=1.0)

            def agrees(route: Route) -> bool:
                try:
                    outputs = _outputs(
                        model, batch, route, speed.TiedWeights(_head(model).weight) if route.tied else None
                    )
                    if route.head:
                        head = _head(model)
                        outputs = torch.nn.functional.linear(outputs, head.weight, head.bias)
                except (TypeError, ValueError, RuntimeError, AttributeError):
                    return False
                return bool((outputs.float() - alone).abs().max() <= _TOLERANCE * scale)

            ways = [_BY_POSITION, _BY_MASK]
            if speed.packs_documents(model):
                ways.insert(0, _BY_BORDERS)
            isolation = next((way for way in ways if agrees(Route(way))), _BY_ROW)
            plain = speed.is_applied(model) and not _changes_logits(model.config)
            if not plain or not agrees(Route(isolation, head=True)):
                return Route(isolation)
            same = (
                _is_lookup(model.get_input_embeddings()) and _head(model).weight is model.get_input_embeddings().weight
            )
            return Route(isolation, head=True, tied=same and agrees(Route(isolation, head=True, tied=True)))
    finally:
        model.train(was_training)


def _module(model: torch.nn.Module, route: Route) -> torch.nn.Module:
    module = model.base_model if route.head else model
    assert isinstance(module, torch.nn.Module)
    return module


def _outputs(
    model: torch.nn.Module,
    batch: Batch,
    route: Route,
    tied: speed.TiedWeights | None = None,
    compiled: Any = None,
) -> torch.Tensor:
    """Logits, or last hidden states if the route has a head of its own, shape (batch, time, vocabulary or width)."""
    device = next(model.parameters()).device
    module = compiled or _module(model, route)

    def run(tokens: torch.Tensor, **arguments: Any) -> torch.Tensor:
        words = {"input_ids": tokens} if tied is None else {"inputs_embeds": tied.embed(tokens)}
        outputs = module(use_cache=False, **words, **arguments)
        result: torch.Tensor = outputs.last_hidden_state if route.head else outputs.logits
        return result

    inputs = _on(device, batch.inputs)
    if route.isolation == _BY_ROW:
        return _row_by_row(run, inputs, batch.documents)
    positions = _on(device, batch.positions)
    if route.isolation == _BY_BORDERS:
        borders = _borders(batch.documents)
        longest = int(np.diff(borders).max())
        if compiled is not None:  # each new shape would be compiled anew
            borders, longest = _padded(borders), inputs.shape[1]
        told = _on(device, borders)
        flat = run(
            inputs.view(1, -1),
            position_ids=positions.view(1, -1),
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),  # so that nobody makes one
            cu_seq_lens_q=told,
            cu_seq_lens_k=told,
            max_length_q=longest,
            max_length_k=longest,
        )
        return flat.view(*inputs.shape, -1)
    arguments = {"position_ids": positions}
    if route.isolation == _BY_MASK:
        documents = _on(device, batch.documents)
        same = documents[:, :, None] == documents[:, None, :]
        arguments["attention_mask"] = (same & torch.ones_like(same).tril())[:, None]  # (batch, 1, query, key)
        if "position_ids" not in inspect.signature(_module(model, route).forward).parameters:
            del arguments["position_ids"]
    return run(inputs, **arguments)


def _row_by_row(run: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, documents: Integers) -> torch.Tensor:
    """Unpack documents into rows padded on the right, which causal attention can't see, and pack the outputs again."""
    pieces = list(torch.split(inputs.flatten(), np.diff(_borders(documents)).tolist()))
    outputs = run(torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True))
    flat = torch.cat([outputs[index, : len(piece)] for index, piece in enumerate(pieces)])
    return flat.view(*inputs.shape, -1)


def _borders(documents: Integers) -> NDArray[np.int32]:
    """Return where documents begin in the flattened rows, and where the last one ends. Each row begins a document."""
    starts = np.ones(documents.shape, bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return np.append(np.flatnonzero(starts), documents.size).astype(np.int32)


def _padded(borders: NDArray[np.int32]) -> NDArray[np.int32]:
    """Append empty documents, so that their number is a power of two and at least 64."""
    number = max(64, 1 << (len(borders) - 2).bit_length())
    return np.pad(borders, (0, number + 1 - len(borders)), mode="edge")


def _head(model: torch.nn.Module) -> torch.nn.Linear:
    head: torch.nn.Linear = model.get_output_embeddings()  # type: ignore[operator]
    return head


def _is_lookup(embedding: torch.nn.Module) -> bool:
    """Return whether an embedding only looks up rows."""
    if type(embedding) is not torch.nn.Embedding or embedding.padding_idx is not None:
        return False
    return embedding.max_norm is None and not embedding.scale_grad_by_freq and not embedding.sparse


def _changes_logits(config: Any) -> bool:
    """Return whether a config caps or scales the logits, which a small batch may not show."""
    config = config.get_text_config()
    names = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    return any(getattr(config, name, None) not in (None, 1, 1.0) for name in names)


def _on(device: torch.device, array: np.ndarray[Any, Any]) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
