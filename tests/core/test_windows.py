"""Windows of several steps: where they begin and end, and what the branches do along a path."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from branches import (
    JUDGED_AT,
    PARENTS,
    PROMPTS,
    B,
    CountingDenoiser,
    K,
    began_at,
    clean,
    ended_at,
    judged_at,
    landed,
    noise_of,
    predicted,
    roll,
    survivors,
    windows,
)
from torch import Tensor
from worlds import LATENT_SHAPE, BrightnessJudge, assert_same, encode, make_sampler

from stepalign.core.sampler import DDIM
from stepalign.core.sampling import sample, times_at
from stepalign.core.seeding import PromptNoise
from stepalign.sources.branching import windows as branching_windows
from stepalign.sources.settings import Branching

# Windows of one step


def single_steps(
    denoise: CountingDenoiser, sampler: DDIM, judge: BrightnessJudge, noise: PromptNoise, branching: Branching
) -> tuple[list[dict[str, object]], Tensor]:
    """SPO's rollout of one step at a time, in full: predict, draw, judge, choose."""
    prompts, cond, shape = PROMPTS[:B], encode(PROMPTS[:B]), LATENT_SHAPE
    branching_steps = branching_windows(branching, sampler)
    x_t, prediction, pools = noise.normal(*shape), None, []
    for index in range(sampler.num_steps):
        now = torch.full((B,), index)
        prediction = denoise(x_t, times_at(sampler, now), cond) if prediction is None else prediction
        transition = sampler.transition(prediction, x_t, now)
        if index not in branching_steps:
            x_t, prediction = transition.sample(noise.normal(1, *shape))[:, 0], None
            continue
        draws = noise.normal(K, *shape)
        x_prev, more = transition.sample(draws), index + 1 < sampler.num_steps
        flat, following, repeated = (
            x_prev.flatten(0, 1),
            torch.full((B * K,), index + 1),
            [p for p in prompts for _ in "kkk"],
        )
        flat_t = times_at(sampler, following)
        guess = denoise(flat, flat_t, cond.tile(K)) if more else None
        x_0 = sampler.predict_x0(guess, flat, following) if more else flat
        scores = judge(flat, x_0, flat_t, repeated).reshape(B, K)
        followed = noise.choice(K) if branching.continue_from == "random" else scores.argmax(1)
        step = {"step": now, "x_t": x_t[:, None], "prediction": prediction[:, None], "noise": draws, "scores": scores}
        pools.append({**step, "judged_at": index + 1, "x_0": x_0.unflatten(0, (B, K)), "followed": followed})
        x_t = x_prev[torch.arange(B), followed]
        prediction = guess.unflatten(0, (B, K))[torch.arange(B), followed] if more else None
    return pools, x_t


@pytest.mark.parametrize("continue_from", ["random", "best"])
@pytest.mark.parametrize("timestep_range", [(0, 750), (200, 500)])
@pytest.mark.parametrize("resume_at", ["window-end", "next-step"])
@pytest.mark.parametrize("inner_steps", ["path", "look-ahead"])
def test_windows_of_one_step_are_spo_bit_by_bit(
    inner_steps: str, resume_at: str, timestep_range: tuple[int, int], continue_from: str
) -> None:
    branching = {"timestep_range": timestep_range, "continue_from": continue_from}
    (denoise, expected_denoise), (judge, expected_judge) = (
        [kind(), kind()] for kind in (CountingDenoiser, BrightnessJudge)
    )
    noise, expected_noise = noise_of(0, 1), noise_of(0, 1)
    kinds = {"inner_steps": inner_steps, "resume_at": resume_at, "num_inner_steps": (1,)}
    pools, end = roll(denoise=denoise, judge=judge, noise=noise, **kinds, **branching)
    whole = Branching(num_candidates=K, **branching)
    expected, expected_end = single_steps(expected_denoise, make_sampler(), expected_judge, expected_noise, whole)
    for pool, single in zip(pools, expected, strict=True):
        (step,) = pool.transitions
        given = {name: getattr(step, name) for name in ("step", "x_t", "prediction", "noise", "scores")}
        assert_same({**given, "judged_at": pool.judged_at, "x_0": pool.x_0, "followed": pool.continued_from}, single)
        assert_same(step.cond.tokens, encode(PROMPTS[:B]).tokens)
    assert_same(end, expected_end)
    assert (denoise.calls, judge.seen) == (expected_denoise.calls, expected_judge.seen)
    assert_same(noise.normal(1), expected_noise.normal(1))  # as many numbers were drawn


# Where windows begin and end


