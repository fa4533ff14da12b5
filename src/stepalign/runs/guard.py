"""A guard over training: held-out metrics that fall below the base model's, by the test in `guard_rule.py`.

Where the judge's score rises meanwhile, the policy exploits the judge; where it does not, the model is collapsing.

guard.jsonl   a row per measurement: its round, every held-out prompt's scores, the images' style; the scores of the
              second measurement where one was made, and the alarm if it confirmed one
guard/        the adapters that an alarm could restore
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign.core.choices import Role
from stepalign.core.seeding import Purpose
from stepalign.reports.summaries import Alarm, GuardSummary
from stepalign.runs.assemble import Parts
from stepalign.runs.guard_rule import (
    STYLE,
    Fall,
    best_rounds,
    confirmed,
    describe,
    falls,
    mean,
    screening_level,
    watched_metrics,
)
from stepalign.runs.held_out import measure
from stepalign.runs.run_directory import GUARD_ADAPTERS, GUARD_ROWS
from stepalign.scorers.image_metric import to_pil
from stepalign.scorers.style import style_of
from stepalign.support.files import load_state, save_state, write_text
from stepalign.support.json_text import to_json
from stepalign.support.parallel import decided_by_main, processes
from stepalign.support.parsing import json_lines, read_text
from stepalign.support.watcher import Watcher
from stepalign.training.watch import SignRow

FIRST = 0
"""Decides the noise of every round's first measurement, so that differences are paired; a second one has its round."""

Columns = dict[str, list[float]]
"""By the judge, a metric or a statistic of style, a value per prompt."""


class GuardRow(TypedDict):
    """A line of guard.jsonl."""

    round: int
    scores: Columns
    alarm: Alarm | None
    second: NotRequired[dict[str, Columns]]
    """Of "base" and "model", where the first measurement called for a second one."""


@dataclass(frozen=True, slots=True)
class KeptAdapter:
    """A file of guard/: the adapter and its running average after some round."""

    adapter: dict[str, Tensor]
    ema: dict[str, Tensor]


