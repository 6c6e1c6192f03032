"""Decide whether to skip the update of a step, from its loss and gradient norm and the losses of earlier steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

HISTORY = 20
"""Number of earlier steps that a loss is compared with. With fewer earlier steps, no loss counts as a jump."""
_MIN_JUMP, _DEVIATIONS = 2.0, 6.0
"""Size of a jump: at least this many nats per token, and at least this many standard deviations."""


def not_finite(loss: float, norm: float) -> str | None:
    """Return a description of a loss or gradient that is not finite, or None if both are finite.

    Args:
        loss: nats per token.
        norm: norm of the gradient before clipping.
    """
    if math.isfinite(loss) and math.isfinite(norm):
        return None
    return f"the loss is {loss} and the gradient's norm is {norm}"


def jump(loss: float, recent: Sequence[float]) -> str | None:
    """Return a description of a jump of the loss, or None if it did not jump.

    A jump is at least 2 nats and at least 6 standard deviations above the mean of the last 20 steps.

    Args:
        recent: losses of the earlier steps, newest last.
    """
    if len(recent) < HISTORY:
        return None
    mean, deviation = statistics.fmean(recent[-HISTORY:]), statistics.pstdev(recent[-HISTORY:])
    if loss > mean + max(_MIN_JUMP, _DEVIATIONS * deviation):
        return f"the loss jumped to {loss:.2f} from {mean:.2f}, its mean over {HISTORY} steps"
    return None
