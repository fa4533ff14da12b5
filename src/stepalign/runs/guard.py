"""A watch over training: held-out metrics that fall below the base model's, by the test in `guard_rule.py`.

Where the judge's score rises meanwhile, the judge is being gamed; where it does not, the model is collapsing.

guard.jsonl   a row per measurement: its round, every held-out prompt's scores, the images' style; the scores of the
              second measurement where one was made, and the alarm if it confirmed one
guard/        the adapters that an alarm could go back to
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign.core.choices import Role
from stepalign.core.seeding import Purpose
from stepalign.runs.assemble import Parts
from stepalign.runs.guard_rule import (
    STYLE,
    best_rows,
    confirmed,
    describe,
    falls,
    mean,
    screening_level,
    watched_metrics,
)
from stepalign.runs.held_out import measure
from stepalign.runs.recipes import Recipe
from stepalign.scorers.image_metric import to_pictures
from stepalign.scorers.style import style_of
from stepalign.support.files import replacing, write_text
from stepalign.support.json_text import to_json
from stepalign.support.parallel import processes
from stepalign.support.watcher import Watcher

ROWS, ADAPTERS = "guard.jsonl", "guard"
FIRST = 0
"""Decides the noise of every round's first measurement, so that differences are paired; a second one has its round."""


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
            "num_prompts": len(self._parts.guard.prompts),
            "prompts": self._parts.guard.describe(),
            "rounds": [row["round"] for row in self.rows],
            "means": {name: [mean(row["scores"][name]) for row in self.rows] for name in names},
            "alarms": alarms,
            "kept_round": alarms[0]["since"] if self.stopped else self._parts.trainer.num_rounds,
        }

    def _measure(self, num_rounds: int) -> dict[str, Any] | None:
        """Measure the policy, write down what was found, and return the alarm it gives."""
        scores = self._scores(self._recipe.export, self._parts.guard.prompts, FIRST)
        row: dict[str, Any] = {"round": num_rounds, "scores": scores, "alarm": None}
        if self.rows:
            row |= self._test(num_rounds, scores)
        self.rows.append(row)
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
        return row["alarm"]

    def _test(self, num_rounds: int, scores: dict[str, list[float]]) -> dict[str, Any]:
        """The alarm that a measurement gives, and the second measurement if the first called for one.

        Of several metrics the alarm is that of the one whose best round is the earliest.
        """
        first = self.rows[0]["scores"]
        planned = self._recipe.training.num_rounds // self._recipe.guard.every
        prompts, second = self._parts.guard.prompts, self._parts.guard.second
        level = screening_level(planned, len(watched_metrics(first)), independent=second != prompts)
        found = falls(first, scores, level=level)
        if not found:
            return {}
        again = {role: self._scores(role, second, num_rounds) for role in ("reference", self._recipe.export)}
        best = best_rows(self.rows)
        alarms = [
            {**asdict(fall), "interval": list(fall.interval), "since": best[fall.metric]["round"]}
            for fall in confirmed(found, *again.values())
        ]
        names = ("base", "model")
        return {
            "alarm": min(alarms, key=lambda alarm: alarm["since"], default=None),
            "second": dict(zip(names, again.values(), strict=True)),
        }

    def _scores(self, role: Role, prompts: list[str], key: int) -> dict[str, list[float]]:
        """A role's scores by the judge, every metric and every statistic of style; `key` decides the noise."""
        num = len(prompts)
        found = measure(
            self._recipe, self._parts, role, prompts=prompts, num_kept=num, purpose=Purpose.GUARD, key=(key,)
        )
        columns = {name: column.tolist() for name, column in found.scores.items()} | style_columns(found.images)
        return {name: [round(value, 6) for value in column] for name, column in columns.items()}

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
        write_text(self._output / ROWS, "".join(to_json(row) + "\n" for row in self.rows))

    def _adapter(self, num_rounds: int) -> Path:
        return self._output / ADAPTERS / f"round-{num_rounds:05d}.pt"

    def _resumed(self) -> list[dict[str, Any]]:
        """The rows of an interrupted run up to its last checkpoint; none without one."""
        num_rounds = self._parts.trainer.num_rounds
        if num_rounds == 0 or not (self._output / ROWS).is_file():
            return []
        rows = [json.loads(line) for line in (self._output / ROWS).read_text(encoding="utf-8").splitlines()]
        return [row for row in rows if row["round"] <= num_rounds]


def style_columns(images: list[Float[Tensor, "3 h w"]]) -> dict[str, list[float]]:
    """Every statistic of the style of images in [0, 1], as a column."""
    rows = [style_of(picture) for picture in to_pictures(torch.stack(images))]
    return {f"{STYLE}{name.replace('_', ' ')}": [row[name] for row in rows] for name in rows[0]}
