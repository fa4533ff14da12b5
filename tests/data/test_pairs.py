"""Rows that are read and rows that are refused, images as tensors, and how refusals are told."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import encoded
from PIL import Image
from transformers import CLIPImageProcessorPil

from stepalign.data.pairs import BadRow, ImagePair, RawPair, TooManyBadRows, Unreadable, read, to_tensor

SIZE = (6, 4)


def noise(size: tuple[int, int] = (16, 16), mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


RED, BLUE = (encoded(Image.new("RGB", SIZE, colour)) for colour in ("red", "blue"))


def raw(**changes: object) -> RawPair:
    fields = {"where": "row 7", "prompt": "a cat", "images": (RED, BLUE), "label": 1, "weight": 1.0}
    return RawPair(**fields | changes)


def colours(image: Image.Image) -> list[tuple[int, ...]]:
    return [colour for _, colour in image.getcolors()]


# Rows


@pytest.mark.parametrize("label", [1, 0, 0.5, 1.0, None])
def test_a_good_row_is_opened(tmp_path: Path, label: float | int | None) -> None:
    path = tmp_path / "blue.png"
    path.write_bytes(BLUE)
    pair = read(raw(images=(Image.new("RGB", SIZE, "red"), path), label=label, weight=2))
    assert isinstance(pair, ImagePair)
    assert pair.prompt == "a cat"
    assert [(image.mode, image.size, colours(image)) for image in pair.images] == [
        ("RGB", SIZE, [(255, 0, 0)]),
        ("RGB", SIZE, [(0, 0, 255)]),
    ]
    assert pair.label == label
    assert pair.label is None or type(pair.label) is float
    assert (pair.weight, type(pair.weight)) == (2.0, float)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": None}, "the caption is missing"),
        ({"prompt": ""}, "the caption is empty"),
        ({"prompt": " \n"}, "the caption is empty"),
        ({"prompt": ["a cat"]}, "the caption is of type list, not text"),
        ({"prompt": Unreadable("the line is no JSON")}, "the line is no JSON"),
        ({"label": 0.7}, "label 0.7 is not 0, 0.5 or 1"),
        ({"label": -1}, "label -1 is not 0, 0.5 or 1"),
        ({"label": "1"}, "label '1' is not 0, 0.5 or 1"),
        ({"label": [1]}, "label [1] is not 0, 0.5 or 1"),
        ({"label": Unreadable("the ranks are missing")}, "the ranks are missing"),
        ({"weight": 0}, "weight 0 is not a finite number above 0"),
        ({"weight": -0.5}, "weight -0.5 is not a finite number above 0"),
        ({"weight": float("inf")}, "weight inf is not a finite number above 0"),
        ({"weight": float("nan")}, "weight nan is not a finite number above 0"),
        ({"weight": None}, "weight None is not a finite number above 0"),
        ({"weight": 10**400}, "weight 10000000"),
        ({"weight": True}, "weight True is not a finite number above 0"),
        ({"weight": Unreadable("no number of examples")}, "no number of examples"),
        ({"images": (RED, None)}, "the second image is missing"),
        ({"images": (None, BLUE)}, "the first image is missing"),
        ({"images": (Unreadable("there is no win/cat.*"), BLUE)}, "there is no win/cat.*"),
        ({"images": (RED, 3)}, "the second image: it is of type int, no file, bytes or"),
        ({"images": (RED, b"")}, "the second image: the bytes are no image that can be read: it is in none"),
        ({"images": (b"junk", BLUE)}, "the first image: the bytes are no image that can be read: it is in none"),
        ({"images": (RED, noise().convert("F"))}, "the second image: its pixels are floating-point"),
        ({"images": (RED, Path("nowhere/cat.png"))}, "the second image: there is no file 'nowhere/cat"),
    ],
)
def test_a_bad_row_says_why(changes: dict[str, object], reason: str) -> None:
    row = read(raw(**changes))
    assert isinstance(row, BadRow)
    assert row.where == "row 7"
    assert row.reason.startswith(reason)


def test_a_reason_is_one_line() -> None:
    row = read(raw(prompt=Unreadable("first\n  second " + "x" * 1000)))
    assert isinstance(row, BadRow)
    assert row.reason.startswith("first second xxx")
    assert len(row.reason) == 300


# Tensors


def test_values_reach_from_minus_one_to_one() -> None:
    image = Image.fromarray(np.array([[[0, 51, 255], [255, 0, 102]]], dtype=np.uint8))
    tensor = to_tensor(image, (1, 2))
    expected = torch.tensor([[[-1.0, 1.0]], [[-0.6, -1.0]], [[1.0, -0.2]]])
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    torch.testing.assert_close(tensor, expected)


@pytest.mark.parametrize("source", [(40, 30), (30, 40), (9, 50), (31, 31), (8, 12)])
@pytest.mark.parametrize("size", [(12, 8), (8, 12), (16, 16), (45, 7)])
def test_the_image_covers_the_size_and_its_centre_is_kept(source: tuple[int, int], size: tuple[int, int]) -> None:
    """As resizing all of it and then cropping, to two levels of 255 for what Pillow rounds between rows and columns."""
    image = noise(source).point(lambda value: 64 + value // 2)
    height, width = size
    tall, wide = (
        max(height, int(width * image.height / image.width)),
        max(width, int(height * image.width / image.height)),
    )
    resized = image.resize((wide, tall), Image.Resampling.BICUBIC)
    top, left = (tall - height) // 2, (wide - width) // 2
    expected = np.asarray(resized.crop((left, top, left + width, top + height)), dtype=np.float32)
    tensor = to_tensor(image, size)
    assert tensor.shape == (3, *size)
    found = ((tensor + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() < 2.01


@pytest.mark.parametrize("source", [(40, 31), (31, 40), (9, 50), (31, 31), (8, 12), (19, 26), (26, 16)])
def test_squares_are_those_of_transformers_processor(source: tuple[int, int]) -> None:
    image = noise(source).point(lambda value: 64 + value // 2)
    plain = {"do_rescale": False, "do_normalize": False}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, **plain)
    expected = processor([image], return_tensors="pt").pixel_values[0].float()
    assert ((to_tensor(image, (16, 16)) + 1) * 127.5 - expected).abs().max() < 2.01


def test_a_long_strip_costs_no_more_than_its_centre() -> None:
    assert to_tensor(Image.new("RGB", (1, 60_000), "white"), (512, 512)).min() == 1


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    image = noise((8, 5))
    expected = (torch.from_numpy(np.array(image)).float() / 127.5 - 1).permute(2, 0, 1)
    assert torch.equal(to_tensor(image, (5, 8)), expected)


@pytest.mark.parametrize("size", [(0, 8), (8, -1)])
def test_a_size_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="size must be at least 1 by 1 pixels, got "):
        to_tensor(noise(), size)


# Too many of them


def test_the_first_bad_rows_are_listed_and_the_rest_counted() -> None:
    bad = [BadRow(f"row {number}", f"reason {number}") for number in range(23)]
    error = TooManyBadRows(bad, 1000, 0.01)
    assert isinstance(error, ValueError)
    lines = str(error).split("\n")
    assert lines[0] == "23 of 1000 rows cannot be used, more than the 1 % allowed:"
    assert lines[1] == "  row 0: reason 0"
    assert lines[20:] == ["  row 19: reason 19", "  and 3 more"]
    assert str(TooManyBadRows(bad[:2], 10, 0.005)).split("\n") == [
        "2 of 10 rows cannot be used, more than the 0.5 % allowed:",
        "  row 0: reason 0",
        "  row 1: reason 1",
    ]
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
