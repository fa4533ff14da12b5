"""HTML report of a judge's training: accuracy by noise level, reliability, examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from stepalign.data.prompts_cut import all_cut_words
from stepalign.judges.card import trained_on
from stepalign.reports.page import (
    THUMBNAIL,
    Chart,
    Panel,
    chart,
    data_image,
    difference_row,
    duration,
    finite,
    fixed,
    is_number,
    panel,
    round_numbers,
    scale,
    write_page,
)
from stepalign.reports.summaries import JudgeSummary
from stepalign.support.environment import timing_of

CURVES = (
    ("loss", "Loss", "of the training pairs", False),
    ("accuracy", "Accuracy", "training pairs ordered as labelled", True),
    ("grad_norm", "Gradient norm", "before it is clipped", False),
    ("learning_rate", "Learning rate", "of the optimizer", False),
)
"""Key of a training row, the curve's title, its description, whether the value is a fraction shown in percent."""
MOST_POINTS = 200
"""Most points of a curve; longer trainings are shown as means of neighbouring rows."""

MODELS = ("start", "judge")
"""Keys of the start model and the trained judge in the summary."""


@dataclass(frozen=True, slots=True)
class JudgedStep:
    """One pair of images at one noise level, with the two models' probabilities."""

    timestep: int
    images: Float[Tensor, "2 3 h w"]
    """The decoded x̂0 of both as the judge sees them, in [0, 1]."""
    start: float
    """The probability that the first is preferred, by the model that training began with."""
    judge: float
    """The same by the trained judge."""


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """One held-out pair of images of one prompt."""

    prompt: str
    label: float
    """Label: 1 for the first image, 0 for the second, .5 for a tie."""
    steps: list[JudgedStep]
    """From low noise to high."""


def write_judge_report(
    path: Path,
    *,
    title: str,
    recipe: str,
    rows: list[dict[str, Any]],
    summary: JudgeSummary,
    examples: list[JudgedPair],
) -> None:
    """Write the self-contained page of a judge's training to `path` atomically.

    `recipe` is YAML text, `rows` the training's rows. Of `summary` only `recipe` is required, and its numbers
    may be None or NaN where nothing was measured. Raises OSError when the folder of `path` cannot be written to; an
    older page is then unchanged.
    """
    accuracy, data = summary.get("accuracy") or [], summary.get("data") or {}
    skipped = data.get("skipped") or []
    unlisted = _number(data.get("num_skipped")) - len(skipped)
    values = {
        "title": title,
        "recipe": recipe,
        "summary": summary,
        "trained_on": trained_on(summary),
        "warnings": all_cut_words(summary.get("prompts_cut") or {}),
        "counts": {key: fixed(summary[key], 0) for key in ("steps", "num_decided") if is_number(summary.get(key))},
        "duration": duration(seconds) if is_number(seconds := timing_of(summary).get("seconds")) else None,
        "accuracy": _accuracy_rows(accuracy),
        "plots": _plots(accuracy, summary.get("reliability") or {}),
        "num_rows": len(rows),
        "stride": _stride(rows),
        "charts": _curves(rows),
        "examples": [_pair(example) for example in examples],
        "data": _data_facts(summary, data),
        "skipped": skipped,
        "num_unlisted": fixed(unlisted, 0) if is_number(unlisted) and unlisted > 0 else None,
        "work": _work_facts(summary),
    }
    write_page(path, "judge_report.html.j2", values)


