"""Reading a page that the library wrote: its elements, its text, the files inside it."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class Page(HTMLParser):
    """The elements of a page as (tag, attributes) and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(source)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def named(self, tag: str, **having: str) -> list[dict[str, str | None]]:
        return [
            a for t, a in self.elements if t == tag and all(v in (a.get(k) or "").split() for k, v in having.items())
        ]


def assert_self_contained(result: Page) -> None:
    """Check that a page with images asks nothing of a network, and forbids itself to."""
    links = [a[name] or "" for _, a in result.elements for name in ("src", "href", "srcset", "xlink:href") if name in a]
    assert len(links) >= 5
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"https?:|@import|url\(", result.source)
    policy = result.named("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert "default-src 'none'" in (policy or "")


def some_images(*shape: int) -> Tensor:
    """Random images of whole 8-bit levels, which a PNG keeps exactly."""
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0)) / 255


def decoded(image: dict[str, str | None]) -> np.ndarray:
    kind, data = (image["src"] or "").split(",", 1)
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def levels(an_image: Tensor) -> np.ndarray:
    return (an_image * 255).round().byte().permute(1, 2, 0).numpy()


def score(base: float, aligned: float, low: float, high: float) -> dict[str, Any]:
    return {"base": base, "aligned": aligned, "difference": aligned - base, "interval": [low, high]}


RUN_SUMMARY: dict[str, Any] = {
    "recipe": "gradspo-miniature",
    "seed": 0,
    "num_prompts": 216,
    "scores": {"judge": score(21.0, 21.9, 0.7, 1.1)},
    "seconds": 191.2,
    "comparisons_trained": 9123,
    "calls": {"sampling_ema": 123456, "training_policy": 5, "judge_images": 6, "something_new": 7},
    "versions": {"torch": "2.13.0"},
}
