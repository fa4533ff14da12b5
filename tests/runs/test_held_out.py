"""Held-out prompts, measured: the same prompt by prompt, by any rows, and by any number of processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from guarded import parts_of, recipe_of
from measured import CASES, PROMPTS, World, measure_cases
from ranks import in_ranks

from stepalign.core.sampler import DDIM
from stepalign.core.seeding import Purpose
from stepalign.evaluation.generation_settings import Generation
from stepalign.miniature import PICKSCORE, oracles
from stepalign.models.base import BaseModel
from stepalign.runs.assemble import assemble
from stepalign.runs.held_out import measure
from stepalign.runs.recipes import load_recipe, with_absolute_paths
from stepalign.scorers.image_metric import to_pil
from stepalign.scorers.pickscore import PickScore
from stepalign.support.config import change
from stepalign.training.held_out_scores import Generated, generate


def generated(world: World, **changes: Any) -> Generated:
    """What `generate` makes of the world's prompts."""
    parts = world.parts()
    sampler = DDIM(parts.sampler.schedule, eta=0.0)
    given = {"prompts": PROMPTS, "encode": parts.model.encode, "decode": parts.model.decode, "metrics": parts.metrics}
    given |= {"latent_shape": parts.model.latent_shape, "device": parts.model.device, "seed": 3, "batch_size": 1}
    return generate(world.denoiser("policy"), sampler, parts.judge, **{**given, **changes})


@pytest.fixture(scope="module")
def whole() -> Generated:
    return generated(World([]), num_kept=5)


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    return in_ranks(2, tmp_path_factory.mktemp("shares") / "two", measure_cases)


# Rows


def test_every_prompt_has_an_image_and_scores_of_its_own(whole: Generated) -> None:
    assert [*whole.scores] == ["judge", "length"]
    for scores in whole.scores.values():
        assert scores.shape == (5,)
        assert len(set(scores.tolist())) == 5
    assert [image.shape for image in whole.images] == [(3, 4, 4)] * 5
    for index, image in enumerate(whole.images):
        assert 0 <= image.min() < image.max() <= 1
        assert whole.scores["length"][index] == pytest.approx(image.mean().item() + len(PROMPTS[index]), rel=1e-6)


@pytest.mark.parametrize("rows", [[0, 2, 4], [1, 3], [3], [4, 0], range(1, 5, 2), []], ids=str)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_some_rows_have_the_images_and_scores_of_the_whole(rows: Any, batch_size: int, whole: Generated) -> None:
    world, ticks = World([]), []
    part = generated(world, rows=rows, num_kept=5, batch_size=batch_size, tick=ticks.append)
    assert [prompt for batch in world.asked for prompt in batch] == [PROMPTS[row] for row in rows]
    assert (sum(ticks), max(ticks, default=0)) == (len(rows), min(batch_size, len(rows)))
    for name, scores in whole.scores.items():
        torch.testing.assert_close(part.scores[name], scores[[*rows]], rtol=0, atol=1e-5)
    assert len(part.images) == len(rows)
    for row, image in zip(rows, part.images, strict=True):
        torch.testing.assert_close(image, whole.images[row], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("num_kept", "kept"), [(0, []), (1, [0]), (3, [0, 2]), (9, [0, 2, 4])])
def test_the_images_of_the_first_prompts_are_kept(num_kept: int, kept: list[int], whole: Generated) -> None:
    part = generated(World([]), rows=[0, 2, 4], num_kept=num_kept)
    assert len(part.images) == len(kept)
    assert all(torch.equal(image, whole.images[row]) for row, image in zip(kept, part.images, strict=True))
    assert all(len(scores) == 3 for scores in part.scores.values())


def test_no_image_is_kept_unless_asked_for() -> None:
    assert generated(World([])).images == []


# Processes


def test_two_processes_find_what_one_does(shares: list[list[dict[str, Any]]], whole: Generated) -> None:
    """To the bit: with one image at a time the work is the same."""
    for share in shares:
        for (num_prompts, num_kept), found in zip(CASES, share, strict=True):
            assert found["scores"].keys() == whole.scores.keys()
            for name, scores in whole.scores.items():
                assert torch.equal(found["scores"][name], scores[:num_prompts])
            assert len(found["images"]) == min(num_prompts, num_kept)
            assert all(torch.equal(*pair) for pair in zip(found["images"], whole.images, strict=False))


