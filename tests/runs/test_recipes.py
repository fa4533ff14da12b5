"""Recipes: the published settings by value, their YAML, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from stepalign.models.policy import ATTENTION_PROJECTIONS
from stepalign.objectives.settings import GRADSPO, SPO
from stepalign.runs.recipes import RECIPES, Recipe, load_recipe, with_absolute_paths
from stepalign.sources.settings import Candidates
from stepalign.support.config import change, to_plain, to_yaml

PAPERS = ("gradspo-sd15", "spo-sd15")


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


# The named recipes


def test_six_recipes_are_named_after_themselves() -> None:
    names = [f"{method}-{base}" for method in ("gradspo", "spo") for base in ("miniature", "sd15", "sdxl")]
    assert sorted(RECIPES) == names
    assert all(load_recipe(name).name == name for name in RECIPES)


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_settings_for_stable_diffusion_15(name: str) -> None:
    recipe = load_recipe(name)
    training, base = recipe.training, recipe.base
    assert (base.guidance_scale, base.num_steps, base.eta) == (5.0, 20, 1.0)
    assert (training.learning_rate, training.weight_decay) == (6e-5, 1e-4)
    assert training.comparisons_per_update == 40
    assert training.num_rounds * training.prompts_per_round == 10 * 4000
    assert recipe.source == Candidates(pairing="best-worst", min_gap=0.3)
    assert training.max_grad_norm is None
    assert training.ema_decay == 0.9
    assert (recipe.lora_rank, ATTENTION_PROJECTIONS) == (4, ("to_q", "to_k", "to_v", "to_out.0"))
    assert recipe.branching.num_candidates == 4
    assert recipe.branching.timestep_range == (0, 750)
    assert recipe.branching.continue_from == "random"
    assert recipe.judge.kind == "spm"
    assert (recipe.objective.beta, recipe.objective.clip, recipe.objective.gamma) == (10.0, 0.1, 0.5)
    assert recipe.objective.trust_region == "clamp"


@pytest.mark.parametrize("name", ["gradspo-sdxl", "spo-sdxl"])
def test_the_papers_settings_for_sdxl(name: str) -> None:
    recipe = load_recipe(name)
    training = recipe.training
    assert (recipe.model, recipe.lora_rank) == ("stabilityai/stable-diffusion-xl-base-1.0", 64)
    assert (recipe.base.guidance_scale, recipe.base.num_steps, recipe.base.eta) == (5.0, 20, 1.0)
    assert (training.learning_rate, training.weight_decay, training.max_grad_norm) == (1e-5, 1e-4, None)
    assert (training.comparisons_per_update, recipe.source.min_gap, training.ema_decay) == (16, 0.4, 0.9)
    assert training.num_rounds * training.prompts_per_round == 10 * 4000
    assert (recipe.branching.num_candidates, recipe.branching.timestep_range) == (4, (0, 750))
    assert recipe.judge.path.endswith("/sdxl_step-aware_preference_model.bin")
    assert (recipe.objective.beta, recipe.objective.clip, recipe.objective.gamma) == (10.0, 0.1, 0.5)


def test_gradspo_samples_with_the_average_and_spo_with_the_policy() -> None:
    gradspo, spo = load_recipe("gradspo-sd15"), load_recipe("spo-sd15")
    assert (gradspo.training.rollout_role, gradspo.objective) == ("ema", GRADSPO)
    assert (spo.training.rollout_role, spo.objective) == ("policy", SPO)
    assert load_recipe("gradspo-miniature").training.rollout_role == "ema"
    assert load_recipe("spo-miniature").training.rollout_role == "policy"


def test_the_papers_recipes_differ_in_nothing_else() -> None:
    gradspo, spo = load_recipe("gradspo-sd15"), load_recipe("spo-sd15")
    training = dataclasses.replace(spo.training, rollout_role="ema")
    assert dataclasses.replace(spo, name="gradspo-sd15", objective=GRADSPO, training=training) == gradspo


def test_the_miniatures_recipes_need_nothing_but_the_package() -> None:
    for name in ("gradspo-miniature", "spo-miniature"):
        recipe = load_recipe(name)
        assert (recipe.model, recipe.prompts, recipe.judge.path) == ("miniature",) * 3
        assert recipe.evaluation.prompts == "miniature"
        assert recipe.evaluation.num_prompts >= 200
        assert recipe.evaluation.oracles == ("aesthetic", "alignment")


# YAML


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_written_and_read_again_is_the_same(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert load_recipe(written(tmp_path, to_yaml(recipe))) == recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_written_recipe_says_everything(name: str) -> None:
    def leaves(values: dict[str, Any]) -> int:
        return sum(leaves(value) if isinstance(value, dict) else 1 for value in values.values())

    def fields(value: Any) -> int:
        members = [getattr(value, item.name) for item in dataclasses.fields(value)]
        return sum(fields(member) if dataclasses.is_dataclass(member) else 1 for member in members)

    recipe = load_recipe(name)
    assert leaves(yaml.safe_load(to_yaml(recipe))) == fields(recipe)


def test_a_recipe_of_odd_values_survives_its_yaml(tmp_path: Path) -> None:
    values = {"name": "5", "seed": 2**40, "model": "~/Fuß: [1]", "training": {"learning_rate": 1e-7}}
    recipe = change(load_recipe("spo-sd15"), values)
    assert load_recipe(written(tmp_path, to_yaml(recipe))) == recipe


def test_yaml_can_start_from_a_named_recipe(tmp_path: Path) -> None:
    path = written(tmp_path, "recipe: spo-sd15\nseed: 3\ntraining:\n  learning_rate: 1e-4\n")
    expected = change(load_recipe("spo-sd15"), {"seed": 3, "training": {"learning_rate": 1e-4}})
    assert load_recipe(path) == expected
    assert expected.objective == SPO


def test_yaml_on_its_own_starts_from_the_defaults_and_is_named_after_its_file(tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, "seed: 3\n")) == Recipe(name="mine", seed=3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must hold fields and their values, not NoneType"),
        ("- a\n", "must hold fields and their values, not list"),
        ("just text", "must hold fields and their values, not str"),
        ("a: [1\n", "is not valid YAML"),
        ("recipe: gradspo-sd16\n", r"starts from 'gradspo-sd16' \(nearest: gradspo-sd15"),
        ("recipe: [gradspo-sd15]\n", "starts from"),
        ("sead: 1\n", r"there is no field sead \(nearest: seed"),
        ("training:\n  lerning_rate: 1\n", r"there is no field training\.lerning_rate \(nearest: training\.learning"),
        ("training:\n  learning_rate: fast\n", r"training\.learning_rate takes NUMBER; got 'fast'"),
        ("training: 3\n", r"training has fields of its own, such as training\.num_rounds; got 3"),
        ("training:\n", "training has fields of its own"),
        ("branching:\n  num_candidates: 1\n", "num_candidates must be at least 2"),
        ("branching:\n  continue_from: middle\n", r"continue_from takes random\|best\|worst; got 'middle'"),
        ("evaluation:\n  oracles: [beauty]\n", r"oracles takes aesthetic\|alignment \.\.\.; got \['beauty'\]"),
        ("objective:\n  beta: 0\n", r"objective\.beta must be positive, got 0"),
    ],
    ids=repr,
)
def test_yaml_that_makes_no_sense_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match="^recipe: .*" + words):
        load_recipe(written(tmp_path, text))


def test_an_unknown_recipe_names_the_nearest_and_all() -> None:
    with pytest.raises(ValueError, match=r"none named 'gradspo-sd1' \(nearest: gradspo-sd15") as error:
        load_recipe("gradspo-sd1")
    assert all(name in str(error.value) for name in RECIPES)


def test_a_missing_yaml_file_is_named() -> None:
    with pytest.raises(ValueError, match=r"recipe: there is no file 'nowhere\.yaml'"):
        load_recipe("nowhere.yaml")


def test_a_change_keeps_the_rest() -> None:
    recipe = load_recipe("gradspo-sd15")
    changed = change(recipe, {"branching": {"num_candidates": 2, "timestep_range": [0, 250]}})
    plain, before = to_plain(changed), to_plain(recipe)
    assert plain["branching"].pop("num_candidates") == 2
    assert plain["branching"].pop("timestep_range") == [0, 250]
    del before["branching"]["num_candidates"], before["branching"]["timestep_range"]
    assert plain == before


def test_the_miniatures_name_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "miniature").mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("gradspo-miniature")
    assert with_absolute_paths(recipe) == recipe
