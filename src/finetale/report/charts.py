"""The charts of a report, as SVG elements to stand inside an HTML page. Knows nothing of the page around them.

matplotlib lays the charts out, but the page colours them: placeholder colours become CSS variables and `currentColor`, so one
drawing reads well in light, in dark and on paper. Text stays text. The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE = 900
NARROW = 350

_TEXT, _GRID, _TRAIN, _VALIDATION, _RATE, _BETTER, _WORSE = (f"#0{n}0{n}0{n}" for n in range(1, 8))
_CSS_COLORS = {
    _TEXT: "currentColor",
    _GRID: "var(--rule)",
    _TRAIN: "var(--chart-training)",
    _VALIDATION: "var(--chart-validation)",
    _RATE: "var(--chart-rate)",
    _BETTER: "var(--better)",
    _WORSE: "var(--worse)",
}
_SVG = "{http://www.w3.org/2000/svg}"
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
_MOST_POINTS = 600


@dataclass
class Curves:
    """What a run's events say about its course. Losses are in nats a token.

    Attributes:
        training: (step, loss) of each optimizer step.
        rate: (step, learning rate).
        evaluations: (step, loss) on the validation text.
        best: step of the best evaluation, if there was one.
    """

    training: list[tuple[int, float]] = field(default_factory=list)
    rate: list[tuple[int, float]] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    best: int | None = None


def read_curves(metrics: Iterable[Mapping[str, Any]]) -> Curves:
    """The curves in a run's events; steps that a resumed run did again count once, as done last."""
    training: dict[int, float] = {}
    rate: dict[int, float] = {}
    evaluations: dict[int, float] = {}
    best = None
    for event in metrics:
        step, loss = event.get("step"), event.get("loss")
        if not isinstance(step, int):
            continue
        if event.get("event") == "train":
            if _finite(loss):
                training[step] = float(loss)  # type: ignore[arg-type]
            if _finite(event.get("learning_rate")):
                rate[step] = float(event["learning_rate"])
        elif event.get("event") == "evaluation" and _finite(loss):
            evaluations[step] = float(loss)  # type: ignore[arg-type]
            best = step if event.get("best") else best
    return Curves(sorted(training.items()), sorted(rate.items()), sorted(evaluations.items()), best)


def loss_chart(curves: Curves, width: int) -> str:
    """Training and validation loss against optimizer steps, the learning rate below; "" when there is nothing to draw.

    Args:
        curves: what `read_curves` found.
        width: `WIDE` or `NARROW`, in CSS pixels; text is 12 pixels high at that width.
    """
    if len(curves.training) + len(curves.evaluations) < 2:
        return ""
    from matplotlib.ticker import MaxNLocator

    with _style():
        figure = _figure(width, 380 if width == WIDE else 340)
        ratios = [4, 1] if curves.rate else [1]
        axes = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        if curves.training:
            points = _thin(curves.training)
            axes[0].plot(*zip(*points, strict=True), color=_TRAIN, linewidth=0.8, alpha=0.35)
            axes[0].plot(*zip(*smooth(points), strict=True), color=_TRAIN, linewidth=1.8)
        if curves.evaluations:
            axes[0].plot(
                *zip(*curves.evaluations, strict=True), color=_VALIDATION, linewidth=1.8, marker="o", markersize=4.5
            )
        if curves.best is not None:
            best = dict(curves.evaluations)[curves.best]
            axes[0].plot(
                [curves.best],
                [best],
                marker="o",
                markersize=11,
                markerfacecolor="none",
                color=_VALIDATION,
                linestyle="",
            )
        axes[0].set_ylabel("loss (nats a token)")
        axes[0].margins(y=0.08)
        axes[0].yaxis.set_major_locator(MaxNLocator(6))
        if curves.rate:
            axes[1].plot(*zip(*_thin(curves.rate), strict=True), color=_RATE, linewidth=1.8)
            peak = max(rate for _, rate in curves.rate)
            axes[1].set_ylim(0, peak * 1.15 or 1)
            axes[1].set_yticks([0, peak] if peak else [0], ["0", f"{peak:.1e}"] if peak else ["0"])
            axes[1].set_ylabel("rate")
        axes[-1].set_xlabel("optimizer step")
        axes[-1].xaxis.set_major_locator(MaxNLocator(8 if width == WIDE else 4, integer=True))
        figure.align_ylabels()
        label = "Line chart of the loss against optimizer steps: training and validation."
        return _svg(figure, f"loss{width}", label)


