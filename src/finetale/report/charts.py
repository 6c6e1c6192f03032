"""The charts of a report, as SVG elements inside an HTML page. Know nothing of the page around them.

The page colours them: every stroke and fill is a CSS variable or `currentColor`, so that one drawing reads well in
light, in dark and on paper. Text stays text. Each chart has a description for screen readers, and the page has the same
figures as a table. The same numbers give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from finetale.formatting import measure
from finetale.schema import EvaluationEvent, Event, TrainEvent

WIDE = 900
NARROW = 350
_MAX_POINTS = 600
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 10, 44
_RATE_HEIGHT, _GAP = 60, 16

Point = tuple[float, float]


@dataclass
class Curves:
    """The course of a run. Losses are in nats per token.

    Attributes:
        training: (step, loss) of each optimizer step.
        rate: (step, learning rate).
        evaluations: (step, loss) on the validation text.
        best: step of the best evaluation, if there was one.
        sample_tokens: validation tokens that each evaluation measured, if only a sample.
    """

    training: list[tuple[int, float]] = field(default_factory=list)
    rate: list[tuple[int, float]] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    best: int | None = None
    sample_tokens: int | None = None


def read_curves(events: Iterable[Event]) -> Curves:
    """Return the curves in a run's events. If a step was repeated after a resume, its last event counts."""
    training: dict[int, float] = {}
    rate: dict[int, float] = {}
    evaluations: dict[int, float] = {}
    best = sample_tokens = None
    for event in events:
        if isinstance(event, TrainEvent):
            training[event.step] = event.loss
            rate[event.step] = event.learning_rate
        elif isinstance(event, EvaluationEvent):
            evaluations[event.step] = event.loss
            best = event.step if event.best else best
            sample_tokens = event.sample_tokens
    return Curves(sorted(training.items()), sorted(rate.items()), sorted(evaluations.items()), best, sample_tokens)


def loss_chart(curves: Curves, width: int) -> str:
    """Draw training and validation loss against optimizer steps, and the learning rate below.

    Args:
        curves: what `read_curves` returned.
        width: `WIDE` or `NARROW`, in CSS pixels; text is 12 pixels high at that width.

    Returns:
        An `<svg>` element; "" when there is nothing to draw.
    """
    if len(curves.training) + len(curves.evaluations) < 2:
        return ""
    height = 400 if width == WIDE else 360
    below = _RATE_HEIGHT + _GAP if curves.rate else 0
    steps = [step for step, _ in (*curves.training, *curves.evaluations)]
    losses = [loss for _, loss in (*curves.training, *curves.evaluations)]
    across = _Scale(min(steps), max(steps), _LEFT, width - _RIGHT)
    low, high = _padded(min(losses), max(losses))
    up = _Scale(low, high, height - _BOTTOM - below, _TOP)
    parts = [*_grid(up, width, 6), _axis_name("loss (nats per token)", up)]
    if curves.training:
        points = _thin(curves.training)
        parts.append(_line(points, across, up, "var(--chart-training)", width=0.8, opacity=0.35))
        parts.append(_line(smooth(points), across, up, "var(--chart-training)"))
    if curves.evaluations:
        parts.append(_line(curves.evaluations, across, up, "var(--chart-validation)"))
        parts += [_dot(point, across, up, 3) for point in _thin(curves.evaluations)]
    if curves.best is not None:
        parts.append(_dot((curves.best, dict(curves.evaluations)[curves.best]), across, up, 6.5, ring=True))
    if curves.rate:
        peak = max(rate for _, rate in curves.rate)
        of_rate = _Scale(0, peak * 1.15 or 1.0, height - _BOTTOM, height - _BOTTOM - _RATE_HEIGHT)
        parts += [_rule(of_rate.at(0), width), _label(_LEFT - 8, of_rate.at(0), "0", "end")]
        if peak:
            parts += [_rule(of_rate.at(peak), width), _label(_LEFT - 8, of_rate.at(peak), f"{peak:.1e}", "end")]
        parts += [
            _line(_thin(curves.rate), across, of_rate, "var(--chart-rate)"),
            _axis_name("rate", of_rate),
        ]
    for step in _ticks(across.low, across.high, 8 if width == WIDE else 4, whole=True):
        parts.append(_label(across.at(step), height - _BOTTOM + 18, f"{step:,.0f}", "middle"))
    parts.append(_label((_LEFT + width - _RIGHT) / 2, height - 6, "optimizer step", "middle"))
    return _svg(parts, width, height, "Loss against optimizer steps", _described(curves))


