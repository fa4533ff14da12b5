"""Images for scorers, random but decided by a seed."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def an_image(height: int, width: int, *, seed: int = 0) -> Image.Image:
    """Noise in RGB, in which every pixel counts."""
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def blotches(height: int, width: int, *, seed: int = 0) -> Image.Image:
    """Nine smooth patches of colour, which stay when pixels are averaged."""
    return an_image(3, 3, seed=seed).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """An image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
