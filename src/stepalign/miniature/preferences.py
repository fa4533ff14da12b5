"""The miniature's judges, trained on the world's preference pairs: a PickScore-like CLIP, then the SPM made from it."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionConfig

from stepalign.core.seeding import Purpose, generator_for
from stepalign.data.pairs import RawPair
from stepalign.data.prepared import PairEncoder, prepare
from stepalign.judges.pairs import FrozenBase, JudgeScorer
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.miniature import world
from stepalign.miniature.base import Progress, halve_weights, optimise, sample_images, text_config, tokenize
from stepalign.miniature.settings import GUIDANCE_SCALE, NUM_HELD_OUT_PAIRS, NUM_TRAINING_PAIRS, SPM_TRAINING
from stepalign.models.base import BaseModel
from stepalign.models.clip import preprocess, preprocess_decoded
from stepalign.models.load import load
from stepalign.models.policy import GuidedNetwork
from stepalign.training.evaluate_judge import compare_judges, score_held_out
from stepalign.training.judge_trainer import JudgeTrainer, preference_losses

TIMESTEPS = (0, 251, 501, 701, 951)
SPLITS = ("train", "held-out")
BLOCK = 256
"""Pairs per block of random numbers."""


def clip_config(tokenizer: CLIPTokenizer) -> CLIPConfig:
    """A CLIP of a third of a million parameters for 32-pixel images."""
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=world.PIXELS,
        patch_size=8,
        hidden_act="gelu",
        projection_dim=64,
    )
    text = text_config(tokenizer)
    text.projection_dim = 64
    return CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64)


def sample_image_pairs(
    captions: list[str], num: int, generator: torch.Generator
) -> tuple[list[str], Float[Tensor, "b 2 3 h w"], Float[Tensor, " b"]]:
    """Random captions, two rendered images in [0, 1] of each, and the annotator's labels."""
    index = torch.randint(len(captions), (num,), generator=generator).tolist()
    prompts = [captions[i] for i in index]
    first, second, label = world.sample_pairs(prompts, generator)
    return prompts, torch.stack([world.render(first, generator), world.render(second, generator)], 1), label