class GuardWatch:
    """The guard of one run: measures when a measurement is due, and keeps the rows of its measurements."""

    def __init__(self, parts: Parts, output: Path, watcher: Watcher) -> None:
        self._parts = parts
        self._output = output
        self._watcher = watcher
        self._base: KeptAdapter | None = None
        """The adapter from before the first round, until it is written."""
        self.rows: list[GuardRow] = decided_by_main(self._resumed)

    @property
    def stopped(self) -> bool:
        """Whether an alarm has ended the training."""
        return self._parts.recipe.guard.action == "stop" and any(row["alarm"] for row in self.rows)

    def measure_if_due(self) -> None:
        """Measure after a round that is due; an alarm is noted, and where it stops the training, its adapter restored.

        What is measured before the first round is written after it, so that a failure leaves nothing.
        """
        num_rounds = self._parts.trainer.num_rounds
        if num_rounds == 1 and self._base is not None and processes().is_main_process:
            self._write(0, self._base)
        if num_rounds % self._parts.recipe.guard.every:
            return
        alarm = self._measure(num_rounds)
        if alarm is None:
            return
        self._watcher.note(f"guard, round {num_rounds}: {describe(alarm)}")
        if self.stopped:
            self._watcher.note(f"guard: training stops, and the adapter of round {alarm['since']} is kept")
            self.restore(alarm["since"])

    def restore(self, num_rounds: int) -> None:
        """Load the adapter kept after some round; raises ValueError naming its file where that is damaged."""
        kept = self._kept(num_rounds)
        self._parts.policy.load(adapter=kept.adapter, ema=kept.ema)

    def alarms(self) -> list[Alarm]:
        """The alarms of all rounds."""
        return [{"round": row["round"], **row["alarm"]} for row in self.rows if row["alarm"]]

    def signs(self) -> list[SignRow]:
        """The alarms as signs, beside those of the health watch."""
        return [
            {"name": f"guard: {alarm['metric']} {alarm['kind']}", "round": alarm["round"], "message": describe(alarm)}
            for alarm in self.alarms()
        ]

    def summary(self) -> GuardSummary:
        """Means by round, alarms, and the round whose adapter the run ends with."""
        alarms = self.alarms()
        names = self.rows[0]["scores"] if self.rows else {}
        return {
            "num_prompts": len(self._parts.guard.prompts),
            "prompts": self._parts.guard.describe(),
            "rounds": [row["round"] for row in self.rows],
            "means": {name: [mean(row["scores"][name]) for row in self.rows] for name in names},
            "alarms": alarms,
            "kept_round": alarms[0]["since"] if self.stopped else self._parts.trainer.num_rounds,
        }

    def _measure(self, num_rounds: int) -> Alarm | None:
        """Measure the policy, write the row, and return the alarm it gives."""
        scores = self._scores(self._parts.recipe.exported_role, self._parts.guard.prompts, FIRST)
        row: GuardRow = {"round": num_rounds, "scores": scores, "alarm": None}
        if self.rows:
            self._test(row)
        self.rows.append(row)
        self._parts.trainer.record_calls("guard")
        policy = self._parts.policy
        weights = KeptAdapter(adapter=_on_cpu(policy.adapter), ema=_on_cpu(policy.ema))
        if num_rounds == 0:
            self._base = weights
        elif processes().is_main_process:
            self._write(num_rounds, weights)
        processes().wait_for_everyone()
        return row["alarm"]

    def _test(self, row: GuardRow) -> None:
        """Add to a row the alarm that it gives, and the second measurement if the first called for one.

        Of several metrics the alarm is that of the one whose best round is the earliest.
        """
        first, recipe = self.rows[0]["scores"], self._parts.recipe
        planned = recipe.training.num_rounds // recipe.guard.every
        prompts, second = self._parts.guard.prompts, self._parts.guard.second
        level = screening_level(planned, len(watched_metrics(first)), independent=second != prompts)
        found = falls(first, row["scores"], level=level)
        if not found:
            return
        base, model = (self._scores(role, second, row["round"]) for role in ("reference", recipe.exported_role))
        best = self._best_rounds()
        alarms = [_alarm(fall, since=best[fall.metric]) for fall in confirmed(found, base, model)]
        row["alarm"] = min(alarms, key=lambda alarm: alarm["since"], default=None)
        row["second"] = {"base": base, "model": model}

    def _scores(self, role: Role, prompts: list[str], key: int) -> Columns:
        """A role's scores by the judge, every metric and every statistic of style; `key` decides the noise."""
        found = measure(self._parts, role, prompts=prompts, num_kept=len(prompts), purpose=Purpose.GUARD, key=(key,))
        columns = {name: column.tolist() for name, column in found.scores.items()} | style_columns(found.images)
        return {name: [round(value, 6) for value in column] for name, column in columns.items()}

    def _best_rounds(self) -> dict[str, int]:
        """By held-out metric the round with its highest mean so far."""
        return best_rounds({row["round"]: row["scores"] for row in self.rows})

    def _write(self, num_rounds: int, weights: KeptAdapter) -> None:
        """Write the rows, and this round's adapter if it is the best by some metric; only the best are kept."""
        needed = {self._adapter(best) for best in self._best_rounds().values()}
        if self._parts.recipe.guard.action == "stop":
            if self._adapter(num_rounds) in needed:
                save_state(weights, self._adapter(num_rounds), keep_previous=False)
            for path in (self._output / GUARD_ADAPTERS).glob("round-*.pt"):
                if path not in needed:
                    path.unlink()
        write_text(self._output / GUARD_ROWS, "".join(to_json(row) + "\n" for row in self.rows))

    def _adapter(self, num_rounds: int) -> Path:
        return self._output / GUARD_ADAPTERS / f"round-{num_rounds:05d}.pt"

    def _kept(self, num_rounds: int) -> KeptAdapter:
        """The adapter kept after some round; raises ValueError naming its file where that is missing or damaged."""
        path = self._adapter(num_rounds)
        try:
            return load_state(path, KeptAdapter)
        except ValueError as error:
            state = "damaged" if path.is_file() else "missing"
            raise ValueError(
                f"output: {path} is {state}, and the guard may have to restore it; restore the file, or give another "
                "directory"
            ) from error

    def _resumed(self) -> list[GuardRow]:
        """The rows of an interrupted run up to its last checkpoint; none without one.

        Raises ValueError naming a damaged file, before any round is trained. A missing adapter is no fault yet: of the
        rounds after the checkpoint, which are done again, a better one may have replaced it.
        """
        num_rounds = self._parts.trainer.num_rounds
        if num_rounds == 0 or not (self._output / GUARD_ROWS).is_file():
            return []
        rows = [row for row in read_guard_rows(self._output) if row["round"] <= num_rounds]
        if self._parts.recipe.guard.action == "stop" and not any(row["alarm"] for row in rows):
            for best in set(best_rounds({row["round"]: row["scores"] for row in rows}).values()):
                if self._adapter(best).is_file():
                    self._kept(best)
        return rows


def read_guard_rows(output: Path) -> list[GuardRow]:
    """The rows of guard.jsonl; raises ValueError naming the line that is no row."""
    path = output / GUARD_ROWS
    rows = []
    for where, row in json_lines(read_text(path, "output"), f"output: {path}"):
        if not isinstance(row, dict) or not {"round", "scores", "alarm"} <= row.keys():
            raise ValueError(f"{where} is no measurement of a guard; restore the file, or give another directory")
        rows.append(cast(GuardRow, row))
    return rows


def style_columns(images: list[Float[Tensor, "3 h w"]]) -> Columns:
    """Every statistic of the style of images in [0, 1], as a column."""
    rows = [style_of(image) for image in to_pil(torch.stack(images))]
    return {f"{STYLE}{name.replace('_', ' ')}": [row[name] for row in rows] for name in rows[0]}


def _alarm(fall: Fall, *, since: int) -> Alarm:
    return {
        "metric": fall.metric,
        "kind": fall.kind,
        "judge": fall.judge,
        "change": fall.change,
        "interval": list(fall.interval),
        "p_value": fall.p_value,
        "since": since,
    }


def _on_cpu(tensors: dict[str, Any]) -> dict[str, Tensor]:
    """Copies of tensors that training does not change."""
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
