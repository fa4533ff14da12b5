"""The plots of a judge's page: what they draw, in the page's colours, the same every time."""

from __future__ import annotations

import importlib.resources
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest

from stepalign.reports import plots
from stepalign.reports.plots import Series

NAN = float("nan")
START = Series("start", [(0.0, 0.8, 0.75, 0.85), (500.0, 0.7, NAN, NAN)])
JUDGE = Series("judge <b>&", [(0.0, 0.9, 0.85, 0.95), (500.0, 0.6, 0.55, 0.65)])


def texts(svg: bytes) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("plot", [plots.plot_accuracy, plots.plot_reliability])
def test_a_plot_takes_its_colours_from_the_page(plot, dark: bool) -> None:
    svg = plot(START, JUDGE, dark=dark).decode()
    style = (importlib.resources.files("stepalign.reports") / "templates" / "style.css").read_text(encoding="utf-8")
    light, dim = style.split("@media (prefers-color-scheme: dark)")[:2]
    for name in ("soft", "line", "accent"):
        colour = getattr(plots.DARK if dark else plots.LIGHT, name)
        assert colour in svg
        assert f"--{name}: {colour};" in (dim if dark else light)
    assert "fill: #ffffff" not in svg, "the page shows through"


@pytest.mark.parametrize("plot", [plots.plot_accuracy, plots.plot_reliability])
def test_a_plot_is_the_same_file_every_time_and_leaves_matplotlib_alone(plot) -> None:
    before = dict(matplotlib.rcParams)
    first = plot(START, JUDGE)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert plot(START, JUDGE) == first, "a user's own settings do not show"
    assert dict(matplotlib.rcParams) == before
    assert b"date" not in first


def test_the_legend_names_the_models_and_the_axes_speak_in_percent() -> None:
    shown = texts(plots.plot_accuracy(START, JUDGE))
    assert {"start", "judge <b>&", "chance", "50 %", "90 %", "0", "500"} <= set(shown)
    assert {"start", "judge <b>&", "50 %", "100 %"} <= set(texts(plots.plot_reliability(START, JUDGE)))


def test_a_model_without_points_and_a_single_point_can_be_drawn() -> None:
    empty, one = Series("start", []), Series("judge", [(0.0, 0.5, NAN, NAN)])
    assert "judge" in texts(plots.plot_accuracy(empty, one))
    assert "judge" in texts(plots.plot_reliability(one, empty))
    assert b"nan" not in plots.plot_accuracy(empty, one).lower()
