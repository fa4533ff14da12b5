"""The guard's rule by hand: when a rise of the judge's score is one that a held-out metric contradicts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import normal
from guarded import recipe_of

from stepalign.guard import alarm_of, best_rows, describe, style_columns
from stepalign.metrics.picture_metric import to_pictures
from stepalign.metrics.style import style_of
from stepalign.recipes import RECIPES
from stepalign.statistics import bca_interval

Row = dict[str, Any]


def row(num_rounds: int, judge: list[float], alarm: Row | None = None, **metrics: list[float]) -> Row:
    """A line of guard.jsonl; "style_" begins what describes pictures."""
    scores = {name.replace("style_", "style: "): values for name, values in metrics.items()}
    return {"round": num_rounds, "scores": {"judge": judge, **scores}, "alarm": alarm}


def alarm(*rows: Row) -> Row | None:
    """The alarm that the last of some measurements gives."""
    return alarm_of([*rows[:-1]], rows[-1]["scores"])


# The rule


def test_an_alarm_by_hand() -> None:
    """The judge rises by 3 and 5, the metric falls by .25 and .75: 4 and -.5 in the mean, neither interval with a 0."""
    found = alarm(row(0, [1.0, 2.0], hps=[0.5, 1.0]), row(4, [4.0, 7.0], hps=[0.25, 0.25]))
    assert found is not None
    interval = bca_interval(torch.tensor([-0.25, -0.75]).double().numpy())
    assert found == {"metric": "hps", "since": 0, "judge": 4.0, "change": -0.5, "interval": list(interval)}
    assert -0.75 <= interval[0] < interval[1] < 0
    assert describe(found | {"interval": [-0.7, -0.3]}) == (
        "since round 0 the judge's score has risen by 4 while hps has fallen by 0.5 (0.3 to 0.7) on held-out prompts"
    )


@pytest.mark.parametrize(
    ("judge", "metric"),
    [
        ([2.0, 3.0], [2.0, 3.0]),
        ([2.0, 3.0], [1.0, 2.0]),
        ([1.0, 2.0], [0.0, 1.0]),
        ([0.0, 1.0], [0.0, 1.0]),
        ([0.0, 1.0], [2.0, 3.0]),
        ([9.0, 1.0], [0.0, 1.0]),
        ([2.0, 3.0], [1.5, 1.0]),
        ([1.0, 9.0], [0.0, 2.0]),
    ],
    ids=["both-up", "metric-stays", "judge-stays", "both-down", "better", "judge-unsure", "metric-unsure", "touching"],
)
def test_no_alarm_unless_the_judge_is_surely_up_and_the_metric_surely_down(
    judge: list[float], metric: list[float]
) -> None:
    base = row(0, [1.0, 2.0], hps=[1.0, 2.0])
    assert alarm(base, row(1, [2.0, 3.0], hps=[0.0, 1.0])) is not None
    assert alarm(base, row(1, judge, hps=metric)) is None


def test_both_are_measured_since_the_metrics_best_round() -> None:
    """Round 1 is the best: the metric may fall and still be above the start, the judge must have risen from there."""
    rows = [row(0, [0.0, 0.0], hps=[1.0, 1.0]), row(1, [5.0, 5.0], hps=[3.0, 3.0])]
    found = alarm(*rows, row(2, [6.0, 6.0], hps=[2.0, 2.0]))
    assert found is not None
    assert (found["since"], found["judge"], found["change"], found["interval"]) == (1, 1.0, -1.0, [-1.0, -1.0])
    assert alarm(*rows, row(2, [4.0, 4.0], hps=[0.5, 0.5])) is None


def test_of_equally_good_rounds_it_is_the_first() -> None:
    rows = [row(0, [2.0, 2.0], hps=[1.0, 3.0]), row(1, [1.0, 1.0], hps=[2.0, 2.0]), row(2, [0.0, 0.0], hps=[3.0, 1.0])]
    assert best_rows(rows) == {"hps": rows[0]}
    assert alarm(*rows, row(3, [1.5, 1.5], hps=[0.0, 0.0])) is None
    found = alarm(*rows, row(3, [2.5, 2.5], hps=[0.0, 0.0]))
    assert found is not None
    assert found["since"] == 0


def test_of_several_metrics_it_is_the_one_with_the_earliest_best_round() -> None:
    first = row(0, [0.0, 0.0], one=[1.0, 1.0], two=[5.0, 5.0], three=[5.0, 5.0])
    second = row(2, [1.0, 1.0], one=[2.0, 2.0], two=[4.0, 4.0], three=[6.0, 6.0])
    found = alarm(first, second, row(4, [2.0, 2.0], one=[0.0, 0.0], two=[4.9, 4.9], three=[0.0, 0.0]))
    assert found is not None
    assert (found["metric"], found["since"], found["judge"]) == ("two", 0, 2.0)
    assert alarm(first, second, row(4, [2.0, 2.0], one=[0.0, 0.0], two=[5.0, 5.0], three=[7.0, 7.0]))["metric"] == "one"


def test_style_describes_and_never_alarms() -> None:
    rows = [row(0, [0.0, 0.0], hps=[1.0, 1.0], style_contrast=[9.0, 9.0])]
    assert best_rows(rows).keys() == {"hps"}
    assert alarm(*rows, row(1, [1.0, 1.0], hps=[2.0, 2.0], style_contrast=[0.0, 0.0])) is None


def test_the_first_measurement_has_nothing_to_fall_from() -> None:
    assert alarm(row(0, [1.0, 2.0], hps=[1.0, 2.0])) is None
    assert best_rows([]) == {}


def test_style_is_that_of_the_pictures_as_they_would_be_saved() -> None:
    images = list(normal(3, 3, 8, 8, dtype=torch.float32).mul(0.3).add(0.5).clamp(0, 1))
    columns = style_columns(images)
    expected = [style_of(picture) for picture in to_pictures(torch.stack(images))]
    assert [*columns] == [f"style: {name.replace('_', ' ')}" for name in expected[0]]
    assert columns["style: high frequency share"] == [values["high_frequency_share"] for values in expected]


# Recipes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guard": {"every": -1}}, r"guard\.every must be at least 0, got -1"),
        ({"guard": {"num_prompts": 1}}, r"guard\.num_prompts must be at least 2, for an interval, got 1"),
        ({"guard": {"action": "shout"}}, r"guard\.action is one of warn, stop; got 'shout'"),
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
