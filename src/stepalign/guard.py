"""A watch over training: where the judge's score rises while a held-out metric falls, the judge is being gamed.

guard.jsonl   a row per measurement: its round, every held-out prompt's scores, the pictures' style, the alarm if any
guard/        the adapters that an alarm could go back to
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign.assemble import Parts
from stepalign.checkpoint import replacing, write_text
from stepalign.held_out import measure
from stepalign.metrics.picture_metric import to_pictures
from stepalign.metrics.style import style_of
from stepalign.parallel import processes
from stepalign.recipes import Recipe
from stepalign.run_directory import Watcher
from stepalign.statistics import paired_difference

ROWS, ADAPTERS = "guard.jsonl", "guard"
STYLE = "style: "
"""Begins the columns that describe pictures without saying which is better."""
JUDGE = "judge"


class GuardWatch:
    """The guard of one run: measures when it is due, and remembers what it measured."""

    def __init__(self, recipe: Recipe, parts: Parts, output: Path, watcher: Watcher) -> None:
        self._recipe = recipe
        self._parts = parts
        self._output = output
        self._watcher = watcher
        self._base: dict[str, Any] = {}
        """The adapter from before the first round, as long as it is not written."""
        self.rows = self._resumed()

    @property
    def stopped(self) -> bool:
        """Whether an alarm has ended the training."""
        return self._recipe.guard.action == "stop" and any(row["alarm"] for row in self.rows)

    def look(self) -> None:
        """Measure if this round is due; an alarm is noted, and where it stops the training, its adapter taken up.

        What is measured before the first round is written after it, so that a failure leaves nothing.
        """
        num_rounds = self._parts.trainer.num_rounds
        if num_rounds == 1 and processes().is_main_process:
            self._write(0, self._base)
        if num_rounds % self._recipe.guard.every:
            return
        alarm = self._measure(num_rounds)
        if alarm is None:
            return
        self._watcher.note(f"guard, round {num_rounds}: {describe(alarm)}")
        if self.stopped:
            self._watcher.note(f"guard: training stops, and the adapter of round {alarm['since']} is kept")
            self.restore()

    def restore(self) -> None:
        """Take up the adapter that the first alarm says to keep."""
        since = next(row["alarm"]["since"] for row in self.rows if row["alarm"])
        kept = torch.load(self._adapter(since), map_location="cpu", weights_only=True)
        self._parts.policy.load(adapter=kept["adapter"], ema=kept["ema"])

    def summary(self) -> dict[str, Any]:
        """What became of it: means by round, alarms, and the round whose adapter the run ends with."""
        alarms = [{"round": row["round"], **row["alarm"]} for row in self.rows if row["alarm"]]
        names = self.rows[0]["scores"] if self.rows else {}
        return {
            "rounds": [row["round"] for row in self.rows],
            "means": {name: [_mean(row["scores"][name]) for row in self.rows] for name in names},
            "alarms": alarms,
            "kept_round": alarms[0]["since"] if self.stopped else self._parts.trainer.num_rounds,
        }

    def _measure(self, num_rounds: int) -> dict[str, Any] | None:
        """Measure the policy, write down what was found, and return the alarm it gives."""
        choice = self._recipe.guard
        num = choice.num_prompts
        found = measure(self._recipe, self._parts, self._recipe.export, num_prompts=num, num_kept=num)
        columns = {name: column.tolist() for name, column in found.scores.items()} | style_columns(found.images)
        scores = {name: [round(value, 6) for value in column] for name, column in columns.items()}
        alarm = alarm_of(self.rows, scores)
        self.rows.append({"round": num_rounds, "scores": scores, "alarm": alarm})
        self._parts.trainer.book("guard")
        both = {"adapter": self._parts.policy.adapter, "ema": self._parts.policy.ema}
        weights = {
            which: {key: value.detach().cpu().clone() for key, value in own.items()} for which, own in both.items()
        }
        if num_rounds == 0:
            self._base = weights
        elif processes().is_main_process:
            self._write(num_rounds, weights)
        processes().wait_for_everyone()
        return alarm

    def _write(self, num_rounds: int, weights: dict[str, Any]) -> None:
        """Write the rows, and this round's adapter if it is the best by some metric; only the best are kept."""
        needed = {self._adapter(row["round"]) for row in best_rows(self.rows).values()}
        if self._recipe.guard.action == "stop":
            if self._adapter(num_rounds) in needed:
                with replacing(self._adapter(num_rounds)) as temporary:
                    torch.save(weights, temporary)
            for path in (self._output / ADAPTERS).glob("round-*.pt"):
                if path not in needed:
                    path.unlink()
        write_text(self._output / ROWS, "".join(json.dumps(row) + "\n" for row in self.rows))

    def _adapter(self, num_rounds: int) -> Path:
        return self._output / ADAPTERS / f"round-{num_rounds:05d}.pt"

    def _resumed(self) -> list[dict[str, Any]]:
        """The rows of an interrupted run up to its last checkpoint; none without one."""
        num_rounds = self._parts.trainer.num_rounds
        if num_rounds == 0 or not (self._output / ROWS).is_file():
            return []
        rows = [json.loads(line) for line in (self._output / ROWS).read_text().splitlines()]
        return [row for row in rows if row["round"] <= num_rounds]


def alarm_of(rows: list[dict[str, Any]], scores: dict[str, list[float]]) -> dict[str, Any] | None:
    """The held-out metric that has surely fallen since its best round while the judge has surely risen since, if any.

    `scores` holds a score per held-out prompt for the judge and every metric, `rows` the earlier rounds'. "Surely" is
    by the 95 % interval (BCa over prompts) of the paired difference. Of several metrics it is the one whose best round
    is the earliest.
    """
    alarms = []
    for name, best in best_rows(rows).items():
        judge = paired_difference(_column(best["scores"][JUDGE]), _column(scores[JUDGE]))
        metric = paired_difference(_column(best["scores"][name]), _column(scores[name]))
        if judge.interval[0] > 0 and metric.interval[1] < 0:
            fell = {"metric": name, "since": best["round"], "judge": judge.difference, "change": metric.difference}
            alarms.append({**fell, "interval": list(metric.interval)})
    return min(alarms, key=lambda alarm: alarm["since"], default=None)


def best_rows(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By held-out metric the row with its highest mean, the first of equals."""
    names = [name for name in (rows[0]["scores"] if rows else {}) if name != JUDGE and not name.startswith(STYLE)]
    return {name: max(rows, key=lambda row: _mean(row["scores"][name])) for name in names}


def describe(alarm: dict[str, Any]) -> str:
    """An alarm in words."""
    low, high = alarm["interval"]
    return (
        f"since round {alarm['since']} the judge's score has risen by {alarm['judge']:.3g} while {alarm['metric']} has "
        f"fallen by {-alarm['change']:.3g} ({-high:.3g} to {-low:.3g}) on held-out prompts"
    )


def style_columns(images: list[Float[Tensor, "3 h w"]]) -> dict[str, list[float]]:
    """Every statistic of the style of images in [0, 1], as a column."""
    rows = [style_of(picture) for picture in to_pictures(torch.stack(images))]
    return {f"{STYLE}{name.replace('_', ' ')}": [row[name] for row in rows] for name in rows[0]}


def _column(values: list[float]) -> Float[Tensor, " n"]:
    return torch.tensor(values, dtype=torch.float64)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
