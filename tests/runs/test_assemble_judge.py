"""From a judge's recipe to its parts: which pairs train, which are held out, who labels them, what learns."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import same_weights
from drawn import an_image
from judge_runs import cache, recipe_of, snapshot, write_pairs
from judge_runs import words as command
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepalign import miniature
from stepalign.data.pairs import ImagePair, read, to_tensor
from stepalign.data.prepared import PreparedPairs
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.miniature.preferences import WorldPairs
from stepalign.models.base import BaseModel
from stepalign.runs.assemble_judge import JudgeParts, assemble_judge, labeller, split_by_prompt
from stepalign.scorers.pickscore import PickScore
from stepalign.support.watcher import NullWatcher
from stepalign.training.evaluate_judge import score_held_out

Assemble = Callable[..., JudgeParts]
OWN = "--evaluation.pairs None --evaluation.share 0.3"


@pytest.fixture
def assembled(tmp_path_factory: pytest.TempPathFactory) -> Assemble:
    """A function from changed flags to the parts of spm-miniature."""
    return lambda changes="": assemble_judge(recipe_of(command(tmp_path_factory, changes)), NullWatcher())


@pytest.fixture(scope="module")
def own_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten prompts, each with two pairs."""
    return write_pairs(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> JudgeParts:
    return assemble_judge(recipe_of(command(tmp_path_factory)), NullWatcher())


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("this work was to be done once")


# Held-out pairs


def test_a_share_of_the_prompts_is_held_out_with_all_their_pairs(assembled: Assemble, own_pairs: Path) -> None:
    parts = assembled(f"--data.pairs {own_pairs} {OWN}")
    training, held_out = parts.trainer.pairs.prompts, parts.held_out.prompts
    assert not set(training) & set(held_out)
    assert set(Counter(training).values()) == set(Counter(held_out).values()) == {2}
    assert (len(set(training)), len(set(held_out))) == (7, 3)
    assert "30.0% of the prompts of" in parts.held_out_name


def pairs_of(num_prompts: int) -> PreparedPairs:
    """Three pairs of every prompt, without files."""
    prompts = [f"prompt {number % num_prompts}" for number in range(3 * num_prompts)]
    ones = torch.ones(len(prompts))
    return PreparedPairs(prompts, ones, ones, [(Path("nowhere"), row) for row in range(len(prompts))], {})


def test_the_seed_decides_which_prompts_are_held_out() -> None:
    chosen = [set(split_by_prompt(pairs_of(40), share=0.2, seed=seed)[1].prompts) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert [len(prompts) for prompts in chosen] == [8, 8, 8]


@pytest.mark.parametrize(("share", "num_held_out"), [(0.001, 1), (0.5, 5), (0.94, 9)])
def test_both_parts_have_a_prompt_and_every_pair_is_in_one_of_them(share: float, num_held_out: int) -> None:
    training, held_out = split_by_prompt(pairs_of(10), share=share, seed=0)
    assert (len(training), len(held_out)) == (3 * (10 - num_held_out), 3 * num_held_out)
    assert sorted(training.places + held_out.places) == pairs_of(10).places


def test_no_more_pairs_are_measured_than_asked_for(assembled: Assemble, own_pairs: Path) -> None:
    parts = assembled(f"--data.pairs {own_pairs} {OWN} --evaluation.num_pairs 3")
    assert (len(parts.held_out), len(parts.trainer.pairs)) == (3, 14)


def test_one_prompt_is_too_few_to_hold_some_out(assembled: Assemble, tmp_path: Path) -> None:
    path = write_pairs(tmp_path, num_prompts=1, per_prompt=4)
    with pytest.raises(ValueError, match=r"data\.pairs: 1 distinct prompts are too few .* --evaluation\.pairs"):
        assembled(f"--data.pairs {path} {OWN}")


def test_held_out_pairs_of_their_own_leave_the_training_pairs_whole(assembled: Assemble, own_pairs: Path) -> None:
    parts = assembled(f"--evaluation.pairs {own_pairs} --evaluation.split train")
    assert (len(parts.trainer.pairs), len(parts.held_out)) == (24, 8)
    assert all(prompt.startswith("a ring, number") for prompt in parts.held_out.prompts)


# Labels


def people() -> list[ImagePair]:
    """The miniature's pairs as people labelled them."""
    pairs = [read(raw) for raw in WorldPairs(split="train", num_rows=24).rows()]
    assert all(isinstance(pair, ImagePair) for pair in pairs)
    return pairs


def scorers_gap(pairs: list[ImagePair]) -> Tensor:
    """The scorer's probability for the first image less that for the second, of each pair."""
    scorer, prompts = PickScore.from_pretrained(str(miniature.PICKSCORE)), [pair.prompt for pair in pairs]
    first, second = (
        scorer(torch.stack([to_tensor(pair.images[side], (32, 32)) for pair in pairs]) / 2 + 0.5, prompts)
        for side in (0, 1)
    )
    both = torch.stack([first, second], 1).softmax(1)
    return both[:, 0] - both[:, 1]


def test_without_a_scorer_people_label(plain: JudgeParts) -> None:
    assert plain.trainer.pairs.label.tolist() == [pair.label for pair in people()]


def test_a_scorers_own_preferences_replace_peoples_but_on_held_out_pairs(
    assembled: Assemble, plain: JudgeParts
) -> None:
    parts = assembled("--data.relabel_with miniature --data.tie_gap 0.1")
    gap = scorers_gap(people())
    expected = torch.where(gap.abs() <= 0.1, 0.5, (gap > 0).float())
    assert torch.equal(parts.trainer.pairs.label, expected)
    assert set(expected.tolist()) == {0, 0.5, 1}
    assert not torch.equal(expected, plain.trainer.pairs.label)
    assert torch.equal(parts.held_out.label, plain.held_out.label)


class Brightness:
    """A scorer whose number is the mean level over 255; keeps the images that it is shown."""

    record = None

    def __init__(self) -> None:
        self.shown: list[Image.Image] = []

    def num_cut(self, prompts: list[str]) -> int:
        return 0

    def score(self, images: list[Image.Image], prompts: list[str]) -> torch.Tensor:
        self.shown += images
        return torch.tensor([np.asarray(image).mean() / 255 for image in images])


def test_labels_are_ties_up_to_a_gap_of_probabilities() -> None:
    """Scores .2 apart: tanh(.1) = .0997 is a tie at .1; .204 apart: tanh(.102) = .1016 is none."""
    levels = torch.tensor([[128.0, 77.0], [128.0, 76.0], [76.0, 128.0], [9.0, 9.0]])
    images = (levels / 127.5 - 1)[..., None, None, None].expand(-1, -1, 3, 4, 4)
    assert labeller(Brightness(), tie_gap=0.1)(images, ["a"] * 4).tolist() == [0.5, 1, 0, 0.5]


def test_labels_are_of_the_very_images() -> None:
    """Which are tensors by then; PickScore resizes its images otherwise than tensors."""
    image = an_image(64, 64)
    scorer = Brightness()
    labeller(scorer, tie_gap=0.1)(torch.stack([to_tensor(image, (64, 64))] * 2)[None], ["a"])
    assert [np.asarray(shown).tolist() for shown in scorer.shown] == [np.asarray(image).tolist()] * 2


# The cache


def test_trainings_of_other_seeds_and_settings_encode_nothing_again(
    assembled: Assemble, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assembled("--data.relabel_with miniature")
    before = snapshot(cache(tmp_path_factory))
    monkeypatch.setattr(BaseModel, "encode_images", forbidden)
    monkeypatch.setattr(PickScore, "__call__", forbidden)
    changes = "--seed 5 --training.learning_rate 1e-5 --base.guidance_scale 3 --data.encode_batch 3 --data.max_bad 0"
    assembled(f"--data.relabel_with miniature {changes} --judge.start {miniature.SPM}")
    assert snapshot(cache(tmp_path_factory)) == before


def test_what_decides_latents_or_labels_has_a_folder_of_its_own(
    assembled: Assemble, plain: JudgeParts, tmp_path: Path
) -> None:
    """As one weight of the VAE does."""
    shutil.copytree(miniature.MODEL / "vae", tmp_path / "vae")
    file = next((tmp_path / "vae").glob("*.safetensors"))
    weights = load_file(file)
    weights[min(weights)][..., -1:] += 1e-3
    save_file(weights, file, metadata={"format": "pt"})
    changes = (
        "--base.resolution 16",
        "--data.num_rows 8",
        "--data.relabel_with miniature",
        "--data.relabel_with miniature --data.tie_gap 0.3",
        f"--base.vae {tmp_path}/vae",
    )
    every = [plain, *(assembled(f"--evaluation.num_pairs 2 {flags}") for flags in changes)]
    assert len({parts.trainer.pairs.places[0][0].parent for parts in every}) == len(every)


# What training starts from


def test_a_clip_becomes_step_aware_in_a_way_that_the_seed_decides(assembled: Assemble, plain: JudgeParts) -> None:
    state = torch.get_rng_state()
    one, again, other = (assembled("--seed 3").scorer.model, assembled("--seed 3").scorer.model, plain.scorer.model)
    assert torch.equal(torch.get_rng_state(), state)
    assert same_weights(one, again)
    assert not torch.equal(one.t_embedder.mlp[0].weight, other.t_embedder.mlp[0].weight)
    assert torch.equal(one.visual_projection.weight, other.visual_projection.weight)


def test_a_step_aware_model_learns_on(assembled: Assemble, tiny_spm_folder: Path) -> None:
    expected = StepAwarePreferenceModel.from_pretrained(tiny_spm_folder)
    assert same_weights(assembled(f"--judge.start {tiny_spm_folder}").scorer.model, expected)


def test_a_step_aware_model_of_an_older_config_learns_on_too(assembled: Assemble) -> None:
    expected = StepAwarePreferenceModel.from_pretrained(miniature.SPM)
    assert same_weights(assembled(f"--judge.start {miniature.SPM}").scorer.model, expected)


def test_the_recipe_decides_preprocessing_and_precision(assembled: Assemble) -> None:
    """Between images of the judge's own size the orders differ by fp16's rounding alone."""
    how = ("clamp-first", "resize-first --training.precision bf16")
    one, other = (assembled(f"--judge.preprocessing {which}") for which in how)
    assert (other.scorer.model.preprocessing, other.scorer.precision) == ("resize-first", "bf16")
    other.scorer.precision = "fp32"
    scores = [
        score_held_out(parts.scorer, parts.held_out, timesteps=(501,), seed=0, batch_size=8)[501]
        for parts in (one, other)
    ]
    assert not torch.equal(*scores)
    torch.testing.assert_close(*scores, rtol=0, atol=0.1)


def test_a_step_aware_model_is_not_given_other_images_by_accident(assembled: Assemble, tiny_spm_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"^judge\.start: .*has preprocessing clamp-first; say so with"):
        assembled(f"--judge.start {tiny_spm_folder} --judge.preprocessing resize-first")


def test_a_step_aware_model_is_not_made_blind_by_accident(assembled: Assemble, tiny_spm_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"^judge\.start: .*has timestep_conditioning True; .*timestep_conditioning"):
        assembled(f"--judge.start {tiny_spm_folder} --judge.timestep_conditioning false")


@pytest.mark.parametrize("broken", ["a tensor", "half the weights", "tokenizer", "config.json"])
def test_a_clip_with_something_missing_is_refused(assembled: Assemble, tmp_path: Path, broken: str) -> None:
    """transformers draws missing tensors at random, and makes up a tokenizer and a config."""
    folder = tmp_path / "clip"
    shutil.copytree(miniature.PICKSCORE, folder)
    file = folder / "model.safetensors"
    match broken:
        case "a tensor":
            weights = load_file(file)
            del weights["visual_projection.weight"]
            save_file(weights, file, metadata={"format": "pt"})
        case "half the weights":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        case name:
            for path in folder.glob(f"{name}*"):
                path.unlink()
    with pytest.raises(ValueError, match=r"^(judge\.start|the judge)"):
        assembled(f"--judge.start {folder}")


def test_a_base_model_is_shown_what_its_schedule_says(plain: JudgeParts) -> None:
    """The trainer asks for any timestep below 1000."""
    assert len(plain.scorer.base.schedule.alphas_cumprod) == 1000
    assert torch.equal(plain.scorer.base.schedule.alphas_cumprod, plain.model.schedule(20).alphas_cumprod)
