"""Signs of a run that learns nothing or falls apart, from rows of metrics."""

from __future__ import annotations

import re
from typing import Any

import pytest

from stepalign.training.settings import Watch
from stepalign.training.watch import HealthWatch, judge_signs, signs_at

HEALTHY = {
    "judge_spread": 0.5,
    "comparisons": 64,
    "updates": 4,
    "skipped": 0,
    "loss_scale": None,
    "rms_delta": 0.05,
    "outside": 0.2,
}
EMPTY = {"comparisons": 0, "updates": 0, "rms_delta": None, "outside": None}


def rows_of(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    return [HEALTHY | {"round": number} | change for number, change in enumerate(changes, start=1)]


def names(rows: list[dict[str, Any]], **watch: Any) -> list[str]:
    return [sign.name for sign in signs_at(rows, Watch(**watch))]


def test_a_healthy_run_gives_no_sign() -> None:
    rows = rows_of({"rms_delta": 0.0}, {}, {"comparisons": 3}, EMPTY, {"outside": 1.0}, {"rms_delta": 0.9})
    assert not any(names(rows[:end]) for end in range(1, 7))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("no comparisons", EMPTY, r"no comparison was above source\.min_gap .* differ by 0\.5 on average"),
        ("judge constant", EMPTY | {"judge_spread": 0.0}, r"same score: .* judge\.path"),
        ("outside the trust region", {"outside": 0.97}, r"more than 95% .* lower training\.learning_rate"),
        ("nothing moves", {"rms_delta": 1e-7}, r"rms 1e-07 .* raise training\.learning_rate"),
    ],
)
def test_a_sign_needs_so_many_rounds_in_a_row(name: str, change: dict[str, Any], words: str) -> None:
    rows = rows_of({}, change, change, {}, change, change, change, change)
    assert [names(rows[:end]) for end in range(1, 9)] == [[]] * 6 + [[name]] * 2
    (sign,) = signs_at(rows[:7], Watch())
    assert sign.round == 7
    assert re.search(words, sign.message)
    assert names(rows[:6], num_rounds=2) == [name]


def test_before_a_first_update_nothing_can_have_moved() -> None:
    still = {"rms_delta": 0.0}
    assert names(rows_of(still, still, still)) == []
    assert names(rows_of(still, still, still, still)) == ["nothing moves"]
    assert names(rows_of(*[still | {"updates": 0}] * 4)) == []


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"skipped": 1}, True),
        ({"skipped": 3, "loss_scale": 8192.0}, False),
        ({"skipped": 21, "loss_scale": 8192.0}, True),
        ({"skipped": 1, "loss_scale": 0.5}, True),
    ],
)
def test_skipped_updates_are_a_sign_unless_loss_scaling_looks_for_its_scale(change: dict[str, Any], seen: bool) -> None:
    assert names(rows_of(change)) == (["updates skipped"] if seen else [])
    assert names(rows_of(change, {"loss_scale": change.get("loss_scale")})) == []


def test_a_prediction_as_far_away_as_noise_is_a_sign_at_once() -> None:
    (sign,) = signs_at(rows_of({"rms_delta": 2.78}), Watch())
    assert (sign.name, sign.round) == ("policy diverged", 1)
    assert "the policy has diverged; lower training.learning_rate" in sign.message


def test_each_sign_is_noted_once_and_a_resumed_watch_knows_those_of_its_rows() -> None:
    rows = rows_of({"rms_delta": 2.0}, {"rms_delta": 2.0}, {"rms_delta": 3.0, "skipped": 1})
    notes: list[str] = []
    watch = HealthWatch(Watch(), [], notes.append)
    for end in range(1, 4):
        watch.look(rows[:end])
    assert [note.split(":")[0] for note in notes] == ["watch, round 1", "watch, round 3"]
    assert [(sign["name"], sign["round"]) for sign in watch.summary()] == [
        ("policy diverged", 1),
        ("updates skipped", 3),
    ]
    later: list[str] = []
    resumed = HealthWatch(Watch(), rows[:2], later.append)
    assert later == []
    resumed.look(rows)
    assert resumed.summary() == watch.summary()
    assert later == notes[1:]


def test_the_watch_stops_a_run_only_when_told() -> None:
    for action, stopped in (("warn", False), ("stop", True)):
        watch = HealthWatch(Watch(action=action), rows_of({}), lambda _: None)
        assert not watch.stopped
        watch.look(rows_of({}, {"rms_delta": 2.0}))
        assert watch.stopped is stopped
        assert HealthWatch(Watch(action=action), rows_of({}, {"rms_delta": 2.0}), lambda _: None).stopped is stopped


@pytest.mark.parametrize(
    ("field", "value"), [("num_rounds", 0), ("max_outside", 0.0), ("min_rms_delta", -1.0), ("max_rms_delta", 0.0)]
)
def test_limits_that_make_no_sense_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"watch\.{field} must be .* got {value}"):
        Watch(**{field: value})


# A judge's training


GAINED = {"difference": 0.1, "interval": (0.02, 0.18)}
SAME = {"difference": 0.01, "interval": (-0.07, 0.09)}
TIES = {"difference": None, "interval": None}


@pytest.mark.parametrize(
    ("shares", "accuracy", "expected"),
    [
        ([0.5, 0.625], [SAME, GAINED], []),
        ([0.5, 0.625], [SAME, SAME, TIES], ["nothing learned"]),
        ([None, None], [GAINED], ["ties only"]),
        ([None, 0.5], [SAME], ["judge constant", "nothing learned"]),
        ([0.75], [TIES], []),
    ],
)
def test_a_judge_that_learned_nothing_says_so(shares: list[Any], accuracy: list[Any], expected: list[str]) -> None:
    rows = [{"step": step, "accuracy": share} for step, share in enumerate(shares, start=1)]
    signs = judge_signs(rows, accuracy)
    assert [sign.name for sign in signs] == expected
    assert {sign.round for sign in signs} <= {len(shares)}
