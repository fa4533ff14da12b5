"""Preference pairs: raw rows, decoded pairs, and errors of unusable rows."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stepalign.support.images import open_image
from stepalign.support.prompt_text import check_prompt

LISTED_BAD_ROWS = 20


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for a field that its source could not read, with the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class RawPair:
    """One row of a source, with nothing opened or checked yet."""

    where: str
    """Place for messages: "train.jsonl line 3", "row 17", "cat-01.png"."""
    prompt: object
    images: tuple[object, object]
    """Each a path, the bytes of a file or a Pillow image, unless the row is invalid."""
    label: object
    """Preference for image 0, None without a label."""
    weight: object = 1.0


@dataclass(frozen=True, slots=True)
class ImagePair:
    """Two images for one prompt with a preference label."""

    prompt: str
    images: tuple[Image.Image, Image.Image]
    """RGB, fully decoded; their sizes may differ."""
    label: float | None
    """Preference for image 0: 1, 0, or .5 for a tie; None without a label."""
    weight: float
    """Finite and above 0."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """An unusable row: its place, and the reason in one line."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """A row without a label and with other fields missing, which is not an error: it is left out."""

    where: str


class TooManyBadRows(ValueError):
    """More unusable rows than allowed; the message counts them and lists the first."""

    def __init__(self, bad: Sequence[BadRow], num_rows: int, allowed: float | int) -> None:
        super().__init__(bad, num_rows, allowed)  # all three, so that it survives pickling between processes
        self.bad = bad
        self.num_rows = num_rows
        self.allowed = allowed

    def __str__(self) -> str:
        listed = [f"{row.where}: {row.reason}" for row in self.bad[:LISTED_BAD_ROWS]]
        rest = len(self.bad) - len(listed)
        lines = [
            f"{len(self.bad)} of {self.num_rows} rows cannot be used, more than the {100 * self.allowed:g} % allowed:",
            *listed,
            *([f"and {rest} more"] if rest else []),
        ]
        return "\n  ".join(lines)


@runtime_checkable
class PairSource(Protocol):
    """A re-iterable source of rows in a fixed order."""

    @property
    def name(self) -> str:
        """The name that the user gave, with the split where there are splits."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hexadecimal digest of the source, which changes when the rows may have changed."""
        ...

    @property
    def num_rows(self) -> int | None:
        """Number of rows; the limit while streaming, or None without one."""
        ...

    def rows(self, start: int = 0) -> Iterator[RawPair]:
        """The rows from index `start`."""
        ...


def read(raw: RawPair) -> ImagePair | BadRow | Unlabelled:
    """Open and check a row; return the pair, or the reason why it is unusable. A row without a label is never a bad
    row."""
    label: float | None = 0.0
    try:
        label = _label(raw.label)
        prompt, weight = _caption(raw.prompt), _weight(raw.weight)
        first, second = (_opened(*item) for item in zip(raw.images, ("first", "second"), strict=True))
    except ValueError as error:
        return Unlabelled(raw.where) if label is None else BadRow(raw.where, " ".join(str(error).split())[:300])
    return ImagePair(prompt, (first, second), label, weight)


RESIZING = "long side truncated"
"""Version of `to_tensor`'s resizing, part of the latents' cache key."""


def to_tensor(image: Image.Image, size: tuple[int, int]) -> Float[Tensor, "3 h w"]:
    """An RGB image as values in [-1, 1] at `size`, which is (height, width).

    Bicubic with antialias to cover the size, then a centre crop: to squares as transformers' processor of
    CLIP's images, which prepared those of SPO's released training.
    """
    assert image.mode == "RGB", image.mode
    if min(size) < 1:
        raise ValueError(f"size must be at least 1 by 1 pixels, got {size}")
    height, width = size
    if height * image.width >= width * image.height:
        tall, wide = height, int(height * image.width / image.height)
    else:
        tall, wide = int(width * image.height / image.width), width
    top, left = (tall - height) // 2, (wide - width) // 2
    # Only the crop is resampled: a strip of 1 by 10 000 pixels would fill the memory otherwise.
    down, across = image.height / tall, image.width / wide
    box = (
        left * across,
        top * down,
        min(image.width, (left + width) * across),
        min(image.height, (top + height) * down),
    )
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box), dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1).contiguous()


def _opened(image: object, which: str) -> Image.Image:
    if isinstance(image, Unreadable):
        raise ValueError(image.reason)
    if image is None:
        raise ValueError(f"the {which} image is missing")
    try:
        return open_image(image)
    except ValueError as error:
        raise ValueError(f"the {which} image: {error}") from error


def _caption(prompt: object) -> str:
    if isinstance(prompt, Unreadable):
        raise ValueError(prompt.reason)
    if prompt is None:
        raise ValueError("the caption is missing")
    return check_prompt(prompt, "the caption")


def _label(label: object) -> float | None:
    if isinstance(label, Unreadable):
        raise ValueError(label.reason)
    if label is None or label != label:  # NaN marks a missing value in tables without nulls
        return None
    if not isinstance(label, int | float) or label not in (0, 0.5, 1):
        raise ValueError(f"label {label!r} is not 0, 0.5 or 1")
    return float(label)


def _weight(weight: object) -> float:
    if isinstance(weight, Unreadable):
        raise ValueError(weight.reason)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= sys.float_info.max:
        raise ValueError(f"weight {weight!r} is not a finite number above 0")
    return float(weight)
