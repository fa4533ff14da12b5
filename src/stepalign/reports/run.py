"""HTML report of a training run: scores, images, curves, a trajectory; self-contained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from stepalign.data.prompts_cut import all_cut_words
from stepalign.reports.page import (
    THUMBNAIL,
    Chart,
    Panel,
    chart,
    data_image,
    decimals,
    difference_row,
    duration,
    finite,
    fixed,
    is_number,
    panels_html,
    spread,
    write_page,
)
from stepalign.reports.sampling_record import sampling_words
from stepalign.reports.summaries import RunSummary
from stepalign.sources.settings import Candidates, Sources
from stepalign.support.environment import timing_of
from stepalign.support.files import write_text
from stepalign.training.held_out_scores import ScoreChange

CURVES = (
    ("judge_score", "Judge score", "mean of the round's candidates{at}; prompts differ by round", False),
    ("loss", "Loss", "mean over the round's comparisons", False),
    ("accuracy", "Accuracy", "comparisons ordered as the judge does", True),
    ("rms_delta", "RMS delta", "how far the policy has moved: rms of its prediction's change", False),
    ("outside", "Outside the trust region", "share of the round's pairs", True),
    ("grad_norm", "Gradient norm", "of the round's updates", False),
    ("kept", "Pools kept", "candidate pools that gave a comparison", True),
)
"""Key of a row of rounds, the curve's title, its description, whether the value is a fraction shown in percent."""

ROLES = {"policy": "the trained model", "ema": "the averaged model", "reference": "the reference model"}
COUNTS = {
    "judge_images": "Images scored by the judge",
    "judge_texts": "Texts encoded by the judge",
    "base_texts": "Texts encoded by the base model",
}
"""Labels of the summary's counters that are not a phase and a role."""

GAINS_START, GAINS_END = "<!-- gains -->", "<!-- /gains -->"
"""Markers around the figure of gains in the page, or its placeholder."""


@dataclass(frozen=True, slots=True)
class Example:
    """One held-out prompt with the base and the aligned model's images from the same seed."""

    prompt: str
    base: Float[Tensor, "3 h w"]
    aligned: Float[Tensor, "3 h w"]
    """Both in [0, 1]."""
    base_scores: dict[str, float]
    """Scores by metric; higher is better."""
    aligned_scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class TrajectoryStep:
    """One branching step of one prompt: the k candidates with the judge's scores."""

    timestep: int | float
    """Timestep of the candidates; 0 is the finished image."""
    images: Float[Tensor, "k 3 h w"]
    """In [0, 1]."""
    scores: list[float]
    best: int
    worst: int
    followed: int
    """Index of the candidate from which the trajectory continued."""
    trained: bool
    """False when the pair was dropped because its gap was too small."""


def write_report(
    path: Path,
    *,
    title: str,
    recipe: str,
    rounds: list[dict[str, Any]],
    summary: RunSummary,
    examples: list[Example],
    prompt: str,
    trajectory: list[TrajectoryStep],
    source: Sources,
    weights: list[Panel] | None = None,
    weighting: str = "",
) -> None:
    """Write the self-contained page of a run to `path` atomically.

    Images are in [0, 1]. `recipe` is YAML text, `rounds` the rows of metrics.jsonl, `prompt` the trajectory's,
    `source` what the run trained on, `weights` what `figures.weights_panels` gives, `weighting` the run's
    own.
    Raises OSError when the folder of `path` cannot be written to; an older page is then unchanged.
    """
    scores = summary.get("scores", {})
    # the interval's width decides the number of decimals of a metric
    digits = {name: decimals(spread(row["interval"])) for name, row in scores.items()}
    step_digits = decimals(max((spread(step.scores) for step in trajectory), default=0.0) / 10)
    values = {
        "title": title,
        "recipe": recipe,
        "num_rounds": len(rounds),
        "summary": summary,
        "duration": duration(seconds) if is_number(seconds := timing_of(summary).get("seconds")) else None,
        "sampling": sampling_words(summary.get("sampling", {})),
        "scores": [_score_row(name, row, digits=digits[name]) for name, row in scores.items()],
        "examples": [_card(example, digits=digits) for example in examples],
        "charts": _curves(rounds),
        "prompt": prompt,
        "trajectory": [_step_row(step, digits=step_digits) for step in trajectory],
        "trained": _trained_words(source),
        "warnings": _warnings(summary),
        "calls": [(call_words(name), f"{count:,}") for name, count in (summary.get("calls") or {}).items()],
        "weights": weights,
        "weighting": weighting,
    }
    write_page(path, "report.html.j2", values)


