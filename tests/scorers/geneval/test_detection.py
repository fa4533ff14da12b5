"""Mask2Former's outputs as detections: by hand, against a slow second writing, and whole on a tiny random network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    SwinConfig,
)

from stepalign.scorers.geneval import detection
from stepalign.scorers.geneval.detection import Mask2FormerDetector, box_of, detector_pixels, instances
from stepalign.scorers.geneval.rules import CLASSES, Detection

SIDES = {"short_side": 64, "long_side": 100}


@pytest.fixture(scope="module")
def model() -> Mask2FormerForUniversalSegmentation:
    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, image_size=32, out_features=stages
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=7,
        num_labels=80,
    )
    made = Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        made.class_predictor.weight.mul_(40)  # so that queries and classes differ
    return made


@pytest.fixture(scope="module")
def folder(model: Mask2FormerForUniversalSegmentation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mask2former")
    model.save_pretrained(path)
    return path


def an_image(width: int, height: int, *, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def same(one: list[Detection], other: list[Detection], *, atol: float = 1e-5) -> None:
    assert len(one) == len(other) > 0
    for first, second in zip(one, other, strict=True):
        assert first.class_index == second.class_index
        assert first.score == pytest.approx(second.score, abs=atol)
        assert first.mask is not None
        assert second.mask is not None
        assert (first.mask != second.mask).mean() < 1e-3
        assert first.box == pytest.approx(second.box, abs=1)


# Outputs as detections


def by_hand(**sizes: tuple[int, int]) -> list[Detection]:
    """Two queries on 4 by 4 logits: the left half of the first, the lowest row of the second.

    Class logits log 8 and log 1 and log 1 (none): .8, .1; and log 1, log 2, log 1: .25, .5.
    """
    classes = torch.tensor([[8.0, 1.0, 1.0], [1.0, 2.0, 1.0]]).log()
    masks = torch.full((2, 4, 4), -2.0)
    masks[0, :, :2] = 3.0
    masks[1, 3] = 1.0
    whole = {"padded": (4, 4), "resized": (4, 4), "original": (4, 4)}
    return instances(classes, masks, **(whole | sizes), min_score=0.0)


def test_scores_are_products_of_the_class_and_the_mean_within_the_mask() -> None:
    """sigma(3) = .9526, sigma(1) = .7311: .8 · .9526 = .762, .5 · .7311 = .366, .25 · .7311, .1 · .9526."""
    found = by_hand()
    assert [one.class_index for one in found] == [0, 1, 0, 1]
    assert [one.score for one in found] == pytest.approx([0.76206, 0.36553, 0.18276, 0.09526], abs=1e-5)
    assert [one.box for one in found] == [(0, 0, 2, 4), (0, 3, 4, 4), (0, 3, 4, 4), (0, 0, 2, 4)]
    assert found[0].mask is not None
    assert found[0].mask.tolist() == [[True, True, False, False]] * 4


def test_masks_are_enlarged_to_the_padded_size_cut_and_resized_to_the_image() -> None:
    """Doubled, the border between 3 and -2 is at 2.5 and 0.5 quarters: logits 3, 1.75, -.75, -2 in columns 2 to 5.

    Of the 8 by 8 the upper left 6 by 8 is the image: the second query's row is cut away but for what interpolation
    spreads, -2 and -1.25 in rows 4 and 5, so nothing is above zero and its score is zero.
    """
    found = by_hand(padded=(8, 8), resized=(6, 8), original=(6, 8))
    assert [one.class_index for one in found] == [0, 1]
    assert found[0].box == (0, 0, 4, 6)
    logits = torch.tensor([3.0, 3.0, 3.0, 1.75])
    assert found[0].score == pytest.approx(0.8 * logits.sigmoid().mean().item(), abs=1e-5)


def test_masks_are_resized_to_the_image_s_own_size() -> None:
    """Tripled across, the logits go 1.75, .917, .083, -.75 in columns 10 to 13: 13 columns are above zero."""
    found = by_hand(padded=(8, 8), resized=(8, 8), original=(16, 24))
    assert found[0].mask is not None
    assert found[0].mask.shape == (16, 24)
    assert found[0].box == (0, 0, 13, 16)


def slow_instances(class_logits: torch.Tensor, mask_logits: torch.Tensor, **sizes: Any) -> list[Detection]:
    """The same from the published description, over all pairs, all masks at once, pixel by pixel."""
    (height, width), original = sizes["resized"], sizes["original"]
    masks = F.interpolate(mask_logits[None], size=sizes["padded"], mode="bilinear")[0, :, :height, :width]
    masks = F.interpolate(masks[None], size=original, mode="bilinear")[0].numpy()
    pairs = []
    for query, row in enumerate(class_logits.tolist()):
        total = sum(np.exp(value) for value in row)
        pairs += [(np.exp(value) / total, query, index) for index, value in enumerate(row[:-1])]
    found = []
    for chance, query, index in sorted(pairs, reverse=True)[:100]:
        inside = [(y, x) for y in range(original[0]) for x in range(original[1]) if masks[query, y, x] > 0]
        if not inside:
            continue
        certainty = np.mean([1 / (1 + np.exp(-masks[query, y, x])) for y, x in inside])
        ys, xs = zip(*inside, strict=True)
        box = (float(min(xs)), float(min(ys)), float(max(xs) + 1), float(max(ys) + 1))
        found.append(Detection(index, float(chance * certainty), box, masks[query] > 0))
    return found


@pytest.mark.parametrize("original", [(24, 40), (13, 22), (40, 64)])
def test_a_slow_second_writing_agrees(original: tuple[int, int]) -> None:
    """Six queries of 30 classes: 180 pairs, of which 100 are kept."""
    generator = torch.Generator().manual_seed(2)
    classes = 2 * torch.randn(6, 31, generator=generator)
    masks = 3 * torch.randn(6, 8, 12, generator=generator)
    masks[4] = -1.0
    sizes = {"padded": (32, 48), "resized": (24, 40), "original": original}
    expected = slow_instances(classes, masks, **sizes)
    found = instances(classes, masks, **sizes, min_score=0.0)
    assert len(found) < 100
    same(found, expected)
    some = instances(classes, masks, **sizes, min_score=0.05)
    same(some, [one for one in expected if one.score > 0.05])


def test_an_empty_mask_has_no_box_and_is_no_detection() -> None:
    assert box_of(np.zeros((3, 3), dtype=bool)) == (0, 0, 0, 0)
    sizes = {"padded": (4, 4), "resized": (4, 4), "original": (4, 4)}
    assert instances(torch.zeros(1, 3), torch.full((1, 4, 4), -1.0), **sizes, min_score=0.0) == []


# Images as inputs


@pytest.mark.parametrize("size", [(100, 100), (96, 64), (480, 320)])
def test_pixels_are_those_of_transformers_where_nothing_is_padded(size: tuple[int, int]) -> None:
    """Its processor stretches other images to multiples of 32, where detectron2 and mmdetection pad."""
    processor = Mask2FormerImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 100}, ignore_index=255)
    image = an_image(*size)
    expected = processor(image, return_tensors="pt").pixel_values[0]
    found = detector_pixels(image, 64, 100)
    assert found.shape[1:] == {(100, 100): (64, 64)}.get(size, (64, 96))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((512, 512), (800, 800)), ((1024, 1024), (800, 800)), ((1280, 720), (750, 1333)), ((600, 1000), (1333, 800))],
)
def test_the_short_side_is_800_and_the_long_one_at_most_1333(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert detector_pixels(Image.new("L", size), 800, 1333).shape[1:] == expected


# The whole detector


def test_detections_do_not_depend_on_the_images_beside_them(model: Mask2FormerForUniversalSegmentation) -> None:
    """Three of one padded size, 64 by 96, by different ways; one of another, 96 by 64."""
    detector = Mask2FormerDetector(model, min_score=0.001, **SIDES)
    images = [
        an_image(80, 60),
        an_image(50, 70, seed=1),
        an_image(96, 64, seed=2),
        an_image(90, 60, seed=3).convert("L"),
    ]
    together = detector.detect(images)
    for image, found in zip(images, together, strict=True):
        same(found, detector.detect([image])[0])
        assert all(one.mask is not None and one.mask.shape == (image.height, image.width) for one in found)
        assert all(0.001 < one.score < 1 and 0 <= one.class_index < 80 for one in found)
    assert together[0][0].box != together[2][0].box or together[0][0].score != together[2][0].score
    assert detector.detect([]) == []


def test_padding_is_below_and_right_and_zero(
    model: Mask2FormerForUniversalSegmentation, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda pixel_values: (seen.append(pixel_values), forward(pixel_values))[1])
    Mask2FormerDetector(model, **SIDES).detect([an_image(80, 60)])
    assert seen[0].shape == (1, 3, 64, 96)
    assert not seen[0][..., 85:].any()
    torch.testing.assert_close(seen[0][0, :, :, :85], detector_pixels(an_image(80, 60), 64, 100))


def test_a_saved_detector_is_loaded_and_named(folder: Path, model: Mask2FormerForUniversalSegmentation) -> None:
    detector = Mask2FormerDetector.from_pretrained(str(folder))
    assert detector.label == f"HF Mask2Former {folder.name}"
    assert (detector.short_side, detector.long_side, detector.min_score) == (800, 1333, 0.3)
    assert all(
        torch.equal(one, other) for one, other in zip(detector.model.parameters(), model.parameters(), strict=True)
    )
    record = detector.record
    assert (record.name, record.weights, record.needs_prompt) == ("geneval-detector", folder.name, False)
    assert len(record.sha256) == 64
    assert "800" in record.preprocessing
    assert Mask2FormerDetector(model).record.sha256 != record.sha256


def changed(folder: Path, target: Path, *, drop: str = "", add: str = "") -> str:
    weights = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if name != drop}
    if add:
        weights[add] = torch.zeros(4)
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return str(target)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"drop": "class_predictor.weight"}, r"has no weights for class_predictor\.weight"),
        ({"add": "class_predictor.scale"}, r"has weights unknown to Mask2Former, class_predictor\.scale"),
    ],
)
def test_weights_are_neither_drawn_at_random_nor_dropped(
    folder: Path, tmp_path: Path, change: dict[str, str], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Mask2FormerDetector.from_pretrained(changed(folder, tmp_path, **change))


def test_what_older_checkpoints_carry_and_training_needs_may_differ(
    folder: Path, tmp_path: Path, model: Mask2FormerForUniversalSegmentation
) -> None:
    table = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    name = changed(folder, tmp_path, add=table, drop="criterion.empty_weight")
    image = an_image(64, 64)
    expected = Mask2FormerDetector(model, min_score=0.001, **SIDES).detect([image])[0]
    loaded = Mask2FormerDetector.from_pretrained(name).model
    same(Mask2FormerDetector(loaded, min_score=0.001, **SIDES).detect([image])[0], expected)


def test_what_is_no_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no Mask2Former that fits its config"):
        Mask2FormerDetector.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("labels", "names"), [(81, {}), (80, {0: "background", 79: "toothbrush"}), (80, {0: "person", 79: "hair drier"})]
)
def test_other_classes_are_refused(labels: int, names: dict[int, str]) -> None:
    with pytest.raises(ValueError, match=f"x detects {labels} classes, .*COCO's 80 from person to toothbrush"):
        detection.check_classes(labels, names, "x")
    detection.check_classes(80, dict(enumerate(CLASSES)), "x")
    detection.check_classes(80, {index: f"LABEL_{index}" for index in range(80)}, "x")
