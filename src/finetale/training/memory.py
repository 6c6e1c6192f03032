"""Estimate how many sequences fit in memory in a forward and backward pass. Does not know about the loop.

The probe counts the bytes that autograd keeps for the backward pass of one real block, and of two. These counts are the
same on every run. So the micro-batch size, and with it the rounding of sums, changes only where memory is short.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from finetale import devices, models, speed
from finetale.blocks import Blocks
from finetale.environment import available_memory
from finetale.forward import PackedForward
from finetale.out_of_memory import is_out_of_memory, memory_limit_error

_SHARE = 0.7
"""Share of the available memory that a run may use."""
_CPU_TOKENS, _CPU_VALUES = 2048, 2**19
"""Maximum tokens and hidden values (tokens x width) per pass on a CPU. More exceed its cache (docs/performance.md)."""


@dataclass(frozen=True)
class MemoryPlan:
    """The memory that a run needs, and the micro-batch size that fits.

    Attributes:
        fixed_bytes: weights, gradients and Adam's two moments.
        pass_bytes: memory of a pass of any size, such as copies of the weights in bf16.
        sequence_bytes: additional memory per sequence in a pass.
        available_bytes: memory that the run can use.
        micro_batch_size: the chosen number of sequences per pass.
        max_sequences: the largest number of sequences per pass that fits.
        step_sequences: sequences per optimizer step.
        saved_bytes: memory that gradients in bf16 save if a step is one pass.
    """

    fixed_bytes: int
    pass_bytes: int
    sequence_bytes: int
    available_bytes: int
    micro_batch_size: int
    max_sequences: int
    step_sequences: int
    saved_bytes: int

    def expected_bytes(self, micro_batch_size: int) -> int:
        """Return the memory of a run with this micro-batch size, in bytes."""
        saved = self.saved_bytes if micro_batch_size >= self.step_sequences else 0
        return self.fixed_bytes + self.pass_bytes + micro_batch_size * self.sequence_bytes - saved


def plan_memory(forward: PackedForward, blocks: Blocks, most: int, *, moment_bytes: int = 4) -> MemoryPlan:
    """Probe passes of one and two sequences, and choose the largest micro-batch size that fits.

    The size is a power of two, or `most`.

    Args:
        most: sequences per optimizer step on this device.
        moment_bytes: size of each of Adam's two moments, bytes per weight.

    Raises:
        MemoryLimitError: one sequence does not fit.
    """
    device = forward.device
    parameters = list(forward.model.parameters())
    # Trained weights also have gradients and Adam's two moments.
    trained = 4 + 2 * moment_bytes
    fixed = sum((p.element_size() + (trained if p.requires_grad else 0)) * p.numel() for p in parameters)
    saved = speed.half_gradient_bytes(forward.model) if may_use_half_gradients(forward, moment_bytes) else 0
    one, two = _kept_bytes_of_one_and_two(forward, blocks)
    if two is None:  # two sequences do not fit
        available = free_memory(forward.model)
        return MemoryPlan(fixed, 0, one, available, _rounded(1, most), _rounded(1, most), most, saved)
    sequence, once = max(1, two - one), max(0, 2 * one - two)
    available = free_memory(forward.model)
    limit = most
    if device.type == "cpu":
        width = int(forward.model.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
        limit = min(limit, max(1, min(_CPU_TOKENS, _CPU_VALUES // width) // blocks.block_size))
    fits = max(1, int((_SHARE * available - fixed - once) // sequence))
    return MemoryPlan(
        fixed, once, sequence, available, _rounded(min(limit, fits), most), _rounded(fits, most), most, saved
    )


def may_use_half_gradients(forward: PackedForward, moment_bytes: int = 4) -> bool:
    """Return whether the loop keeps gradients of linear layers in bf16 when a step is one pass."""
    return forward.device.type == "cpu" and forward.precision == "bf16" and moment_bytes == 4


def _costliest_block(blocks: Blocks) -> int:
    """Return the block whose attention keeps the most memory: about the squared lengths of its documents."""
    squares = blocks.segments["targets"].astype(np.float64) ** 2
    return int(np.argmax(np.add.reduceat(squares, blocks.offsets[:-1])))


def _rounded(size: int, most: int) -> int:
    """Round a micro-batch size down to a power of two, unless all sequences of a step fit."""
    return most if size >= most else 2 ** (size.bit_length() - 1)


def free_memory(model: torch.nn.Module) -> int:
    """Return the free memory of the model's device, plus the memory of the model's weights, in bytes."""
    parameters = list(model.parameters())
    return _available(parameters[0].device) + sum(p.nbytes for p in parameters)


def _available(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return available_memory()


def _kept_bytes_of_one_and_two(forward: PackedForward, blocks: Blocks) -> tuple[int, int | None]:
    """Return the bytes kept for one sequence and for two, or None for two if they do not fit.

    Raises:
        MemoryLimitError: one sequence does not fit.
    """
    kept: list[int] = []
    for number in (1, 2):
        try:
            kept.append(_kept_bytes(forward, blocks, number))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            message = memory_limit_error(error, f"with one sequence of {blocks.block_size} tokens")
        else:
            continue
        devices.empty_cache(forward.device)
        if not kept:
            raise message
        return kept[0], None
    return kept[0], kept[1]


def _kept_bytes(forward: PackedForward, blocks: Blocks, number: int) -> int:
    """Return the bytes kept for the backward pass of a number of sequences, plus the memory of the loss."""
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in forward.model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model = forward.model
    was_training = model.training
    model.train()
    try:
        with torch.random.fork_rng(devices=[forward.device] if forward.device.type == "cuda" else []):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = forward.loss(blocks.batch(np.full(number, _costliest_block(blocks))))
            del loss
    finally:
        model.train(was_training)
    inputs = 0  # bytes of the inputs of checkpointed layers, which the hooks do not see
    if models.is_checkpointing(model):
        config = model.config.get_text_config()  # type: ignore[operator,union-attr]
        inputs = 4 * config.num_hidden_layers * config.hidden_size * blocks.block_size * number
    vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    return sum(kept.values()) + inputs + forward.loss_bytes(number * blocks.block_size, vocabulary)
