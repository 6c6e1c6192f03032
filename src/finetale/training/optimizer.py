"""Build AdamW, with moments in bf16 if asked, and compute the learning rate of each step. Does not know about data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from finetale import speed
from finetale.config import LearningRateSchedule, TrainSettings
from finetale.ranks import ALONE, Ranks

REFERENCE_PARAMETERS = 124_439_808
"""Number of parameters of the smallest GPT-2, for which the default learning rate is 1e-4."""

MOMENTS = ("exp_avg", "exp_avg_sq")
_PIECE = 2**20
"""Values that are updated together."""


_ADAPTER_FACTOR = 10
"""Learning rate of an adapter, as a multiple of that of all weights (docs/log.md)."""


def default_learning_rate(parameters: int, *, new: bool, adapter: bool = False) -> float:
    """Return 1e-4 x sqrt(124M / parameters), limited to [1e-5, 1e-3].

    It is three times that for random weights, and ten times that for an adapter beside frozen weights.

    The square root approximates how learning rates fall with size in table 2.1 of the GPT-3 paper (Brown et al. 2020).
    """
    rate = min(1e-3, max(1e-5, 1e-4 * math.sqrt(REFERENCE_PARAMETERS / max(1, parameters))))
    return float(f"{rate * (3 if new else _ADAPTER_FACTOR if adapter else 1):.2g}")


def build_optimizer(
    model: torch.nn.Module, settings: TrainSettings, parameters: Iterable[torch.nn.Parameter] | None = None
) -> torch.optim.AdamW:
    """Return AdamW over all trainable parameters, with weight decay on matrices only, not on biases and norms.

    Args:
        parameters: what to update in place of the model's own: parts of them.
    """
    assert settings.learning_rate is not None
    parameters = [p for p in (model.parameters() if parameters is None else parameters) if p.requires_grad]
    matrices = [p for p in parameters if p.ndim >= 2]
    others = [p for p in parameters if p.ndim < 2]
    on_cpu = next(model.parameters()).device.type == "cpu"
    kind = torch.optim.AdamW
    if settings.optimizer_state == "bf16":
        kind = HalfMomentsAdamW
    elif on_cpu:
        kind = HalfGradientsAdamW
    return kind(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        fused=True,
    )


@torch.no_grad()
def clip_gradients(optimizer: torch.optim.Optimizer, limit: float, parts_of: Ranks = ALONE) -> torch.Tensor:
    """Scale all gradients so that their norm is at most `limit`; return the norm before.

    Args:
        parts_of: processes that hold parts of the gradients each; the norm is that of all parts.

    Gradients in bf16 are scaled by the optimizer when it converts them, so that they are not rounded again.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not isinstance(optimizer, HalfGradientsAdamW) or not any(_is_half(p) for p in parameters):
        if parts_of.world == 1:
            norm: torch.Tensor = torch.nn.utils.clip_grad_norm_(parameters, limit)
            return norm
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm = parts_of.sum(norm.square()).sqrt()
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm
    pieces = [piece for p in parameters for piece in _pieces(p.grad)]
    norms = [torch.linalg.vector_norm(_wide(piece)) for piece in pieces]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    optimizer.gradient_scale = min(1.0, limit / (float(norm) + 1e-6))
    return norm


def _is_half(parameter: torch.Tensor) -> bool:
    return parameter.grad is not None and parameter.grad.dtype == torch.bfloat16


def _wide(piece: torch.Tensor) -> torch.Tensor:
    """Return a piece of a gradient in fp32, in an array that the next call overwrites."""
    return speed.temporary("gradient", tuple(piece.shape), torch.float32).copy_(piece)


def _pieces(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return views of at most `_PIECE` values, so that a copy in fp32 takes little memory."""
    return torch.split(tensor.view(-1), _PIECE)


class HalfGradientsAdamW(torch.optim.AdamW):
    """AdamW that accepts gradients in bf16; then it converts and updates one parameter at a time.

    With gradients in fp32 it is torch's.
    """

    gradient_scale = 1.0
    """Factor of the gradients in the next step."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters."""
        if not any(_is_half(p) for group in self.param_groups for p in group["params"]):
            super().step()
            return
        self.allocate()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state["step"] += 1
                    tensors = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
                    for weight, gradient, first, second in zip(*map(_pieces, tensors), strict=True):
                        scaled = _wide(gradient).mul_(self.gradient_scale)
                        _update(weight, scaled, first, second, state["step"], group)
        self.gradient_scale = 1.0

    def allocate(self) -> None:
        """Allocate the moments that do not exist yet.

        Moments that are allocated between the first passes would divide the free memory into pieces that are too small
        for the activations of the next passes.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                if not self.state[parameter]:
                    self.state[parameter]["step"] = torch.zeros((), dtype=torch.float32)
                    for name in MOMENTS:
                        self.state[parameter][name] = torch.zeros_like(parameter)


def _update(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    step: torch.Tensor,
    group: dict[str, Any],
) -> None:
    """Update a parameter, or a piece of it, and its moments in place, all in fp32. `step` counts from 1."""
    torch._fused_adamw_(
        [parameter],
        [gradient],
        [first],
        [second],
        [],
        [step],
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )


class HalfMomentsAdamW(torch.optim.AdamW):
    """AdamW that stores its two moments in bf16 with stochastic rounding, which saves 4 bytes per weight.

    The update itself is computed in fp32.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update one parameter at a time, so that the moments of only one parameter are in fp32 at any time."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                    for name in MOMENTS:
                        state[name] = torch.zeros_like(parameter, dtype=torch.bfloat16)
                state["step"] += 1
                first, second = (state[name].float() for name in MOMENTS)
                _update(parameter, parameter.grad, first, second, state["step"], group)
                state["exp_avg"] = speed.round_stochastically(first)
                state["exp_avg_sq"] = speed.round_stochastically(second)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict and keep the moments in bf16; AdamW's own method converts them to fp32."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name in MOMENTS:
                state[name] = state[name].to(torch.bfloat16)


def learning_rate(step: int, total: int, settings: TrainSettings) -> float:
    """Return the learning rate of an update, counted from 0, out of `total`.

    The rate rises linearly during warm-up; the first update after it has the peak rate. Then the rate falls along a
    cosine or a line to final_learning_rate_ratio x peak after the last update, or stays constant.
    """
    assert settings.learning_rate is not None
    peak = settings.learning_rate
    warmup = warmup_steps(total, settings)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak * (
        settings.final_learning_rate_ratio
        + (1 - settings.final_learning_rate_ratio) * _shape(settings.schedule, progress)
    )


def warmup_steps(total: int, settings: TrainSettings) -> int:
    """Return the number of warm-up steps. A setting below 1 is a share of all steps."""
    if settings.warmup_steps >= 1:
        return int(settings.warmup_steps)
    return int(settings.warmup_steps * total)


def _shape(schedule: LearningRateSchedule, progress: float) -> float:
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0 - progress if schedule == "linear" else 1.0
