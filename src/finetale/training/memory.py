"""Estimate how many sequences fit in memory in a forward and backward pass. Does not know about the loop.

The probe counts the bytes that autograd keeps for the backward pass of one real block, and of two. These counts are the
same on every run. So the micro-batch size, and with it the rounding of sums, changes only where memory is short.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from finetale import devices, models, ranks, speed
from finetale.blocks import Blocks
from finetale.environment import available_memory
from finetale.forward import PackedForward
from finetale.out_of_memory import is_out_of_memory, memory_limit_error

_SHARE = 0.7
"""Share of the available memory that a run may use."""
_CPU_TOKENS, _CPU_VALUES = 2048, 2**19
"""Maximum tokens and hidden values (tokens x width) per pass on a CPU. More exceed its cache (docs/performance.md)."""
_MANY_TOKENS = 2**31
"""More tokens than a pass has."""


@dataclass(frozen=True)
class MemoryPlan:
    """The memory that a run needs, and the micro-batch size that fits.

    Attributes:
        fixed_bytes: weights, gradients and Adam's two moments.
        pass_bytes: memory of a pass of any size, such as copies of the weights in bf16.
        sequence_bytes: additional memory per sequence in a pass, without logits.
        logit_bytes: memory for the logits of one sequence, and their gradient.
        most_logit_bytes: the largest memory for logits; more are computed in chunks.
        available_bytes: memory that the run can use.
        micro_batch_size: the chosen number of sequences per pass.
        max_sequences: the largest number of sequences per pass that fits.
        step_sequences: sequences per optimizer step.
        saved_bytes: memory that gradients in bf16 save if a step is one pass.
    """

    fixed_bytes: int
    pass_bytes: int
    sequence_bytes: int
    logit_bytes: int
    most_logit_bytes: int
    available_bytes: int
    micro_batch_size: int
    max_sequences: int
    step_sequences: int
    saved_bytes: int

    def expected_bytes(self, micro_batch_size: int) -> int:
        """Return the memory of a run with this micro-batch size, in bytes."""
        saved = self.saved_bytes if micro_batch_size >= self.step_sequences else 0
        logits = min(micro_batch_size * self.logit_bytes, self.most_logit_bytes)
        return self.fixed_bytes + self.pass_bytes + micro_batch_size * self.sequence_bytes + logits - saved


def plan_memory(
    forward: PackedForward, blocks: Blocks, most: int, *, moment_bytes: int = 4, parts: int = 1
) -> MemoryPlan:
    """Probe passes of one and two sequences, and choose the largest micro-batch size that fits.

    The size is a power of two, or `most`.

    Args:
        most: sequences per optimizer step on this device.
        moment_bytes: size of each of Adam's two moments, bytes per weight.
        parts: number of processes among which weights, gradients and moments are divided.

    Raises:
        MemoryLimitError: one sequence does not fit.
    """
    device = forward.device
    parameters = list(forward.model.parameters())
    # Trained weights also have gradients and Adam's two moments.
    trained = 4 + 2 * moment_bytes
    fixed = sum((p.element_size() + (trained if p.requires_grad else 0)) * p.numel() for p in parameters)
    if parts > 1:  # evaluations gather the weights
        fixed = fixed // parts + sum(p.nbytes for p in parameters)
    saved = speed.half_gradient_bytes(forward.model) if may_use_half_gradients(forward, moment_bytes) else 0
    one, two = _kept_bytes_of_one_and_two(forward, blocks)
    fits_two = two is not None
    two = 2 * one if two is None else two
    vocabulary = int(forward.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    plan = MemoryPlan(
        fixed_bytes=fixed,
        pass_bytes=max(0, 2 * one - two),
        sequence_bytes=max(1, two - one),
        logit_bytes=forward.loss_bytes(blocks.block_size, vocabulary),
        most_logit_bytes=forward.loss_bytes(_MANY_TOKENS, vocabulary),
        available_bytes=free_memory(forward.model),
        micro_batch_size=1,
        max_sequences=1,
        step_sequences=most,
        saved_bytes=saved,
    )
    sizes = [*(2**power for power in range((most - 1).bit_length())), most] if fits_two else [1]
    usable = _SHARE * plan.available_bytes
    fitting = [size for size in sizes if plan.expected_bytes(size) <= usable] or [1]
    limit = most
    if device.type == "cpu":
        width = int(forward.model.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
        limit = max(1, min(_CPU_TOKENS, _CPU_VALUES // width) // blocks.block_size)
    best = max((size for size in fitting if size <= limit), default=1)
    return replace(plan, micro_batch_size=best, max_sequences=fitting[-1])


def may_use_half_gradients(forward: PackedForward, moment_bytes: int = 4) -> bool:
    """Return whether the loop keeps gradients of linear layers in bf16 when a step is one pass."""
    return forward.device.type == "cpu" and forward.precision == "bf16" and moment_bytes == 4


def _costliest_block(blocks: Blocks) -> int:
    """Return the block whose attention keeps the most memory: about the squared lengths of its documents."""
    squares = blocks.segments["targets"].astype(np.float64) ** 2
    return int(np.argmax(np.add.reduceat(squares, blocks.offsets[:-1])))


def free_memory(model: torch.nn.Module) -> int:
    """Return the free memory of the model's device, plus the memory of the model's weights, in bytes."""
    parameters = list(model.parameters())
    return _available(parameters[0].device) + sum(p.nbytes for p in parameters)


def _available(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return available_memory() // ranks.processes_here()


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
    """Return the bytes kept for the backward pass of a number of sequences."""
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
    return sum(kept.values()) + inputs
