"""The plots of a comparison, as SVG that takes on the colours of the page around it, and as PNG.

Each is drawn twice for the page, wide and narrow, since a picture that is only scaled down cannot be read on a phone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from distloop.report.comparison import OPERATIONS, PHASES, Bandwidth, Comparison, Contender
from distloop.report.comparison_table import binary_size, milliseconds

matplotlib.use("Agg")

COLOURS = {"compute": "#4c78a8", "wait": "#9d9da1", "transfer": "#f58518", "optimizer": "#54a24b"}
LINES = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#9d755d", "#d6a400", "#9d9da1")
INK, FAINT = "#1b1f24", "#c9ccd1"  # in SVG they become the page's own
WIDE, NARROW = 8.6, 4.1
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "legend.frameon": False,
    "savefig.transparent": True,
}
Draw = Callable[[Comparison, float], Figure]


def draws(comparison: Comparison) -> Mapping[str, Draw]:
    """Those that there is something to draw of, by name."""
    found: dict[str, Draw] = {"time": draw_time}
    if _all_reduces(comparison):
        found["bandwidth"] = draw_bandwidth
    if comparison.scaling is not None:
        found["scaling"] = draw_scaling
    return found


def pictures(comparison: Comparison) -> dict[str, bytes]:
    """Each as PNG, on white."""
    made = {}
    for name, draw in draws(comparison).items():
        with matplotlib.rc_context(_STYLE):
            figure, held = draw(comparison, WIDE), io.BytesIO()
            figure.savefig(held, format="png", dpi=160, facecolor="white", transparent=False)
        made[name] = held.getvalue()
    return made


def drawing(comparison: Comparison, name: str, width: float) -> str:
    """One as an ``<svg>`` element, ``width`` inches wide, with a label for those who cannot see it."""
    style = _STYLE | {"svg.hashsalt": f"{name}{width}"}
    with matplotlib.rc_context(style):
        figure, held = draws(comparison)[name](comparison, width), io.StringIO()
        figure.savefig(held, format="svg", metadata={"Date": None})
    text = held.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: [\d. ]*px [^;\"]*;?", lambda found: _font(found[0]), text)
    text = text.replace(INK, "currentColor").replace(FAINT, "var(--line)")
    return re.sub(r"<svg ", f'<svg role="img" aria-label="{_LABELS[name]}" ', text, count=1)


_LABELS = {
    "time": "Time of a step by strategy, cut into compute, wait, transfer and optimizer",
    "bandwidth": "Bandwidth of all-reduce by size",
    "scaling": "Predicted time of a step by number of ranks",
}


def _font(text: str) -> str:
    """The size alone: the family is the page's."""
    size = re.search(r"[\d.]+px", text)
    return f"font-size: {size[0]};" if size else ""


def draw_time(comparison: Comparison, width: float) -> Figure:
    """A bar per contender, the quickest on top; a line where training alone ends."""
    ranked = comparison.ranked[::-1]
    figure = Figure(figsize=(width, 1.25 + 0.36 * len(ranked)), layout="constrained")
    axes = figure.add_subplot()
    longest = max(one.p50 for one in ranked) * 1e3
    for height, one in enumerate(ranked):
        _stack(axes, height, one)
        weight = "bold" if one is comparison.best else "normal"
        axes.text(longest * 1.13, height, milliseconds(one.p50), va="center", ha="right", fontsize=9, fontweight=weight)
    if comparison.alone is not None:
        alone = comparison.alone.p50 * 1e3
        axes.axvline(alone, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(alone, len(ranked) - 0.45, " alone", fontsize=9, va="bottom", ha="left")
    axes.set_yticks(range(len(ranked)), [_named(one, comparison) for one in ranked])
    for label, one in zip(axes.get_yticklabels(), ranked, strict=True):
        label.set_fontweight("bold" if one is comparison.best else "normal")
    axes.set_xlim(0, longest * 1.14)
    axes.set_ylim(-0.6, len(ranked) - 0.05)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_xlabel("ms per step (median; slowest rank)")
    handles = [matplotlib.patches.Patch(color=COLOURS[phase], label=phase) for phase in PHASES]
    figure.legend(handles=handles, loc="outside upper left", ncols=4 if width > 5 else 2, fontsize=9)
    return figure


def _stack(axes: Axes, height: int, one: Contender) -> None:
    if one.split is None:
        axes.barh(height, one.p50 * 1e3, color=FAINT, height=0.68)
        return
    start = 0.0
    for phase in PHASES:
        length = one.split[phase] * 1e3
        axes.barh(height, length, left=start, color=COLOURS[phase], height=0.68, linewidth=0)
        start += length


def _named(one: Contender, comparison: Comparison) -> str:
    return f"{one.name}{' ~' if one.approximate else ''}{'  ▸' if one is comparison.best else ''}"


def draw_bandwidth(comparison: Comparison, width: float) -> Figure:
    """Bus bandwidth over size, both in powers; the bound above."""
    figure = Figure(figsize=(width, 3.9 if width > 5 else 4.0), layout="constrained")
    axes = figure.add_subplot()
    found = _all_reduces(comparison)
    names = list(dict.fromkeys(one.name for one in found))
    for name, colour in zip(names, LINES * 3, strict=False):
        points = [(one.size_bytes, one.busbw / 1e9) for one in found if one.name == name]
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3.5, linewidth=1.8, label=name)
    bounds = sorted({(one.size_bytes, one.busbw / one.of_bound / 1e9) for one in found if one.of_bound})
    if bounds:
        axes.plot(*zip(*bounds, strict=True), color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label="bound")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sizes = sorted({one.size_bytes for one in found})
    shown = sizes[:: 1 if width > 5 and len(sizes) < 9 else 2 if width > 5 else 3]
    axes.set_xticks(shown, [binary_size(size) for size in shown])
    _plain_numbers(axes)
    axes.set_xlabel("bytes of the vector")
    axes.set_ylabel("busbw, GB/s")
    figure.legend(loc="outside upper left", ncols=6 if width > 5 else 3, fontsize=9)
    return figure


def _all_reduces(comparison: Comparison) -> list[Bandwidth]:
    return [one for one in comparison.bandwidths if one.operation == OPERATIONS[0]]


def draw_scaling(comparison: Comparison, width: float) -> Figure:
    """Predicted seconds over ranks, both in powers; a line for the step without exchange."""
    scaling = comparison.scaling
    assert scaling is not None
    figure = Figure(figsize=(width, 3.9 if width > 5 else 4.0), layout="constrained")
    axes = figure.add_subplot()
    for (name, seconds), colour in zip(scaling.seconds.items(), LINES * 3, strict=False):
        axes.plot(list(seconds), [value * 1e3 for value in seconds.values()], color=colour, linewidth=1.8, label=name)
    alone = scaling.alone_seconds * 1e3
    axes.axhline(alone, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label="alone")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ranks = sorted({ranks for seconds in scaling.seconds.values() for ranks in seconds})
    shown = ranks[:: 2 if width > 5 else 4]
    axes.set_xticks(shown, [f"{count:,}" for count in shown])
    _plain_numbers(axes)
    axes.set_xlabel(f"ranks ({scaling.link})")
    axes.set_ylabel("predicted ms per step")
    figure.legend(loc="outside upper left", ncols=5 if width > 5 else 3, fontsize=9)
    return figure


def _plain_numbers(axes: Axes) -> None:
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
