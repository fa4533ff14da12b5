"""The plots of a judge's page, as SVG files for a light or a dark page: accuracy over noise, and reliability.

Importing this module loads matplotlib; its state stays as it was.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

WIDTH, HEIGHT = 340, 290
"""A plot's size in the page's pixels; wider columns enlarge it."""
FONTS = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif"
"""The page's fonts, which the browser sets the words in."""
MEASURED = "DejaVu Sans"
"""The font that matplotlib brings and measures with; it is wider, so no words run into others."""


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours that a plot has in common with the page's stylesheet."""

    soft: str
    line: str
    accent: str


LIGHT = Palette(soft="#5c626b", line="#e3e4e1", accent="#2b5fc4")
DARK = Palette(soft="#a0a6af", line="#31353b", accent="#84aaf5")


@dataclass(frozen=True, slots=True)
class Series:
    """What was measured of one model."""

    name: str
    points: list[tuple[float, float, float, float]]
    """From left to right: place, share, and the ends of the share's interval, NaN where there is none."""


def plot_accuracy(start: Series, judge: Series, *, dark: bool = False) -> bytes:
    """Accuracy over timestep for the model that training began with and the judge, with the chance line, as SVG.

    One of the two has a point.
    """
    xs = [x for series in (start, judge) for x, *_ in series.points]
    # The two models' points stand beside one another, or their error bars would cover each other.
    shift = 0.008 * ((max(xs) - min(xs)) or 100)
    palette = DARK if dark else LIGHT
    with _figure(palette) as (figure, axes):
        _draw(axes, start, judge, palette=palette, shift=shift)
        axes.axhline(0.5, color=palette.soft, linewidth=1, linestyle=(0, (1, 3)), label="chance")
        axes.set_xlim(min(xs) - 4 * shift, max(xs) + 4 * shift)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], integer=True))
        axes.set_xlabel("timestep, from low noise to high", loc="right")
        axes.set_ylabel("pairs ordered as people do")
        return _svg(figure, columns=3)


def plot_reliability(start: Series, judge: Series, *, dark: bool = False) -> bytes:
    """How often people agree over the probability a model gives the picture it prefers, in [.5, 1], as SVG."""
    palette = DARK if dark else LIGHT
    with _figure(palette) as (figure, axes):
        _draw(axes, start, judge, palette=palette)
        axes.plot([0.5, 1], [0.5, 1], color=palette.soft, linewidth=1, linestyle=(0, (1, 3)))
        axes.set_xlim(0.49, 1.01)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.set_xlabel("probability of the preferred picture", loc="right")
        axes.set_ylabel("people agree")
        return _svg(figure, columns=1)


@contextmanager
def _figure(palette: Palette) -> Iterator[tuple[Figure, Axes]]:
    """A transparent figure in the page's style, with axes whose height is a share in percent."""
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
        axes = figure.add_subplot()
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        yield figure, axes


def _draw(axes: Axes, start: Series, judge: Series, *, palette: Palette, shift: float = 0.0) -> None:
    """Both models' points and error bars, told apart by colour, marker and line; the judge's lie above."""
    looks = [(start, -shift, palette.soft, "s", "--"), (judge, shift, palette.accent, "o", "-")]
    for series, aside, colour, marker, line in looks:
        for x, _, low, high in series.points:
            axes.plot([x + aside] * 2, [low, high], color=colour)
        xs, shares = [x + aside for x, *_ in series.points], [share for _, share, *_ in series.points]
        axes.plot(xs, shares, color=colour, marker=marker, markersize=3.5, linestyle=line, label=series.name)
    axes.margins(y=0.04)


def _svg(figure: Figure, *, columns: int) -> bytes:
    """The figure with a legend above it, as a file that says nothing of when and with what it was made."""
    figure.legend(loc="outside upper left", ncols=columns)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return buffer.getvalue().replace(f"'{MEASURED}', sans-serif", FONTS).encode()
