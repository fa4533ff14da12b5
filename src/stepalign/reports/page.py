"""Shared parts of the HTML reports: formatted numbers, images as data URLs, charts of one series, writing."""

from __future__ import annotations

import base64
import io
import itertools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import jinja2
from jaxtyping import Float
from PIL import Image
from torch import Tensor

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 10, 36
"""A chart's size and the margins around its curve; the template scales it to the column."""
FRAME = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "bottom": HEIGHT - BOTTOM}
TICK_GAP = 34
"""The least distance between two labels of the horizontal axis, in the chart's units."""

SMALL = 128
"""Images below this size on both sides are enlarged with hard pixel edges."""

THUMBNAIL = 256
"""Most pixels per side of an image that is one of many, to limit the size of the page."""


@dataclass(frozen=True, slots=True)
class Chart:
    """One curve for the template: coordinates in the chart's units, values as text."""

    title: str
    note: str
    x_name: str
    label: str
    last: str
    dots: list[tuple[float, float, str]]
    runs: list[str]
    bridges: list[tuple[float, float, float, float]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def chart(
    xs: Sequence[int | float],
    values: list[Any],
    *,
    title: str,
    note: str,
    x_name: str,
    percent: bool = False,
    marks: list[int] | None = None,
) -> Chart:
    """The chart of values over xs, from left to right in the given order; a value that is not finite leaves a gap.

    At least one value is finite. `marks` are the xs to label where there is room; without them any x may be.
    """
    known = finite(values)
    levels, digits = _levels(min(known), max(known))
    span, height = xs[-1] - xs[0], levels[-1] - levels[0]
    fine = max(digits + 1, decimals(max(map(abs, known)) / 10))

    def place(x: int | float, value: int | float) -> tuple[float, float]:
        across = (x - xs[0]) / span if span else 0.5
        up = (value - levels[0]) / height
        return round(LEFT + across * (WIDTH - LEFT - RIGHT), 1), round(TOP + (1 - up) * (HEIGHT - TOP - BOTTOM), 1)

    runs: list[list[tuple[float, float]]] = [[]]
    dots = []
    for x, value in zip(xs, values, strict=True):
        if not is_number(value):
            runs.append([])
            continue
        runs[-1].append(place(x, value))
        dots.append((*place(x, value), f"{x_name} {x}: {_level_text(value, fine, percent=percent)}"))
    runs = [run for run in runs if run]
    return Chart(
        title=title,
        note=note,
        x_name=x_name,
        last=_level_text(known[-1], fine, percent=percent),
        label=f"{title}, from {dots[0][2]} to {dots[-1][2]}",
        dots=dots,
        runs=[" ".join(f"{x},{y}" for x, y in run) for run in runs],
        bridges=[(*before[-1], *after[0]) for before, after in itertools.pairwise(runs)],
        x_ticks=_spaced([(place(x, levels[0])[0], str(x)) for x in (xs if marks is None else marks)]),
        y_ticks=[(place(xs[0], level)[1], _level_text(level, digits, percent=percent)) for level in levels],
    )


def _spaced(labels: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """The labels of a horizontal axis, without labels too near the previous one."""
    kept: list[tuple[float, str]] = []
    for across, text in labels:
        if not kept or across - kept[-1][0] >= TICK_GAP:
            kept.append((across, text))
    return kept


def _levels(low: float, high: float) -> tuple[list[float], int]:
    """Three to six round numbers that enclose low and high, and the decimals to distinguish them."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        # a flat curve has no scale: it is shown against 0
        low, high = min(low, 0.0), max(high, 0.0 if low else 1.0)
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 4 >= (high - low) * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * index for index in range(first, last + 1)], -math.floor(math.log10(step * 1.001))


def _level_text(value: int | float, digits: int, *, percent: bool) -> str:
    """A value of an axis with the given decimals, in percent or, where it is very large or small, with an exponent."""
    if percent:
        return fixed(100 * value, max(digits - 2, 0)) + " %"
    return fixed(value, max(digits, 0)) if -5 < digits < 6 else f"{value:.3g}".replace("-", "−")


def round_numbers(first: int, last: int) -> list[int]:
    """A few round whole numbers from first to last: the marks of a long axis."""
    levels, _ = _levels(float(first), float(last))
    return [int(level) for level in levels if first <= level <= last and level.is_integer()]


def finite(values: Iterable[Any]) -> list[float]:
    """The finite values, as floats."""
    return [float(value) for value in values if is_number(value)]


def spread(values: Sequence[Any]) -> float:
    """The range of the finite values; 0 when there are none."""
    return max(finite(values), default=0.0) - min(finite(values), default=0.0)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a logged value is present and finite."""
    return isinstance(value, int | float) and math.isfinite(value)


def decimals(spread: float) -> int:
    """The decimals that show a spread with two digits, at most 6; 2 for a spread of 0."""
    return min(max(1 - math.floor(math.log10(spread)), 0), 6) if spread > 0 else 2


def fixed(value: Any, digits: int, *, sign: str = "-") -> str:
    """A number with fixed decimals, thousands separated and a real minus sign; a dash where there is none."""
    return f"{value:{sign}z,.{digits}f}".replace("-", "−") if is_number(value) else "–"


def duration(seconds: int | float) -> str:
    """Seconds in the two largest units that fit."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def data_image(pixels: Float[Tensor, "3 h w"], *, limit: int | None = None) -> dict[str, Any]:
    """An image in [0, 1] as a data URL of a PNG with its size, shrunk until no side has more pixels than limit."""
    levels = (pixels.detach().float().nan_to_num(0.0).clamp(0, 1) * 255).round().byte()
    image = Image.fromarray(levels.permute(1, 2, 0).contiguous().cpu().numpy())
    if limit is not None:
        image.thumbnail((limit, limit))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    source = data_url(buffer.getvalue(), kind="image/png")
    return {"source": source, "width": image.width, "height": image.height, "small": max(image.size) < SMALL}


@dataclass(frozen=True, slots=True)
class Panel:
    """A plot with title and text alternative, for a light and a dark page."""

    title: str
    note: str
    words: str
    """Text alternative."""
    light: str
    dark: str
    """Data URLs of SVG files."""


def panel(title: str, note: str, words: str, plot: Callable[..., bytes]) -> Panel:
    """A panel with the plots of `plot(dark=...)`."""
    light, dark = (data_url(plot(dark=dark), kind="image/svg+xml") for dark in (False, True))
    return Panel(title, note, words, light, dark)


def data_url(data: bytes, *, kind: str) -> str:
    """A data URL with a file's content and MIME type."""
    return f"data:{kind};base64," + base64.b64encode(data).decode("ascii")


def difference_row(
    name: str,
    cells: list[list[str]],
    *,
    difference: Any,
    interval: Sequence[Any] | None,
    digits: int,
    reach: float | None = None,
) -> dict[str, Any]:
    """One line of a table of paired differences: name, a cell per model, the change and its significance.

    A cell is lines of text. Positions of the bar and whisker are percents of the graphic's width, at whose edge lies a
    difference of `reach`; without it the line has its own scale.
    """
    low, high = interval or (None, None)
    ends = [low, difference, high]
    reach = scale(ends) if reach is None else reach
    drawn = reach > 0 and len(finite(ends)) == 3
    return {
        "name": name,
        "cells": cells,
        "difference": fixed(difference, digits, sign="+"),
        "interval": f"{fixed(low, digits, sign='+')} to {fixed(high, digits, sign='+')}",
        "places": [50 + 50 * end / reach for end in ends] if drawn else None,
        "verdict": _verdict(low, high),
    }


def scale(values: Iterable[Any]) -> float:
    """The largest distance from 0 of the finite values; 0 when there are none."""
    return 1.15 * max(map(abs, finite(values)), default=0.0)


def _verdict(low: Any, high: Any) -> str:
    """The significance of a paired difference in words; unclear when an end of the interval is 0 or not finite."""
    if not is_number(low) or not is_number(high) or low <= 0 <= high:
        return "not significant"
    return "better" if low > 0 else "worse"


def write_page(path: Path, template: str, values: dict[str, Any]) -> None:
    """Render a template and write the page to `path` atomically.

    Raises OSError when the folder of `path` cannot be written to; an older page is then unchanged.
    """
    page = _templates().get_template(template).render(values)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # a prompt may hold a lone surrogate, which UTF-8 cannot encode; browsers show the reference as U+FFFD
        temporary.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def panels_html(panels: list[Panel]) -> str:
    """The HTML of panels."""
    return str(_templates().get_template("macros.html.j2").module.graphs(panels))  # type: ignore[attr-defined]


def _templates() -> jinja2.Environment:
    loader, strict = jinja2.PackageLoader("stepalign.reports"), jinja2.StrictUndefined
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=strict, trim_blocks=True)
    environment.globals["frame"] = FRAME
    return environment
