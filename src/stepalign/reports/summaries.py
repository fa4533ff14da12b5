"""Summaries of finished runs as typed values, with one reader and one writer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from stepalign.data.prompts_cut import PromptsCut
from stepalign.support.environment import Timing
from stepalign.support.json_text import to_json
from stepalign.support.parsing import parse_json, read_text
from stepalign.training.held_out_scores import ScoreChange
from stepalign.training.watch import SignRow

SUMMARY = "summary.json"
AGAIN = "the command that wrote it makes it again"


class Alarm(TypedDict):
    """A held-out metric that the guard found below the base model's in two measurements."""

    round: NotRequired[int]
    metric: str
    kind: str
    judge: float
    change: float
    interval: list[float]
    p_value: float
    since: int
    """The round at which the metric was best."""


class GuardSummary(TypedDict):
    """The guard's means by round, its alarms, and the round whose adapter the run ends with."""

    num_prompts: int
    prompts: str
    rounds: list[int]
    means: dict[str, list[float]]
    alarms: list[Alarm]
    kept_round: int


class Guarded(TypedDict, total=False):
    """The part of a summary that a run with a guard has."""

    guard: GuardSummary


class RunSummary(TypedDict):
    """The summary of an alignment run."""

    recipe: str
    seed: int
    num_prompts: int
    prompts_cut: dict[str, PromptsCut]
    sampling: dict[str, Any]
    scores: dict[str, ScoreChange]
    watch: list[SignRow]
    failed: str | None
    """Why the trained policy is of no use; None for a successful run."""
    guard: NotRequired[GuardSummary]
    rounds: int
    updates: int
    comparisons_trained: int
    calls: dict[str, int]
    versions: dict[str, str]
    timing: Timing


class SkippedRow(TypedDict):
    """A row of preference data that could not be used."""

    where: str
    reason: str


class JudgeData(TypedDict):
    """The preference data of a judge's training."""

    pairs: str
    held_out: str
    labels: str
    num_rows: int
    num_unlabelled: int
    num_skipped: int
    skipped: list[SkippedRow]
    cache_bytes: int


class JudgeSummary(TypedDict):
    """The summary of a judge's training."""

    recipe: str
    seed: int
    base: str
    start: str
    judge: str
    num_pairs: int
    num_pairs_drawn: int
    num_held_out: int
    num_held_out_prompts: int
    num_decided: int
    accuracy: list[dict[str, Any]]
    """By timestep: accuracies of both models, and their difference."""
    reliability: dict[str, Any]
    data: JudgeData
    steps: int
    final_loss: float | None
    calls: dict[str, int]
    versions: dict[str, str]
    timing: Timing
    prompts_cut: dict[str, PromptsCut]
    watch: list[SignRow]


def summary_text(summary: Mapping[str, Any]) -> str:
    """The text of summary.json."""
    return to_json(summary, indent=2) + "\n"


def load_run_summary(output: Path) -> RunSummary | None:
    """The summary of a finished alignment run, None for an unfinished one; raises ValueError when it is damaged."""
    return cast(RunSummary | None, _load(output))


def load_judge_summary(output: Path) -> JudgeSummary | None:
    """The same of a judge's training."""
    return cast(JudgeSummary | None, _load(output))


def _load(output: Path) -> dict[str, Any] | None:
    path = output / SUMMARY
    if not path.is_file():
        return None
    try:
        summary = parse_json(read_text(path, "output"), f"output: {path}")
    except ValueError as error:
        raise ValueError(f"{error}; {AGAIN}") from error
    if not isinstance(summary, dict):
        raise ValueError(f"output: {path} is damaged; {AGAIN}")
    return summary
