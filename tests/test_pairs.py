"""Rows that are read and rows that are refused, what becomes of a picture on the way, and how refusals are told."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stepalign.data.pairs import BadRow, ImagePair, RawPair, TooManyBadRows, Unreadable, load_picture, read, to_tensor

SIZE = (6, 4)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


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
        ({"label": float("nan")}, "label nan is not 0, 0.5 or 1"),
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
        ({"images": (RED, None)}, "the second picture is missing"),
        ({"images": (None, BLUE)}, "the first picture is missing"),
        ({"images": (Unreadable("there is no win/cat.*"), BLUE)}, "there is no win/cat.*"),
        ({"images": (RED, 3)}, "the second picture cannot be read: it is of type int, no file, bytes or"),
        ({"images": (RED, b"")}, "the second picture cannot be read: the bytes are no picture in a format that Pillow"),
        ({"images": (b"junk", BLUE)}, "the first picture cannot be read: the bytes are no picture in a format"),
        ({"images": (RED, noise().convert("F"))}, "the second picture cannot be read: its pixels are floating-point"),
        ({"images": (RED, Path("nowhere/cat.png"))}, "the second picture cannot be read: there is no file nowhere/cat"),
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


# Pictures


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_damaged_picture_is_refused_or_read_but_never_raises_anything_else(kind: str, tmp_path: Path) -> None:
    data = encoded(noise(), kind)
    assert load_picture(data).size == (16, 16)
    rng = np.random.default_rng(1)
    path = tmp_path / "damaged"
    refused = 0
    for attempt in range(40):
        damaged = bytearray(data)
        for position in rng.integers(0, min(len(data), 200), 4):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        picture = bytes(damaged) if attempt % 2 else path
        refused += isinstance(read(raw(images=(picture, BLUE))), BadRow)
    assert refused > 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
def test_a_truncated_picture_is_refused(kind: str, tmp_path: Path) -> None:
    data = encoded(noise((64, 64)), kind)
    cut = tmp_path / "cut"
    cut.write_bytes(data[: len(data) * 2 // 3])
    for picture in (cut, cut.read_bytes()):
        with pytest.raises(ValueError, match=r"\w"):
            load_picture(picture)


def test_a_picture_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"Image size \(256 pixels\) exceeds limit"):
        load_picture(encoded(noise()))


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="directory"):
        load_picture(tmp_path)


def test_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"cat\.png holds no picture in a format that Pillow knows"):
        load_picture(path)
    path.write_bytes(encoded(noise((64, 64)))[:2000])
    with pytest.raises(ValueError, match=r"cat\.png: .*truncated"):
        load_picture(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_come_upright(orientation: int) -> None:
    upright = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_picture(encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif))
    assert np.array_equal(np.asarray(image)[..., 0], upright)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_transparency_lies_over_white(mode: str) -> None:
    layered = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    layered.putpixel((1, 0), (0, 0, 0, 0))
    if mode != "P":
        layered.putpixel((2, 0), (0, 0, 0, 128))
    pictures = {"P": encoded(layered, "GIF"), "PA": layered.convert("PA")}
    image = load_picture(pictures[mode] if mode in pictures else encoded(layered.convert(mode)))
    half = (0, 0, 0) if mode == "P" else (127, 127, 127)
    assert [image.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (255, 255, 255), half]


def test_one_colour_can_be_transparent() -> None:
    image = Image.new("RGB", (2, 1), "red")
    image.putpixel((0, 0), (0, 255, 0))
    shown = load_picture(encoded(image, transparency=(0, 255, 0)))
    assert [shown.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (255, 0, 0)]


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4"])
def test_16_bit_grey_keeps_its_contrast(dtype: str) -> None:
    values = np.array([[0x0000, 0x0100, 0x80FF, 0xFFFF]])
    image = Image.fromarray(values.astype(dtype))
    assert image.mode.startswith("I")
    for picture in (image, encoded(image, "TIFF")):
        shown = load_picture(picture)
        assert shown.mode == "RGB"
        assert [shown.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 1, 128, 255)]
    assert load_picture(encoded(Image.fromarray(values.astype("<u2")))).getpixel((2, 0)) == (128, 128, 128)


@pytest.mark.parametrize("value", [-1, 65536])
def test_more_than_16_bits_of_grey_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match=f"its grey values reach from {value} to {value}, beyond 16 bits"):
        load_picture(Image.fromarray(np.full((2, 2), value, dtype=np.int32)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV"])
def test_every_other_mode_becomes_rgb(mode: str) -> None:
    image = load_picture(Image.new("RGB", SIZE, "white").convert(mode))
    assert (image.mode, image.size, colours(image)) == ("RGB", SIZE, [(255, 255, 255)])


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "blue", "black")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert abs(np.array(load_picture(data).getpixel((0, 0))) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_picture_given_stays_as_it_is(mode: str) -> None:
    given = noise(mode=mode)
    before = given.tobytes()
    load_picture(given).putpixel((0, 0), (0, 0, 0))
    assert (given.mode, given.tobytes()) == (mode, before)


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
def test_the_picture_covers_the_size_and_its_centre_is_kept(source: tuple[int, int], size: tuple[int, int]) -> None:
    """As resizing all of it and then cropping, to two levels of 255 for what Pillow rounds between rows and columns."""
    image = noise(source).point(lambda value: 64 + value // 2)
    height, width = size
    scale = max(height / image.height, width / image.width)
    tall, wide = max(height, round(image.height * scale)), max(width, round(image.width * scale))
    resized = image.resize((wide, tall), Image.Resampling.BICUBIC)
    top, left = (tall - height) // 2, (wide - width) // 2
    expected = np.asarray(resized.crop((left, top, left + width, top + height)), dtype=np.float32)
    tensor = to_tensor(image, size)
    assert tensor.shape == (3, *size)
    found = ((tensor + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() < 2.01


def test_a_long_strip_costs_no_more_than_its_centre() -> None:
    assert to_tensor(Image.new("RGB", (1, 60_000), "white"), (512, 512)).min() == 1


def test_a_picture_of_the_right_size_is_not_resampled() -> None:
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
