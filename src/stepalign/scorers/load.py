"""The published scorers by name, and scores in batches."""

from __future__ import annotations

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stepalign.core.protocols import Scorer
from stepalign.scorers.clip_score import CLIP_SCORE, CLIPScore
from stepalign.scorers.hps import HPS
from stepalign.scorers.hps import RELEASED as RELEASED_HPS
from stepalign.scorers.pickscore import PICKSCORE, PickScore
from stepalign.scorers.preparation import check_pairs, checked_scores

SCORERS = ("pickscore", "hps-v2.0", "hps-v2.1", "aesthetic", "image-reward", "clip-score")


def load_scorer(name: str, source: str | None, *, device: str | torch.device, dtype: torch.dtype) -> Scorer:
    """A scorer by its name in `SCORERS`, with the weights of a path or hub id, or the published ones."""
    match name:
        case "pickscore":
            return PickScore.from_pretrained(source or PICKSCORE, device=device, dtype=dtype)
        case "hps-v2.0":
            return HPS.from_pretrained(source or RELEASED_HPS, version="v2.0", device=device, dtype=dtype)
        case "hps-v2.1":
            return HPS.from_pretrained(source or RELEASED_HPS, version="v2.1", device=device, dtype=dtype)
        case "aesthetic":
            from stepalign.scorers.aesthetic import AestheticScore

            return AestheticScore.from_pretrained(source, device=device, dtype=dtype)
        case "image-reward":
            from stepalign.scorers.image_reward import ImageReward

            return ImageReward.from_pretrained(source, device=device, dtype=dtype)
        case "clip-score":
            return CLIPScore.from_pretrained(source or CLIP_SCORE, device=device, dtype=dtype)
        case _:
            raise ValueError(f"there is no scorer {name!r}; there are {', '.join(SCORERS)}")


def score_images(
    scorer: Scorer, images: list[Image.Image], prompts: list[str], *, batch_size: int
) -> Float[Tensor, " b"]:
    """The scores of any number of images, each with its prompt, at most `batch_size` through the network at a time.

    Raises ValueError for an empty list, for lists of two lengths, and for scores that are not finite.
    """
    check_pairs(len(images), prompts)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    parts = []
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        parts.append(scorer.score(images[part], prompts[part]))
    return checked_scores(torch.cat(parts), scorer.record.name)
