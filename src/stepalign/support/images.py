"""Reading of images from files, bytes or Pillow: 8-bit RGB, EXIF orientation applied, alpha on white."""

from __future__ import annotations

import io
import warnings
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from stepalign.support.local_files import file_size

MAX_PIXELS = 2**25
"""Most pixels of an image, such as 8192 by 4096; checked in the file's header, before decoding."""
MAX_BYTES = 2**28
"""Most bytes of an image file."""
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "TGA", "QOI")
"""Readable formats, as far as this Pillow supports them: pixel grids decoded in this process; EPS is a program."""
ORIENTATION = 0x0112
"""EXIF's orientation tag."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that makes an image of each orientation upright."""


def open_image(source: object) -> Image.Image:
    """The image of a path, of a file's bytes or of Pillow's, in RGB (see `as_rgb`); of an animation the first frame.

    Raises ValueError, in one line that names the file, for a missing or irregular file, one not in
    `FORMATS`, damaged, truncated, or larger than `MAX_BYTES` or `MAX_PIXELS`.
    """
    match source:
        case Path():
            size, lead = file_size(source), f"{source} is no image that can be read"
        case bytes():
            size, lead = len(source), "the bytes are no image that can be read"
        case Image.Image():
            return as_rgb(source)
        case _:
            raise ValueError(f"it is of type {type(source).__name__}, no file, bytes or image of Pillow's")
    if size > MAX_BYTES:
        raise ValueError(f"{lead}: it has {size:,} bytes; at most {MAX_BYTES:,} are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warnings on damaged metadata and many pixels
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=readable_formats()) as image:
                return as_rgb(image)
    except UnidentifiedImageError:
        raise ValueError(f"{lead}: it is in none of the formats {', '.join(readable_formats())}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{lead}: it has more than {MAX_PIXELS:,} pixels, the most that are read") from None
    except Exception as error:  # for a damaged file Pillow's decoders raise exceptions of many kinds
        raise ValueError(f"{lead}: {' '.join(str(error).split()) or type(error).__name__}") from error


@cache
def readable_formats() -> list[str]:
    """The `FORMATS` that the installed Pillow supports."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of Pillow's in 8-bit RGB, without metadata; an RGB image without metadata is returned itself.

    - EXIF's orientation is applied. Unreadable EXIF is ignored.
    - An alpha channel, and a palette's, is composited on white.
    - The one colour that a PNG's tRNS chunk may name in grey and RGB images, instead of an alpha channel, is ignored:
      so do the published scoring programs, for which such an image is one without transparency.
    - 16-bit grey keeps its high byte, as Pillow's decoders do with 16-bit colour.

    Raises ValueError for an image without pixels, with more than `MAX_PIXELS`, with grey values beyond 16 bits, or with
    floating-point pixels, whose white level is unknown.
    """
    if 0 in image.size:
        raise ValueError(f"it is {image.width} by {image.height} pixels, and so has none")
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"it is {image.width:,} by {image.height:,} pixels; at most {MAX_PIXELS:,} pixels are read")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers (mode F) of unknown range; save it with 8 bits")
    if image.mode == "RGB" and type(image) is Image.Image and not image.info:
        return image
    image.load()
    orientation = _orientation(image)
    if image.mode.startswith("I"):
        image = _from_16_bits(image)
    elif "A" in image.getbands() or (image.mode == "P" and "transparency" in image.info):
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    rgb = image.copy() if image.mode == "RGB" else image.convert("RGB")
    rgb.info = {}  # a transparent colour left there would be painted white further on, by CLIP's processor
    return rgb.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else rgb


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:  # malformed EXIF has Pillow raise nearly anything
        return None


def _from_16_bits(image: Image.Image) -> Image.Image:
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() >= 1 << 16:
        raise ValueError(f"its grey values reach from {grey.min()} to {grey.max()}, beyond 16 bits")
    return Image.fromarray((grey >> 8).astype(np.uint8))