@pytest.mark.parametrize("j", JUDGED_AT)
def test_every_step_from_751_on_is_in_one_window_and_the_last_window_is_cut(j: int) -> None:
    judge = BrightnessJudge()
    pools, _ = roll(judge=judge, num_inner_steps=(j,))
    assert windows(pools) == [PARENTS[start : start + j] for start in range(0, 16, j)]
    assert ended_at(pools) == judged_at(judge) == JUDGED_AT[j]


@pytest.mark.parametrize("j", JUDGED_AT)
def test_a_look_ahead_that_goes_on_at_its_end_has_the_same_windows_and_trains_their_first_step(j: int) -> None:
    judge = BrightnessJudge()
    pools, _ = roll(judge=judge, num_inner_steps=(j,), inner_steps="look-ahead")
    assert windows(pools) == [[t] for t in PARENTS[::j]]
    assert ended_at(pools) == judged_at(judge) == JUDGED_AT[j]


@pytest.mark.parametrize(
    ("timestep_range", "expected", "ends"),
    [
        ((500, 750), [[751, 701, 651, 601], [551, 501]], [551, 451]),
        ((550, 950), [[951, 901, 851, 801], [751, 701, 651, 601], [551]], [751, 551, 501]),
        ((0, 250), [[251, 201, 151, 101], [51, 1]], [51, 0]),
        ((300, 300), [[301]], [251]),
    ],
)
def test_a_window_on_a_path_is_cut_where_branching_ends(
    timestep_range: tuple[int, int], expected: list[list[int]], ends: list[int]
) -> None:
    denoise = CountingDenoiser()
    pools, end = roll(denoise=denoise, num_inner_steps=(4,), timestep_range=timestep_range)
    assert windows(pools) == expected
    assert ended_at(pools) == ends
    points = {t - 50 for window in expected for t in window}
    assert denoise.calls == [(t, B * K if t in points else B) for t in range(951, 0, -50)]
    assert end.shape == (B, *LATENT_SHAPE)


@pytest.mark.parametrize(("j", "last"), [(1, [51]), (3, [151, 101, 51]), (5, [251, 201, 151, 101, 51])])
def test_a_window_on_a_path_ends_before_a_last_step_without_noise(j: int, last: list[int]) -> None:
    denoise = CountingDenoiser()
    sampler = make_sampler(final_alpha=1.0)
    pools, end = roll(denoise=denoise, sampler=sampler, num_inner_steps=(j,))
    assert [t for window in windows(pools) for t in window] == PARENTS[:-1]
    assert (windows(pools)[-1], ended_at(pools)[-1]) == (last, 1)
    assert denoise.calls[-1] == (1, B * K)  # and never again: the step from 1 leads to what is predicted there
    torch.testing.assert_close(end, survivors(pools[-1], pools[-1].x_0))


@pytest.mark.parametrize("inner_steps", ["path", "look-ahead"])
def test_without_noise_there_are_no_windows(inner_steps: str) -> None:
    sampler = make_sampler(eta=0.0)
    pools, end = roll(sampler=sampler, num_inner_steps=(4,), inner_steps=inner_steps)
    plain = {"cond": encode(PROMPTS[:B]), "latent_shape": LATENT_SHAPE, "noise": noise_of(0, 1)}
    assert pools == []
    assert_same(end, sample(CountingDenoiser(), sampler, **plain))


