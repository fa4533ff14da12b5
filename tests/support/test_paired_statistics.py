"""Statistics over prompts: clusters, the sign-flip test, Student's, Holm's adjustment."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from stepalign.support.statistics import (
    cluster_means,
    clusters_of,
    holm,
    one_sided_p_value,
    paired_difference,
    sign_flip_p_value,
)

DIFFERENCES = np.array([0.4, -0.1, 0.9, 1.3, -0.6, 0.2, 0.8, 0.5])


def test_every_prompt_counts_once_however_many_images_it_has() -> None:
    """Prompt 0: 1 and 3; prompt 1: 10; prompt 2: -1, -2, -6. Their order does not matter."""
    clusters, values = np.array([2, 0, 1, 2, 0, 2]), np.array([-1.0, 1, 10, -2, 3, -6])
    assert cluster_means(values, clusters).tolist() == [2, 10, -3]


def test_prompts_with_one_text_are_one_cluster() -> None:
    assert clusters_of(["b", "a", "b", "c", "a"]).tolist() == [0, 1, 0, 2, 1]
    assert clusters_of([]).tolist() == []


def test_duplicate_prompts_count_once_in_a_paired_difference() -> None:
    """Listing every prompt four times says nothing new; without clusters the interval would be half as wide."""
    base, aligned = torch.zeros(12), torch.from_numpy(np.arange(12.0) % 5)
    once = paired_difference(base, aligned)
    four = paired_difference(base.repeat(4), aligned.repeat(4), clusters=np.tile(np.arange(12), 4))
    assert four == once
    assert np.ptp(paired_difference(base.repeat(4), aligned.repeat(4)).interval) < 0.6 * np.ptp(once.interval)


# The tests


def test_a_one_sided_p_value_is_students() -> None:
    assert one_sided_p_value(DIFFERENCES) == pytest.approx(stats.ttest_1samp(DIFFERENCES, 0).pvalue / 2)
    assert one_sided_p_value(-DIFFERENCES) == pytest.approx(1 - one_sided_p_value(DIFFERENCES))
    assert [one_sided_p_value(np.full(4, value)) for value in (0.3, 0.0, -0.3)] == [0.0, 1.0, 1.0]


# The sign-flip test


def test_few_differences_have_the_exact_p_value() -> None:
    """All 256 sign patterns, one by one."""
    sums = [abs(np.dot(signs, DIFFERENCES)) for signs in itertools.product((1, -1), repeat=8)]
    expected = np.mean(np.array(sums) >= abs(DIFFERENCES.sum()) - 1e-9)
    assert sign_flip_p_value(DIFFERENCES) == expected
    assert sign_flip_p_value(-DIFFERENCES) == expected


def test_many_differences_have_about_students_p_value() -> None:
    values = np.random.default_rng(0).normal(0.12, 1, size=400)
    expected = stats.ttest_1samp(values, 0).pvalue
    assert 0.01 < expected < 0.2
    assert sign_flip_p_value(values) == pytest.approx(expected, abs=0.01)
    assert sign_flip_p_value(values, seed=1) != sign_flip_p_value(values, seed=2)


def test_a_drawn_p_value_is_never_zero() -> None:
    """None of 999 drawn patterns is as extreme as all 100 signs alike; the one found is: 1/1000."""
    assert sign_flip_p_value(np.ones(100), num_flips=999) == 1 / 1000


def test_no_difference_has_the_p_value_one() -> None:
    assert sign_flip_p_value(np.zeros(5)) == 1
    assert sign_flip_p_value(np.zeros(100)) == 1
    assert sign_flip_p_value(np.array([0.3, -0.3])) == 1


def test_rounding_does_not_part_equal_sums() -> None:
    """The least that 7, 3, 4 and 4 tenths give under any signs is 2, which rounding makes .2 or a little less."""
    assert sign_flip_p_value(np.array([0.7, 0.3, 0.0, -0.4, -0.4])) == 1


# Holm


def test_holms_adjustment_by_hand() -> None:
    """Sorted .01, .02, .03, .04 times 4, 3, 2, 1 is .04, .06, .06, .04; none may be below the one before."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])


def test_an_adjusted_p_value_is_at_most_one() -> None:
    assert holm([0.9, 0.2, 0.8]) == pytest.approx([1.0, 0.6, 1.0])
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
