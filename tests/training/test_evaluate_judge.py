"""Held-out scores that depend on nothing but the pair, the timestep and the seed; two judges compared by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from judge_world import Base, bright_or_dark, make_scorer, ready
from torch import Tensor
from worlds import make_sampler

from stepalign.core.seeding import Purpose, generator_for
from stepalign.data.prepared import PreparedPairs
from stepalign.support.shares import paired_share_interval, wilson_interval
from stepalign.training.evaluate_judge import compare_judges, held_out_noise, score_held_out

FIXED = {"timesteps": (501, 0, 951), "seed": 3}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> PreparedPairs:
    return ready(tmp_path_factory.mktemp("pairs"), bright_or_dark(7))


# Scores


@pytest.mark.parametrize("batch_size", [1, 3, 7, 20])
def test_scores_do_not_depend_on_the_batch_size(pairs: PreparedPairs, tiny_spm_folder: Path, batch_size: int) -> None:
    found = score_held_out(make_scorer(tiny_spm_folder), pairs, **FIXED, batch_size=batch_size)
    expected = score_held_out(make_scorer(tiny_spm_folder), pairs, **FIXED, batch_size=2)
    assert list(found) == [501, 0, 951]
    for timestep, scores in found.items():
        assert scores.shape == (7, 2)
        torch.testing.assert_close(scores, expected[timestep], rtol=0, atol=1e-4)


def test_every_pair_is_seen_at_every_timestep_under_a_noise_of_its_own(
    pairs: PreparedPairs, tiny_spm_folder: Path
) -> None:
    """The noise, (x_t - sqrt(abar) x_0) / sqrt(1 - abar), is the pair's at that timestep; both images have it."""
    base = Base()
    score_held_out(make_scorer(tiny_spm_folder, base), pairs, **FIXED, batch_size=4)
    seen: dict[tuple[int, int], Tensor] = {}
    for shown, rows in zip(base.shown, [range(4)] * 3 + [range(4, 7)] * 3, strict=True):
        t = int(shown.t[0])
        abar = make_sampler().schedule.alpha_bar(torch.tensor([t])).item()
        x_0 = pairs.take(list(rows)).latents
        noise = (shown.x_t.unflatten(0, (-1, 2)) - math.sqrt(abar) * x_0) / math.sqrt(1 - abar)
        torch.testing.assert_close(noise[:, 0], noise[:, 1], rtol=0, atol=1e-4)
        assert (shown.t == t).all()
        seen |= {(t, row): noise[index, 0] for index, row in enumerate(rows)}
    assert seen.keys() == {(t, row) for t in FIXED["timesteps"] for row in range(7)}
    for (t, row), noise in seen.items():
        expected = torch.randn(noise.shape, generator=generator_for(3, Purpose.EVALUATION, t, row))
        torch.testing.assert_close(noise, expected, rtol=0, atol=1e-4)


def test_the_noise_is_decided_by_seed_timestep_and_pair() -> None:
    first, second = held_out_noise(0, 501, [4, 9], torch.device("cpu")).normal(100)
    again = held_out_noise(0, 501, [9], torch.device("cpu")).normal(100)[0]
    later = held_out_noise(0, 502, [4], torch.device("cpu")).normal(100)[0]
    reseeded = held_out_noise(1, 501, [4], torch.device("cpu")).normal(100)[0]
    assert torch.equal(second, again)
    assert torch.pdist(torch.stack([first, second, later, reseeded])).min() > 8  # sqrt(200) = 14


def test_scores_do_not_depend_on_what_was_drawn_before_and_change_with_the_seed(
    pairs: PreparedPairs, tiny_spm_folder: Path
) -> None:
    found = []
    for seed in (3, 3, 4):
        torch.rand(5)
        found.append(
            score_held_out(make_scorer(tiny_spm_folder), pairs, timesteps=(501,), seed=seed, batch_size=4)[501]
        )
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-3)


def test_distinct_prompts_are_embedded_once_for_all_timesteps(pairs: PreparedPairs, tiny_spm_folder: Path) -> None:
    """Seven pairs of four prompts, two at a time."""
    scorer = make_scorer(tiny_spm_folder)
    score_held_out(scorer, pairs, **FIXED, batch_size=2)
    assert len(set(pairs.prompts)) == 4
    assert scorer.drain_counters() == {"judge_texts": 4, "judge_images": 3 * 14, "base_samples": 3 * 14}


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_measured_in_evaluation_mode_and_left_as_it_was(
    pairs: PreparedPairs, tiny_spm_folder: Path, training: bool
) -> None:
    scorer = make_scorer(tiny_spm_folder)
    scorer.model.train(training)
    modes: list[tuple[bool, bool]] = []
    for tower in (scorer.model.visual_projection, scorer.model.text_projection):
        tower.register_forward_hook(lambda module, *_: modes.append((module.training, torch.is_grad_enabled())))
    score_held_out(scorer, pairs, **FIXED, batch_size=7)
    assert modes == [(False, False)] * 4
    assert all(module.training == training for module in scorer.model.modules())


def test_progress_is_reported_in_pairs(pairs: PreparedPairs, tiny_spm_folder: Path) -> None:
    ticks = []
    score_held_out(make_scorer(tiny_spm_folder), pairs, **FIXED, batch_size=3, tick=lambda *tick: ticks.append(tick))
    assert ticks == [(3, 7), (6, 7), (7, 7)]


# Two judges


LABEL = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.5])
PROMPTS = [*"abcde"]
RIGHT, WRONG, EQUAL = (1.0, 0.0), (0.0, 1.0), (2.0, 2.0)
"""Scores of a pair whose first image is preferred."""


def scores(*pairs: tuple[float, float]) -> Tensor:
    return torch.tensor(pairs)


