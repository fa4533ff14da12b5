"""The miniature's judges, trained on the world's preference pairs: a PickScore-like CLIP, then the SPM made from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionConfig

from stepalign.batch import ImagePairs
from stepalign.clip import preprocess
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.miniature import world
from stepalign.miniature.base import Progress, draw_pictures, halve_weights, optimise, text_config, tokenize
from stepalign.models import sd
from stepalign.policy import GuidedNetwork
from stepalign.sampler import DDIM
from stepalign.seeding import Purpose, generator_for
from stepalign.statistics import wilson_interval
from stepalign.train_judge import FrozenBase, JudgeTraining, pair_accuracy, preference_loss, train_judge

GUIDANCE_SCALE = 2.0
TIMESTEPS = (0, 251, 501, 701, 951)


def clip_config(tokenizer: CLIPTokenizer) -> CLIPConfig:
    """A CLIP of a third of a million parameters for 32-pixel pictures."""
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


def draw_image_pairs(captions: list[str], num: int, generator: torch.Generator) -> ImagePairs:
    """Labelled pairs of rendered pictures for captions drawn at random."""
    index = torch.randint(len(captions), (num,), generator=generator).tolist()
    prompts = [captions[i] for i in index]
    first, second, label = world.draw_pairs(prompts, generator)
    images = torch.stack([world.render(first, generator), world.render(second, generator)], 1) * 2 - 1
    return ImagePairs(prompts, images, label, torch.ones(num))


def train_pickscore(
    tokenizer: CLIPTokenizer, *, contrastive_steps: int, pair_steps: int, seed: int, progress: Progress
) -> tuple[CLIPModel, dict[str, float]]:
    """CLIP trained on captions, then on preferences over clean pictures as PickScore is; and both final losses."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    captions, _ = world.split_captions()
    model = CLIPModel(clip_config(tokenizer))

    def contrastive() -> tuple[Tensor, Tensor]:
        pictures, texts = draw_pictures(128, generator)
        pixels = preprocess(pictures / 2 + 0.5, world.PIXELS)
        logits = model(input_ids=tokenize(tokenizer, texts), pixel_values=pixels).logits_per_text
        target = torch.arange(len(texts))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return loss, loss

    def preference() -> tuple[Tensor, Tensor]:
        pairs = draw_image_pairs(captions, 64, generator)
        pixels = preprocess(pairs.images.flatten(0, 1) / 2 + 0.5, world.PIXELS)
        logits = model(input_ids=tokenize(tokenizer, pairs.prompts), pixel_values=pixels).logits_per_text
        rows = torch.arange(len(pairs.prompts))
        scores = torch.stack([logits[rows, 2 * rows], logits[rows, 2 * rows + 1]], 1)
        loss = preference_loss(scores, pairs.label, pairs.weight)
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


def frozen_base(model: sd.StableDiffusion) -> FrozenBase:
    """The miniature base model as its judge's training sees it."""
    guided = GuidedNetwork(model.network, negative=model.negative(), guidance_scale=GUIDANCE_SCALE)
    return FrozenBase(model.encode, model.encode_images, model.decode, guided, DDIM(model.schedule(20)))


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
    model = sd.load(str(base_folder))
    base = frozen_base(model)
    tokenizer = model.pipeline.tokenizer
    clip, losses = train_pickscore(
        tokenizer, contrastive_steps=steps[0], pair_steps=steps[1], seed=seed, progress=progress
    )
    clip.save_pretrained(pickscore_folder)
    spm = StepAwarePreferenceModel.from_clip(clip)
    captions, held_out = world.split_captions()
    config = JudgeTraining(
        num_steps=steps[2], batch_size=64, learning_rate=5e-4, num_warmup_steps=100, weight_decay=0.01, seed=seed
    )
    spm_loss = train_judge(
        spm,
        tokenizer,
        base=base,
        draw=lambda step: draw_image_pairs(captions, config.batch_size, generator_for(seed, Purpose.JUDGE_DATA, step)),
        config=config,
        progress=lambda step, loss: progress("spm", step, config.num_steps, loss),
    )
    spm.save_pretrained(spm_folder)
    for folder in (pickscore_folder, spm_folder):
        tokenizer.save_pretrained(folder)
        halve_weights(folder)
    return (
        losses
        | {"spm_loss": spm_loss}
        | measure_accuracy(
            tokenizer, base, {"pickscore": StepAwarePreferenceModel.from_clip(clip).eval(), "spm": spm}, held_out
        )
    )


def measure_accuracy(
    tokenizer: CLIPTokenizer, base: FrozenBase, judges: dict[str, StepAwarePreferenceModel], captions: list[str]
) -> dict[str, object]:
    """Each judge's held-out pair accuracy by timestep, with a 95 % interval, on the same noisy inputs."""
    batches = [draw_image_pairs(captions, 250, generator_for(99, Purpose.JUDGE_DATA, index)) for index in range(8)]

    def accuracy(judge: StepAwarePreferenceModel, timestep: int) -> dict[str, object]:
        right, total = pair_accuracy(judge, tokenizer, base=base, batches=batches, timestep=timestep, seed=7)
        return {"accuracy": right / total, "interval": wilson_interval(right, total), "pairs": total}

    return {f"{name}_accuracy": {t: accuracy(judge, t) for t in TIMESTEPS} for name, judge in judges.items()}
