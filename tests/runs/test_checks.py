"""What can be said of a recipe without weights: what is not there, and what was made for another model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from stepalign import miniature
from stepalign.runs.checks import check_base, check_device, check_recipe, family_of, is_miniature, notes_on
from stepalign.runs.recipes import GRADSPO_MINIATURE, GRADSPO_SD15, GRADSPO_SDXL, SDXL, SDXL_VAE, FrozenModel, Recipe


def with_model(recipe: Recipe, model: Path | str, judge: str | None = None) -> Recipe:
    own = recipe.judge if judge is None else replace(recipe.judge, path=judge)
    return replace(recipe, model=str(model), judge=own)


def test_families_are_known_by_a_look(tiny_sd_folder: Path, tiny_sdxl_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(miniature.MODEL, tmp_path / "copy")
    names = [
        tiny_sd_folder,
        tiny_sdxl_folder,
        SDXL,
        GRADSPO_SD15.model,
        "miniature",
        tmp_path / "copy",
        tmp_path,
        "a/b",
    ]
    assert [family_of(str(name)) for name in names] == ["sd", "sdxl", "sdxl", "sd", *["miniature"] * 2, None, None]
    assert [is_miniature(str(name)) for name in names] == [False] * 4 + [True] * 2 + [False] * 2


def test_settings_for_another_family_are_noted(tiny_sd_folder: Path, tiny_sdxl_folder: Path) -> None:
    for recipe, folder, ending in ((GRADSPO_SD15, tiny_sdxl_folder, "sdxl"), (GRADSPO_SDXL, tiny_sd_folder, "sd15")):
        settings, judge = notes_on(with_model(recipe, folder), ["a cat"])
        assert f"a recipe that ends in {ending} has those for it" in settings
        assert "was trained for" in judge
    for recipe, folder in ((GRADSPO_SD15, tiny_sd_folder), (GRADSPO_SDXL, tiny_sdxl_folder)):
        assert notes_on(with_model(recipe, folder), ["a cat"]) == []
    assert notes_on(GRADSPO_SD15, ["a cat"]) == []
    own = with_model(replace(GRADSPO_SD15, name="mine"), tiny_sdxl_folder, "./judge")
    assert notes_on(own, ["a cat"]) == []


def test_the_miniature_says_which_words_it_does_not_know() -> None:
    known = "a large red circle on a navy background"
    assert notes_on(GRADSPO_MINIATURE, [known]) == []
    (note,) = notes_on(GRADSPO_MINIATURE, [known, "a cat on a navy mat", "Two boats"])
    assert note.startswith("2 of 3 prompts have words that the miniature does not know (cat, mat, two, boats); ")
    released = with_model(GRADSPO_MINIATURE, "miniature", GRADSPO_SD15.judge.path)
    (note,) = notes_on(released, [known])
    assert "was not trained on the miniature's images" in note


def test_what_nothing_sensible_can_come_of_is_refused(tiny_sd_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"judge.path: the miniature's judge knows its own images and captions only"):
        check_recipe(with_model(GRADSPO_SD15, tiny_sd_folder, "miniature"))
    with pytest.raises(ValueError, match=r"base.vae: .* has SDXL's latents"):
        check_base(str(tiny_sd_folder), FrozenModel(vae=SDXL_VAE))
    shutil.copytree(miniature.MODEL, tmp_path / "copy")
    check_recipe(with_model(GRADSPO_MINIATURE, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["gpu9", "cuda:99", "xpu:7", "cpu:x", "meta"])
def test_devices_that_are_not_here_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"^device: "):
        check_device(name)
    check_device("cpu")


def test_weighting_syntax_of_other_programs_is_noted_once() -> None:
    (note,) = notes_on(GRADSPO_SD15, ["a (red:1.3) cat", "a cat", "a dog <lora:style:0.8>"])
    assert note.startswith("2 of 3 prompts have prompt-weighting syntax, the first '(red:1.3)'; it is taken literally")
