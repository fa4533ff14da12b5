"""The miniature's world, its oracles and the models that come with the package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPModel

from stepalign import miniature
from stepalign.core.sampler import DDIM
from stepalign.core.sampling import sample
from stepalign.core.seeding import PromptNoise, Purpose, generator_for
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.judges.step_aware import StepAwareJudge
from stepalign.miniature import oracles, world
from stepalign.miniature.world import Scenes, attributes_of, caption, render, sample_pairs, sample_scenes
from stepalign.models.base import BaseModel
from stepalign.models.clip import preprocess
from stepalign.models.load import load
from stepalign.models.policy import GuidedNetwork
from stepalign.scorers.pickscore import PickScore

CAPTIONS = [text for part in world.split_captions() for text in part]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scenes_of(captions: list[str], *, quality: float | Tensor = 1.0, seed: int = 0) -> Scenes:
    """Scenes that show what the captions say, made as well as asked."""
    scenes = sample_scenes(attributes_of(captions), generator(seed))
    return replace(scenes, quality=torch.as_tensor(quality).expand(len(captions), 4).clone())


def images_of(captions: list[str], *, quality: float | Tensor = 1.0) -> Tensor:
    return render(scenes_of(captions, quality=quality), generator(1))


# The world


def test_there_are_576_captions_split_into_360_and_216() -> None:
    training, held_out = world.split_captions()
    assert (len(training), len(held_out)) == (360, 216)
    assert len(set(training) | set(held_out)) == 576
    assert world.split_captions() == (training, held_out)


def test_captions_say_what_their_attributes_are() -> None:
    assert caption([1, 0, 0, 3]) == "a large red circle on a navy background"
    assert [caption(row) for row in attributes_of(CAPTIONS).tolist()] == CAPTIONS


@pytest.mark.parametrize("text", ["a cat", "a Large red circle on a navy background", ""])
def test_a_caption_of_another_world_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a caption of the miniature's world"):
        attributes_of([CAPTIONS[0], text])


def test_scenes_show_what_was_asked_and_the_generator_decides_the_rest() -> None:
    wanted = attributes_of(CAPTIONS)
    first, again, other = (sample_scenes(wanted, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.attributes(), wanted)
    assert all(torch.equal(getattr(first, field.name), getattr(again, field.name)) for field in fields(Scenes))
    assert not torch.equal(first.centre, other.centre)
    assert not torch.equal(first.quality, other.quality)


def test_images_are_32_pixels_in_0_to_1_and_decided_by_scene_and_generator() -> None:
    scenes = scenes_of(CAPTIONS[:8], quality=0.5)
    first, again, other = (render(scenes, generator(seed)) for seed in (0, 0, 1))
    assert first.shape == (8, 3, 32, 32)
    assert 0 <= first.min() < first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)  # the grain


def test_qualities_vary_and_go_together() -> None:
    quality = sample_scenes(world.sample_attributes(2000, generator()), generator(1)).quality
    assert 0 <= quality.min() < 0.1 < 0.9 < quality.max() <= 1
    assert torch.corrcoef(quality.T).min() > 0.4


# Pairs


def test_pairs_are_decided_by_the_generator() -> None:
    first, second, label = sample_pairs(CAPTIONS, generator())
    again = sample_pairs(CAPTIONS, generator())
    assert torch.equal(label, again[2])
    assert torch.equal(first.quality, again[0].quality)
    assert torch.equal(second.quality, again[1].quality)
    assert not torch.equal(first.quality, second.quality)


def test_labels_are_preferences_or_ties_without_a_favourite_place() -> None:
    _, _, label = sample_pairs(CAPTIONS * 5, generator())
    assert set(label.unique().tolist()) == {0.0, 0.5, 1.0}
    assert label.mean().item() == pytest.approx(0.5, abs=0.04)
    assert 0.01 < (label == 0.5).float().mean() < 0.3


@pytest.mark.parametrize("what", ["quality", "alignment"])
def test_the_annotator_prefers_better_images(what: str) -> None:
    first, second, label = sample_pairs(CAPTIONS * 5, generator())
    wanted = attributes_of(CAPTIONS * 5)

    def worth(scenes: Scenes) -> Tensor:
        return scenes.quality.mean(1) if what == "quality" else (scenes.attributes() == wanted).float().mean(1)

    difference = worth(first) - worth(second)
    clear = (difference.abs() > 0.2) & (label != 0.5)
    assert clear.sum() > 200
    assert ((difference > 0) == (label == 1))[clear].float().mean() > 0.75


# The oracles


def test_perfect_images_are_in_perfect_alignment() -> None:
    assert (oracles.alignment(images_of(CAPTIONS), CAPTIONS) == 1).float().mean() >= 0.99


def test_middling_images_are_still_recognised() -> None:
    assert oracles.alignment(images_of(CAPTIONS, quality=0.5), CAPTIONS).mean() > 0.97


@pytest.mark.parametrize("attribute", range(4), ids=[name for name, _ in world.ATTRIBUTES])
def test_a_wrong_attribute_costs_a_quarter(attribute: int) -> None:
    captions = CAPTIONS[:100]
    wrong = attributes_of(captions)
    wrong[:, attribute] = (wrong[:, attribute] + 1) % world.ATTRIBUTES[attribute][1]
    scores = oracles.alignment(images_of(captions), [caption(row) for row in wrong.tolist()])
    assert (scores == 0.75).float().mean() > 0.95


@pytest.mark.parametrize("index", range(4), ids=["sharpness", "saturation", "contrast", "cleanness"])
def test_each_quality_raises_the_aesthetic(index: int) -> None:
    means = []
    for level in (0.0, 0.25, 0.5, 0.75, 1.0):
        quality = torch.full((4,), 0.7)
        quality[index] = level
        captions = CAPTIONS[:150]
        means.append(oracles.aesthetic(images_of(captions, quality=quality), captions).mean().item())
    assert means == sorted(means)
    assert means[-1] > means[0] + 0.03


def test_the_aesthetic_spans_bad_to_perfect_and_does_not_read_the_prompt() -> None:
    bad, good = (oracles.aesthetic(images_of(CAPTIONS, quality=level), CAPTIONS).mean() for level in (0.0, 1.0))
    assert bad < 0.45
    assert good > 0.85
    images = images_of(CAPTIONS)
    assert torch.equal(oracles.aesthetic(images, CAPTIONS), oracles.aesthetic(images, CAPTIONS[::-1]))


@pytest.mark.parametrize(("fault", "cost"), [("grey", 0.25), ("flat", 0.25), ("blurred", 0.22), ("grainy", 0.15)])
def test_each_fault_costs_an_image_its_share_of_the_aesthetic(fault: str, cost: float) -> None:
    captions = CAPTIONS[:150]
    images = images_of(captions)
    spoilt = {
        "grey": images.mean(1, keepdim=True).expand_as(images),
        "flat": 0.5 + 0.3 * (images - 0.5),
        "blurred": world.gaussian_blur(images, torch.full((150,), 2.5)),
        "grainy": (images + 0.1 * torch.randn(images.shape, generator=generator(2))).clamp(0, 1),
    }[fault]
    lost = oracles.aesthetic(images, captions) - oracles.aesthetic(spoilt, captions)
    assert lost.mean() > cost


def test_oracles_stay_in_0_to_1_whatever_the_image() -> None:
    odd = [torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32), torch.rand(1, 3, 32, 32, generator=generator())]
    for image in odd:
        for oracle in (oracles.aesthetic, oracles.alignment):
            assert 0 <= oracle(image, CAPTIONS[:1]).item() <= 1


# The models that come with the package


@pytest.fixture(scope="module")
def model() -> BaseModel:
    return load(str(miniature.MODEL))


def weight_files() -> Iterator[str]:
    return (str(path) for path in sorted(miniature.WEIGHTS.rglob("*.safetensors")))


def test_the_weights_are_small_and_in_half_precision() -> None:
    assert sum(path.stat().st_size for path in miniature.WEIGHTS.rglob("*") if path.is_file()) < 8e6
    files = list(weight_files())
    assert len(files) == 5  # unet, vae, text encoder, pickscore, spm
    for path in files:
        with safe_open(path, "pt") as tensors:
            assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"F16"}  # noqa: SIM118


def test_the_folder_is_an_ordinary_pipeline() -> None:
    pipe = StableDiffusionPipeline.from_pretrained(miniature.MODEL)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        CAPTIONS[0], num_inference_steps=4, guidance_scale=2.0, generator=generator(), output_type="pt"
    ).images
    assert images.shape == (1, 3, 32, 32)
    assert images.isfinite().all()


def test_the_base_draws_what_captions_say_at_mixed_quality(model: BaseModel) -> None:
    captions = world.split_captions()[1][:16]
    guided = GuidedNetwork(model.network, negative=model.negative(), guidance_scale=2.0)
    noise = PromptNoise([generator_for(0, Purpose.EVALUATION, row) for row in range(len(captions))])
    sampler, cond = DDIM(model.schedule(10)), model.encode(captions)
    latents = sample(guided, sampler, cond=cond, latent_shape=model.latent_shape, noise=noise)
    with torch.no_grad():
        images = (model.decode(latents) / 2 + 0.5).clamp(0, 1)
    assert oracles.alignment(images, captions).mean() > 0.9
    quality = oracles.aesthetic(images, captions)
    assert quality.mean() < 0.8  # there is room to improve
    assert quality.std() > 0.05


def pair_accuracy(scores: Tensor, label: Tensor) -> float:
    clear = label != 0.5
    return ((scores[:, 0] > scores[:, 1]) == (label == 1))[clear].float().mean().item()


def held_out_pairs() -> tuple[list[str], Tensor, Tensor]:
    """Captions, images "b 2 3 h w" in [0, 1] and labels, none of them trained on."""
    captions = world.split_captions()[1][:100]
    first, second, label = sample_pairs(captions, generator(5))
    return captions, torch.stack([render(first, generator(6)), render(second, generator(7))], 1), label


def test_the_spm_judges_latents_better_than_chance(model: BaseModel) -> None:
    captions, images, label = held_out_pairs()
    spm = StepAwarePreferenceModel.from_pretrained(miniature.SPM)
    judge = StepAwareJudge(spm, model.pipeline.tokenizer, model.decode)
    texts = [text for text in captions for _ in range(2)]
    latents = model.encode_images(images.flatten(0, 1) * 2 - 1)
    scores = judge(latents, latents, torch.zeros(len(texts), dtype=torch.long), texts)
    assert pair_accuracy(scores.reshape(-1, 2), label) > 0.7


def test_the_pickscore_is_a_clip_that_judges_better_than_chance() -> None:
    captions, images, label = held_out_pairs()
    scorer = PickScore.from_pretrained(str(miniature.PICKSCORE))
    texts = [text for text in captions for _ in range(2)]
    with torch.no_grad():
        assert pair_accuracy(scorer(images.flatten(0, 1), texts).reshape(-1, 2), label) > 0.7


def test_the_spm_has_the_towers_of_the_pickscore_and_knows_the_timestep() -> None:
    spm = StepAwarePreferenceModel.from_pretrained(miniature.SPM)
    clip = CLIPModel.from_pretrained(miniature.PICKSCORE)
    assert spm.state_dict().keys() > clip.state_dict().keys()
    pixels = preprocess(images_of(CAPTIONS[:4]), 32, rounding="transformers")
    early, late = (spm.image_features(pixels, torch.full((4,), t)) for t in (951, 1))
    assert not torch.allclose(early, late, atol=1e-3)


def test_the_published_oracle_figures(model: BaseModel) -> None:
    """In the miniature's README: .57, .96 over all qualities; .94, 1.00 over perfect images; .80 through the VAE."""
    _, held_out = world.split_captions()
    mixed = render(sample_scenes(attributes_of(held_out), generator()), generator())
    perfect = images_of(held_out)
    with torch.no_grad():
        decoded = (model.decode(model.encode_images(perfect * 2 - 1)) / 2 + 0.5).clamp(0, 1)
    measured = [metric(mixed, held_out).mean().item() for metric in (oracles.aesthetic, oracles.alignment)]
    measured += [metric(perfect, held_out).mean().item() for metric in (oracles.aesthetic, oracles.alignment)]
    assert measured == pytest.approx([0.57, 0.96, 0.94, 1.0], abs=0.01)
    assert oracles.aesthetic(decoded, held_out).mean().item() == pytest.approx(0.80, abs=0.01)
