"""Comparison of models on the same prompts: means, paired differences, win rates and a ranking, with intervals.

Everything is paired: the images of a prompt are averaged first, intervals and p-values are taken over distinct prompts.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stepalign.core.protocols import ScorerRecord
from stepalign.evaluation.any_text import AnyTextGain, any_text_gains, is_diagnostic
from stepalign.evaluation.folders import (
    EvaluatedFolder,
    Key,
    categories,
    check_same_images,
    model_names,
    other_seeds,
    read_folder,
    repeated_prompts,
    shared_scorers,
)
from stepalign.evaluation.ranking import Strength, rank
from stepalign.reports.comparison import ComparedPrompt, comparison_markdown, write_comparison_report
from stepalign.runs.run import open_run
from stepalign.support.config import require
from stepalign.support.files import write_text
from stepalign.support.json_text import to_json
from stepalign.support.marker import Owner
from stepalign.support.shares import win_rate
from stepalign.support.statistics import (
    cluster_means,
    clusters_of,
    holm,
    mean_interval,
    paired_difference,
    sign_flip_p_value,
)
from stepalign.support.watcher import NullWatcher

COMPARISON, TABLE, REPORT = "comparison.json", "comparison.md", "report.html"


@dataclass(frozen=True, slots=True)
class Mean:
    """A model's mean score over prompts."""

    mean: float
    interval: tuple[float, float]
    """95 %, over prompts."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A scorer's paired difference between two models, other minus base."""

    scorer: str
    base: str
    other: str
    difference: float
    """Mean over prompts of other - base."""
    interval: tuple[float, float]
    """95 %, over prompts."""
    wins: int
    """Counts images of `other` that score higher than base's; ties and losses likewise."""
    ties: int
    losses: int
    win_rate: float
    win_interval: tuple[float, float]
    p_value: float
    """P-value of the sign-flip test."""
    p_holm: float
    """The p-value adjusted for all scorers and pairs of the comparison."""


@dataclass(frozen=True, slots=True)
class CategoryPair:
    """The same on the prompts of one category."""

    category: str
    num_prompts: int
    scorer: str
    base: str
    other: str
    difference: float
    interval: tuple[float, float] | None
    """95 %, over prompts; None for a single prompt."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison of models on the same prompts."""

    models: list[str]
    baseline: str
    folders: dict[str, str]
    """By model; generation likewise."""
    generation: dict[str, dict[str, Any] | None]
    num_prompts: int
    num_images: int
    """Images of each model."""
    scorers: dict[str, ScorerRecord]
    left_out: dict[str, list[str]]
    """Scorers that are missing in some folder, with the models that have them."""
    warnings: list[str]
    scores: dict[str, dict[str, Mean]]
    """By scorer and model."""
    pairs: list[Pair]
    """The baseline against each other model first, then the others against each other."""
    any_text: list[AnyTextGain]
    """Differences with other prompts' texts, for pairs and scorers that have such scores."""
    strengths: dict[str, dict[str, Strength]]
    """Bradley-Terry by scorer and model; empty for two models."""
    categories: list[CategoryPair]
    """Not adjusted for their number; empty when the prompts have no categories."""
    prompts: list[ComparedPrompt]

    def summary(self) -> dict[str, Any]:
        """The comparison as plain values, without the prompts."""
        values = asdict(self)
        del values["prompts"]
        return values


def compare_folders(folders: list[Path], *, names: list[str] | None = None, allow_outside: bool = False) -> Comparison:
    """The comparison of evaluated folders, named by `names`, else by their evaluations or paths; the first is the
    baseline.

    Raises ValueError, with the first places and their number, when prompts, images or scores do not match, a score
    is not finite, or scorers of one name are not the same.
    """
    require(len(folders) >= 2, "folders", len(folders), "at least two evaluated folders")
    paths = [folder.expanduser() for folder in folders]
    require(len({path.resolve() for path in paths}) == len(paths), "folders", list(map(str, paths)), "all different")
    read = [read_folder(path, allow_outside=allow_outside) for path in paths]
    models = model_names(read, names)
    parts = dict(zip(models, read, strict=True))
    check_same_images(parts)
    records, left_out, warnings = shared_scorers(parts)
    keys = sorted(read[0].images)
    numbers = list(read[0].prompts)
    clusters = clusters_of([read[0].images[key].prompt for key in keys])
    num_distinct = int(clusters.max()) + 1
    require(num_distinct >= 2, "prompts", num_distinct, "at least two with different texts, for an interval")
    columns = {
        column: np.array([[part.scores[key][column] for key in keys] for part in parts.values()]) for column in records
    }
    scores = {scorer: table for scorer, table in columns.items() if not is_diagnostic(scorer)}
    require(bool(scores), "scorers", list(records), "more than diagnostics with other prompts' texts")
    means = {scorer: np.array([cluster_means(row, clusters) for row in table]) for scorer, table in scores.items()}
    chosen = list(itertools.combinations(range(len(models)), 2))
    groups = categories(parts)
    return Comparison(
        models=models,
        baseline=models[0],
        folders={name: str(folder) for name, folder in zip(models, folders, strict=True)},
        generation={name: part.generation for name, part in parts.items()},
        num_prompts=len(numbers),
        num_images=len(keys),
        scorers={scorer: records[scorer] for scorer in scores},
        left_out=left_out,
        warnings=warnings + other_seeds(parts) + repeated_prompts(len(numbers), num_distinct),
        scores={scorer: dict(zip(models, map(_mean, table), strict=True)) for scorer, table in means.items()},
        pairs=_pairs(scores, means, clusters, chosen=chosen, models=models),
        any_text=any_text_gains(
            {name: np.array([cluster_means(row, clusters) for row in table]) for name, table in columns.items()},
            chosen=chosen,
            models=models,
        ),
        strengths=_strengths(scores, clusters, models) if len(models) > 2 else {},
        categories=_by_category(scores, clusters, [groups[number] for number, _ in keys], chosen=chosen, models=models),
        prompts=_prompts(parts, keys, scores, groups),
    )