class WorldPairs:
    """The world's preference pairs as a source of rows: any number, generated anew on every read."""

    def __init__(self, *, split: str, num_rows: int) -> None:
        if split not in SPLITS:
            raise ValueError(f"the miniature's pairs have the splits {' and '.join(SPLITS)}, not {split!r}")
        self.name = f"miniature ({split})"
        self.num_rows: int | None = num_rows
        self._split = SPLITS.index(split)
        self._captions = world.split_captions()[self._split]
        self.fingerprint = hashlib.sha256(f"world pairs 1: {self.name}, {num_rows} rows".encode()).hexdigest()

    def rows(self, start: int = 0) -> Iterator[RawPair]:
        """The rows from index `start`, generated in blocks seeded by split and block index."""
        for row in range(start, self.num_rows or 0):
            block, index = divmod(row, BLOCK)
            if row == start or index == 0:
                generator = generator_for(0, Purpose.JUDGE_DATA, self._split, block)
                prompts, images, label = sample_image_pairs(self._captions, BLOCK, generator)
                pixels = (images * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
            sides = (Image.fromarray(pixels[index, 0]), Image.fromarray(pixels[index, 1]))
            yield RawPair(f"row {row}", prompts[index], sides, label[index].item())


def train_pickscore(
    tokenizer: CLIPTokenizer, *, contrastive_steps: int, pair_steps: int, seed: int, progress: Progress
) -> tuple[CLIPModel, dict[str, float]]:
    """CLIP trained on captions, then on preferences over clean images as PickScore is; and both final losses."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    captions, _ = world.split_captions()
    model = CLIPModel(clip_config(tokenizer))

    def contrastive() -> tuple[Tensor, Tensor]:
        images, texts = sample_images(128, generator)
        pixels = preprocess_decoded(images, world.PIXELS)
        logits = model(input_ids=tokenize(tokenizer, texts), pixel_values=pixels).logits_per_text
        target = torch.arange(len(texts))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return loss, loss

    def preference() -> tuple[Tensor, Tensor]:
        prompts, images, label = sample_image_pairs(captions, 64, generator)
        pixels = preprocess(images.flatten(0, 1), world.PIXELS, rounding="transformers")
        logits = model(input_ids=tokenize(tokenizer, prompts), pixel_values=pixels).logits_per_text
        rows = torch.arange(len(prompts))
        scores = torch.stack([logits[rows, 2 * rows], logits[rows, 2 * rows + 1]], 1)
        loss = preference_losses(scores, label).mean()
        return loss, loss

    def stage(name: str, loss_of: Callable[[], tuple[Tensor, Tensor]], rate: float, num_steps: int) -> float:
        return optimise(
            model,
            loss_of,
            rate=rate,
            weight_decay=0.01,
            num_warmup=100,
            num_steps=num_steps,
            progress=lambda *row: progress(name, *row),
        )

    losses = {
        "clip_loss": stage("clip", contrastive, 1e-3, contrastive_steps),
        "pickscore_loss": stage("pickscore", preference, 5e-4, pair_steps),
    }
    return model.eval().requires_grad_(False), losses


def build_judges(
    base_folder: Path,
    pickscore_folder: Path,
    spm_folder: Path,
    *,
    seed: int,
    steps: tuple[int, int, int],
    progress: Progress,
) -> dict[str, object]:
    """Train both judges over a built base model and save them in half precision; returns losses and accuracies."""
    model = load(str(base_folder))
    tokenizer = model.pipeline.tokenizer
    clip, losses = train_pickscore(
        tokenizer, contrastive_steps=steps[0], pair_steps=steps[1], seed=seed, progress=progress
    )
    clip.save_pretrained(pickscore_folder)
    guided = GuidedNetwork(model.network, negative=model.negative(), guidance_scale=GUIDANCE_SCALE)
    base = FrozenBase(guided, model.decode, model.schedule(20))
    scorer = JudgeScorer(StepAwarePreferenceModel.from_clip(clip), tokenizer, base)
    figures = train_spm(scorer, model, num_steps=steps[2], seed=seed, progress=progress)
    scorer.model.save_pretrained(spm_folder)
    for folder in (pickscore_folder, spm_folder):
        tokenizer.save_pretrained(folder)
        halve_weights(folder)
    return losses | figures


def train_spm(
    scorer: JudgeScorer, model: BaseModel, *, num_steps: int, seed: int, progress: Progress
) -> dict[str, object]:
    """Train the step-aware preference model as the recipe spm-miniature does; returns its loss and accuracies."""
    config = replace(SPM_TRAINING, num_steps=num_steps)
    encoder = PairEncoder(model.encode, model.encode_images, (world.PIXELS, world.PIXELS), batch_size=64)
    with tempfile.TemporaryDirectory() as cache:
        pairs, held_out = (
            prepare(WorldPairs(split=split, num_rows=num), Path(cache, split), encoder=encoder)[0]
            for split, num in zip(SPLITS, (NUM_TRAINING_PAIRS, NUM_HELD_OUT_PAIRS), strict=True)
        )
        measure = partial(score_held_out, scorer, held_out, timesteps=TIMESTEPS, seed=0, batch_size=64)
        start = measure()
        trainer = JudgeTrainer(scorer, pairs=pairs, config=config, seed=seed)
        loss = math.log(2)
        for step in range(num_steps):
            loss += 0.01 * (float(trainer.step()["loss"]) - loss)
            progress("spm", step + 1, num_steps, loss)
        accuracy, _ = compare_judges(start, measure(), held_out.label, held_out.prompts)
    return {"spm_loss": loss, "accuracy": accuracy}
