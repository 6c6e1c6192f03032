"""When the update of a step must not be made. Knows only the numbers of the step and of those before it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

HISTORY = 20
"""Steps before this one that its loss is compared with; there is no comparison until there are so many."""
_LEAST_JUMP, _DEVIATIONS = 2.0, 6.0


def not_finite(loss: float, norm: float) -> str | None:
    """What is wrong with a step whose loss or gradient is no finite number, in words; None if both are.

    Args:
        loss: nats a token.
        norm: of the gradient, before clipping.
    """
    if math.isfinite(loss) and math.isfinite(norm):
        return None
    return f"the loss is {loss} and the gradient's norm {norm}"


def jump(loss: float, recent: Sequence[float]) -> str | None:
    """How a loss jumps, in words: if it is both 2 nats and 6 standard deviations above the mean of the last 20 steps.

    Args:
        recent: losses of the steps before, the latest last.
    """
    if len(recent) < HISTORY:
        return None
    mean, deviation = statistics.fmean(recent[-HISTORY:]), statistics.pstdev(recent[-HISTORY:])
    if loss > mean + max(_LEAST_JUMP, _DEVIATIONS * deviation):
        return f"the loss jumped to {loss:.2f} from {mean:.2f}, its mean over {HISTORY} steps"
    return None
