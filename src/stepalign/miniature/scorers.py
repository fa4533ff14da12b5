"""The miniature's scorers of finished images: its two oracles, and the CLIP from which its judge was trained."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stepalign.core.protocols import Metric, Scorer
from stepalign.miniature import PICKSCORE, oracles, world
from stepalign.scorers.pickscore import PickScore
from stepalign.scorers.preparation import as_tensor, check_pairs
from stepalign.scorers.record import scorer_record

SCORERS = ("miniature-aesthetic", "miniature-alignment", "miniature-pickscore")


class OracleScorer:
    """An oracle, which measures the pixels of the world's 32-pixel images by fixed rules."""

    def __init__(self, name: str, oracle: Metric) -> None:
        self._oracle = oracle
        self.record = scorer_record(
            name,
            weights="stepalign.miniature.oracles",
            files=[Path(oracles.__file__)],
            preprocessing="RGB as it is",
            scale="0 to 1",
            needs_prompt=oracle is oracles.alignment,
        )

    def num_cut(self, prompts: list[str]) -> int:
        """Always 0: captions are looked up whole."""
        return 0

    def score(self, images: list[Image.Image], prompts: list[str]) -> Float[Tensor, " b"]:
        """Scores of images of the miniature's world; raises ValueError for other images and captions."""
        check_pairs(len(images), prompts)
        sizes = {image.size for image in images} - {(world.PIXELS, world.PIXELS)}
        if sizes:
            raise ValueError(f"{self.record.name} scores the miniature's images of {world.PIXELS} pixels, got {sizes}")
        world.attributes_of(prompts)
        return self._oracle(torch.stack([as_tensor(image) for image in images]), prompts).float()


def miniature_scorer(name: str) -> Scorer:
    """One of the miniature's scorers by its name in `SCORERS`."""
    match name:
        case "miniature-aesthetic":
            return OracleScorer(name, oracles.aesthetic)
        case "miniature-alignment":
            return OracleScorer(name, oracles.alignment)
        case "miniature-pickscore":
            return PickScore.from_pretrained(str(PICKSCORE))
        case _:
            raise ValueError(f"there is no scorer {name!r}; the miniature has {', '.join(SCORERS)}")
