"""Divide weights, gradients and moments among the processes of a run, by PyTorch's FSDP2 (`fully_shard`).

Each layer of the model is gathered for its part of a pass and freed after it; embeddings, last norm and output layer
are one group, so that tied weights stay tied. The optimizer sees the shards of this process as plain tensors, and
updates them without communication. For evaluations, samples and files the whole weights are gathered into a copy of
the model without hooks, which every process holds for that time.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from finetale import models
from finetale.blocks import Batch
from finetale.forward import PackedForward
from finetale.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from transformers import PreTrainedModel


class _Pass(nn.Module):
    """A forward pass as a module, whose hooks gather the weights outside the layers."""

    def __init__(self, forward: PackedForward) -> None:
        super().__init__()
        self.model = forward.model
        self._forward = (forward,)

    def forward(self, batch: Batch, scale: float) -> torch.Tensor:
        return self._forward[0].loss(batch, scale)


class Whole:
    """A model that every process holds whole.

    Attributes:
        parameters: what the optimizer updates, by name.
    """

    def __init__(self, forward: PackedForward) -> None:
        self._forward = forward
        self._model: Any = forward.model
        self.parameters = {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    def loss(self, batch: Batch, scale: float) -> torch.Tensor:
        """As `PackedForward.loss`."""
        return self._forward.loss(batch, scale)

    @contextlib.contextmanager
    def whole(self, *, here: bool = True) -> Iterator[PreTrainedModel]:
        """Return the model."""
        yield self._model

    def whole_of(self, name: str, part: torch.Tensor) -> torch.Tensor:
        """Return the tensor itself."""
        return part

    def part_of(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """Return the tensor itself."""
        return whole


class Sharded:
    """A model whose weights are divided among all processes. Every process builds it, from the same weights.

    Args:
        forward: computes the losses of the model. The model's parameters are replaced by shards, in place.

    Attributes:
        parameters: the trained shards of this process by the names of their weights; for the optimizer.
    """

    def __init__(self, forward: PackedForward, ranks: Ranks) -> None:
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import DTensor

        self._ranks = ranks
        self._model: Any = forward.model
        empty = {id(p): _empty(p) for p in self._model.parameters()}
        self._whole: PreTrainedModel = copy.deepcopy(self._model, memo=empty)
        mesh = ranks.mesh(forward.device.type)
        for layer in models.layers(self._model):
            fully_shard(layer, mesh=mesh)
        self._pass: nn.Module = _Pass(forward)
        fully_shard(self._pass, mesh=mesh)
        for module in self._pass.modules():
            if hasattr(module, "set_gradient_divide_factor"):  # sums, not means
                module.set_gradient_divide_factor(1.0)  # type: ignore[operator]
                module.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]
        self._shards: dict[str, DTensor] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        for name, parameter in self._model.named_parameters():
            assert isinstance(parameter, DTensor)
            self._shards[name] = parameter
            if parameter.requires_grad:
                self.parameters[name] = nn.Parameter(parameter.to_local().detach())

    def loss(self, batch: Batch, scale: float) -> torch.Tensor:
        """As `PackedForward.loss`. All processes call it together, and its backward pass too."""
        return self._pass(batch, scale)  # type: ignore[no-any-return]

    def take_gradients(self) -> None:
        """Move the gradients of the shards to `parameters`."""
        for name, parameter in self.parameters.items():
            gradient = self._shards[name].grad
            parameter.grad = None if gradient is None else gradient.to_local()  # type: ignore[attr-defined]
            self._shards[name].grad = None

    @contextlib.contextmanager
    def whole(self, *, here: bool = True) -> Iterator[PreTrainedModel]:
        """Gather the weights into a plain model, which is valid within the context. All processes call it together.

        Args:
            here: whether this process needs the model. Otherwise its parameters are empty.
        """
        try:
            with self._ranks.alone():
                for name, parameter in self._whole.named_parameters():
                    gathered = self._shards[name].full_tensor().detach()
                    if here:
                        parameter.data = gathered
            yield self._whole
        finally:
            for parameter in self._whole.parameters():
                parameter.data = parameter.data.new_empty(0)

    def whole_of(self, name: str, part: torch.Tensor) -> torch.Tensor:
        """Return the whole of a tensor that is divided as the weight `name` is. All processes call it together."""
        from torch.distributed.tensor import DTensor

        like = self._shards[name]
        divided = DTensor.from_local(
            part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        with self._ranks.alone():
            return divided.full_tensor()

    def part_of(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """Return this process's part of a tensor that is to be divided as the weight `name` is."""
        from torch.distributed.tensor import distribute_tensor

        like = self._shards[name]
        return distribute_tensor(
            whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None
        ).to_local()


def _empty(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach().new_empty(0), requires_grad=parameter.requires_grad)
