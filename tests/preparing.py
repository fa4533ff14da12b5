"""Folders of prepared pairs for the tests: making them, looking into them, being cut while making them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from judge_world import SIZE, Encoders, Rows
from torch import Tensor

from stepalign.core.batch import Conditioning
from stepalign.data.pairs import RawPair, read, to_tensor
from stepalign.data.prepared import Manifest, PreparedPairs, prepare

BROKEN = (b"damaged", b"damaged")


def made(
    folder: Path, rows: list[RawPair] | Rows, encoders: Encoders | None = None, *, max_bad: float = 0.0, **options: Any
) -> tuple[PreparedPairs, Manifest]:
    """Rows made ready in a folder, by the toy encoders unless others are given."""
    source = rows if isinstance(rows, Rows) else Rows(rows)
    return prepare(source, folder, encoder=(encoders or Encoders()).of_pairs(**options), max_bad=max_bad)


def images_of(row: RawPair) -> Tensor:
    """Both images in [-1, 1]."""
    return torch.stack([to_tensor(image, SIZE) for image in read(row).images])


def latents_of(*rows: RawPair) -> Tensor:
    return torch.stack([Encoders().encode_images(images_of(row)) for row in rows])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Cut(Exception):
    """The process ends here."""


class CutEncoders(Encoders):
    """Encoders whose process ends when it would encode the images after so many, or the prompts after so many."""

    def __init__(self, *, images: int = 1000, prompts: int = 1000) -> None:
        super().__init__()
        self.left = [images, prompts]

    def encode(self, prompts: list[str]) -> Conditioning:
        if len(self.prompts) + len(prompts) > self.left[1]:
            raise Cut
        return super().encode(prompts)

    def encode_images(self, images: Tensor) -> Tensor:
        if len(self.images) + len(images) > self.left[0]:
            raise Cut
        return super().encode_images(images)