def change_chart(changes: Sequence[float], width: int) -> str:
    """One bar a held-out document, sorted: how its perplexity changed, in percent (negative is better); "" for none."""
    ordered = sorted(float(change) for change in changes if _finite(change))
    if not ordered:
        return ""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if len(ordered) > _MOST_POINTS:
        ordered = [ordered[index * len(ordered) // _MOST_POINTS] for index in range(_MOST_POINTS)]
    with _style():
        figure = _figure(width, 230)
        axes = figure.subplots()
        colors = [_BETTER if change < 0 else _WORSE for change in ordered]
        axes.bar(range(len(ordered)), ordered, width=0.8, color=colors, linewidth=0)
        axes.axhline(0, color=_TEXT, linewidth=1)
        axes.set_xticks([])
        axes.set_xlim(-0.8, max(len(ordered), 8) - 0.2)
        axes.set_ylabel("change of perplexity")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:+.0f}%".replace("-", "−").replace("+0%", "0%"))
        )
        axes.set_xlabel("held-out documents, most improved first")
        label = "Bar chart of the change of perplexity of each held-out document, sorted."
        return _svg(figure, f"change{width}", label)


def smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """A straight line fitted around each point, over about a tenth of them all (local linear regression).

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


def _thin(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """At most `_MOST_POINTS` points: a long run's neighbours are averaged, or the file grows by megabytes."""
    if len(points) <= _MOST_POINTS:
        return points
    edges = [index * len(points) // _MOST_POINTS for index in range(_MOST_POINTS + 1)]
    groups = [points[start:end] for start, end in pairwise(edges)]
    return [(group[len(group) // 2][0], math.fsum(value for _, value in group) / len(group)) for group in groups]


@contextmanager
def _style() -> Iterator[None]:
    """matplotlib's own defaults, whatever the user's matplotlibrc says, with ours on top; put back on leaving."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "finetale",
                "font.size": 12,
                "text.color": _TEXT,
                "axes.labelcolor": _TEXT,
                "axes.edgecolor": _GRID,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.spines.left": False,
                "axes.grid": True,
                "axes.grid.axis": "y",
                "axes.axisbelow": True,
                "grid.color": _GRID,
                "xtick.color": _GRID,
                "ytick.color": _GRID,
                "xtick.labelcolor": _TEXT,
                "ytick.labelcolor": _TEXT,
                "ytick.major.size": 0,
            }
        )
        yield


def _figure(width: int, height: int) -> Figure:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # 72 dots an inch: one unit of the drawing is one CSS pixel at full size.
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _svg(figure: Figure, name: str, label: str) -> str:
    """The figure as one <svg> element: no metadata, no outside address, identifiers that start with `name`."""
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):  # a <style> here would hold for the whole page
                parent.remove(child)
    source = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', source))
    referenced = {name for pair in used for name in pair if name}
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        identifier = element.attrib.pop("id", None)
        if identifier in referenced:
            element.set("id", f"{name}-{identifier}")
        if _XLINK_HREF in element.attrib:
            element.set("href", f"#{name}-" + element.attrib.pop(_XLINK_HREF).removeprefix("#"))
        if "clip-path" in element.attrib:
            element.set("clip-path", element.attrib["clip-path"].replace("url(#", f"url(#{name}-"))
        if "style" in element.attrib:
            element.set("style", _page_style(element.attrib["style"]))
        if "d" in element.attrib:
            element.set("d", " ".join(element.attrib["d"].split()))
        if element.tag == "text" and "transform" in element.attrib:
            element.set("transform", element.attrib["transform"].replace("rotate(-0 ", "rotate(0 "))
        element.text, element.tail = (element.text or "").strip(), ""
    view_box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": view_box, "role": "img", "aria-label": label, "class": "chart"})
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def _page_style(style: str) -> str:
    """A style attribute with the page's colours and fonts instead of matplotlib's."""
    style = re.sub(r"font-family:[^;]*;?\s*", "", style)
    for placeholder, color in _CSS_COLORS.items():
        style = style.replace(placeholder, color)
    return style


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
