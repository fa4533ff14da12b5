"""The guard's test by hand: what has fallen below the base model's, and how seldom a healthy run alarms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import normal
from guarded import recipe_of

from stepalign.runs.assemble import GuardPrompts, guard_prompts
from stepalign.runs.guard import style_columns
from stepalign.runs.guard_rule import (
    CONFIRMING,
    best_rounds,
    confirmed,
    describe,
    falls,
    screening_level,
    watched_metrics,
)
from stepalign.runs.recipes import RECIPES
from stepalign.scorers.image_metric import to_pil
from stepalign.scorers.style import style_of

Row = dict[str, Any]


def row(num_rounds: int, judge: list[float], alarm: Row | None = None, **metrics: list[float]) -> Row:
    """A line of guard.jsonl; "style_" begins what describes images."""
    scores = {name.replace("style_", "style: "): values for name, values in metrics.items()}
    return {"round": num_rounds, "scores": {"judge": judge, **scores}, "alarm": alarm}


def columns(judge: list[float], **metrics: list[float]) -> dict[str, list[float]]:
    return row(0, judge, **metrics)["scores"]


BASE = columns([1.0, 2.0, 0.0, 1.0], hps=[0.5, 1.0, 0.75, 0.5], reward=[3.0, 1.0, 2.0, 2.0])


def moved(**changes: list[float]) -> dict[str, list[float]]:
    """The base model's scores with a change for every prompt."""
    return {name: [a + b for a, b in zip(BASE[name], changes.get(name, [0.0] * 4), strict=True)] for name in BASE}


# The test


def test_a_fall_by_hand() -> None:
    """hps falls by .25, .5, .25 and 0: .25 in the mean, with a standard error of .2041 / 2: t = 2.449 with three
    degrees of freedom, p = .0459. The judge rises by 2, 2, 3, 3: t = 8.66, p = .0016."""
    model = moved(judge=[2.0, 2.0, 3.0, 3.0], hps=[-0.25, -0.5, -0.25, 0.0])
    (fall,) = falls(BASE, model, level=0.05)
    assert (fall.metric, fall.kind, fall.judge, fall.change) == ("hps", "gamed", 2.5, -0.25)
    assert fall.p_value == pytest.approx(0.0459, abs=1e-4)
    assert fall.interval == pytest.approx((-0.25 - 3.1824 * 0.10206, -0.25 + 3.1824 * 0.10206), abs=1e-4)
    assert falls(BASE, model, level=0.045) == []


@pytest.mark.parametrize(
    ("rise", "kind"), [([9.0, -1.0, 0.0, 1.0], "collapsed"), ([-1.0] * 4, "collapsed"), ([1.0] * 4, "gamed")]
)
def test_a_fall_without_a_surely_higher_judge_is_a_collapse(rise: list[float], kind: str) -> None:
    (fall,) = falls(BASE, moved(judge=rise, hps=[-1.0] * 4), level=0.001)
    assert (fall.kind, fall.change) == (kind, -1.0)


@pytest.mark.parametrize("changes", [[0.0] * 4, [1.0] * 4, [-5.0, 1.0, 1.0, 1.0], [-1.0, 1.0, -1.0, 1.0]], ids=str)
def test_no_fall_unless_the_metric_is_significantly_lower(changes: list[float]) -> None:
    assert falls(BASE, moved(judge=[1.0] * 4, hps=changes), level=0.05) == []


def test_a_fall_must_be_found_again_and_only_a_fall_that_was_found() -> None:
    first = falls(BASE, moved(hps=[-1.0] * 4), level=0.01)
    again = moved(judge=[2.0] * 4, hps=[-0.5, -0.5, -0.5, -0.25], reward=[-1.0] * 4)
    (fall,) = confirmed(first, BASE, again)
    assert (fall.metric, fall.kind, fall.change) == ("hps", "gamed", -0.4375)
    assert confirmed(first, BASE, moved(hps=[-1.0, 1.0, 0.0, 0.0])) == []
    assert confirmed([], BASE, again) == []


def test_style_describes_and_never_falls() -> None:
    base = {**BASE, "style: contrast": [9.0] * 4}
    assert falls(base, {**moved(), "style: contrast": [0.0] * 4}, level=0.05) == []
    assert watched_metrics(base) == ["hps", "reward"]
    assert best_rounds({0: base}).keys() == {"hps", "reward"}


def test_an_alarm_in_words() -> None:
    told = {"metric": "hps", "judge": 4.0, "change": -0.5, "interval": [-0.7, -0.3], "since": 3}
    assert describe({**told, "kind": "gamed"}) == (
        "the judge's score is 4 above the base model's while hps is 0.5 (0.3 to 0.7) below the base model's on "
        "held-out prompts, twice; it was best at round 3"
    )
    assert describe({**told, "kind": "collapsed"}).startswith(
        "hps is 0.5 (0.3 to 0.7) below the base model's without a rise of the judge's score on held-out prompts"
    )


