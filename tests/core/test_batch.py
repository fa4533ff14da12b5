"""The values that travel, and how pools of judged candidates become comparisons."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from conftest import normal
from torch import Tensor

from stepalign.core.batch import Conditioning, StepCandidates, cat, pair, preference_gap, vote_weights


def pools(scores: list[list[float]] | Tensor, *, parents: int = 1, size: int = 2) -> StepCandidates:
    """Judged candidates whose noise, parents and predictions are random, and whose prompts and steps tell rows."""
    scores = torch.as_tensor(scores, dtype=torch.float64)
    b, k = scores.shape
    cond = Conditioning(torch.arange(b, dtype=torch.float64)[:, None, None].expand(-1, 3, 4))
    step = 4 + torch.arange(b)
    x_t, prediction = normal(b, parents, 1, size, size, seed=1), normal(b, parents, 1, size, size, seed=2)
    return StepCandidates(cond, step, x_t, prediction, normal(b, k, 1, size, size, seed=3), scores)


def sdxl_conditioning(b: int) -> Conditioning:
    return Conditioning(normal(b, 3, 4), normal(b, 5, seed=1), normal(b, 6, seed=2))


def test_map_reaches_every_tensor_of_nested_batches_and_leaves_none_alone() -> None:
    doubled = pools([[1, 2], [3, 4]]).map(lambda tensor: tensor * 2)
    assert doubled.scores.tolist() == [[2, 4], [6, 8]]
    assert doubled.step.tolist() == [8, 10]
    assert doubled.cond.tokens[:, 0, 0].tolist() == [0, 2]
    assert doubled.cond.pooled is None


def test_map_returns_a_new_value_of_the_same_type() -> None:
    before = sdxl_conditioning(2)
    after = before.map(torch.zeros_like)
    assert type(after) is Conditioning
    assert all(not value.any() for value in (after.tokens, after.pooled, after.time_ids))
    assert before.tokens.any()


def test_the_length_is_the_first_axis_even_where_a_batch_comes_first() -> None:
    assert len(pools([[1, 2], [3, 4], [5, 6]])) == 3


@pytest.mark.parametrize("index", [[2, 0], torch.tensor([2, 0]), torch.tensor([True, False, True])])
def test_indexing_picks_rows_of_everything(index: list[int] | Tensor) -> None:
    pool = pools([[1, 2], [3, 4], [5, 6]])
    picked = pool[index]
    rows = [0, 2] if isinstance(index, Tensor) and index.dtype == torch.bool else [2, 0]
    assert picked.scores.tolist() == pool.scores[rows].tolist()
    assert picked.step.tolist() == pool.step[rows].tolist()
    assert picked.cond.tokens[:, 0, 0].tolist() == rows
    assert torch.equal(picked.noise, pool.noise[rows])


def test_a_slice_keeps_the_axis() -> None:
    assert pools([[1, 2], [3, 4], [5, 6]])[1:2].scores.tolist() == [[3, 4]]


def test_tiling_repeats_each_row_in_place() -> None:
    tiled = sdxl_conditioning(3).tile(2)
    for name in ("tokens", "pooled", "time_ids"):
        original = getattr(sdxl_conditioning(3), name)
        assert torch.equal(getattr(tiled, name), original[[0, 0, 1, 1, 2, 2]])


def test_cat_undoes_slicing_with_and_without_optional_fields() -> None:
    for whole in (sdxl_conditioning(3), pools([[1, 2], [3, 4], [5, 6]])):
        joined = cat([whole[:1], whole[1:1], whole[1:]])
        assert type(joined) is type(whole)
        assert len(joined) == 3
    assert torch.equal(joined.noise, whole.noise)
    assert torch.equal(joined.cond.tokens, whole.cond.tokens)
    assert joined.cond.pooled is None


def test_cat_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        cat([])


def test_the_gap_is_the_difference_of_softmax_probabilities() -> None:
    """Scores 2, 0, 1: softmax(2, 0) = (.8808, .1192), a gap of .7616 = tanh 1."""
    scores = torch.tensor([[2.0, 0.0, 1.0], [21.1, 21.9, 21.5]], dtype=torch.float64)
    extremes = torch.stack([scores.amax(1), scores.amin(1)], 1).softmax(1)
    torch.testing.assert_close(preference_gap(scores), extremes[:, 0] - extremes[:, 1], rtol=1e-12, atol=0)
    assert preference_gap(scores)[0].item() == pytest.approx(0.7616, abs=5e-5)


def test_best_worst_compares_the_best_with_the_worst() -> None:
    pool = pools([[1.0, 3.0, 2.0, 0.5], [0.0, -1.0, -2.0, 5.0]])
    compared, sure = pair(pool)
    assert torch.equal(compared.noise[0], pool.noise[0, [1, 3]])
    assert torch.equal(compared.noise[1], pool.noise[1, [3, 2]])
    assert sure.tolist() == [True, True]


@pytest.mark.parametrize("rule", ["best-worst", "two-random", "all-k"])
def test_a_comparison_keeps_its_parent_its_step_and_its_prompt(rule: str) -> None:
    pool = pools([[1.0, 3.0, 2.0], [0.0, -1.0, -2.0]])
    compared, _ = pair(pool, rule=rule)
    assert torch.equal(compared.x_t, pool.x_t)
    assert torch.equal(compared.prediction, pool.prediction)
    assert torch.equal(compared.step, pool.step)
    assert torch.equal(compared.cond.tokens, pool.cond.tokens)


def test_two_random_orders_the_first_two_by_their_scores() -> None:
    pool = pools([[1.0, 3.0, 9.0], [2.0, 0.0, -9.0]])
    compared, _ = pair(pool, rule="two-random")
    assert torch.equal(compared.noise[0], pool.noise[0, [1, 0]])
    assert torch.equal(compared.noise[1], pool.noise[1, [0, 1]])


def test_two_random_is_as_sure_as_its_own_two_scores() -> None:
    _, sure = pair(pools([[1.0, 1.1, 9.0]]), rule="two-random", min_gap=0.3)
    assert sure.tolist() == [False]


@pytest.mark.parametrize("rule", ["best-worst", "all-k"])
def test_a_pool_is_sure_when_the_softmax_of_best_and_worst_differs_by_more_than_the_gap(rule: str) -> None:
    """tanh(gap/2) = .3 at a gap of 2 artanh .3 = .619039."""
    limit = 2 * math.atanh(0.3)
    _, sure = pair(pools([[0.0, limit - 1e-6, 0.1], [0.0, limit + 1e-6, 0.1]]), rule=rule, min_gap=0.3)
    assert sure.tolist() == [False, True]


@pytest.mark.parametrize("rule", ["best-worst", "two-random", "all-k"])
@pytest.mark.parametrize("min_gap", [0.0, -1.0])
def test_equal_scores_are_never_sure(rule: str, min_gap: float) -> None:
    _, sure = pair(pools([[22.3, 22.3, 22.3]]), rule=rule, min_gap=min_gap)
    assert sure.tolist() == [False]


def test_without_a_gap_the_smallest_difference_is_sure() -> None:
    _, sure = pair(pools([[1.0, 1.0 + 1e-9]]))
    assert sure.tolist() == [True]


@pytest.mark.parametrize("rule", ["best-worst", "two-random", "all-k"])
def test_a_single_candidate_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match="k = 1"):
        pair(pools([[1.0]]), rule=rule)


@pytest.mark.parametrize("rule", ["best-worst", "two-random"])
def test_candidates_from_parents_of_their_own_take_them_along(rule: str) -> None:
    pool = pools([[1.0, 3.0, -1.0]], parents=3)
    compared, _ = pair(pool, rule=rule)
    order = [1, 2] if rule == "best-worst" else [1, 0]
    assert torch.equal(compared.x_t, pool.x_t[:, order])
    assert torch.equal(compared.prediction, pool.prediction[:, order])
    assert torch.equal(compared.noise, pool.noise[:, order])


def test_all_k_refuses_candidates_from_parents_of_their_own() -> None:
    with pytest.raises(ValueError, match="one parent"):
        pair(pools([[1.0, 3.0, -1.0]], parents=3), rule="all-k")


def test_all_k_by_hand() -> None:
    """Scores 3, 0, 0: centred 2, -1, -1, norm sqrt 6, so w = sqrt(2/6) (2, -1, -1) = (1.1547, -.5774, -.5774)."""
    pool = pools([[3.0, 0.0, 0.0]])
    z = pool.noise[0]
    combined = 1.154700538 * z[0] - 0.577350269 * (z[1] + z[2])
    compared, _ = pair(pool, rule="all-k")
    torch.testing.assert_close(compared.noise[0], torch.stack([combined / 2, -combined / 2]), rtol=0, atol=1e-8)


@pytest.mark.parametrize("k", [2, 3, 4, 8, 16])
def test_votes_are_centred_with_squares_that_sum_to_two(k: int) -> None:
    weights = vote_weights(20 + normal(50, k))
    torch.testing.assert_close(weights.sum(1), torch.zeros(50).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(weights.square().sum(1), torch.full((50,), 2.0).double(), rtol=1e-12, atol=0)


def test_votes_ignore_the_scores_offset_and_scale() -> None:
    scores = normal(10, 4)
    torch.testing.assert_close(vote_weights(7 * scores + 20), vote_weights(scores), rtol=1e-9, atol=1e-12)


def test_two_scores_vote_plus_and_minus_one_however_close_they_are() -> None:
    scores = torch.tensor([[22.3, 22.300003], [22.31, 22.3], [0.0, 1e-7]])
    assert vote_weights(scores).flatten().tolist() == pytest.approx([-1, 1, 1, -1, -1, 1], abs=1e-5)


def test_with_two_candidates_all_k_moves_by_what_best_worst_does() -> None:
    pool = pools(20 + normal(40, 2, seed=7))
    voted, _ = pair(pool, rule="all-k")
    compared, _ = pair(pool, rule="best-worst")
    torch.testing.assert_close(
        voted.noise[:, 0] - voted.noise[:, 1], compared.noise[:, 0] - compared.noise[:, 1], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("k", [2, 4, 8])
def test_the_noise_of_all_k_is_as_long_as_a_difference_of_two(k: int) -> None:
    """E|z_best - z_worst|² = 2 D for noises that the scores do not depend on.

    Over 2000 pools of D = 16 entries the mean of |z|²/D has a standard error of 2 sqrt(2 / 32 000) = .016.
    """
    voted, _ = pair(pools(normal(2000, k, seed=7), size=4), rule="all-k")
    difference = voted.noise[:, 0] - voted.noise[:, 1]
    assert difference.square().mean().item() == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [2, 3, 7])
def test_equal_scores_give_all_k_no_noise_at_all(k: int, dtype: torch.dtype) -> None:
    """Also where the mean of equal scores is not exactly that score: three times 22.3 in float32, say."""
    pool = pools([[score] * k for score in (0.0, 0.1, 21.7, 22.3, -3.3)])
    voted, sure = pair(replace(pool, scores=pool.scores.to(dtype)), rule="all-k")
    assert not sure.any()
    assert torch.equal(voted.noise, torch.zeros_like(voted.noise))


def test_all_k_prefers_the_direction_of_the_better_candidates() -> None:
    """Scores that are linear in the noise, s = <g, z>: the combined noise points along g on average."""
    pool = pools(normal(500, 4), size=2)
    direction = normal(1, 2, 2, seed=9)
    pool = replace(pool, scores=(pool.noise * direction).sum((2, 3, 4)))
    for rule in ("all-k", "best-worst"):
        compared, _ = pair(pool, rule=rule)
        along = ((compared.noise[:, 0] - compared.noise[:, 1]) * direction).sum((1, 2, 3))
        assert along.mean() > 0