def smooth(points: Sequence[Point]) -> list[Point]:
    """Fit a straight line around each point, over about a tenth of them all (local linear regression).

    Unlike a moving average it neither flattens the steep beginning nor follows the noise of the last few points.
    """
    reach = max(2, len(points) // 20)
    smoothed = []
    for index, (step, _) in enumerate(points):
        window = points[max(0, index - reach) : index + reach + 1]
        mean_step = math.fsum(step for step, _ in window) / len(window)
        mean = math.fsum(value for _, value in window) / len(window)
        spread = math.fsum((step - mean_step) ** 2 for step, _ in window)
        slope = math.fsum((step - mean_step) * (value - mean) for step, value in window) / spread if spread else 0.0
        smoothed.append((step, mean + slope * (step - mean_step)))
    return smoothed


@dataclass(frozen=True)
class _Scale:
    """Maps values from `low` to `high` to pixels from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        span = self.high - self.low
        return self.start + (value - self.low) / span * (self.stop - self.start) if span else self.start


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = 0.08 * (high - low) or max(abs(high) * 0.1, 0.1)
    return low - pad, high + pad


def _ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Return at most `most` round values between low and high."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10.0 ** math.floor(math.log10(span / most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if span / (step * factor) < most)
    step = max(1.0, step) if whole else step
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _grid(up: _Scale, width: int, most: int) -> list[str]:
    """Return a horizontal line and a label for each round value."""
    ticks = _ticks(up.low, up.high, most)
    decimals = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9)) if len(ticks) > 1 else 2
    parts = []
    for value in ticks:
        parts += [_rule(up.at(value), width), _label(_LEFT - 8, up.at(value), measure(value, decimals), "end")]
    return parts


def _rule(y: float, width: int) -> str:
    return f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--rule)"/>'


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _axis_name(text: str, up: _Scale) -> str:
    y = (up.start + up.stop) / 2
    return f'<text transform="translate(13 {y:.1f}) rotate(-90)" text-anchor="middle">{escape(text)}</text>'


def _line(
    points: Iterable[Point], across: _Scale, up: _Scale, color: str, *, width: float = 1.8, opacity: float = 1.0
) -> str:
    drawn = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in points)
    return (
        f'<polyline points="{drawn}" fill="none" stroke="{color}" stroke-width="{width}" stroke-opacity="{opacity}"/>'
    )


def _dot(point: Point, across: _Scale, up: _Scale, radius: float, *, ring: bool = False) -> str:
    color = "var(--chart-validation)"
    paint = f'fill="none" stroke="{color}" stroke-width="1.8"' if ring else f'fill="{color}"'
    return f'<circle cx="{across.at(point[0]):.1f}" cy="{up.at(point[1]):.1f}" r="{radius}" {paint}/>'


def _thin(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """Return at most `_MAX_POINTS` points. Average neighbours of a long run, so that the file stays small."""
    if len(points) <= _MAX_POINTS:
        return points
    edges = [index * len(points) // _MAX_POINTS for index in range(_MAX_POINTS + 1)]
    groups = [points[start:end] for start, end in pairwise(edges)]
    return [(group[len(group) // 2][0], math.fsum(value for _, value in group) / len(group)) for group in groups]


def _described(curves: Curves) -> str:
    parts = []
    for name, points in (("Training loss", curves.training), ("Validation loss", curves.evaluations)):
        if points:
            (first, begin), (last, end) = points[0], points[-1]
            parts.append(f"{name} goes from {begin:.3f} at step {first:,} to {end:.3f} at step {last:,}.")
    if curves.best is not None:
        parts.append(f"The best validation loss is at step {curves.best:,}.")
    return " ".join(parts)


def _svg(parts: Iterable[str], width: int, height: int, title: str, described: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(f"{title}. {described}")}" class="chart" '
        f'font-size="12" fill="currentColor">{"".join(parts)}</svg>'
    )
