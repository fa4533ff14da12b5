"""The report of a training run: one HTML page with its pictures and curves inside, readable without a network."""

from __future__ import annotations

import base64
import io
import itertools
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import jinja2
from jaxtyping import Float
from PIL import Image
from torch import Tensor

CURVES = (
    ("judge_score", "Judge score", "mean of the round's candidates at t = 0; prompts differ by round", False),
    ("loss", "Loss", "mean over the round's comparisons", False),
    ("accuracy", "Accuracy", "comparisons ordered as the judge does", True),
    ("rms_delta", "RMS delta", "how far the policy has moved: rms of its prediction's change", False),
    ("outside", "Outside the trust region", "share of the round's pairs", True),
    ("grad_norm", "Gradient norm", "of the round's updates", False),
    ("kept", "Pools kept", "candidate pools that gave a comparison", True),
)
"""Key of a row of rounds, the curve's title, what is drawn, whether the value is a fraction shown in percent."""

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 10, 36
"""A chart's size and the margins around its curve; the template scales it to the column."""
TICK_GAP = 34
"""The least distance between two labels of the horizontal axis, in the chart's units."""

SMALL = 128
"""Pictures with fewer pixels than this on both sides are enlarged with hard pixel edges."""

THUMBNAIL = 256
"""The most pixels a side of a trajectory's picture keeps: a row of full-size candidates would swell the page."""


@dataclass(frozen=True, slots=True)
class Example:
    """One held-out prompt: what the base model and the aligned model draw from the same seed."""

    prompt: str
    base: Float[Tensor, "3 h w"]
    aligned: Float[Tensor, "3 h w"]
    """Both in [0, 1]."""
    base_scores: dict[str, float]
    """By the name of the metric; higher is better."""
    aligned_scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class TrajectoryStep:
    """One branching step of one prompt: the k candidates as the judge saw them."""

    timestep: int
    """Where the candidates lie; 0 is the finished picture."""
    images: Float[Tensor, "k 3 h w"]
    """In [0, 1]."""
    scores: list[float]
    best: int
    worst: int
    followed: int
    """The candidate the trajectory went on from."""
    trained: bool
    """False when the judge was too unsure and the pair was dropped."""


@dataclass(frozen=True, slots=True)
class _Chart:
    """One curve as the template draws it: places in the chart's units, values as text."""

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


