"""Build AdamW, with moments in bf16 if asked, and compute the learning rate of each step. Does not know about data."""

from __future__ import annotations

import math
from typing import Any

import torch

from finetale import speed
from finetale.config import LearningRateSchedule, TrainSettings

REFERENCE_PARAMETERS = 124_439_808
"""Number of parameters of the smallest GPT-2, for which the default learning rate is 1e-4."""

_MOMENTS = ("exp_avg", "exp_avg_sq")


_ADAPTER_FACTOR = 10
"""Learning rate of an adapter, as a multiple of that of all weights (docs/log.md)."""


def default_learning_rate(parameters: int, *, new: bool, adapter: bool = False) -> float:
    """Return 1e-4 x sqrt(124M / parameters), limited to [1e-5, 1e-3].

    It is three times that for random weights, and ten times that for an adapter beside frozen weights.

    The square root approximates how learning rates fall with size in table 2.1 of the GPT-3 paper (Brown et al. 2020).
    """
    rate = min(1e-3, max(1e-5, 1e-4 * math.sqrt(REFERENCE_PARAMETERS / max(1, parameters))))
    return float(f"{rate * (3 if new else _ADAPTER_FACTOR if adapter else 1):.2g}")


def build_optimizer(model: torch.nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """Return AdamW over all trainable parameters, with weight decay on matrices only, not on biases and norms."""
    assert settings.learning_rate is not None
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    kind = HalfMomentsAdamW if settings.optimizer_state == "bf16" else torch.optim.AdamW
    return kind(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        fused=True,
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
                    for name in _MOMENTS:
                        state[name] = torch.zeros_like(parameter, dtype=torch.bfloat16)
                state["step"] += 1
                first, second = (state[name].float() for name in _MOMENTS)
                torch._fused_adamw_(
                    [parameter],
                    [parameter.grad],
                    [first],
                    [second],
                    [],
                    [state["step"]],
                    lr=group["lr"],
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    amsgrad=False,
                    maximize=False,
                )
                state["exp_avg"] = speed.round_stochastically(first)
                state["exp_avg_sq"] = speed.round_stochastically(second)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict and keep the moments in bf16; AdamW's own method converts them to fp32."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name in _MOMENTS:
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
