"""Signs that a run learns nothing or falls apart, read off its rows of metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

from stepalign.training.settings import Watch

Row = dict[str, Any]
SEARCH = 20
"""Updates that fp16's loss scaling may leave out while it looks for its scale."""


@dataclass(frozen=True, slots=True)
class Sign:
    """Something that a user should know of a run."""

    name: str
    round: int
    """After which it was seen; 0 for before the first."""
    message: str
    """A sign with its message and a remedy."""

    def row(self) -> SignRow:
        """The sign as a summary has it."""
        return {"name": self.name, "round": self.round, "message": self.message}


class SignRow(TypedDict):
    """A sign in a summary."""

    name: str
    round: int
    message: str


class HealthWatch:
    """The signs of one run; each is noted once, when it is first seen."""

    def __init__(self, watch: Watch, rows: list[Row], note: Callable[[str], None]) -> None:
        self._watch = watch
        self._note = note
        self.signs: dict[str, Sign] = {}
        """By name."""
        for end in range(1, len(rows) + 1):
            self.signs |= {sign.name: sign for sign in signs_at(rows[:end], watch) if sign.name not in self.signs}

    @property
    def stopped(self) -> bool:
        """Whether a sign seen in training has ended it."""
        return self._watch.action == "stop" and any(sign.round > 0 for sign in self.signs.values())

    def look(self, rows: list[Row]) -> None:
        """Check the rows so far, of which the last is new."""
        for sign in signs_at(rows, self._watch):
            self.add(sign)
        if self.stopped:
            self._note("watch: training stops, and what there is is evaluated")

    def add(self, sign: Sign) -> None:
        """Note a sign unless one of its name was seen before."""
        if sign.name not in self.signs:
            self.signs[sign.name] = sign
            self._note(f"watch, round {sign.round}: {sign.message}" if sign.round else f"watch: {sign.message}")

    def summary(self) -> list[SignRow]:
        """The signs seen, by round."""
        return [sign.row() for sign in sorted(self.signs.values(), key=lambda sign: sign.round)]


def signs_at(rows: list[Row], watch: Watch) -> list[Sign]:
    """The signs that the rows of metrics up to some round give."""
    last, recent = rows[-1], rows[-watch.num_rounds :]
    found = _skipped(rows) + _diverged(last, watch)
    if len(recent) == watch.num_rounds:
        found += _no_comparisons(recent) + _outside(recent, watch) + _unmoved(rows, recent, watch)
    return [Sign(name, last["round"], message) for name, message in found]


def _skipped(rows: list[Row]) -> list[tuple[str, str]]:
    """Updates left out, except for those with which loss scaling finds its scale."""
    last, num = rows[-1], sum(row.get("skipped", 0) for row in rows)
    scale = last.get("loss_scale")
    if not last.get("skipped") or (scale is not None and scale > 1 and num <= SEARCH):
        return []
    return [
        (
            "updates skipped",
            f"{last['skipped']} of {last['skipped'] + last['updates']} updates had a gradient that is not a finite "
            "number and were skipped; lower training.learning_rate",
        )
    ]


def _diverged(last: Row, watch: Watch) -> list[tuple[str, str]]:
    moved = last.get("rms_delta")
    if moved is None or moved <= watch.max_rms_delta:
        return []
    return [
        (
            "policy diverged",
            f"the trained prediction differs from the base model's by rms {moved:.3g}, and the noise it predicts has "
            "rms 1 (watch.max_rms_delta): the policy has diverged; lower training.learning_rate",
        )
    ]


def _no_comparisons(recent: list[Row]) -> list[tuple[str, str]]:
    if all(row.get("judge_spread") == 0 for row in recent):
        return [
            (
                "judge constant",
                f"in {len(recent)} rounds the judge gave all candidates of every pool the same score: it does not tell "
                "these images apart; check judge.path and judge.kind",
            )
        ]
    if any(row["comparisons"] for row in recent):
        return []
    spread = recent[-1].get("judge_spread")
    found = "" if spread is None else f" (the best and the worst candidate differ by {spread:.3g} on average)"
    return [
        (
            "no comparisons",
            f"in {len(recent)} rounds no comparison was above source.min_gap{found}: nothing is trained; lower "
            "source.min_gap, or raise branching.num_candidates",
        )
    ]


def _outside(recent: list[Row], watch: Watch) -> list[tuple[str, str]]:
    shares = [row.get("outside") for row in recent]
    if any(share is None or share <= watch.max_outside for share in shares):
        return []
    return [
        (
            "outside the trust region",
            f"in {len(recent)} rounds more than {watch.max_outside:.0%} of the comparisons lay outside the trust "
            "region and gave no gradient (watch.max_outside); lower training.learning_rate",
        )
    ]


def _unmoved(rows: list[Row], recent: list[Row], watch: Watch) -> list[tuple[str, str]]:
    """Rounds after an update whose predictions are still the base model's."""
    moved = [row.get("rms_delta") for row in recent]
    trained_before = any(row["updates"] for row in rows[: -len(recent)])
    if not trained_before or any(value is None or value >= watch.min_rms_delta for value in moved):
        return []
    return [
        (
            "nothing moves",
            f"after {rows[-1]['round']} rounds the trained prediction differs from the base model's by rms "
            f"{moved[-1]:.3g} (watch.min_rms_delta): nothing is learned; raise training.learning_rate",
        )
    ]


def judge_signs(rows: list[Row], accuracy: list[Row], *, num_skipped: int = 0) -> list[Sign]:
    """The signs that a judge's training learned nothing.

    `rows` are those of its steps, `accuracy` the held-out accuracy by timestep, with the difference to the model that
    training began with and its interval; `num_skipped` steps had a gradient that is not finite.
    """
    step, found = rows[-1]["step"], []
    if num_skipped:
        message = f"{num_skipped} of {step} steps had a gradient that is not a finite number and were skipped"
        found.append(Sign("steps skipped", step, f"{message}; lower training.learning_rate"))
    shares = [row["accuracy"] for row in rows]
    if all(share is None for share in shares):
        message = f"all pairs of {step} steps were ties, which have no order to learn; check the labels of data.pairs"
        found.append(Sign("ties only", step, message))
    elif all(share in (None, 0.5) for share in shares):
        message = f"in {step} steps the judge gave both images of every pair the same score; check data.pairs' images"
        found.append(Sign("judge constant", step, message))
    known = [row for row in accuracy if row["difference"] is not None]
    if known and not any(row["interval"][0] > 0 for row in known):
        best = max(row["difference"] for row in known)
        found.append(
            Sign(
                "nothing learned",
                step,
                f"held-out accuracy is at no timestep significantly higher than before (at best by {best:+.3f}); "
                "raise training.learning_rate or training.num_steps, or check the labels of data.pairs",
            )
        )
    return found
