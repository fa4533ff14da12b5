"""Distances between sets of images: double loops, closed forms, what must not matter."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import normal
from PIL import Image
from torch import Tensor
from transformers import CLIPModel

from stepalign.models.clip import CLIP_MEAN, CLIP_STD
from stepalign.scorers import drift
from stepalign.scorers.drift import (
    KID,
    cmmd,
    cmmd_features,
    cmmd_pixels,
    gaussian_kernel,
    kid,
    mmd_squared,
    polynomial_kernel,
)

X, Y = normal(7, 4), normal(5, 4, seed=1) + 0.5


def cubic(x: np.ndarray, y: np.ndarray) -> float:
    return float((np.dot(x, y) / len(x) + 1) ** 3)


def gaussian(x: np.ndarray, y: np.ndarray) -> float:
    return math.exp(-float(((x - y) ** 2).sum()) / 200)


def looped(x: Tensor, y: Tensor, kernel: object, *, biased: bool) -> float:
    """Equations 3 and 5 of Gretton et al. 2012, term by term."""
    assert callable(kernel)
    x, y = x.numpy(), y.numpy()
    within = 0.0
    for one in (x, y):
        num = len(one)
        terms = [kernel(one[i], one[j]) for i in range(num) for j in range(num) if biased or i != j]
        within += sum(terms) / (num**2 if biased else num * (num - 1))
    return within - 2 * sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("block", [1, 3, 5, 100])
def test_both_estimates_are_their_double_loops(biased: bool, block: int) -> None:
    for ours, theirs in ((polynomial_kernel, cubic), (gaussian_kernel, gaussian)):
        value = mmd_squared(X, Y, ours, biased=biased, block=block)
        assert value == pytest.approx(looped(X, Y, theirs, biased=biased), abs=1e-12)


def test_a_case_by_hand() -> None:
    """x = 1, 2 and y = 0 in one dimension, (xy + 1)^3: k_xx 8, 27, 27, 125; k_yy 1; k_xy 1, 1.

    Biased: 187/4 + 1 - 2 = 45.75. Unbiased with y = 0, -1, k_yy 1, 1, 1, 8 and k_xy 1, 1, 0, -1: 27 + 1 - 2/4 = 27.5.
    """
    x = torch.tensor([[1.0], [2.0]])
    assert mmd_squared(x, torch.zeros(1, 1), polynomial_kernel, biased=True) == pytest.approx(45.75)
    y = torch.tensor([[0.0], [-1.0]])
    assert mmd_squared(x, y, polynomial_kernel, biased=False) == pytest.approx(27.5)


def test_the_polynomial_kernel_divides_by_the_dimension() -> None:
    """(1, 2, 3).(1, 0, 1) = 4: (4/3 + 1)^3 = 12.7037."""
    value = polynomial_kernel(torch.tensor([[1.0, 2, 3]]), torch.tensor([[1.0, 0, 1]]))
    assert value.tolist() == [[pytest.approx(343 / 27)]]


def test_cmmd_of_opposite_points_by_hand() -> None:
    """Unit vectors 2 apart: 1000 (1 + 1 - 2 exp(-4/200)); of any length, for they are normalised."""
    x, y = torch.tensor([[3.0, 0.0]]), torch.tensor([[-0.5, 0.0]])
    assert cmmd(x, y) == pytest.approx(1000 * (2 - 2 * math.exp(-0.02)))


def test_cmmd_is_a_thousand_times_the_biased_estimate_of_unit_vectors() -> None:
    unit = [one / one.norm(dim=1, keepdim=True) for one in (X, Y)]
    assert cmmd(X, Y) == pytest.approx(1000 * looped(*unit, gaussian, biased=True), abs=1e-9)


def test_a_set_is_nowhere_from_itself_however_it_is_ordered() -> None:
    for kernel in (polynomial_kernel, gaussian_kernel):
        assert mmd_squared(X, X.flip(0), kernel, biased=True, block=3) == pytest.approx(0, abs=1e-12)
    assert cmmd(X, X.flip(0)) == pytest.approx(0, abs=1e-9)


def test_everything_is_computed_in_float64() -> None:
    """Features far from the origin, whose kernels agree in their first seven digits."""
    x, y = (100 * torch.ones(6, 4) + 0.1 * normal(6, 4, seed=seed).float() for seed in (0, 1))
    expected = looped(x.double(), y.double(), cubic, biased=False)
    assert mmd_squared(x, y, polynomial_kernel, biased=False) == pytest.approx(expected, rel=1e-6)


def test_never_more_than_a_block_is_compared_at_once() -> None:
    seen: list[tuple[int, int]] = []

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        seen.append((len(x), len(y)))
        return x @ y.T

    mmd_squared(X, Y, kernel, biased=False, block=2)
    assert max(max(pair) for pair in seen) == 2


def test_kid_of_whole_sets_is_the_unbiased_estimate() -> None:
    x, y = X[:5], Y
    value = kid(x, y, subset_size=5, num_subsets=3)
    assert value.mean == pytest.approx(looped(x, y, cubic, biased=False))
    assert value.std == pytest.approx(0, abs=1e-12)


def test_kid_is_mean_and_deviation_over_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of values 1, 2, 6: 3 and sqrt(14/3); every subset has the size asked for, without any row twice."""
    subsets: list[tuple[Tensor, Tensor]] = []

    def counted(x: Tensor, y: Tensor, kernel: object, *, biased: bool) -> float:
        assert kernel is polynomial_kernel
        assert not biased
        subsets.append((x, y))
        return (1.0, 2.0, 6.0)[len(subsets) - 1]

    monkeypatch.setattr(drift, "mmd_squared", counted)
    value = kid(X, Y, subset_size=4, num_subsets=3)
    assert (value.mean, value.std) == pytest.approx((3, math.sqrt(14 / 3)))
    for pair in subsets:
        for subset, whole in zip(pair, (X, Y), strict=True):
            assert len(subset.unique(dim=0)) == 4
            assert all((row == whole).all(1).any() for row in subset)
    assert not torch.equal(subsets[0][0], subsets[1][0])


