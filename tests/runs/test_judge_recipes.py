"""Recipes of a judge's training: the published settings by value, their YAML, their help, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stepalign.runs.judge_recipes import JUDGE_RECIPES, JudgeRecipe, load_judge_recipe, map_paths
from stepalign.support.config import change, parse_flags, to_plain, to_yaml

PAPERS = ("spm-sd15", "spm-sdxl")


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested fields under dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


FIELDS = leaves(to_plain(JUDGE_RECIPES["spm-sd15"]))


# The named recipes


def test_three_recipes_are_named_after_themselves() -> None:
    assert sorted(JUDGE_RECIPES) == ["spm-miniature", "spm-sd15", "spm-sdxl"]
    assert all(load_judge_recipe(name).name == name for name in JUDGE_RECIPES)


@pytest.mark.parametrize(("name", "rate", "num_steps"), [("spm-sd15", 3e-6, 8000), ("spm-sdxl", 1e-6, 7000)])
def test_the_papers_settings(name: str, rate: float, num_steps: int) -> None:
    recipe = load_judge_recipe(name)
    training = recipe.training
    assert (training.learning_rate, training.num_steps, training.num_warmup_steps) == (rate, num_steps, 500)
    assert (training.batch_size, training.weight_decay, training.max_grad_norm) == (64, 0.3, 1.0)
    assert training.precision == "bf16"
    assert recipe.base.guidance_scale == 5.0
    assert (recipe.judge.start, recipe.judge.timestep_conditioning) == ("yuvalkirstain/PickScore_v1", True)
    assert recipe.judge.preprocessing == "clamp-first"
    assert (recipe.data.pairs, recipe.evaluation.pairs) == ("yuvalkirstain/pickapic_v1", None)
    assert recipe.evaluation.timesteps == (0, 251, 501, 701, 951)


def test_micro_batches_make_up_the_papers_batch() -> None:
    for name in PAPERS:
        training = load_judge_recipe(name).training
        assert training.batch_size % training.micro_batch == 0


def test_pickscore_labels_the_pairs_of_sdxl_alone() -> None:
    assert load_judge_recipe("spm-sd15").data.relabel_with is None
    sdxl = load_judge_recipe("spm-sdxl").data
    assert (sdxl.relabel_with, sdxl.tie_gap) == ("yuvalkirstain/PickScore_v1", 0.1)


def test_the_papers_recipes_read_as_many_rows_as_they_train_on() -> None:
    for name in PAPERS:
        recipe = load_judge_recipe(name)
        assert recipe.data.num_rows == recipe.training.num_steps * recipe.training.batch_size


def test_each_papers_recipe_has_its_own_base_model() -> None:
    assert load_judge_recipe("spm-sd15").model == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert load_judge_recipe("spm-sdxl").model == "stabilityai/stable-diffusion-xl-base-1.0"
    assert load_judge_recipe("spm-sdxl").base.vae is None  # its own


def test_the_papers_recipes_differ_in_nothing_else() -> None:
    one, other = (leaves(to_plain(load_judge_recipe(name))) for name in PAPERS)
    different = {name for name in one if one[name] != other[name]}
    assert different == {
        *("name", "model", "data.relabel_with", "data.num_rows"),
        *("training.num_steps", "training.learning_rate"),
    }


def test_the_miniatures_recipe_needs_nothing_but_the_package() -> None:
    recipe = load_judge_recipe("spm-miniature")
    places = (recipe.model, recipe.judge.start, recipe.data.pairs, recipe.evaluation.pairs)
    assert places == ("miniature",) * 4
    assert recipe.data.split != recipe.evaluation.split
    assert recipe.base.precision == recipe.training.precision == "fp32"


# YAML


@pytest.mark.parametrize("name", JUDGE_RECIPES)
def test_a_recipe_written_and_read_again_is_the_same(name: str, tmp_path: Path) -> None:
    recipe = load_judge_recipe(name)
    assert load_judge_recipe(written(tmp_path, to_yaml(recipe))) == recipe


@pytest.mark.parametrize("name", JUDGE_RECIPES)
def test_a_written_recipe_says_everything(name: str) -> None:
    assert leaves(yaml.safe_load(to_yaml(load_judge_recipe(name)))).keys() == FIELDS.keys()
    assert len(FIELDS) > 30


def test_a_recipe_in_which_every_number_is_another_survives_its_yaml(tmp_path: Path) -> None:
    flags = [f"--{name}={value + 1}" for name, value in FIELDS.items() if type(value) is int]
    flags += [f"--{name}={value * 0.7}" for name, value in FIELDS.items() if type(value) is float]
    flags += ["--data.streaming=false", "--judge.timestep_conditioning=false", "--export=bf16"]
    recipe = change(load_judge_recipe("spm-sd15"), parse_flags([*flags, "--evaluation.timesteps", "3", "1"]))
    assert load_judge_recipe(written(tmp_path, to_yaml(recipe))) == recipe
    assert recipe.evaluation.timesteps == (3, 1)
    assert not recipe.judge.timestep_conditioning


def test_yaml_can_start_from_a_named_recipe(tmp_path: Path) -> None:
    path = written(tmp_path, "recipe: spm-sdxl\nseed: 3\ndata:\n  pairs: mine.jsonl\n")
    expected = change(load_judge_recipe("spm-sdxl"), {"seed": 3, "data": {"pairs": "mine.jsonl"}})
    assert load_judge_recipe(path) == expected
    assert expected.data.relabel_with is not None


def test_yaml_on_its_own_starts_from_the_defaults_and_is_named_after_its_file(tmp_path: Path) -> None:
    assert load_judge_recipe(written(tmp_path, "seed: 3\n")) == JudgeRecipe(name="mine", seed=3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("recipe: spm-sd16\n", r"starts from 'spm-sd16' \(nearest: spm-sd15"),
        ("recipe: gradspo-sd15\n", "starts from 'gradspo-sd15'"),
        ("data: miniature\n", r"data has fields of its own, such as data\.pairs"),
        ("evaluation:\n  timestep: 3\n", r"no field evaluation\.timestep \(nearest: evaluation\.timesteps"),
        ("judge:\n  path: x\n", r"there is no field judge\.path"),
        ("branching:\n  num_candidates: 3\n", "there is no field branching"),
        ("judge:\n  preprocessing: clamp\n", r"judge\.preprocessing takes clamp-first\|resize-first; got 'clamp'"),
        ("judge:\n  preprocessing: null\n", r"judge\.preprocessing takes clamp-first\|resize-first"),
        ("export: fp16\n", r"export takes fp32\|bf16; got 'fp16'"),
    ],
    ids=repr,
)
def test_yaml_that_makes_no_sense_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match="^recipe: .*" + words):
        load_judge_recipe(written(tmp_path, text))


def test_an_unknown_recipe_names_the_nearest_and_all() -> None:
    with pytest.raises(ValueError, match=r"none named 'spm-sd1' \(nearest: spm-sd15") as error:
        load_judge_recipe("spm-sd1")
    assert all(name in str(error.value) for name in JUDGE_RECIPES)


# Values


@pytest.mark.parametrize(
    "words",
    [
        *("seed -1", "seed 1.5", "checkpoint_every 0", "export fp64"),
        *("base.guidance_scale 0.5", "base.resolution 4", "base.precision fp8", "base.max_batch 0"),
        *("judge.timestep_conditioning 2", "judge.preprocessing none"),
        *("data.num_rows 0", "data.max_bad 1", "data.max_bad -0.1", "data.tie_gap 1", "data.tie_gap -0.1"),
        *("data.encode_batch 0", "data.streaming 1", "data.max_bad nan"),
        *("training.num_steps 0", "training.batch_size 0", "training.micro_batch 0", "training.learning_rate 0"),
        *("training.num_warmup_steps -1", "training.weight_decay -1", "training.max_grad_norm 0"),
        *("training.precision fp16", "training.gradient_checkpointing 1", "training.learning_rate inf"),
        *("evaluation.share 0", "evaluation.share 1", "evaluation.num_pairs 1", "evaluation.batch_size 0"),
        *("evaluation.seed -1", "evaluation.timesteps 1000", "evaluation.timesteps -1", "evaluation.timesteps 1 1"),
        *("evaluation.timesteps 0.5", "evaluation.timesteps []"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_the_fields_name(words: str) -> None:
    name, *values = words.split()
    with pytest.raises(ValueError, match=rf"^recipe: {name} "):
        change(load_judge_recipe("spm-sd15"), parse_flags([f"--{name}", *values]))


@pytest.mark.parametrize(
    "words",
    [
        *("data.max_bad 0", "data.tie_gap 0", "data.num_rows 1", "training.num_warmup_steps 0", "training.num_steps 1"),
        *("training.weight_decay 0", "evaluation.timesteps 0 999", "evaluation.num_pairs 2", "base.guidance_scale 1"),
    ],
)
def test_values_at_the_edge_are_taken(words: str) -> None:
    name, *values = words.split()
    recipe = change(load_judge_recipe("spm-sd15"), parse_flags([f"--{name}", *values]))
    assert leaves(to_plain(recipe))[name] == ([int(value) for value in values] if len(values) > 1 else float(values[0]))


# Paths


def test_what_may_be_a_path_is_changed_and_nothing_else() -> None:
    recipe = change(load_judge_recipe("spm-sdxl"), {"evaluation": {"pairs": "mine.jsonl"}, "base": {"vae": "vae"}})
    before, after = (leaves(to_plain(given)) for given in (recipe, map_paths(recipe, lambda name: f"/there/{name}")))
    changed = {name for name in before if before[name] != after[name]}
    places = {"model", "base.vae", "judge.start", "data.pairs", "data.relabel_with", "evaluation.pairs"}
    assert places <= changed <= {*places, "base.config", "data.cache"}
    assert all(after[name] == f"/there/{before[name]}" for name in changed)