def write_report(
    path: Path,
    *,
    title: str,
    recipe: str,
    rounds: list[dict[str, Any]],
    summary: dict[str, Any],
    examples: list[Example],
    prompt: str,
    trajectory: list[TrajectoryStep],
) -> None:
    """Write the self-contained page of a run to `path`, replacing it in one step.

    Pictures are in [0, 1]. `recipe` is YAML text, `rounds` the rows of metrics.jsonl, `prompt` the trajectory's.
    Raises OSError when the folder of `path` cannot be written to; an older page then stays as it was.
    """
    loader, strict = jinja2.PackageLoader("stepalign"), jinja2.StrictUndefined
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=strict, trim_blocks=True)
    scores = summary.get("scores", {})
    # The interval's width tells how many decimals of a metric mean something.
    digits = {name: _decimals(_spread(row["interval"])) for name, row in scores.items()}
    step_digits = _decimals(max((_spread(step.scores) for step in trajectory), default=0.0) / 10)
    page = environment.get_template("report.html.j2").render(
        title=title,
        recipe=recipe,
        num_rounds=len(rounds),
        summary=summary,
        duration=_duration(summary["seconds"]) if _is_number(summary.get("seconds")) else None,
        scores=[_score_row(name, row, digits=digits[name]) for name, row in scores.items()],
        examples=[_card(example, digits=digits) for example in examples],
        charts=_curves(rounds),
        frame={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "bottom": HEIGHT - BOTTOM},
        prompt=prompt,
        trajectory=[_step_row(step, digits=step_digits) for step in trajectory],
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # A prompt may hold a lone surrogate, which UTF-8 cannot say; the browser shows the reference as U+FFFD.
        temporary.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _score_row(name: str, row: dict[str, Any], *, digits: int) -> dict[str, Any]:
    """One metric's line of the table; the places of its bar and whisker are percents of the graphic's width."""
    low, high = row["interval"]
    ends = [low, row["difference"], high]
    reach = 1.15 * max(map(abs, _finite(ends)), default=0.0)
    drawn = reach > 0 and len(_finite(ends)) == 3
    return {
        "name": name.replace("_", " "),
        "base": _fixed(row["base"], digits),
        "aligned": _fixed(row["aligned"], digits),
        "difference": _fixed(row["difference"], digits, sign="+"),
        "interval": f"{_fixed(low, digits, sign='+')} to {_fixed(high, digits, sign='+')}",
        "places": [50 + 50 * end / reach for end in ends] if drawn else None,
        "verdict": _verdict(low, high),
    }


def _verdict(low: Any, high: Any) -> str:
    """What the interval of a paired difference says in words; an end that is 0 or no number leaves it unclear."""
    if not _is_number(low) or not _is_number(high) or low <= 0 <= high:
        return "no clear change"
    return "better" if low > 0 else "worse"


def _card(example: Example, *, digits: dict[str, int]) -> dict[str, Any]:
    """One example as the template shows it: per side the picture and lines of metric, score and "up", "down" or ""."""
    before, after = example.base_scores, example.aligned_scores
    base = [(metric, _fixed(before[metric], digits.get(metric, 2)), "") for metric in before]
    aligned = [
        (metric, _fixed(after[metric], digits.get(metric, 2)), _trend(before.get(metric), after[metric]))
        for metric in after
    ]
    sides = [("base", _picture(example.base), base), ("aligned", _picture(example.aligned), aligned)]
    return {"prompt": example.prompt, "sides": sides}


def _trend(before: Any, after: Any) -> str:
    """Whether a score went "up" or "down"; nothing when it stayed or either is no number."""
    if not _is_number(before) or not _is_number(after) or before == after:
        return ""
    return "up" if after > before else "down"


def _step_row(step: TrajectoryStep, *, digits: int) -> dict[str, Any]:
    """One branching step as the template shows it: its candidates are pairs of picture and score."""
    pictures = [_picture(image, limit=THUMBNAIL) for image in step.images]
    scores = [_fixed(score, digits) for score in step.scores]
    return {"step": step, "candidates": list(zip(pictures, scores, strict=True))}


def _curves(rounds: list[dict[str, Any]]) -> list[_Chart]:
    """A chart for each known key that is a number in some round, then the last round's RMS delta by timestep."""
    numbers = [row.get("round", index) for index, row in enumerate(rounds, start=1)]
    charts = []
    for key, title, note, percent in CURVES:
        values = [row.get(key) for row in rounds]
        if _finite(values):
            charts.append(_chart(numbers, values, title=title, note=note, x_name="round", percent=percent))
    by_timestep = (rounds[-1].get("rms_delta_by_timestep") or {}) if rounds else {}
    if _finite(by_timestep.values()):
        rows = sorted(((int(timestep), value) for timestep, value in by_timestep.items()), reverse=True)
        title, note = "RMS delta by timestep", "last round, from high noise to low"
        charts.append(_chart([x for x, _ in rows], [y for _, y in rows], title=title, note=note, x_name="timestep"))
    return charts


def _chart(xs: list[int], values: list[Any], *, title: str, note: str, x_name: str, percent: bool = False) -> _Chart:
    """Values over xs, which run from left to right in the given order; a value that is no number leaves a gap."""
    known = _finite(values)
    levels, digits = _levels(min(known), max(known))
    span, height = xs[-1] - xs[0], levels[-1] - levels[0]
    fine = max(digits + 1, _decimals(max(map(abs, known)) / 10))

    def place(x: int, value: int | float) -> tuple[float, float]:
        across = (x - xs[0]) / span if span else 0.5
        up = (value - levels[0]) / height
        return round(LEFT + across * (WIDTH - LEFT - RIGHT), 1), round(TOP + (1 - up) * (HEIGHT - TOP - BOTTOM), 1)

    runs: list[list[tuple[float, float]]] = [[]]
    x_ticks: list[tuple[float, str]] = []
    dots = []
    for x, value in zip(xs, values, strict=True):
        across, _ = place(x, levels[0])
        if not x_ticks or across - x_ticks[-1][0] >= TICK_GAP:
            x_ticks.append((across, str(x)))
        if not _is_number(value):
            runs.append([])
            continue
        runs[-1].append(place(x, value))
        dots.append((*place(x, value), f"{x_name} {x}: {_level_text(value, fine, percent=percent)}"))
    runs = [run for run in runs if run]
    return _Chart(
        title=title,
        note=note,
        x_name=x_name,
        last=_level_text(known[-1], fine, percent=percent),
        label=f"{title}, from {dots[0][2]} to {dots[-1][2]}",
        dots=dots,
        runs=[" ".join(f"{x},{y}" for x, y in run) for run in runs],
        bridges=[(*before[-1], *after[0]) for before, after in itertools.pairwise(runs)],
        x_ticks=x_ticks,
        y_ticks=[(place(xs[0], level)[1], _level_text(level, digits, percent=percent)) for level in levels],
    )


def _levels(low: float, high: float) -> tuple[list[float], int]:
    """Three to six round numbers that enclose low and high, and the decimals that tell them apart."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        # A flat curve has no scale of its own: it is shown against 0.
        low, high = min(low, 0.0), max(high, 0.0 if low else 1.0)
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 4 >= (high - low) * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * index for index in range(first, last + 1)], -math.floor(math.log10(step * 1.001))


def _level_text(value: int | float, digits: int, *, percent: bool) -> str:
    """A value of an axis with the given decimals, in percent or, where it is very large or small, with an exponent."""
    if percent:
        return _fixed(100 * value, max(digits - 2, 0)) + " %"
    return _fixed(value, max(digits, 0)) if -5 < digits < 6 else f"{value:.3g}".replace("-", "−")


def _finite(values: Iterable[Any]) -> list[float]:
    """The values that are numbers, as floats."""
    return [float(value) for value in values if _is_number(value)]


def _spread(values: Sequence[Any]) -> float:
    """The distance from the least to the greatest number among values; 0 when there is none."""
    return max(_finite(values), default=0.0) - min(_finite(values), default=0.0)


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a log is there and finite."""
    return isinstance(value, int | float) and math.isfinite(value)


def _decimals(spread: float) -> int:
    """The decimals that show a spread with two digits, at most 6; 2 for a spread of 0."""
    return min(max(1 - math.floor(math.log10(spread)), 0), 6) if spread > 0 else 2


def _fixed(value: Any, digits: int, *, sign: str = "-") -> str:
    """A number with fixed decimals, thousands separated and a real minus sign; a dash where there is none."""
    return f"{value:{sign}z,.{digits}f}".replace("-", "−") if _is_number(value) else "–"


def _duration(seconds: int | float) -> str:
    """Seconds in the two largest units that fit."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _picture(picture: Float[Tensor, "3 h w"], *, limit: int | None = None) -> dict[str, Any]:
    """A picture in [0, 1] as a data URL of a PNG with its size, shrunk until no side has more pixels than limit."""
    levels = (picture.detach().float().nan_to_num(0.0).clamp(0, 1) * 255).round().byte()
    image = Image.fromarray(levels.permute(1, 2, 0).contiguous().cpu().numpy())
    if limit is not None:
        image.thumbnail((limit, limit))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"source": source, "width": image.width, "height": image.height, "small": max(image.size) < SMALL}