def _accuracy_rows(accuracy: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table's lines, one per timestep, in percent; their graphics share one scale."""
    changes = [(100 * _number(row.get("difference")), _ends(row, factor=100.0)) for row in accuracy]
    reach = scale(end for difference, interval in changes for end in (difference, *interval))
    return [
        difference_row(
            f"timestep {row['timestep']}",
            [_share_lines(row.get(model) or {}) for model in MODELS],
            difference=difference,
            interval=interval,
            digits=1,
            reach=reach,
        )
        for row, (difference, interval) in zip(accuracy, changes, strict=True)
    ]


def _share_lines(measured: dict[str, Any]) -> list[str]:
    """An accuracy as the lines of a cell: its value, then its interval where there is one."""
    low, high = _ends(measured, factor=100.0)
    lines = [_percent(measured.get("accuracy"), 1)]
    return [*lines, f"{fixed(low, 1)} to {fixed(high, 1)}"] if len(finite([low, high])) == 2 else lines


def _plots(accuracy: list[dict[str, Any]], reliability: dict[str, Any]) -> list[Panel]:
    """The plots for which there are numbers."""
    from stepalign.reports import plots  # brings matplotlib, which is slow to load and needed only here

    drawn = []
    rows = [[{"timestep": row["timestep"], **(row.get(model) or {})} for row in accuracy] for model in MODELS]
    points = [_points(row, "timestep", "accuracy") for row in rows]
    if any(points):
        title, note = "Accuracy over noise", "share of the held-out pairs ordered as labelled"
        words = _in_words(MODELS, points, lambda x, share: f"{_percent(share, 1)} at timestep {x:.0f}")
        plot = partial(plots.plot_accuracy, *map(plots.Series, MODELS, points))
        drawn.append(panel(title, note, f"{title}. {words}", plot))
    models = [reliability.get(model) or {} for model in MODELS]
    points = [_points(model.get("bins") or [], "probability", "frequency") for model in models]
    if any(points):
        title, note = "Reliability", "over all timesteps; on the dotted line, labels agree as often as predicted"
        names = [_with_error(name, model.get("error")) for name, model in zip(MODELS, models, strict=True)]
        words = _in_words(names, points, lambda x, share: f"{_percent(share, 1)} at {_percent(x, 1)}")
        plot = partial(plots.plot_reliability, *map(plots.Series, names, points))
        drawn.append(panel(title, note, f"{title}. {words}", plot))
    return drawn


def _points(rows: list[dict[str, Any]], x: str, share: str) -> list[tuple[float, float, float, float]]:
    """Points of a plot from the rows that hold both numbers: x, the share, the ends of its interval."""
    known = [row for row in rows if is_number(row.get(x)) and is_number(row.get(share))]
    return [(float(row[x]), float(row[share]), *_ends(row)) for row in known]


def _with_error(name: str, error: Any) -> str:
    """A model's name in the legend, with its calibration error where one was measured."""
    return f"{name}, calibration error {_percent(error, 1)}" if is_number(error) else name


def _in_words(
    names: Sequence[str],
    points: list[list[tuple[float, float, float, float]]],
    say: Callable[[float, float], str],
) -> str:
    """Text alternative of a plot; `say` describes one x and share."""
    told = [", ".join(say(x, share) for x, share, *_ in one) or "nothing measured" for one in points]
    return "; ".join(f"{name}: {text}" for name, text in zip(names, told, strict=True)) + "."


def _stride(rows: list[dict[str, Any]]) -> int:
    """The number of neighbouring rows averaged into one point of a curve."""
    return max(1, math.ceil(len(rows) / MOST_POINTS))


def _curves(rows: list[dict[str, Any]]) -> list[Chart]:
    """Charts of the known keys that are numbers in some row; a long training is reduced to means."""
    stride = _stride(rows)
    groups = [rows[first : first + stride] for first in range(0, len(rows), stride)]
    steps = [group[-1]["step"] for group in groups]
    charts = []
    for key, title, note, percent in CURVES:
        numbers = [finite(row.get(key) for row in group) for group in groups]
        values = [sum(known) / len(known) if known else None for known in numbers]
        if finite(values):
            marks = round_numbers(steps[0], steps[-1])
            charts.append(chart(steps, values, title=title, note=note, x_name="step", percent=percent, marks=marks))
    return charts


def _pair(example: JudgedPair) -> dict[str, Any]:
    """One example for the template: the preferred image, and both images' probabilities per timestep."""
    preferred = None
    if is_number(example.label):
        preferred = "tie" if example.label == 0.5 else "first" if example.label > 0.5 else "second"
    steps = [{"timestep": step.timestep, "sides": _sides(step)} for step in example.steps]
    return {"prompt": example.prompt, "preferred": preferred, "steps": steps}


def _sides(step: JudgedStep) -> list[dict[str, Any]]:
    """The two images of a step for the template: lines of model, probability, whether it prefers this one."""
    odds = [(step.start, step.judge), (1 - step.start, 1 - step.judge)]
    return [
        {
            "name": name,
            "image": data_image(image, limit=THUMBNAIL),
            "lines": [(model, _percent(odd, 0), odd > 0.5) for model, odd in zip(MODELS, both, strict=True)],
        }
        for name, image, both in zip(("first", "second"), step.images, odds, strict=True)
    ]


def _data_facts(summary: JudgeSummary, data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Facts on the data, as names and values."""
    counted = [
        ("Training pairs", summary.get("num_pairs")),
        ("Pairs seen in training, with repeats", summary.get("num_pairs_drawn")),
        ("Held-out pairs", summary.get("num_held_out")),
        ("Held-out pairs without a tie", summary.get("num_decided")),
        ("Rows read", data.get("num_rows")),
        ("Rows skipped", data.get("num_skipped")),
        ("Rows without a label, left out", data.get("num_unlabelled")),
    ]
    named = [("Training pairs come from", data.get("pairs")), ("Held-out pairs come from", data.get("held_out"))]
    named += [("Labels come from", data.get("labels"))]
    facts = [(name, str(value)) for name, value in named if value]
    facts += [(name, fixed(value, 0)) for name, value in counted if is_number(value)]
    size = data.get("cache_bytes")
    return [*facts, ("Cache", f"{fixed(size / 1e6, 1)} MB")] if is_number(size) else facts


def _work_facts(summary: JudgeSummary) -> list[tuple[str, str]]:
    """Facts on the training's cost, as names and values."""
    seconds, training, device = (timing_of(summary).get(key) for key in ("seconds", "training_seconds", "device"))
    loss = summary.get("final_loss")
    facts = [("Time", duration(seconds))] if is_number(seconds) else []
    facts += [("Of which training", duration(training))] if is_number(training) else []
    counted = [("Training steps", summary.get("steps"))]
    counted += [(name.replace("_", " ").capitalize(), count) for name, count in (summary.get("calls") or {}).items()]
    facts += [(name, fixed(count, 0)) for name, count in counted if is_number(count)]
    facts += [("Final loss", fixed(loss, 4))] if is_number(loss) else []
    return [*facts, ("Device", str(device))] if device else facts


def _number(value: Any) -> float:
    """A value of a summary as a float; NaN where there is none."""
    return float(value) if is_number(value) else math.nan


def _ends(measured: dict[str, Any], *, factor: float = 1.0) -> tuple[float, float]:
    """The ends of a measurement's interval times a factor; NaN where there is none."""
    low, high = measured.get("interval") or (None, None)
    return factor * _number(low), factor * _number(high)


def _percent(share: Any, digits: int) -> str:
    """A share in percent; a dash where there is none."""
    return f"{fixed(100 * share, digits)} %" if is_number(share) else "–"
