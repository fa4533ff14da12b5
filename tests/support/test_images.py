"""The one way in which an image is opened: any mode, orientation and kind of file, and what is refused before it costs
memory."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import an_image, encoded
from PIL import Image, PngImagePlugin

from stepalign.scorers.preparation import clip_pixels
from stepalign.support import images
from stepalign.support.images import FORMATS, MAX_PIXELS, as_rgb, open_image, readable_formats


def levels(image: Image.Image) -> list[tuple[int, ...]]:
    """The pixels of a single row."""
    return [image.getpixel((x, 0)) for x in range(image.width)]


def grey16(dtype: str) -> Image.Image:
    image = Image.fromarray(np.array([[0x0000, 0x0100, 0x80FF, 0xFFFF]]).astype(dtype))
    assert image.mode.startswith("I")
    return image


# Modes


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBA", "LA", "PA", "RGBX"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = open_image(Image.new("RGB", (6, 4), "white").convert(mode))
    assert (image.mode, image.size, image.getcolors()) == ("RGB", (6, 4), [(24, (255, 255, 255))])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_an_alpha_channel_and_a_palettes_lie_over_white(mode: str) -> None:
    layered = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    layered.putpixel((1, 0), (0, 0, 0, 0))
    if mode != "P":
        layered.putpixel((2, 0), (0, 0, 0, 128))
    kinds: dict[str, Image.Image | bytes] = {"P": encoded(layered, "GIF"), "PA": layered.convert("PA")}
    image = open_image(kinds[mode] if mode in kinds else encoded(layered.convert(mode)))
    half = (0, 0, 0) if mode == "P" else (127, 127, 127)
    assert levels(image) == [(0, 0, 0), (255, 255, 255), half]


def test_every_entry_of_a_palette_has_its_own_alpha() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert levels(open_image(encoded(image, transparency=b"\xff\x80"))) == [(10, 20, 30), (227, 177, 152)]


@pytest.mark.parametrize(("mode", "key"), [("RGB", (0, 200, 0)), ("L", 117), ("1", 0), ("I;16", 117 * 256)])
def test_the_transparent_colour_of_a_png_without_alpha_is_a_colour_like_others(mode: str, key: object) -> None:
    """A tRNS chunk names one colour; scorers get the same pixels with it and without, and so does CLIP's processor."""
    image = Image.new("RGB", (8, 8), (0, 200, 0)).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 256)
    plain, keyed = encoded(image), encoded(image, transparency=key)
    assert b"tRNS" in keyed
    assert open_image(keyed).tobytes() == open_image(plain).tobytes()
    assert open_image(keyed).info == {}
    shown = Image.open(io.BytesIO(keyed))
    assert torch.equal(
        clip_pixels([shown], 8, "transformers"), clip_pixels([Image.open(io.BytesIO(plain))], 8, "transformers")
    )


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4"])
def test_16_bit_grey_keeps_its_high_byte(dtype: str) -> None:
    for source in (grey16(dtype), encoded(grey16(dtype), "TIFF")):
        assert levels(open_image(source)) == [(v, v, v) for v in (0, 1, 128, 255)]
    assert open_image(encoded(grey16("<u2"))).getpixel((2, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Image.new("F", (2, 2)), r"floating-point numbers \(mode F\)"),
        (lambda: Image.fromarray(np.full((2, 2), -1, dtype=np.int32)), "grey values reach from -1 to -1, beyond 16"),
        (lambda: Image.fromarray(np.full((2, 2), 65536, dtype=np.int32)), "reach from 65536 to 65536, beyond 16 bits"),
        (lambda: Image.new("RGB", (0, 4)), "it is 0 by 4 pixels, and so has none"),
        (lambda: 3, "it is of type int, no file, bytes or image of Pillow's"),
        (lambda: None, "it is of type NoneType"),
    ],
)
def test_what_has_no_pixels_or_no_white_is_refused(make: Callable[[], object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        open_image(make())


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_image_given_stays_as_it_is(mode: str) -> None:
    given = an_image(16, 16).convert(mode)
    given.info["comment"] = "kept"
    before = given.tobytes()
    open_image(given).putpixel((0, 0), (0, 0, 0))
    assert (given.mode, given.tobytes(), given.info) == (mode, before, {"comment": "kept"})


def test_an_image_that_was_opened_is_not_copied_again() -> None:
    image = open_image(encoded(an_image(4, 4)))
    assert as_rgb(image) is image


# Orientation and frames


def stored(orientation: int) -> tuple[np.ndarray, np.ndarray]:
    """An upright image and what a file of this orientation has in its place."""
    upright = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    return upright, np.ascontiguousarray(turned)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_images_come_upright(orientation: int, mode: str) -> None:
    upright, turned = stored(orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(turned).convert(mode), exif=exif)
    for source in (data, Image.open(io.BytesIO(data))):
        assert np.array_equal(np.asarray(open_image(source))[..., 0], upright)


@pytest.mark.parametrize("exif", [b"Exif\0\0junk", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"\0"])
def test_exif_that_cannot_be_read_leaves_the_image_readable(exif: bytes) -> None:
    image = an_image(8, 8)
    assert open_image(encoded(image, exif=exif)).tobytes() == image.tobytes()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue", "black")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert abs(np.array(open_image(data).getpixel((0, 0))) - [255, 0, 0]).max() <= 2


# Files


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "RGB"), ("PNG", "P"), ("PNG", "LA"), ("JPEG", "L"), ("WEBP", "RGB")]
)
def test_an_image_is_opened_whole_and_left_closed(kind: str, mode: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(encoded(an_image(16, 24).convert(mode), kind))
    image = open_image(path)
    data = path.read_bytes()
    path.unlink()
    assert (image.size, image.mode) == ((24, 16), "RGB")
    assert image.tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_file_cut_short_is_named(kind: str, tmp_path: Path) -> None:
    """Without its last fifth, and at any other length whole or refused in the same words."""
    data, path = encoded(an_image(16, 24), kind), tmp_path / "image.img"
    path.write_bytes(data[: len(data) * 4 // 5])
    with pytest.raises(ValueError, match=r"image.img is no image that can be read: ."):
        open_image(path)
    sizes, words = set(), []
    for length in range(0, len(data), 1 + len(data) // 40):
        path.write_bytes(data[:length])
        try:
            sizes.add(open_image(path).size)
        except ValueError as error:
            words.append(str(error))
    assert sizes <= {(24, 16)}
    assert len(words) > 10
    assert all(said.startswith(f"{path} is no image that can be read: ") and "\n" not in said for said in words)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_damaged_file_is_refused_or_read_but_never_raises_anything_else(kind: str, tmp_path: Path) -> None:
    data, path = encoded(an_image(16, 16), kind), tmp_path / "damaged"
    rng = np.random.default_rng(1)
    refused = 0
    for attempt in range(40):
        damaged = bytearray(data)
        for position in rng.integers(0, min(len(data), 200), 4):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            open_image(bytes(damaged) if attempt % 2 else path)
        except ValueError:
            refused += 1
    assert refused > 1


def test_what_is_no_image_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("no image")
    (tmp_path / "page.eps").write_bytes(encoded(an_image(4, 4), "EPS"))
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in [
        ("gone.png", "there is no file .*gone.png"),
        ("note.png", "note.png is no image that can be read: it is in none of the formats PNG, JPEG, "),
        ("page.eps", "page.eps is no image that can be read: it is in none of the formats"),
        ("folder.png", "folder.png' is a directory"),
        ("pipe.png", "pipe.png' is no regular file"),
    ]:
        with pytest.raises(ValueError, match=reason):
            open_image(tmp_path / name)
    with pytest.raises(ValueError, match="zero' is no regular file"):
        open_image(Path("/dev/zero"))


def test_a_format_that_pillow_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert readable_formats() == list(FORMATS)
    monkeypatch.delitem(Image.OPEN, "AVIF")
    assert readable_formats.__wrapped__() == [name for name in FORMATS if name != "AVIF"]


# Sizes


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises more than its few bytes of data hold."""
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return PngImagePlugin._MAGIC + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((9000, 9000), "it is 9,000 by 9,000 pixels; at most 33,554,432 pixels are read"),
        ((10_000, 10_000), "it is 10,000 by 10,000 pixels; at most 33,554,432 pixels are read"),
        ((60_000, 60_000), "it has more than 33,554,432 pixels, the most that are read"),
    ],
)
def test_an_image_of_absurd_size_is_refused_by_its_header(
    size: tuple[int, int], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", None)  # which decodes
    (tmp_path / "bomb.png").write_bytes(bomb(*size))
    for source in (tmp_path / "bomb.png", bomb(*size)):
        with pytest.raises(ValueError, match=reason):
            open_image(source)
    assert MAX_PIXELS == 33_554_432


def test_a_file_of_absurd_length_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "long.png").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)  # a hole, which takes no space
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(ValueError, match=r"long.png is no image that can be read: it has 268,435,457 bytes; at most"):
        open_image(tmp_path / "long.png")
