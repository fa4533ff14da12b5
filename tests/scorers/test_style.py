"""Statistics of images worked out by hand, and prompts that belong to other images."""

from __future__ import annotations

import colorsys
import math
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from stepalign.scorers.style import style_of, wrong_prompts

NAMES = ["saturation", "colourfulness", "contrast", "sharpness", "high_frequency_share", "jpeg_bytes_per_pixel"]


def flat(colour: tuple[int, int, int], size: tuple[int, int] = (16, 12)) -> Image.Image:
    return Image.new("RGB", size, colour)


def grey(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.repeat(levels.astype(np.uint8)[..., None], 3, axis=2))


def checkerboard(cell: int, size: int = 16) -> Image.Image:
    rows, columns = np.indices((size, size)) // cell
    return grey(255 * ((rows + columns) % 2))


def noise(size: int = 16, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.mark.parametrize("level", [0, 1, 100, 255])
def test_a_flat_grey_has_none_of_it(level: int) -> None:
    style = style_of(flat((level, level, level), (17, 13)))
    assert list(style) == NAMES
    assert all(style[name] == 0 for name in NAMES[:-1])
    assert style["jpeg_bytes_per_pixel"] > 0


def test_pure_red_is_saturated_and_colourful() -> None:
    """R - G = 255, (R + G)/2 - B = 127.5, no spread: .3 (255² + 127.5²)^.5 = 85.53."""
    style = style_of(flat((255, 0, 0)))
    assert style["saturation"] == 1
    assert style["colourfulness"] == pytest.approx(0.3 * math.hypot(255, 127.5))
    assert style["contrast"] == style["sharpness"] == style["high_frequency_share"] == 0


def test_saturation_is_that_of_hsv() -> None:
    image = noise()
    expected = [colorsys.rgb_to_hsv(*(pixel / 255))[1] for pixel in np.asarray(image).reshape(-1, 3)]
    assert style_of(image)["saturation"] == pytest.approx(np.mean(expected))


def test_half_red_half_black_is_half_saturated() -> None:
    image = flat((255, 0, 0), (8, 4))
    image.paste((0, 0, 0), (0, 0, 4, 4))
    assert style_of(image)["saturation"] == 0.5


def test_colourfulness_by_hand() -> None:
    """Halves of red and blue: R - G is 255 or 0, (R + G)/2 - B is 127.5 or -255.

    Means 127.5 and -63.75, deviations 127.5 and 191.25: (127.5² + 191.25²)^.5 + .3 (127.5² + 63.75²)^.5 = 272.62.
    """
    image = flat((255, 0, 0), (8, 4))
    image.paste((0, 0, 255), (0, 0, 4, 4))
    expected = math.hypot(127.5, 191.25) + 0.3 * math.hypot(127.5, 63.75)
    assert style_of(image)["colourfulness"] == pytest.approx(expected)
    assert expected == pytest.approx(272.62, abs=0.01)


def test_the_finest_checkerboard() -> None:
    """Every neighbour is the other level: the Laplacian is ±1020, its variance 1020²; all energy is at f = (.5, .5)."""
    style = style_of(checkerboard(1))
    assert style["contrast"] == 127.5
    assert style["sharpness"] == pytest.approx(1020**2)
    assert style["high_frequency_share"] == pytest.approx(1)
    assert style["saturation"] == style["colourfulness"] == 0


def test_a_checkerboard_of_pairs() -> None:
    """Of two neighbours per axis one is the other level: the Laplacian is ±510; f = (.25, .25), .354 from 0."""
    style = style_of(checkerboard(2))
    assert style["contrast"] == 127.5
    assert style["sharpness"] == pytest.approx(510**2)
    assert style["high_frequency_share"] == pytest.approx(1)


@pytest.mark.parametrize(("cycles", "share"), [(1, 0.0), (3, 0.0), (4, 0.0), (5, 1.0), (8, 1.0)])
def test_high_frequencies_are_those_above_a_quarter_of_the_sampling_rate(cycles: int, share: float) -> None:
    """Cosines of so many cycles over 16 pixels: 4 are exactly a quarter and do not count; levels are rounded."""
    wave = 127 + 100 * np.cos(2 * np.pi * cycles * np.arange(16) / 16)
    image = grey(np.tile(wave.round(), (16, 1)))
    assert style_of(image)["high_frequency_share"] == pytest.approx(share, abs=1e-3)


def test_high_frequencies_are_weighed_by_their_energy() -> None:
    """Amplitudes 30 at 2 cycles and 40 at 6: 1600/(900 + 1600)."""
    angle = 2 * np.pi * np.arange(32) / 32
    wave = 127 + 30 * np.cos(2 * angle) + 40 * np.cos(12 * angle)
    assert style_of(grey(np.tile(wave.round(), (32, 1))))["high_frequency_share"] == pytest.approx(0.64, abs=0.01)


def test_a_diagonal_wave_counts_by_its_own_frequency() -> None:
    """3 of 16 along both axes is .265 cycles per pixel, above a quarter, though neither axis is."""
    rows, columns = np.indices((16, 16))
    image = grey((127 + 100 * np.cos(2 * np.pi * 3 * (rows + columns) / 16)).round())
    assert style_of(image)["high_frequency_share"] == pytest.approx(1, abs=1e-3)


def test_one_bright_pixel() -> None:
    """5 by 5: the Laplacian is -4 once and 1 four times over the 3 by 3 inside: mean 0, variance 20/9, in levels²."""
    levels = np.zeros((5, 5))
    levels[2, 2] = 90
    style = style_of(grey(levels))
    assert style["sharpness"] == pytest.approx(90**2 * 20 / 9)
    assert style["contrast"] == pytest.approx(90 * math.sqrt(1 / 25 - 1 / 625))


def test_luma_is_that_of_television() -> None:
    """Stripes of green and blue: .587 and .114 of 255, rounded to 150 and 29; the deviation is half their distance."""
    image = flat((0, 255, 0), (8, 8))
    image.paste((0, 0, 255), (0, 0, 4, 8))
    assert style_of(image)["contrast"] == pytest.approx((150 - 29) / 2)


def test_the_size_as_jpeg() -> None:
    image, buffer = noise(64), BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling="4:2:0")
    value = style_of(image)["jpeg_bytes_per_pixel"]
    assert value == buffer.tell() / 64**2
    assert value > 2 * style_of(flat((90, 20, 200), (64, 64)))["jpeg_bytes_per_pixel"]


