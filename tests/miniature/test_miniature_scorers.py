"""The miniature's scorers of finished images: its oracles and its PickScore, and nothing but its own images."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from drawn import an_image
from PIL import Image

from stepalign.core.protocols import Metric, Scorer
from stepalign.miniature import PICKSCORE, oracles, world
from stepalign.miniature.scorers import SCORERS, OracleScorer, miniature_scorer
from stepalign.scorers.image_metric import ImageMetric, to_pil
from stepalign.scorers.pickscore import PickScore

CAPTIONS = world.split_captions()[1][:6]
ORACLES: dict[str, Metric] = {"miniature-aesthetic": oracles.aesthetic, "miniature-alignment": oracles.alignment}


@pytest.fixture(scope="module")
def some_images() -> list[Image.Image]:
    """What the captions say, made well and badly, the last of another caption."""
    generator = torch.Generator().manual_seed(0)
    attributes = world.attributes_of([*CAPTIONS[:5], CAPTIONS[0]])
    return to_pil(world.render(world.sample_scenes(attributes, generator), generator))


@pytest.mark.parametrize("name", ORACLES)
def test_an_oracles_scores_are_those_of_the_images_levels(name: str, some_images: list[Image.Image]) -> None:
    levels = torch.stack(
        [torch.tensor([[image.getpixel((x, y)) for x in range(32)] for y in range(32)]) for image in some_images]
    )
    expected = ORACLES[name](levels.permute(0, 3, 1, 2) / 255, CAPTIONS)
    scorer = miniature_scorer(name)
    scores = scorer.score(some_images, CAPTIONS)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, expected)
    assert scores.std() > 0.05
    images = levels.permute(0, 3, 1, 2).float() / 255
    assert torch.equal(ImageMetric(scorer)(images, CAPTIONS), expected)


def test_the_alignment_needs_the_prompt_and_the_aesthetic_does_not(some_images: list[Image.Image]) -> None:
    others = CAPTIONS[1:] + CAPTIONS[:1]
    aesthetic, alignment = (miniature_scorer(name) for name in ORACLES)
    assert torch.equal(aesthetic.score(some_images, others), aesthetic.score(some_images, CAPTIONS))
    assert not torch.equal(alignment.score(some_images, others), alignment.score(some_images, CAPTIONS))
    assert (aesthetic.record.needs_prompt, alignment.record.needs_prompt) == (False, True)


def test_pickscore_is_the_one_that_comes_with_the_package(some_images: list[Image.Image]) -> None:
    scorer, expected = miniature_scorer("miniature-pickscore"), PickScore.from_pretrained(str(PICKSCORE))
    assert torch.equal(scorer.score(some_images, CAPTIONS), expected.score(some_images, CAPTIONS))
    assert scorer.record == expected.record


def test_records_name_the_oracles_and_their_source() -> None:
    assert (*ORACLES, "miniature-pickscore") == SCORERS
    for name in ORACLES:
        scorer = miniature_scorer(name)
        assert isinstance(scorer, Scorer)
        assert (scorer.record.name, scorer.record.weights) == (name, "stepalign.miniature.oracles")
        assert scorer.record.sha256 == hashlib.sha256(Path(oracles.__file__).read_bytes()).hexdigest()


def test_images_of_any_mode_are_scored_in_rgb(some_images: list[Image.Image]) -> None:
    scorer = miniature_scorer("miniature-aesthetic")
    assert torch.equal(
        scorer.score([image.convert("RGBA") for image in some_images], CAPTIONS), scorer.score(some_images, CAPTIONS)
    )


@pytest.mark.parametrize("name", ORACLES)
def test_what_is_not_of_this_world_is_refused(name: str, some_images: list[Image.Image]) -> None:
    scorer = OracleScorer(name, ORACLES[name])
    with pytest.raises(ValueError, match=rf"{name} scores the miniature's images of 32 pixels, got \{{\(64, 32\)\}}"):
        scorer.score([*some_images[:5], an_image(32, 64)], CAPTIONS)
    with pytest.raises(ValueError, match="not a caption of the miniature's world: 'a cat'"):
        scorer.score(some_images, [*CAPTIONS[:5], "a cat"])
    with pytest.raises(ValueError, match="there are 6 images and 1 prompts"):
        scorer.score(some_images, CAPTIONS[:1])
    with pytest.raises(ValueError, match="there are no images"):
        scorer.score([], [])


def test_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no scorer 'aesthetic'; the miniature has miniature-aesthetic, min"):
        miniature_scorer("aesthetic")
