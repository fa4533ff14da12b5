"""Two processes make pairs ready, score them and train on them as one does."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from judge_world import Work, make_scorer, work
from ranks import in_ranks


@pytest.fixture(scope="module")
def alone(tiny_spm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Work:
    return work(tmp_path_factory.mktemp("one"), tiny_spm_folder)


@pytest.fixture(scope="module")
def shares(tiny_spm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Work]:
    folder = tmp_path_factory.mktemp("world") / "two"
    return in_ranks(2, folder, work, folder, tiny_spm_folder)


def test_processes_share_the_encoding_and_find_the_same_pairs(alone: Work, shares: list[Work]) -> None:
    """Rows 0 to 13 in shards of three, of which 3 and 10 are left out; five distinct prompts, in shards of three."""
    assert [share.num_images for share in shares] == [2 * (3 + 3 + 2), 2 * (2 + 2)]
    assert [len(share.prompts) for share in shares] == [3, 2]
    assert alone.num_images == 2 * 12
    assert shares[0].prompts + shares[1].prompts == alone.prompts
    assert alone.told == shares[0].told == ["encoding 14 rows once", "toy pairs"]
    assert shares[1].told == []
    for share in shares:
        assert share.manifest == alone.manifest
        assert share.pairs["prompts"] == alone.pairs["prompts"]
        assert all(torch.equal(share.pairs[key], alone.pairs[key]) for key in ("label", "weight", "latents", "tokens"))
    assert (alone.manifest["num_rows"], alone.manifest["num_unlabelled"]) == (14, 1)
    assert alone.manifest["skipped"] == ["row 3"]


def test_processes_share_an_evaluation_and_find_the_same_scores(alone: Work, shares: list[Work]) -> None:
    for share in shares:
        assert list(share.scores) == [501, 0]
        for timestep, scores in alone.scores.items():
            assert scores.shape == (12, 2)
            torch.testing.assert_close(share.scores[timestep], scores, rtol=0, atol=1e-5)


def test_processes_share_a_step_and_find_the_same_loss_and_gradient(alone: Work, shares: list[Work]) -> None:
    for share in shares:
        torch.testing.assert_close(share.gradients, alone.gradients, rtol=1e-4, atol=1e-6)
        for row, expected in zip(share.rows, alone.rows, strict=True):
            assert row.keys() == expected.keys()
            assert all(math.isclose(row[key], expected[key], rel_tol=1e-5) for key in expected)


def test_processes_end_with_the_same_weights(alone: Work, shares: list[Work], tiny_spm_folder: Path) -> None:
    for share in shares:
        torch.testing.assert_close(share.weights, alone.weights, rtol=0, atol=1e-6)
    assert all(torch.equal(shares[0].weights[name], shares[1].weights[name]) for name in alone.weights)
    for name, start in make_scorer(tiny_spm_folder).model.named_parameters():
        if not name.endswith("k_proj.bias"):  # softmax does not see it
            assert (alone.weights[name] - start).abs().max() > 1e-4


def test_work_is_counted_over_all_processes(alone: Work, shares: list[Work]) -> None:
    """Three steps of five pairs; only a prompt that both have costs its text twice."""
    assert alone.calls["base_samples"] == alone.calls["judge_images"] == 3 * 5 * 2
    for share in shares:
        assert share.calls["base_samples"] == share.calls["judge_images"] == 3 * 5 * 2
        assert alone.calls["judge_texts"] <= share.calls["judge_texts"] <= 3 * 5
        assert share.calls == shares[0].calls


def test_a_process_without_a_pair_takes_part_in_the_step(alone: Work, shares: list[Work]) -> None:
    for share in shares:
        torch.testing.assert_close(share.alone, alone.alone, rtol=1e-4, atol=1e-6)
