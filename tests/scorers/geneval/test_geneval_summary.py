"""GenEval's table by hand, and intervals that hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from stepalign.scorers.geneval.rules import TASKS, Verdict
from stepalign.scorers.geneval.summary import summarise


def verdicts_of(tag: str, *rows: str) -> list[Verdict]:
    """A prompt per row, an image per character: 1 for a right one."""
    return [Verdict(f"{tag} {number}", tag, mark == "1", ()) for number, row in enumerate(rows) for mark in row]


def a_whole_run() -> list[Verdict]:
    rows = {tag: ["1100", "1111"] for tag in TASKS} | {"counting": ["0000", "0001", "1000"], "position": ["1", "011"]}
    return [verdict for tag in TASKS for verdict in verdicts_of(tag, *rows[tag])]


def test_the_overall_number_is_the_mean_of_the_six_tasks() -> None:
    """Four tasks at 6/8, counting at 2/12, position at 3/4: (4 · .75 + .1667 + .75) / 6 = .6528; by image .6042."""
    summary = summarise(a_whole_run(), detector="a test")
    assert summary.overall == pytest.approx((4 * 0.75 + 2 / 12 + 0.75) / 6)
    assert (summary.num_images, summary.num_prompts) == (48, 13)
    counting = summary.tasks["counting"]
    assert (counting.num_correct, counting.num_images, counting.num_prompts) == (2, 12, 3)
    assert counting.accuracy == pytest.approx(1 / 6)
    assert list(summary.tasks) == list(TASKS)


def test_a_published_row_adds_up() -> None:
    """SPO's SDXL: 97.50, 71.21, 39.06, 84.04, 11.00, 17.75 per cent of 320, 396, 320, 376, 400, 400; 53.43 overall."""
    printed = {"single_object": 97.50, "two_object": 71.21, "counting": 39.06, "colors": 84.04}
    printed |= {"position": 11.00, "color_attr": 17.75}
    sizes = dict(zip(TASKS, (80, 99, 80, 94, 100, 100), strict=True))
    verdicts = []
    for tag, share in printed.items():
        right = round(share / 100 * 4 * sizes[tag])
        marks = "1" * right + "0" * (4 * sizes[tag] - right)
        verdicts += verdicts_of(tag, *(marks[4 * row : 4 * row + 4] for row in range(sizes[tag])))
    summary = summarise(verdicts, detector="mmdetection's")
    assert (summary.num_images, summary.num_prompts) == (2212, 553)
    assert {tag: round(100 * task.accuracy, 2) for tag, task in summary.tasks.items()} == printed
    assert summary.overall is not None
    assert round(100 * summary.overall, 2) == 53.43


def test_the_detector_is_part_of_the_name() -> None:
    assert summarise(a_whole_run(), detector="HF Mask2Former x/y").name == "GenEval (HF Mask2Former x/y)"
    with pytest.raises(ValueError, match="detector must be a text that names it, got ' '"):
        summarise(a_whole_run(), detector=" ")


def test_without_every_task_there_is_no_overall_number() -> None:
    summary = summarise(verdicts_of("colors", "1100", "1111"), detector="a test")
    assert (summary.overall, summary.interval) == (None, None)
    assert summary.tasks["colors"].accuracy == 0.75


def test_one_prompt_has_no_interval_and_agreement_has_a_width() -> None:
    """Five prompts of one mind are five trials: Wilson's lower end for 5 of 5 is .566."""
    assert summarise(verdicts_of("colors", "1100"), detector="a test").tasks["colors"].interval is None
    right = summarise(verdicts_of("colors", *["1111"] * 5), detector="a test").tasks["colors"]
    assert right.interval == pytest.approx((0.5655, 1.0), abs=1e-4)
    lone = [verdict for tag in TASKS for verdict in verdicts_of(tag, "10")]
    assert summarise(lone, detector="a test").interval is None


def test_two_prompts_that_disagree_tell_next_to_nothing() -> None:
    low, high = summarise(verdicts_of("colors", "0000", "1111"), detector="x").tasks["colors"].interval or (0.5, 0.5)
    assert low < 0.01
    assert high > 0.99


def test_images_of_a_prompt_that_go_together_widen_the_interval() -> None:
    """Half the images right: the standard error is sqrt(.25/100) = .05 if prompts are all or nothing, and that of 400
    trials if each prompt has two of four."""
    together = summarise(verdicts_of("colors", *["1111", "0000"] * 50), detector="x").tasks["colors"]
    apart = summarise(verdicts_of("colors", *["1100"] * 100), detector="x").tasks["colors"]
    assert together.accuracy == apart.accuracy == 0.5
    assert together.interval == pytest.approx((0.402, 0.598), abs=0.012)
    assert apart.interval == pytest.approx((0.451, 0.549), abs=0.002)


def test_the_overall_interval_is_that_of_a_mean_of_six_independent_tasks() -> None:
    """Six tasks of 100 prompts, all or nothing: .05/sqrt(6) = .0204, so .5 ± .040."""
    verdicts = [verdict for tag in TASKS for verdict in verdicts_of(tag, *["1111", "0000"] * 50)]
    assert summarise(verdicts, detector="x").interval == pytest.approx((0.46, 0.54), abs=0.004)


def test_prompts_with_more_images_weigh_more() -> None:
    assert summarise(verdicts_of("colors", "1", "000"), detector="x").tasks["colors"].accuracy == 0.25


def test_the_interval_covers_the_truth_over_prompts() -> None:
    """150 runs of 80 prompts whose own accuracies are uniform: the truth is .5; 95 % nominally, std. error 1.8 %."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(150):
        marks = rng.random((80, 4)) < rng.random((80, 1))
        rows = ["".join("1" if mark else "0" for mark in row) for row in marks]
        interval = summarise(verdicts_of("colors", *rows), detector="x").tasks["colors"].interval
        assert interval is not None
        covered.append(interval[0] <= 0.5 <= interval[1])
    assert 0.9 <= np.mean(covered) <= 0.99


def test_the_overall_interval_covers_the_mean_of_unlike_tasks() -> None:
    """150 runs of six tasks of 20 prompts of four images, one task nearly always right: 95 % nominally."""
    rng, truths, covered = np.random.default_rng(0), (0.98, 0.7, 0.4, 0.85, 0.1, 0.2), []
    for _ in range(150):
        verdicts = []
        for tag, truth in zip(TASKS, truths, strict=True):
            own = rng.beta(2 * truth, 2 * (1 - truth), size=(20, 1))
            verdicts += verdicts_of(tag, *("".join(map(str, row)) for row in (rng.random((20, 4)) < own).astype(int)))
        interval = summarise(verdicts, detector="x").interval
        assert interval is not None
        covered.append(interval[0] <= np.mean(truths) <= interval[1])
    assert np.mean(covered) >= 0.91


def test_the_order_of_verdicts_does_not_matter() -> None:
    rows = ["1111", "0000", "1100", "1000", "0111"] * 8
    verdicts = [verdict for tag in ("colors", "position") for verdict in verdicts_of(tag, *rows)]
    again = summarise(verdicts[::-1], detector="x")
    assert again.tasks["colors"].interval == pytest.approx(summarise(verdicts, detector="x").tasks["colors"].interval)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="verdicts must be at least one, got none"):
        summarise([], detector="x")
    with pytest.raises(ValueError, match="the prompt 'a' is of the tasks colors and position"):
        summarise([Verdict("a", "colors", True, ()), Verdict("a", "position", True, ())], detector="x")