def test_processes_share_the_prompts(shares: list[list[dict[str, Any]]]) -> None:
    """In turn; a process that is left without a prompt draws nothing, and takes part all the same."""
    for rank, share in enumerate(shares):
        for (num_prompts, _), found in zip(CASES, share, strict=True):
            assert found["asked"] == [[prompt] for prompt in PROMPTS[:num_prompts][rank::2]]
            assert found["ticks"] == [2] * len(found["asked"])
    assert CASES[2][0] == 1
    assert shares[1][2]["asked"] == []


# A run's parts


@pytest.mark.parametrize("role", ["policy", "ema", "reference"])
def test_a_run_is_measured_by_its_judge_and_metrics_in_the_role_asked_for(role: Any, tiny_sd: BaseModel) -> None:
    recipe = recipe_of(seed=5)
    parts = parts_of(tiny_sd, recipe)
    for weights, move in ((parts.policy.adapter, 0.5), (parts.policy.ema, -0.5)):
        for tensor in weights.values():
            tensor.data += move
    ticks: list[int] = []
    found = measure(parts, role, prompts=parts.held_out[:2], num_kept=1, tick=ticks.append)
    expected = generate(
        parts.policy.denoiser(role),
        DDIM(parts.sampler.schedule, eta=0.0),
        parts.judge,
        prompts=parts.held_out[:2],
        encode=parts.model.encode,
        decode=parts.model.decode,
        latent_shape=parts.model.latent_shape,
        metrics=parts.metrics,
        seed=5,
        batch_size=2,
        device=torch.device("cpu"),
        num_kept=1,
    )
    assert [*found.scores] == ["judge", "aesthetic", "alignment"]
    assert all(torch.equal(scores, expected.scores[name]) for name, scores in found.scores.items())
    assert len(found.images) == 1
    assert torch.equal(found.images[0], expected.images[0])
    assert ticks == [2]
    assert parts.policy.calls.keys() == {role}
    assert len(measure(parts, role).scores["judge"]) == len(parts.held_out) == 3


def test_held_out_images_take_the_noise_of_the_evaluation_not_of_training(tiny_sd: BaseModel) -> None:
    """Training's eta is 1; an evaluation's is 0 by default, as in `stepalign generate`, and 1 where asked for."""
    recipe = recipe_of()
    parts = parts_of(tiny_sd, recipe)
    assert recipe.base.eta == parts.sampler.eta == 1
    assert Generation("sdxl").eta == recipe.evaluation.eta == 0
    found = measure(parts, "policy").scores["judge"]
    noisy = measure(replace(parts, recipe=recipe_of(evaluation={"eta": 1.0})), "policy").scores["judge"]
    elsewhere = replace(parts, sampler=DDIM(parts.sampler.schedule, eta=0.25))
    assert torch.equal(measure(elsewhere, "policy").scores["judge"], found)
    assert not torch.allclose(noisy, found, atol=1e-3)


def test_the_noise_of_a_guard_is_none_of_the_evaluations(tiny_sd: BaseModel) -> None:
    recipe = recipe_of()
    parts = parts_of(tiny_sd, recipe)
    noises = [{}, {"purpose": Purpose.GUARD, "key": (0,)}, {"purpose": Purpose.GUARD, "key": (4,)}]
    found = torch.stack([measure(parts, "policy", **noise).scores["judge"] for noise in noises])
    assert torch.pdist(found).min() > 1e-2
    assert torch.equal(measure(parts, "reference", **noises[1]).scores["judge"], found[1]), "before training"


def test_scorers_of_a_recipe_are_metrics_beside_its_oracles() -> None:
    changes = {"num_prompts": 2, "scorers": [f"pickscore={PICKSCORE}"], "oracles": ["alignment"], "batch_size": 2}
    recipe = change(load_recipe("gradspo-miniature"), {"base": {"num_steps": 2}, "evaluation": changes})
    parts = assemble(recipe)
    found = measure(parts, "reference", num_kept=2)
    assert [*found.scores] == ["judge", "alignment", "pickscore"]
    images = torch.stack(found.images)
    assert torch.equal(found.scores["alignment"], oracles.alignment(images, parts.held_out))
    expected = PickScore.from_pretrained(str(PICKSCORE)).score(to_pil(images), parts.held_out)
    torch.testing.assert_close(found.scores["pickscore"], expected)


def test_a_written_recipe_finds_its_scorers_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clip").mkdir()
    monkeypatch.chdir(tmp_path)
    entries = ["pickscore=clip", "hps-v2.1=owner/model", "aesthetic"]
    recipe = with_absolute_paths(change(load_recipe("gradspo-sd15"), {"evaluation": {"scorers": entries}}))
    assert recipe.evaluation.scorers == (f"pickscore={tmp_path / 'clip'}", *entries[1:])