@pytest.mark.parametrize(
    ("num_inner_steps", "bounds", "lengths"),
    [
        ((4, 1), (400,), [4, 4, *[1] * 8]),
        ((4, 1), (551,), [4, *[1] * 12]),
        ((4, 1), (550,), [4, 4, *[1] * 8]),
        ((4, 2, 1), (600, 200), [4, 2, 2, 2, 2, 1, 1, 1, 1]),
        ((1, 5), (300,), [*[1] * 10, 5, 1]),
    ],
)
@pytest.mark.parametrize("inner_steps", ["path", "look-ahead"])
def test_the_bounds_say_from_which_timestep_down_the_next_length_holds(
    num_inner_steps: tuple[int, ...], bounds: tuple[int, ...], lengths: list[int], inner_steps: str
) -> None:
    pools, _ = roll(num_inner_steps=num_inner_steps, inner_step_bounds=bounds, inner_steps=inner_steps)
    ends = [sum(lengths[: index + 1]) for index in range(len(lengths))]
    assert ended_at(pools) == [[*PARENTS[1:], 0][end - 1] for end in ends]
    trained = [PARENTS[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    assert windows(pools) == (trained if inner_steps == "path" else [window[:1] for window in trained])


@pytest.mark.parametrize("j", JUDGED_AT)
@pytest.mark.parametrize("inner_steps", ["path", "look-ahead"])
def test_progress_counts_every_step_once(j: int, inner_steps: str) -> None:
    done: list[None] = []
    roll(num_inner_steps=(j,), inner_steps=inner_steps, on_step=lambda: done.append(None))
    assert len(done) == 20


# On a path


@pytest.mark.parametrize("j", JUDGED_AT)
def test_every_transition_of_every_branch_leads_to_that_branchs_next_parent(j: int) -> None:
    pools, _ = roll(num_inner_steps=(j,))
    for pool in pools:
        assert [step.x_t.shape[1] for step in pool.transitions] == [1] + [K] * (len(pool.transitions) - 1)
        for step, following in pairwise(pool.transitions):
            assert_same(following.x_t, landed(step))


@pytest.mark.parametrize("j", JUDGED_AT)
def test_every_parent_comes_with_its_own_prediction(j: int) -> None:
    for pool in roll(num_inner_steps=(j,))[0]:
        for step in pool.transitions:
            assert_same(step.prediction, predicted(step.x_t, began_at(step)))
            assert_same(step.cond.tokens, encode(PROMPTS[:B]).tokens)


@pytest.mark.parametrize("j", JUDGED_AT)
def test_every_step_draws_k_noises_of_each_prompts_own_and_every_window_one_choice(j: int) -> None:
    noise, (pools, _) = noise_of(0, 1), roll(num_inner_steps=(j,))
    for shape in (LATENT_SHAPE, *[(1, *LATENT_SHAPE)] * 4):  # x_T and the four plain steps
        noise.normal(*shape)
    for pool in pools:
        for step in pool.transitions:
            assert_same(step.noise, noise.normal(K, *LATENT_SHAPE))
        assert_same(pool.continued_from, noise.choice(K))


@pytest.mark.parametrize("j", JUDGED_AT)
def test_the_judge_sees_what_the_branches_promise_at_the_windows_end_and_all_transitions_share_its_scores(
    j: int,
) -> None:
    judge = BrightnessJudge()
    for pool in roll(judge=judge, num_inner_steps=(j,))[0]:
        assert_same(pool.x_0, clean(landed(pool.transitions[-1]), ended_at([pool])[0]))
        for step in pool.transitions:
            torch.testing.assert_close(step.scores, 10 * pool.x_0.mean((2, 3, 4)))
    assert [prompt for _, prompt in judge.seen] == ["a", "a", "a", "bb", "bb", "bb"] * len(JUDGED_AT[j])


@pytest.mark.parametrize("j", JUDGED_AT)
@pytest.mark.parametrize("rule", ["random", "best", "worst"])
def test_the_trajectory_goes_on_from_the_end_of_the_followed_branch(j: int, rule: str) -> None:
    pools, end = roll(num_inner_steps=(j,), continue_from=rule)
    for pool, following in pairwise(pools):
        assert_same(following.candidates.x_t[:, 0], survivors(pool, landed(pool.transitions[-1])))
    assert_same(end, survivors(pools[-1], landed(pools[-1].transitions[-1])))
    chosen = {"best": Tensor.argmax, "worst": Tensor.argmin}
    if rule in chosen:
        assert all(torch.equal(pool.continued_from, chosen[rule](pool.candidates.scores, 1)) for pool in pools)


@pytest.mark.parametrize("j", JUDGED_AT)
def test_a_prompt_costs_5_plain_predictions_and_15_k_whatever_the_windows_length(j: int) -> None:
    """The parents of a window's first step are predicted once, as the survivors of the window before."""
    denoise, judge = CountingDenoiser(), BrightnessJudge()
    roll(denoise=denoise, judge=judge, num_inner_steps=(j,))
    assert denoise.calls == [(t, B) for t in range(951, 750, -50)] + [(t, B * K) for t in range(701, 0, -50)]
    assert len(judge.seen) == B * K * len(JUDGED_AT[j])


# Company


@pytest.mark.parametrize("inner_steps", ["path", "look-ahead"])
def test_a_prompts_windows_do_not_depend_on_its_company(inner_steps: str) -> None:
    """Its noise and its choices to the bit; the rest to rounding, which another batch may do otherwise."""
    near = {"rtol": 1e-5, "atol": 1e-6}
    branching = {"num_inner_steps": (3,), "inner_steps": inner_steps}
    together, end = roll(rows=(0, 1, 2, 3), **branching)
    alone, alone_end = roll(rows=(2,), **branching)
    for full, single in zip(together, alone, strict=True):
        assert_same(full.continued_from[2:3], single.continued_from)
        torch.testing.assert_close(full.x_0[2:3], single.x_0, **near)
        for step, own in zip(full.transitions, single.transitions, strict=True):
            for name in ("step", "noise"):
                assert_same(getattr(step, name)[2:3], getattr(own, name))
            for name in ("x_t", "prediction"):
                torch.testing.assert_close(getattr(step, name)[2:3], getattr(own, name), **near)
    torch.testing.assert_close(end[2:3], alone_end, **near)
