"""Figures of the papers, as PNG files and as panels of a page."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure

from stepalign.core.protocols import Sampler
from stepalign.core.sampling import times_at
from stepalign.objectives.settings import Stepwise, Weighting
from stepalign.objectives.stepwise import kappa, target_weight
from stepalign.reports import plots
from stepalign.reports.page import Panel, panel

WEIGHTS = {
    "a": ("Weight of the target", "a_t, of the squared distance to the target"),
    "kappa": ("Weight of a timestep", "kappa_t, the whole weight in the loss"),
}
"""The two panels of the figure of weights: title and description."""
WEIGHTINGS: tuple[Weighting, ...] = ("spo", "gradspo", "min-snr", "p2")


def timestep_weights(sampler: Sampler) -> dict[str, dict[str, list[float]]]:
    """a_t and kappa_t of every weighting at the sampler's stochastic timesteps, as columns; see `objectives.stepwise`.

    "t" has the timesteps, "a" and "kappa" a column for every weighting.
    """
    every = torch.arange(sampler.num_steps)
    step = every[sampler.std(every) > 0]
    return {
        "t": {"t": times_at(sampler, step).double().tolist()},
        "a": {name: target_weight(name, sampler, step).tolist() for name in WEIGHTINGS},
        "kappa": {name: kappa(Stepwise(weighting=name), sampler, step).tolist() for name in WEIGHTINGS},
    }


def plot_weights(sampler: Sampler) -> bytes:
    """Figure of every objective's weights by timestep (GradSPO figure 2a): a_t on the left, kappa_t on the right."""
    weights = timestep_weights(sampler)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, key, label in zip(figure.subplots(1, 2), ("a", "kappa"), ("$a_t$", r"$\kappa_t$"), strict=True):
        for name, values in weights[key].items():
            axes.plot(weights["t"]["t"], values, marker="o", markersize=3, label=name)
        axes.set(xlabel="timestep t", ylabel=label, yscale="log")
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
    figure.axes[0].set_title("weight of the squared distance to the target", fontsize="medium")
    figure.axes[1].set_title("whole weight of a timestep in the loss", fontsize="medium")
    figure.axes[0].legend()
    return _png(figure)


def weights_panels(sampler: Sampler, weighting: Weighting) -> list[Panel]:
    """Panels of every objective's weights by timestep (GradSPO figure 2a), the run's `weighting` first and accented."""
    weights = timestep_weights(sampler)
    timesteps = weights["t"]["t"]
    panels = []
    for key, (title, note) in WEIGHTS.items():
        names = sorted(weights[key], key=lambda name: name != weighting)
        curves = [_curve(name, timesteps, weights[key][name]) for name in names]
        panels.append(panel(title, note, _words(title, curves), partial(plots.plot_by_timestep, curves, log=True)))
    return panels


def gains_panels(gains: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[Panel]:
    """Each metric's gain, aligned minus base, by timestep with its 95 % interval (GradSPO figure 2b).

    `gains` is metric -> timestep -> difference and interval, as `gains.measure_gains` gives it.
    """
    panels = []
    for metric, rows in gains.items():
        name = metric.replace("_", " ")
        points = [(float(t), row["difference"], *row["interval"]) for t, row in rows.items()]
        curves = [plots.Series(name, points)]
        title, note = f"Gain in {name}", "of x̂0, aligned minus base on the same noise; band: 95 % interval"
        panels.append(panel(title, note, _words(title, curves), partial(plots.plot_by_timestep, curves)))
    return panels


def _curve(name: str, timesteps: list[float], values: list[float]) -> plots.Series:
    return plots.Series(name, [(t, value, math.nan, math.nan) for t, value in zip(timesteps, values, strict=True)])


def _words(title: str, curves: list[plots.Series]) -> str:
    """Text alternative of the curves: the values at both ends."""
    ends = [
        f"{curve.name} from {curve.points[0][1]:.3g} at timestep {curve.points[0][0]:.0f} "
        f"to {curve.points[-1][1]:.3g} at {curve.points[-1][0]:.0f}"
        for curve in curves
    ]
    return f"{title}: {'; '.join(ends)}."


def plot_gains(gains: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> bytes:
    """Each metric's gain, aligned minus base, by timestep with its 95 % interval (GradSPO figure 2b).

    `gains` is metric -> timestep -> difference and interval, as `gains.measure_gains` gives it.
    """
    figure = Figure(figsize=(4.2 * len(gains), 3.6), layout="constrained")
    for axes, (metric, rows) in zip(figure.subplots(1, len(gains), squeeze=False)[0], gains.items(), strict=True):
        timesteps = [float(t) for t in rows]
        differences = [row["difference"] for row in rows.values()]
        low, high = ([row["interval"][end] for row in rows.values()] for end in (0, 1))
        axes.plot(timesteps, differences, marker="o", markersize=3)
        axes.fill_between(timesteps, low, high, alpha=0.25)
        axes.axhline(0, color="grey", linewidth=1)
        axes.set(xlabel="timestep t", title=f"{metric}: aligned minus base")
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
    return buffer.getvalue()
