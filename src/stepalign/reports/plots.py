"""Plots of the pages, as SVG files for a light or a dark page: a judge's accuracy and reliability, curves by timestep.

Importing this module loads matplotlib; its state stays as it was.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

WIDTH, HEIGHT = 340, 290
"""A plot's size in the page's pixels; wider columns enlarge it."""
FONTS = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif"
"""The page's fonts, used by the browser."""
MEASURED = "DejaVu Sans"
"""The font that matplotlib measures with; it is wider, so that no labels overlap."""


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of a plot, shared with the page's stylesheet."""

    soft: str
    line: str
    accent: str
    others: tuple[str, ...]
    """Colours of curves beside the accented one."""


LIGHT = Palette(soft="#5c626b", line="#e3e4e1", accent="#2b5fc4", others=("#b3361f", "#17743a", "#8a5a00"))
DARK = Palette(soft="#a0a6af", line="#31353b", accent="#84aaf5", others=("#f0937e", "#6ccb8b", "#dcb45c"))
MARKERS = ("o", "s", "^", "D")


@dataclass(frozen=True, slots=True)
class Series:
    """One curve: a model, a metric or an objective."""

    name: str
    points: list[tuple[float, float, float, float]]
    """x, value, and the ends of the value's interval, NaN where there is none."""


def plot_accuracy(start: Series, judge: Series, *, dark: bool = False) -> bytes:
    """Accuracy over timestep of the start model and the judge, with the chance line, as SVG.

    At least one of the two has a point.
    """
    xs = [x for series in (start, judge) for x, *_ in series.points]
    # the two models' points are shifted, or their error bars would overlap
    shift = 0.008 * ((max(xs) - min(xs)) or 100)
    palette = DARK if dark else LIGHT
    with _figure(palette) as (figure, axes):
        _show_percent(axes)
        _draw(axes, start, judge, palette=palette, shift=shift)
        axes.axhline(0.5, color=palette.soft, linewidth=1, linestyle=(0, (1, 3)), label="chance")
        axes.set_xlim(min(xs) - 4 * shift, max(xs) + 4 * shift)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], integer=True))
        axes.set_xlabel("timestep, from low noise to high", loc="right")
        axes.set_ylabel("pairs ordered as labelled")
        return _svg(figure, columns=3)


def plot_reliability(start: Series, judge: Series, *, dark: bool = False) -> bytes:
    """Reliability diagram: agreement with labels over the probability of the preferred image, in [.5, 1], as SVG."""
    palette = DARK if dark else LIGHT
    with _figure(palette) as (figure, axes):
        _show_percent(axes)
        _draw(axes, start, judge, palette=palette)
        axes.plot([0.5, 1], [0.5, 1], color=palette.soft, linewidth=1, linestyle=(0, (1, 3)))
        axes.set_xlim(0.49, 1.01)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.set_xlabel("probability of the preferred image", loc="right")
        axes.set_ylabel("labels agree")
        return _svg(figure, columns=1)


def plot_by_timestep(curves: Sequence[Series], *, log: bool = False, dark: bool = False) -> bytes:
    """Curves over the timestep, from high noise to low, with bands for their intervals, as SVG.

    The first curve is accented. A logarithmic axis leaves out values that are not positive.
    """
    palette = DARK if dark else LIGHT
    colours = (palette.accent, *palette.others)
    with _figure(palette) as (figure, axes):
        for series, colour, marker in zip(curves, colours, MARKERS, strict=False):
            points = [point for point in series.points if not log or point[1] > 0]
            xs, values, lows, highs = (list(column) for column in zip(*points, strict=True))
            axes.plot(xs, values, color=colour, marker=marker, markersize=3.5, label=series.name)
            axes.fill_between(xs, lows, highs, color=colour, alpha=0.25, linewidth=0)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
            axes.minorticks_off()
        else:
            axes.axhline(0, color=palette.soft, linewidth=1, linestyle=(0, (1, 3)))
        axes.invert_xaxis()
        axes.set_xlabel("timestep, from high noise to low", loc="right")
        return _svg(figure, columns=len(MARKERS)) if len(curves) > 1 else _svg(figure, columns=0)


@contextmanager
def _figure(palette: Palette) -> Iterator[tuple[Figure, Axes]]:
    """A transparent figure in the page's style."""
    style = {
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.labelcolor": palette.soft,
        "axes.spines.bottom": False,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "font.sans-serif": [MEASURED],
        "font.size": 8.25,
        "grid.color": palette.line,
        "legend.borderpad": 0.0,
        "legend.frameon": False,
        "legend.handlelength": 2.4,
        "legend.labelcolor": "linecolor",
        "lines.linewidth": 1.25,
        "savefig.transparent": True,
        "svg.fonttype": "none",
        "svg.hashsalt": "stepalign",
        "xtick.color": palette.soft,
        "xtick.major.size": 0,
        "ytick.color": palette.soft,
        "ytick.major.size": 0,
    }
    with matplotlib.style.context(["default", style]):
        figure = Figure(figsize=(WIDTH / 96, HEIGHT / 96), layout="constrained")
        yield figure, figure.add_subplot()


def _show_percent(axes: Axes) -> None:
    """Label the height of axes in percent."""
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))


def _draw(axes: Axes, start: Series, judge: Series, *, palette: Palette, shift: float = 0.0) -> None:
    """Plot both models' points and error bars, with different colours, markers and lines; the judge's on top."""
    looks = [(start, -shift, palette.soft, "s", "--"), (judge, shift, palette.accent, "o", "-")]
    for series, aside, colour, marker, line in looks:
        for x, _, low, high in series.points:
            axes.plot([x + aside] * 2, [low, high], color=colour)
        xs, shares = [x + aside for x, *_ in series.points], [share for _, share, *_ in series.points]
        axes.plot(xs, shares, color=colour, marker=marker, markersize=3.5, linestyle=line, label=series.name)
    axes.margins(y=0.04)


def _svg(figure: Figure, *, columns: int) -> bytes:
    """The figure as a file without date and program, with a legend of some columns above it, or none."""
    if columns:
        figure.legend(loc="outside upper left", ncols=columns)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return buffer.getvalue().replace(f"'{MEASURED}', sans-serif", FONTS).encode()
