"""What scoring costs: images per second by scorer, the share that preparing them takes, and how often networks run.

    python benchmarks/evaluation.py [--size tiny|full] [--output FILE.json]

Weights are random. "tiny" has towers of two layers, and shows what is spent around the networks. "full" has the
architectures of the published scorers and wants a GPU with 16 GB. All scorers are measured in one process, one after
another on the same images, in rounds, so that their ratios mean something where seconds do not.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import (
    BertTokenizer,
    BlipTextConfig,
    BlipVisionConfig,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from stepalign import miniature
from stepalign.core.protocols import Scorer
from stepalign.judges.spm_files import vit_h_config
from stepalign.scorers.aesthetic import AestheticScore
from stepalign.scorers.clip_score import CLIPScore
from stepalign.scorers.hps import HPS, letter_box
from stepalign.scorers.image_reward import ImageReward, RewardNetwork
from stepalign.scorers.load import score_images
from stepalign.scorers.pickscore import PickScore
from stepalign.scorers.preparation import as_tensor, clip_pixels
from stepalign.scorers.score_head import ScoreHead
from stepalign.support.environment import device_name, versions

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
BERT_TOKENS = 30_524


@dataclass(frozen=True)
class Measured:
    """A scorer with what is watched while it scores."""

    scorer: Scorer
    prepare: Callable[[Image.Image], object]
    """What it does to an image before its network."""
    calls: Counter[str]
    """Rows through the towers: "image" and "prompt"."""


def main() -> None:
    """Measure every scorer in rounds and print a table."""
    parser = argparse.ArgumentParser(description="Images per second of every scorer, with random weights.")
    parser.add_argument("--size", choices=["tiny", "full"], default="tiny")
    parser.add_argument("--images", type=int, default=32, help="a round's, four to a prompt")
    parser.add_argument("--pixels", type=int, default=512, help="height and width of an image")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5, help="measured, after one that is not")
    parser.add_argument("--output", type=Path, default=None, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scorers = make_scorers(arguments.size, device)
    rows = measure(scorers, arguments.images, arguments.pixels, arguments.batch_size, arguments.rounds)
    print(table(rows))
    if arguments.output is not None:
        settings = {key: value for key, value in vars(arguments).items() if key != "output"}
        figures = settings | {"device": device_name(device), "versions": versions(), "scorers": rows}
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def table(rows: dict[str, dict[str, float]]) -> str:
    """The scorers against PickScore as Markdown."""
    first = rows["pickscore"]["images_per_second"]
    lines = ["| scorer | images per s | ÷ PickScore's | preparing, of the time | an image | a prompt |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, row in rows.items():
        speed = row["images_per_second"]
        share, images, prompts = row["preparing"], row["network_per_image"], row["network_per_prompt"]
        lines.append(f"| {name} | {speed:.1f} | {speed / first:.2f} | {share:.2f} | {images:.2f} | {prompts:.2f} |")
    return "\n".join([*lines, "", "The last two columns are how often one goes through its tower; prompts repeat."])


def measure(
    scorers: dict[str, Measured], num_images: int, pixels: int, batch_size: int, num_rounds: int
) -> dict[str, dict[str, float]]:
    """Medians over rounds, in each of which every scorer sees the same new images and prompts."""
    seconds: dict[str, list[float]] = {name: [] for name in scorers}
    preparing: dict[str, list[float]] = {name: [] for name in scorers}
    num_prompts = -(-num_images // 4)
    for number in range(num_rounds + 1):
        rng = np.random.default_rng(number)
        images = [Image.fromarray(rng.integers(0, 256, (pixels, pixels, 3), np.uint8)) for _ in range(num_images)]
        prompts = [f"round {number}, a red ring and {index // 4} dots" for index in range(num_images)]
        for name, measured in scorers.items():
            measured.calls.clear()
            start = time.perf_counter()
            score_images(measured.scorer, images, prompts, batch_size=batch_size)
            middle = time.perf_counter()
            for image in images:
                measured.prepare(image)
            if number > 0:
                seconds[name].append(middle - start)
                preparing[name].append(time.perf_counter() - middle)
    return {
        name: {
            "images_per_second": num_images / median(seconds[name]),
            "preparing": median(preparing[name]) / median(seconds[name]),
            "network_per_image": measured.calls["image"] / num_images,
            "network_per_prompt": measured.calls["prompt"] / num_prompts,
        }
        for name, measured in scorers.items()
    }


def watched(scorer: Scorer, size: int, *, images: nn.Module, prompts: nn.Module | None) -> Measured:
    """A scorer whose towers count their rows."""
    calls: Counter[str] = Counter()

    def count(kind: str, argument: str) -> Callable[..., None]:
        def hook(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            calls[kind] += len(named[argument] if argument in named else positional[0])

        return hook

    images.register_forward_pre_hook(count("image", "pixel_values"), with_kwargs=True)
    if prompts is not None:
        prompts.register_forward_pre_hook(count("prompt", "input_ids"), with_kwargs=True)
    return Measured(scorer, lambda image: clip_pixels([image], size, "torchvision"), calls)


def make_scorers(size: str, device: torch.device) -> dict[str, Measured]:
    """Every scorer with random weights; those made of the same CLIP have one each, as published."""
    words = CLIPTokenizer.from_pretrained(miniature.PICKSCORE)
    if size == "tiny":
        text = {"vocab_size": len(words), "eos_token_id": 2, "bos_token_id": words.bos_token_id}
        towers = {"text_config": TINY | text, "vision_config": TINY | {"image_size": 224, "patch_size": 32}}
        big = small = CLIPConfig(**towers, projection_dim=64)
        vision, reader = TINY | {"image_size": 224, "patch_size": 32}, TINY | {"encoder_hidden_size": 64}
    else:
        common = {"projection_dim": 768}
        large = CLIPConfig(
            text_config=BASE | common | {"eos_token_id": 2}, vision_config=LARGE | common | {"patch_size": 14}, **common
        )
        big, small = vit_h_config(), large
        vision, reader = LARGE | {"image_size": 224, "patch_size": 16}, BASE | {"encoder_hidden_size": 1024}
    made = {}
    for name, config in (("pickscore", big), ("hps-v2.1", big), ("clip-score", small)):
        made[name] = clip_scorer(name, config, words, device)
    made["aesthetic"] = aesthetic(small, device)
    made["image-reward"] = image_reward(vision, reader, device)
    return made


def clip_scorer(name: str, config: CLIPConfig, words: CLIPTokenizer, device: torch.device) -> Measured:
    """PickScore, HPS or CLIPScore."""
    # HPS refuses the activation of OpenAI's CLIP, which costs the same.
    for tower in (config.text_config, config.vision_config):
        tower.hidden_act = "gelu"
    with device:
        model = CLIPModel(config)
    match name:
        case "pickscore":
            scorer: Scorer = PickScore(model, words)
        case "hps-v2.1":
            scorer = HPS(model, words, version="v2.1")
        case _:
            scorer = CLIPScore(model, words)
    measured = watched(scorer, 224, images=model.vision_model, prompts=model.text_model)
    if name == "hps-v2.1":
        return Measured(scorer, lambda image: letter_box(as_tensor(image)[None], 224, antialias=True), measured.calls)
    return measured


def aesthetic(config: CLIPConfig, device: torch.device) -> Measured:
    """LAION's predictor on a CLIP's vision tower."""
    tower = config.vision_config
    tower.projection_dim, tower.hidden_act = config.projection_dim, "quick_gelu"
    with device:
        backbone, head = CLIPVisionModelWithProjection(tower), ScoreHead(config.projection_dim)
    return watched(AestheticScore(backbone, head), 224, images=backbone, prompts=None)


def image_reward(vision: dict[str, Any], reader: dict[str, Any], device: torch.device) -> Measured:
    """ImageReward's two towers."""
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    tokens = [*special, *(f"word{index}" for index in range(BERT_TOKENS - len(special)))]
    text = BlipTextConfig(**reader, vocab_size=BERT_TOKENS, is_decoder=True, bos_token_id=None, sep_token_id=None)
    with device:
        network = RewardNetwork(BlipVisionConfig(**vision), text)
    scorer = ImageReward(network, BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}))
    return watched(scorer, 224, images=network.vision, prompts=network.text)


if __name__ == "__main__":
    main()