def write_comparison(comparison: Comparison, output: Path) -> None:
    """Write a comparison's numbers as JSON and Markdown, and its page with the images, into a folder."""
    owner = Owner("compare", {}, legacy=lambda output: {} if (output / COMPARISON).is_file() else None)
    summary = comparison.summary()
    with open_run(output, owner, files=(TABLE, REPORT), watcher=NullWatcher()) as run:
        write_text(output / TABLE, comparison_markdown(summary))
        write_comparison_report(output / REPORT, summary=summary, prompts=comparison.prompts)
        run.finish(COMPARISON, to_json(summary, indent=2, ensure_ascii=False) + "\n")


def _mean(values: np.ndarray) -> Mean:
    return Mean(float(values.mean()), mean_interval(values))


def _strengths(
    scores: dict[str, np.ndarray], clusters: np.ndarray, models: list[str]
) -> dict[str, dict[str, Strength]]:
    return {scorer: dict(zip(models, rank(table, clusters), strict=True)) for scorer, table in scores.items()}


def _pairs(
    scores: dict[str, np.ndarray],
    means: dict[str, np.ndarray],
    clusters: np.ndarray,
    *,
    chosen: list[tuple[int, int]],
    models: list[str],
) -> list[Pair]:
    tests = [(scorer, base, other) for base, other in chosen for scorer in scores]
    p_values = [sign_flip_p_value(means[scorer][other] - means[scorer][base]) for scorer, base, other in tests]
    pairs = []
    for (scorer, base, other), p_value, p_holm in zip(tests, p_values, holm(p_values), strict=True):
        found = paired_difference(*(torch.from_numpy(means[scorer][model]) for model in (base, other)))
        won = win_rate(scores[scorer][other] - scores[scorer][base], clusters)
        pair = Pair(
            scorer=scorer,
            base=models[base],
            other=models[other],
            difference=found.difference,
            interval=found.interval,
            wins=won.wins,
            ties=won.ties,
            losses=won.losses,
            win_rate=won.rate,
            win_interval=won.interval,
            p_value=p_value,
            p_holm=p_holm,
        )
        pairs.append(pair)
    return pairs


def _by_category(
    scores: dict[str, np.ndarray],
    clusters: np.ndarray,
    groups: list[str | None],
    *,
    chosen: list[tuple[int, int]],
    models: list[str],
) -> list[CategoryPair]:
    """Differences by category; `groups` holds the category of every image, or None."""
    rows = []
    for category in sorted({group for group in groups if group is not None}):
        inside = np.array([group == category for group in groups])
        own = np.unique(clusters[inside], return_inverse=True)[1]
        for (base, other), (scorer, table) in itertools.product(chosen, scores.items()):
            gains = cluster_means((table[other] - table[base])[inside], own)
            interval = mean_interval(gains) if len(gains) > 1 else None
            places = (category, len(gains), scorer, models[base], models[other])
            rows.append(CategoryPair(*places, float(gains.mean()), interval))
    return rows


def _prompts(
    parts: dict[str, EvaluatedFolder], keys: list[Key], scores: dict[str, np.ndarray], groups: dict[int, str | None]
) -> list[ComparedPrompt]:
    columns: dict[int, list[int]] = {}
    for column, (number, _) in enumerate(keys):
        columns.setdefault(number, []).append(column)
    first = next(iter(parts.values())).images
    return [
        ComparedPrompt(
            number=number,
            prompt=first[keys[inside[0]]].prompt,
            category=groups[number],
            files=[[part.path / part.images[keys[column]].file for column in inside] for part in parts.values()],
            scores={scorer: table[:, inside].tolist() for scorer, table in scores.items()},
        )
        for number, inside in columns.items()
    ]
