"""The results of a sweep: gains by table and row, averaged over seeds, with paired intervals over held-out prompts.

sweep.json   every table's rows: runs that are done, missing or failed, seconds, and scores by metric
sweep.md     the same tables for people
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import torch

from stepalign.reports.summaries import RunSummary, load_run_summary
from stepalign.runs.held_out_rows import read_held_out
from stepalign.runs.recipes import Recipe
from stepalign.runs.sweep_file import Sweep, directory
from stepalign.support.environment import timing_of
from stepalign.support.markdown import markdown_text
from stepalign.support.statistics import cluster_means, clusters_of, paired_difference

Scores = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""By metric: scores of the base and the aligned model on every held-out prompt."""


class Difference(TypedDict):
    """A mean difference over prompts with its 95 % interval."""

    difference: float
    interval: list[float]


class Gain(TypedDict):
    """One metric of a row: aligned less base over prompts, its 95 % interval, and each seed's own gain."""

    base: float
    aligned: float
    gain: float
    interval: list[float]
    by_seed: list[float]
    against_first: NotRequired[Difference]
    """Aligned scores less those of the table's first row."""


class SweepRow(TypedDict):
    """One row of a table."""

    row: str
    seeds: list[int]
    """Of the runs that are done."""
    missing: int
    failed: dict[str, str]
    """By seed, why a run has no results."""
    seconds: list[float]
    scores: dict[str, Gain]


Results = dict[str, list[SweepRow]]
"""By table."""


@dataclass(frozen=True, slots=True)
class _Done:
    """A run of a row that is done."""

    seed: int
    summary: RunSummary
    scores: Scores


def collect_results(sweep: Sweep, output: Path, failures: Mapping[str, str]) -> Results:
    """The tables of a sweep from the runs that are done; `failures` are reasons by the name of a run's directory.

    A row's gain is aligned less base over held-out prompts, averaged over seeds first, so that its interval is one over
    new prompts and not over new seeds; the seeds' own gains stand beside it.
    """
    return {
        table: [
            _collect_row(sweep, output, row, recipe, next(iter(rows.values())), failures)
            for row, recipe in rows.items()
        ]
        for table, rows in sweep.tables.items()
    }


def run_scores(run_directory: Path) -> Scores:
    """A finished run's held-out scores, each distinct prompt once; raises ValueError where the file is damaged."""
    rows = read_held_out(run_directory)
    clusters = clusters_of([row.prompt for row in rows])

    def means(values: list[float]) -> torch.Tensor:
        return torch.from_numpy(cluster_means(np.array(values, dtype=float), clusters))

    return {
        metric: (means([row.base[metric] for row in rows]), means([row.aligned[metric] for row in rows]))
        for metric in rows[0].base
    }


def results_page(results: Results) -> str:
    """The tables as Markdown."""
    return "\n".join(_table_text(table, rows) for table, rows in results.items())


def _collect_row(
    sweep: Sweep, output: Path, row: str, recipe: Recipe, first: Recipe, failures: Mapping[str, str]
) -> SweepRow:
    found = {seed: _outcome(output / directory(recipe, seed), seed, failures) for seed in sweep.seeds}
    done = [one for one in found.values() if isinstance(one, _Done)]
    result: SweepRow = {
        "row": row,
        "seeds": [one.seed for one in done],
        "missing": len(sweep.seeds) - len(done),
        "failed": {str(seed): one for seed, one in found.items() if isinstance(one, str)},
        "seconds": [timing_of(one.summary)["seconds"] for one in done],
        "scores": {},
    }
    if done:
        others = [_outcome(output / directory(first, one.seed), one.seed, failures) for one in done]
        shared = [other.scores for other in others if isinstance(other, _Done)] if recipe != first else []
        own = [one.scores for one in done]
        result["scores"] = {metric: _gain(own, metric, shared if len(shared) == len(done) else []) for metric in own[0]}
    return result


def _outcome(folder: Path, seed: int, failures: Mapping[str, str]) -> _Done | str | None:
    """A run that is done, the reason why it failed, or None for one that is not done yet."""
    if folder.name in failures:
        return failures[folder.name]
    try:
        summary = load_run_summary(folder)
        if summary is None:
            return None
        return summary.get("failed") or _Done(seed, summary, run_scores(folder))
    except ValueError as error:
        return str(error)


def _gain(own: list[Scores], metric: str, first: list[Scores]) -> Gain:
    """One metric of a row, and the difference from the first row's aligned scores where these are given."""
    base, aligned = (torch.stack([scores[metric][side] for scores in own]).mean(0) for side in (0, 1))
    gain = paired_difference(base, aligned)
    found: Gain = {
        "base": gain.base,
        "aligned": gain.aligned,
        "gain": gain.difference,
        "interval": list(gain.interval),
        "by_seed": [float((scores[metric][1] - scores[metric][0]).mean()) for scores in own],
    }
    if first:
        other = paired_difference(torch.stack([scores[metric][1] for scores in first]).mean(0), aligned)
        found["against_first"] = {"difference": other.difference, "interval": list(other.interval)}
    return found


def _table_text(table: str, rows: list[SweepRow]) -> str:
    metrics = list(next((row["scores"] for row in rows if row["scores"]), {}))
    heads = [f"{markdown_text(metric)}: gain (95 % interval) | against the first" for metric in metrics]
    lines = [
        f"## {markdown_text(table)}",
        "",
        f"| | runs | {' | '.join(heads)} | minutes |",
        "|---" * (3 + 2 * len(metrics)) + "|",
        *(_row_text(row, metrics) for row in rows),
    ]
    failed = [(row["row"], seed, reason) for row in rows for seed, reason in row["failed"].items()]
    if failed:
        lines.append("")
        lines += [f"- {markdown_text(f'{name}, seed {seed} failed: {reason}')}" for name, seed, reason in failed]
    return "\n".join(lines) + "\n"


def _row_text(row: SweepRow, metrics: list[str]) -> str:
    cells = [markdown_text(row["row"]), str(len(row["seeds"]))]
    for metric in metrics:
        score = row["scores"].get(metric)
        against = score.get("against_first") if score else None
        cells.append(_cell(score["gain"], score["interval"]) if score else "–")
        cells.append(_cell(against["difference"], against["interval"]) if against else "–")
    cells.append(f"{sum(row['seconds']) / 60:.1f}")
    return f"| {' | '.join(cells)} |"


def _cell(value: float, interval: list[float]) -> str:
    return f"{value:+.3f} ({interval[0]:+.3f} to {interval[1]:+.3f})".replace("-", "−")