def test_the_seed_decides_the_subsets() -> None:
    assert kid(X, Y, subset_size=3, num_subsets=4, seed=1) == kid(X, Y, subset_size=3, num_subsets=4, seed=1)
    assert kid(X, Y, subset_size=3, num_subsets=4, seed=1) != kid(X, Y, subset_size=3, num_subsets=4, seed=2)
    assert isinstance(kid(X, Y, subset_size=3, num_subsets=4), KID)


@pytest.mark.parametrize("size", [1, 6])
def test_subsets_that_cannot_be_drawn_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"subset_size must be from 2 to 5, the smaller set; got {size}"):
        kid(X, Y, subset_size=size)


def test_bad_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="num_subsets must be at least 1, got 0"):
        kid(X, Y, subset_size=2, num_subsets=0)
    with pytest.raises(ValueError, match="the second set has 1 images, it needs at least 2"):
        mmd_squared(X, Y[:1], polynomial_kernel, biased=False)
    with pytest.raises(ValueError, match="the first set has 0 images, it needs at least 1"):
        cmmd(X[:0], Y)
    with pytest.raises(ValueError, match="the second set has features that are no finite numbers"):
        cmmd(X, Y / 0)
    with pytest.raises(ValueError, match="features 4 and 3 wide; they must come from one network"):
        cmmd(X, Y[:, :3])


def undone(pixels: Tensor) -> np.ndarray:
    """Without CLIP's mean and std, as height by width by colour."""
    mean, std = (torch.tensor(value)[:, None, None] for value in (CLIP_MEAN, CLIP_STD))
    return (pixels * std + mean).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("size", [(50, 30), (9, 20), (64, 64)])
def test_cmmds_images_are_squeezed_whole_in_floating_point(size: tuple[int, int]) -> None:
    """PIL on each colour as floats: the same filter as jax.image.resize, no rounding to levels and no clamping."""
    levels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    colours = [Image.fromarray((levels[..., colour] / 255).astype(np.float32)) for colour in range(3)]
    expected = np.stack([np.asarray(one.resize((24, 24), Image.Resampling.BICUBIC)) for one in colours], axis=2)
    assert expected.max() > 1.01 or min(size) > 9
    actual = undone(cmmd_pixels([Image.fromarray(levels)], 24)[0])
    assert np.abs(actual - expected).max() < 1e-5


def test_without_antialias_halving_sees_four_pixels_of_each_line() -> None:
    """Weights -.09375, .59375, .59375, -.09375 around each centre; column 5 of 16 is the third that column 2 sees."""
    levels = np.zeros((16, 16, 3), dtype=np.uint8)
    levels[:, 5] = 255
    row = undone(cmmd_pixels([Image.fromarray(levels)], 8, antialias=False)[0])[4, :, 0]
    assert row.tolist() == pytest.approx([0, 0, 0.59375, -0.09375, 0, 0, 0, 0], abs=1e-6)
    assert np.abs(undone(cmmd_pixels([Image.fromarray(levels)], 8)[0])[4, :, 0] - row).max() > 0.1


def test_cmmds_features_are_of_such_images(
    tiny_clip: CLIPModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_clip.save_pretrained(tmp_path)
    images = [Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))]
    extractor = cmmd_features(str(tmp_path), antialias=False)
    monkeypatch.setattr(drift, "cmmd_pixels", lambda images, *, antialias: cmmd_pixels(images, 32, antialias=antialias))
    with torch.no_grad():
        expected = tiny_clip.get_image_features(pixel_values=cmmd_pixels(images, 32, antialias=False)).pooler_output
    assert torch.equal(extractor.extract(images), expected)
    assert extractor.record.preprocessing.startswith(
        "RGB, bicubic without antialias to 336 by 336 as a tensor, no crop"
    )