def test_oblong_and_other_images_have_a_style() -> None:
    image = noise(20).crop((0, 0, 20, 7))
    turned = style_of(image.transpose(Image.Transpose.ROTATE_90))
    for name in NAMES[:-1]:
        assert turned[name] == pytest.approx(style_of(image)[name])
    assert style_of(image.convert("L")) == style_of(image.convert("L").convert("RGB"))
    assert style_of(image.convert("RGBA")) == style_of(image)


def test_an_image_too_small_for_neighbours_is_refused() -> None:
    style_of(noise(3))
    with pytest.raises(ValueError, match="at least 3 by 3 pixels to have a style, got 9 by 2"):
        style_of(flat((1, 2, 3), (9, 2)))


@pytest.mark.parametrize("num", [2, 3, 10])
@pytest.mark.parametrize("seed", range(5))
def test_no_prompt_stays_and_each_is_used_by_one_other(num: int, seed: int) -> None:
    prompts = [f"prompt {index}" for index in range(num)]
    wrong = wrong_prompts(prompts, seed=seed)
    assert sorted(wrong) == sorted(prompts)
    assert all(one != other for one, other in zip(prompts, wrong, strict=True))


def test_all_images_of_a_prompt_get_one_other_text() -> None:
    """Where prompts have different numbers of images, or one text stands under two numbers."""
    prompts = ["a", "b", "a", "c", "a", "a", "b"]
    wrong = wrong_prompts(prompts, seed=0)
    following = dict(zip(prompts, wrong, strict=True))
    assert [following[prompt] for prompt in prompts] == wrong
    assert sorted(following.values()) == ["a", "b", "c"]
    assert all(one != other for one, other in following.items())


def test_the_seed_decides_and_each_circle_comes_as_often() -> None:
    """Three prompts have two circles; of 400 seeds each gets 200 ± 40, four standard deviations."""
    prompts = ["a", "b", "c"]
    assert wrong_prompts(prompts, seed=3) == wrong_prompts(prompts, seed=3)
    counts = Counter(tuple(wrong_prompts(prompts, seed=seed)) for seed in range(400))
    assert counts.keys() == {("b", "c", "a"), ("c", "a", "b")}
    assert min(counts.values()) > 160


@pytest.mark.parametrize("prompts", [[], ["a"], ["a", "a", "a"]])
def test_fewer_than_two_prompts_are_refused(prompts: list[str]) -> None:
    with pytest.raises(ValueError, match=f"at least two distinct prompts, got {len(set(prompts))}"):
        wrong_prompts(prompts, seed=0)
