"""The gallery of a comparison page: choice of prompts, and their cards."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stepalign.reports.page import SMALL, data_url, fixed
from stepalign.support.images import open_image
from stepalign.support.json_text import to_json

MOST_PROMPTS, MOST_IMAGES = 120, 480
"""Most images of a page; at 512 pixels an image takes about 40 kB."""
SIDE = 512
"""Most pixels per side."""


@dataclass(frozen=True, slots=True)
class ComparedPrompt:
    """One prompt with every model's images and scores."""

    number: int
    """Its prompt_index."""
    prompt: str
    category: str | None
    files: list[list[Path]]
    """By model, then image."""
    scores: dict[str, list[list[float]]]
    """By scorer, model and image."""

    def mean(self, scorer: str, model: int) -> float:
        """Mean score of a model's images."""
        scores = self.scores[scorer][model]
        return sum(scores) / len(scores)

    def gain(self, scorer: str, pair: tuple[int, int]) -> float:
        """The second model's mean minus the first's."""
        return self.mean(scorer, pair[1]) - self.mean(scorer, pair[0])


@dataclass(frozen=True, slots=True)
class Gallery:
    """The prompts of a page, in order."""

    prompts: list[ComparedPrompt]
    ranks: dict[int, int]
    """Rank of randomly chosen prompts, from 0, by prompt index."""
    num_images: int
    """Most images of each prompt and model."""


def choose_prompts(prompts: list[ComparedPrompt], pairs: list[tuple[int, int]], *, seed: int = 0) -> Gallery:
    """Choose the prompts of a page, all if it holds them: half at random, the others with the largest gains and losses
    by each scorer and pair of models in turn."""
    num_models = len(prompts[0].files)
    limit = max(2, min(MOST_PROMPTS, MOST_IMAGES // num_models))
    at_random = np.random.default_rng(seed).permutation(len(prompts)).tolist()
    chosen = at_random
    if len(prompts) > limit:
        at_random = at_random[: limit // 2]
        extremes = []
        for scorer, pair in itertools.product(prompts[0].scores, pairs):
            order = np.argsort([prompt.gain(scorer, pair) for prompt in prompts], kind="stable").tolist()
            extremes += [order[::-1], order]
        in_turn = itertools.chain.from_iterable(zip(*extremes, strict=True))
        chosen = list(dict.fromkeys([*at_random, *in_turn]))[:limit]
    each = max(1, MOST_IMAGES // (num_models * len(chosen)))
    ranks = {prompts[index].number: rank for rank, index in enumerate(at_random)}
    return Gallery([prompts[index] for index in sorted(chosen)], ranks, each)


def thumbnail(path: Path) -> dict[str, Any]:
    """An image file as a data URL with its size, shrunk to `SIDE`; tiny images keep every pixel."""
    image = open_image(path)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    small = max(image.size) < SMALL
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=80, lossless=small, method=2)
    source = data_url(buffer.getvalue(), kind="image/webp")
    return {"source": source, "width": image.width, "height": image.height, "small": small}


def card(
    prompt: ComparedPrompt, gallery: Gallery, models: list[str], digits: dict[str, int], pair: tuple[int, int]
) -> dict[str, Any]:
    """One prompt for the template: rows of one image per model, with lines of scorer, score and trend."""
    rows = []
    for index in range(min(gallery.num_images, len(prompt.files[0]))):
        sides = []
        for model, name in enumerate(models):
            lines = []
            for scorer, table in prompt.scores.items():
                trend = np.sign(table[model][index] - table[pair[0]][index])
                lines.append((scorer, fixed(table[model][index], digits[scorer]), {1: "up", -1: "down"}.get(trend, "")))
            sides.append({"name": name, "image": thumbnail(prompt.files[model][index]), "lines": lines})
        rows.append(sides)
    scorer = next(iter(prompt.scores))
    gain = prompt.gain(scorer, pair)
    means = [[float(f"{prompt.mean(name, model):.7g}") for model in range(len(models))] for name in prompt.scores]
    return {
        "prompt": prompt.prompt,
        "number": prompt.number,
        "category": prompt.category,
        "rows": rows,
        "means": to_json(means),
        "random": gallery.ranks.get(prompt.number, ""),
        "gain": fixed(gain, digits[scorer], sign="+"),
        "verdict": "better" if gain > 0 else "worse" if gain < 0 else "",
    }