def test_the_first_levels_bound_the_whole_run() -> None:
    """Independent measurements: 40 tests at 1/40, found again at 2.5 %: 2.5 %; the same prompts: 40 at .05/40: 5 %."""
    assert screening_level(20, 2, independent=True) * 40 * CONFIRMING == 0.025
    assert screening_level(20, 2, independent=False) * 40 == pytest.approx(0.05)
    assert screening_level(3, 1, independent=True) == 0.05
    assert screening_level(0, 1, independent=False) == 0.05


@pytest.mark.parametrize("other_prompts", [True, False])
def test_few_healthy_runs_ever_alarm(other_prompts: bool) -> None:
    """60 runs of 20 measurements of an unchanged metric with 32 prompts, the judge rising: a test against the best
    earlier mean at 95 % alarms in 88 %."""
    rng, alarms = np.random.default_rng(0), 0
    level = screening_level(20, 1, independent=other_prompts)

    def measured(number: int) -> dict[str, list[float]]:
        return {"judge": (number + rng.normal(size=32)).tolist(), "hps": rng.normal(size=32).tolist()}

    for _ in range(60):
        base = measured(0)
        rows = [measured(number) for number in range(1, 21)]
        found = [(falls(base, model, level=level), model) for model in rows]
        alarms += any(confirmed(fell, measured(0), measured(9)) for fell, _ in found)
    assert alarms / 60 <= 0.05


def test_of_equally_good_rounds_it_is_the_first() -> None:
    rows = [row(0, [2.0, 2.0], hps=[1.0, 3.0]), row(1, [1.0, 1.0], hps=[2.0, 2.0]), row(2, [0.0, 0.0], hps=[3.0, 1.0])]
    assert best_rounds({row["round"]: row["scores"] for row in rows}) == {"hps": 0}
    assert best_rounds({}) == {}


# The prompts


EVERY = [f"prompt {number}" for number in range(10)]


@pytest.mark.parametrize(
    ("num_evaluated", "first", "second", "evaluated"),
    [
        (4, EVERY[4:7], EVERY[7:], False),
        (6, EVERY[6:9], EVERY[6:9], False),
        (8, EVERY[:3], EVERY[3:6], True),
        (10, EVERY[:3], EVERY[3:6], True),
    ],
)
def test_a_guard_has_prompts_of_its_own_as_far_as_there_are_enough(
    num_evaluated: int, first: list[str], second: list[str], evaluated: bool
) -> None:
    found = guard_prompts(EVERY, EVERY[:num_evaluated], 3)
    assert found == GuardPrompts(first, second, evaluated=evaluated)


def test_a_guards_prompts_are_distinct_and_none_of_the_evaluations() -> None:
    """The evaluation has a and b, which come again."""
    found = guard_prompts([*"abacbdce"], [*"aba"], 2)
    assert (found.prompts, found.second, found.evaluated) == ([*"cd"], [*"cd"], False)
    assert found.describe() == "none of the final evaluation; a second measurement has the same"
    few = guard_prompts([*"ab"], [*"ab"], 32)
    assert (few.prompts, few.second, few.evaluated) == ([*"ab"], [*"ab"], True)


# Style


def test_style_is_that_of_the_images_as_they_would_be_saved() -> None:
    images = list(normal(3, 3, 8, 8, dtype=torch.float32).mul(0.3).add(0.5).clamp(0, 1))
    columns = style_columns(images)
    expected = [style_of(image) for image in to_pil(torch.stack(images))]
    assert [*columns] == [f"style: {name.replace('_', ' ')}" for name in expected[0]]
    assert columns["style: high frequency share"] == [values["high_frequency_share"] for values in expected]


# Recipes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guard": {"every": -1}}, r"guard\.every must be at least 0, got -1"),
        ({"guard": {"num_prompts": 1}}, r"guard\.num_prompts must be at least 2, for an interval, got 1"),
        ({"guard": {"action": "shout"}}, r"guard\.action takes warn\|stop; got 'shout'"),
        ({"evaluation": {"prompts": None}}, r"guard\.every must be 0 without evaluation\.prompts and"),
        ({"evaluation": {"oracles": []}}, r"evaluation\.scorers, held-out metrics for it to watch, got 1"),
    ],
)
def test_a_guard_that_cannot_watch_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_of(**changes)


def test_a_guard_watches_oracles_or_scorers_and_no_recipe_has_one_of_its_own() -> None:
    assert recipe_of(evaluation={"oracles": [], "scorers": ["pickscore"]}).guard.every == 1
    assert all(recipe.guard.every == 0 for recipe in RECIPES.values())
