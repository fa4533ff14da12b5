"""The images of a comparison's page: which prompts it shows, and how a card looks."""

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
"""What a page holds at most: at 512 pixels an image takes about 40 kB."""
SIDE = 512
"""The most pixels a side keeps."""


@dataclass(frozen=True, slots=True)
class ComparedPrompt:
    """One prompt with what every model drew for it."""

    number: int
    """Its prompt_index."""
    prompt: str
    category: str | None
    files: list[list[Path]]
    """By model, then image."""
    scores: dict[str, list[list[float]]]
    """By scorer, model and image."""

    def mean(self, scorer: str, model: int) -> float:
        """Of a model's images."""
        scores = self.scores[scorer][model]
        return sum(scores) / len(scores)

    def gain(self, scorer: str, pair: tuple[int, int]) -> float:
        """The second model's mean less the first's."""
        return self.mean(scorer, pair[1]) - self.mean(scorer, pair[0])


@dataclass(frozen=True, slots=True)
class Gallery:
    """The prompts that a page shows, in their order."""

    prompts: list[ComparedPrompt]
    ranks: dict[int, int]
    """The place of those drawn at random, from 0, by prompt number."""
    num_images: int
    """Shown of each prompt and model, at most."""


def choose_prompts(prompts: list[ComparedPrompt], pairs: list[tuple[int, int]], *, seed: int = 0) -> Gallery:
    """As many prompts as a page holds, where not all: half are drawn at random, the others have the largest gains and
    losses by each scorer and pair of models in turn."""
    num_models = len(prompts[0].files)
    limit = max(2, min(MOST_PROMPTS, MOST_IMAGES // num_models))
    drawn = np.random.default_rng(seed).permutation(len(prompts)).tolist()
    chosen = drawn
    if len(prompts) > limit:
        drawn = drawn[: limit // 2]
        extremes = []
        for scorer, pair in itertools.product(prompts[0].scores, pairs):
            order = np.argsort([prompt.gain(scorer, pair) for prompt in prompts], kind="stable").tolist()
            extremes += [order[::-1], order]
        in_turn = itertools.chain.from_iterable(zip(*extremes, strict=True))
        chosen = list(dict.fromkeys([*drawn, *in_turn]))[:limit]
    each = max(1, MOST_IMAGES // (num_models * len(chosen)))
    ranks = {prompts[index].number: rank for rank, index in enumerate(drawn)}
    return Gallery([prompts[index] for index in sorted(chosen)], ranks, each)


def thumbnail(path: Path) -> dict[str, Any]:
    """An image file as a data URL with its size, shrunk to `SIDE`; tiny ones keep every pixel as it is."""
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
    """One prompt as the template shows it: rows of one image per model, with lines of scorer, score and trend."""
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
