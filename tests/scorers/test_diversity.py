"""How different the images of a prompt are: identities, cases by hand, the networks whose features are compared."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import normal
from PIL import Image
from transformers import CLIPModel, Dinov2Config, Dinov2Model

from stepalign.scorers.diversity import pairwise_distance, vendi_score
from stepalign.scorers.features import ImageFeatures, Preparation, dinov2_pixels
from stepalign.scorers.preparation import clip_pixels


def some_images(num: int = 3, *, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (40 + 9 * i, 50, 3), dtype=np.uint8)) for i in range(num)]


@pytest.mark.parametrize("k", [2, 3, 7])
def test_copies_are_one_image(k: int) -> None:
    features = normal(4, 1, 9).expand(4, k, 9) * torch.arange(1, k + 1)[:, None]
    torch.testing.assert_close(pairwise_distance(features), torch.zeros(4).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(vendi_score(features), torch.ones(4).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [2, 3, 7])
def test_orthogonal_features_are_as_many_images_as_there_are(k: int) -> None:
    rotation = torch.linalg.qr(normal(9, 9)).Q
    features = rotation[:k][None] * torch.arange(1, k + 1)[:, None]
    assert pairwise_distance(features).tolist() == pytest.approx([1.0])
    assert vendi_score(features).tolist() == pytest.approx([k])


def test_two_groups_of_copies_are_two_images() -> None:
    """Of 4 images 2 and 2: 4 of 6 pairs at distance 1; of 3 and 1: 3 of 6, and exp(H(3/4, 1/4)) = 1.7548."""
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    features = torch.stack([torch.stack([first, first, second, second]), torch.stack([first, first, first, second])])
    assert pairwise_distance(features).tolist() == pytest.approx([4 / 6, 3 / 6])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert vendi_score(features).tolist() == pytest.approx([2.0, math.exp(entropy)])


def test_the_distance_is_the_mean_over_pairs() -> None:
    features = normal(3, 5, 4)
    pairs = [
        [1 - F.cosine_similarity(one[i], one[j], dim=0).item() for i in range(5) for j in range(i)] for one in features
    ]
    assert pairwise_distance(features).tolist() == pytest.approx([float(np.mean(row)) for row in pairs])


def test_the_vendi_score_is_that_of_its_definition() -> None:
    """With numpy, from K/n's eigenvalues; more images than dimensions have eigenvalues of 0."""
    features = normal(2, 6, 3)
    for one, score in zip(features.numpy(), vendi_score(features).tolist(), strict=True):
        unit = one / np.linalg.norm(one, axis=1, keepdims=True)
        values = np.linalg.eigvalsh(unit @ unit.T / 6)
        values = values[values > 1e-12]
        assert len(values) == 3
        assert score == pytest.approx(np.exp(-(values * np.log(values)).sum()))


def test_neither_order_nor_scale_nor_other_prompts_matter() -> None:
    features = normal(2, 4, 6)
    for measure in (pairwise_distance, vendi_score):
        turned = measure(features.flip(1) * torch.tensor([1.0, 9.0, 0.1, 3.0])[:, None])
        torch.testing.assert_close(turned, measure(features))
        torch.testing.assert_close(measure(features[:1]), measure(features)[:1])


def test_half_precision_features_are_compared_in_float64() -> None:
    features = normal(1, 4, 6).half()
    for measure in (pairwise_distance, vendi_score):
        assert measure(features).dtype == torch.float64
        assert torch.equal(measure(features), measure(features.double()))


@pytest.mark.parametrize("measure", [pairwise_distance, vendi_score])
def test_features_without_a_direction_are_refused(measure: object) -> None:
    assert callable(measure)
    for value in (0.0, math.nan, math.inf):
        features = normal(3, 4, 2)
        features[1, 2] = value
        with pytest.raises(ValueError, match="the features of image 2 of prompt 1 are all zero or no finite numbers"):
            measure(features)
    with pytest.raises(ValueError, match="at least two images each, got 3 prompts with 1"):
        measure(normal(3, 1, 2))
    with pytest.raises(ValueError, match="got 0 prompts with 4"):
        measure(normal(0, 4, 2))


@pytest.fixture(scope="module")
def clip_folder(tiny_clip: CLIPModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        initializer_range=0.3,
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


def test_clips_features_are_its_image_embeddings(clip_folder: Path, tiny_clip: CLIPModel) -> None:
    extractor = ImageFeatures.from_pretrained(str(clip_folder))
    with torch.no_grad():
        expected = tiny_clip.get_image_features(
            pixel_values=clip_pixels(some_images(), 32, "torchvision")
        ).pooler_output
    assert torch.equal(extractor.extract(some_images()), expected)
    assert (extractor.record.name, extractor.record.weights) == ("clip-features", clip_folder.name)
    assert not extractor.record.needs_prompt


def test_dinov2s_features_are_its_cls_token_after_the_last_norm(dinov2_folder: Path) -> None:
    extractor = ImageFeatures.from_pretrained(str(dinov2_folder))
    network = Dinov2Model.from_pretrained(dinov2_folder).eval()
    with torch.no_grad():
        expected = network(pixel_values=dinov2_pixels(some_images())).pooler_output
    features = extractor.extract(some_images())
    assert torch.equal(features, expected)
    assert pairwise_distance(features[None]).item() > 1e-3
    torch.testing.assert_close(features.mean(1), torch.zeros(3), rtol=0, atol=1e-5)  # a norm's output
    assert extractor.record.name == "dinov2-features"
    assert (
        "256 on the short side, centre crop of 224 (odd margins halved to even, as torchvision does), ImageNet"
        in extractor.record.preprocessing
    )


@pytest.mark.parametrize("size", [(300, 500), (512, 512), (90, 70), (300, 264)])
def test_dinov2s_images_are_prepared_as_pil_does_it(size: tuple[int, int]) -> None:
    """Resize, crop and normalise written out; PIL's sizes are width by height."""
    levels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(levels)
    width, height = (256 if side == min(size) else int(256 * side / min(size)) for side in size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - 224) / 2.0), round((height - 224) / 2.0)
    cropped = np.asarray(resized.crop((left, top, left + 224, top + 224))) / 255
    expected = (cropped - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    actual = dinov2_pixels([image])[0].permute(1, 2, 0).numpy()
    assert np.abs(actual - expected).max() < 1e-5


def test_images_of_any_mode_are_taken(dinov2_folder: Path) -> None:
    extractor = ImageFeatures.from_pretrained(str(dinov2_folder))
    grey = some_images(1)[0].convert("L")
    assert torch.equal(extractor.extract([grey]), extractor.extract([grey.convert("RGB")]))


def test_images_can_be_prepared_otherwise(clip_folder: Path) -> None:
    squeezed = Preparation(
        "squeezed", lambda images: clip_pixels([one.resize((32, 32)) for one in images], 32, "torchvision")
    )
    extractor = ImageFeatures.from_pretrained(str(clip_folder), preparation=squeezed, dtype=torch.bfloat16)
    assert extractor.record.preprocessing == "squeezed; towers in bfloat16"
    wide = some_images(3)[2:]
    features = extractor.extract(wide)
    assert features.dtype == torch.float32
    assert torch.equal(features, extractor.extract([one.resize((32, 32)) for one in wide]))


def test_models_of_other_types_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov3_vit"}))
    with pytest.raises(ValueError, match="model of type 'dinov3_vit'; features come from 'clip' or 'dinov2'"):
        ImageFeatures.from_pretrained(str(tmp_path))