START = {501: scores(RIGHT, WRONG, RIGHT, EQUAL, RIGHT), 0: scores(RIGHT, RIGHT, WRONG, WRONG, WRONG)}
JUDGE = {501: scores(RIGHT, RIGHT, WRONG, WRONG, WRONG), 0: scores(RIGHT, EQUAL, WRONG, WRONG, RIGHT)}


def test_accuracies_and_their_difference_by_hand() -> None:
    """Labels 1 1 0 0 and a tie, which is left out. At 501 the start is right, wrong, wrong and undecided: 1.5 of 4; the
    judge right in all four: gains of 1, 1 and .5. At 0 the judge is undecided where the start was right: a loss of .5.
    """
    accuracy, _ = compare_judges(START, JUDGE, LABEL, PROMPTS)
    early, late = accuracy
    assert (early["timestep"], late["timestep"]) == (0, 501)
    assert [row[name]["accuracy"] for row in accuracy for name in ("start", "judge")] == [1.0, 0.875, 0.375, 1.0]
    assert [row["difference"] for row in accuracy] == [-0.125, 0.625]
    assert late["start"]["interval"] == pytest.approx(wilson_interval(1.5, 4))
    assert late["judge"]["interval"] == pytest.approx(wilson_interval(4, 4))
    assert late["interval"] == pytest.approx(paired_share_interval(2.5, 0, 4))
    assert early["interval"] == pytest.approx(paired_share_interval(0, 0.5, 4))


def test_gains_and_losses_that_cancel_widen_the_interval() -> None:
    """The judge is right where the start is wrong and the other way round: no difference, and nothing certain."""
    label, prompts = torch.ones(40), [f"prompt {number}" for number in range(40)]
    start, judge = scores(*[RIGHT, WRONG] * 20), scores(*[WRONG, RIGHT] * 20)
    (opposite,), _ = compare_judges({0: start}, {0: judge}, label, prompts)
    (same,), _ = compare_judges({0: start}, {0: start}, label, prompts)
    assert opposite["difference"] == same["difference"] == 0
    assert opposite["interval"] == pytest.approx(paired_share_interval(20, 20, 40))
    assert same["interval"] == pytest.approx(paired_share_interval(0, 0, 40))


def test_pairs_of_one_prompt_are_a_cluster() -> None:
    """Ten prompts of 16 pairs, all right or all wrong, are worth about ten pairs, and 160 prompts 160."""
    label, right = torch.ones(160), torch.arange(160) < 80
    judge = torch.stack([torch.where(right, 1.0, 0.0), torch.where(right, 0.0, 1.0)], 1)
    start, widths = scores(*[RIGHT, WRONG] * 80), {}
    for num in (10, 160):
        prompts = [f"prompt {number * num // 160}" for number in range(160)]
        (row,), reliability = compare_judges({0: start}, {0: judge}, label, prompts)
        bins = reliability["judge"]["bins"]
        widths[num] = [np.ptp(found["interval"]) for found in (row, row["judge"], bins[0])]
    assert widths[160] == pytest.approx([0.218, 0.153, 0.153], abs=0.005)
    assert all(few > 3 * many for few, many in zip(widths[10], widths[160], strict=True))


def test_the_difference_does_not_depend_on_which_image_comes_first() -> None:
    flipped = [{t: pair.flip(1) for t, pair in judge.items()} for judge in (START, JUDGE)]
    assert compare_judges(*flipped, 1 - LABEL, PROMPTS) == compare_judges(START, JUDGE, LABEL, PROMPTS)


def test_reliability_takes_every_decided_pair_once_at_the_timesteps_in_turn() -> None:
    """Gaps towards the preferred image, by pair: 4 at the first of its timesteps, -2 at the second. Of the five
    decided pairs the first, third and fifth are seen at timestep 0, the others at 501, whatever order they come in.

    sigma(4) = .9820, right: three pairs; sigma(2) = .8808, wrong: two; error (3 · .0180 + 2 · .8808) / 5 = .3631.
    """
    label = torch.tensor([1.0, 0.5, 0.0, 1.0, 0.0, 1.0])
    towards = torch.where(label > 0.5, 1.0, -1.0)
    judge = {501: torch.stack([-1 * towards, 1 * towards], 1), 0: torch.stack([2 * towards, -2 * towards], 1)}
    start = {timestep: pair.flip(1) for timestep, pair in judge.items()}
    _, found = compare_judges(start, judge, label, [*"abcdef"])
    assert list(found) == ["start", "judge"]
    wrong, right = found["judge"]["bins"]
    assert (wrong["pairs"], wrong["frequency"]) == (2, 0.0)
    assert (right["pairs"], right["frequency"]) == (3, 1.0)
    assert wrong["probability"] == pytest.approx(0.8808, abs=5e-5)
    assert right["probability"] == pytest.approx(0.9820, abs=5e-5)
    assert found["judge"]["error"] == pytest.approx(0.3631, abs=5e-5)
    assert [(bin_["pairs"], bin_["frequency"]) for bin_ in found["start"]["bins"]] == [(2, 1.0), (3, 0.0)]


def test_a_comparison_is_plain_values() -> None:
    found = compare_judges(START, JUDGE, LABEL, PROMPTS)
    assert json.loads(json.dumps(found, allow_nan=False)) == list(found)


def test_pairs_that_are_all_ties_say_nothing() -> None:
    (row,), reliability = compare_judges({0: START[0]}, {0: JUDGE[0]}, torch.full((5,), 0.5), PROMPTS)
    assert row["judge"] == {"accuracy": None, "interval": [0.0, 1.0]}
    assert (row["difference"], row["interval"]) == (None, [-1.0, 1.0])
    assert reliability["judge"] == {"error": None, "bins": []}