def add_gains(path: Path, panels: list[Panel]) -> None:
    """Put the panels of gains by timestep into a run's report, replacing earlier ones.

    Raises ValueError when the page has no markers for them, as one of an older version.
    """
    page = path.read_text(encoding="utf-8")
    before, start, rest = page.partition(GAINS_START)
    _, end, after = rest.partition(GAINS_END)
    if not (start and end):
        raise ValueError(f"{path} has no place for the figure of gains; it was written by an older version")
    words = (
        '<p class="soft">The change of x̂0 at each timestep, aligned minus base on the same noise, with 95 % '
        "intervals over held-out prompts (GradSPO, figure 2b).</p>"
    )
    write_text(path, f"{before}{start}\n{words}\n{panels_html(panels)}\n{end}{after}")


def _warnings(summary: RunSummary) -> list[str]:
    """Warnings above the numbers: a failed run, signs of the watch, prompts that were cut."""
    failed = [reason] if (reason := summary.get("failed")) else []
    signs = [
        f"After round {sign['round']}: {sign['message']}" if sign["round"] else sign["message"]
        for sign in summary.get("watch") or []
    ]
    return [*failed, *signs, *all_cut_words(summary.get("prompts_cut") or {})]


def call_words(name: str) -> str:
    """The label of a counter: `sampling_ema` is "Network calls, sampling: the averaged model"."""
    if name in COUNTS:
        return COUNTS[name]
    phase, _, role = name.rpartition("_")
    if phase and role in ROLES:
        return f"Network calls, {phase}: {ROLES[role]}"
    return name.replace("_", " ").capitalize()


def _trained_words(source: Sources) -> tuple[str, str]:
    """The use of a step's candidates, with a sufficient gap and without."""
    if not isinstance(source, Candidates):
        words = "Not trained on: this run learns from the judge's gradient."
        return words, words
    dropped = "Dropped: the judge's scores of the candidates were too close."
    return {
        "best-worst": "Trained on: best against worst.",
        "all-k": "Trained on: all candidates, weighted by their scores.",
        "two-random": "Trained on: two random candidates.",
    }[source.pairing], dropped


def _score_row(name: str, row: ScoreChange, *, digits: int) -> dict[str, Any]:
    """One metric's line of the table."""
    cells = [[fixed(row["base"], digits)], [fixed(row["aligned"], digits)]]
    difference, interval = row["difference"], row["interval"]
    return difference_row(name.replace("_", " "), cells, difference=difference, interval=interval, digits=digits)


def _card(example: Example, *, digits: dict[str, int]) -> dict[str, Any]:
    """One example for the template: per side the image and lines of metric, score and "up", "down" or ""."""
    before, after = example.base_scores, example.aligned_scores
    base = [(metric, fixed(before[metric], digits.get(metric, 2)), "") for metric in before]
    aligned = [
        (metric, fixed(after[metric], digits.get(metric, 2)), _trend(before.get(metric), after[metric]))
        for metric in after
    ]
    sides = [("base", data_image(example.base), base), ("aligned", data_image(example.aligned), aligned)]
    return {"prompt": example.prompt, "sides": sides}


def _trend(before: Any, after: Any) -> str:
    """Whether a score went "up" or "down"; "" when it is equal or either is not finite."""
    if not is_number(before) or not is_number(after) or before == after:
        return ""
    return "up" if after > before else "down"


def _step_row(step: TrajectoryStep, *, digits: int) -> dict[str, Any]:
    """One branching step for the template: its candidates are pairs of image and score."""
    images = [data_image(image, limit=THUMBNAIL) for image in step.images]
    scores = [fixed(score, digits) for score in step.scores]
    return {"step": step, "candidates": list(zip(images, scores, strict=True))}


def _judged_at(rounds: list[dict[str, Any]]) -> str:
    """The timesteps at which the last candidates were judged, in words; "" where older rows have none."""
    timesteps = {row["judge_timestep"] for row in rounds if row.get("judge_timestep") is not None}
    return f" at t = {', '.join(map(str, sorted(timesteps)))}" if timesteps else ""


def _curves(rounds: list[dict[str, Any]]) -> list[Chart]:
    """Charts of the known keys that are numbers in some round, then the last round's RMS delta by timestep."""
    numbers = [row.get("round", index) for index, row in enumerate(rounds, start=1)]
    charts = []
    for key, title, note, percent in CURVES:
        values = [row.get(key) for row in rounds]
        if finite(values):
            described = note.replace("{at}", _judged_at(rounds))
            charts.append(chart(numbers, values, title=title, note=described, x_name="round", percent=percent))
    by_timestep = (rounds[-1].get("rms_delta_by_timestep") or {}) if rounds else {}
    if finite(by_timestep.values()):
        rows = sorted(((json.loads(timestep), value) for timestep, value in by_timestep.items()), reverse=True)
        title, note = "RMS delta by timestep", "last round, from high noise to low"
        charts.append(chart([x for x, _ in rows], [y for _, y in rows], title=title, note=note, x_name="timestep"))
    return charts
