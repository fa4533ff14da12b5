"""Training the step-aware preference model (SPO supplement 2): a frozen base model shows it what x̂0 looks like at
every noise level, people's preferences say which of two is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTokenizer

from stepalign.batch import Conditioning, ImagePairs
from stepalign.clip import preprocess, tokenize
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.protocols import Decode, Denoiser
from stepalign.sampler import DDIM
from stepalign.seeding import Purpose, generator_for

NUM_TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True, slots=True)
class FrozenBase:
    """What training a judge needs of a base model."""

    encode: Callable[[list[str]], Conditioning]
    encode_images: Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b c hh ww"]]
    decode: Decode
    denoise: Denoiser
    """Guided; no gradient passes through it."""
    sampler: DDIM

    @torch.no_grad()
    def noisy_estimates(
        self,
        images: Float[Tensor, "b n 3 h w"],
        prompts: list[str],
        t: Int[Tensor, " b"],
        generator: torch.Generator,
    ) -> Float[Tensor, "b n 3 h w"]:
        """The decoded x̂0 of n images per prompt, all n under one timestep and one noise of the generator's."""
        b, n = images.shape[:2]
        latents = self.encode_images(images.flatten(0, 1))
        noise = torch.randn(b, *latents.shape[1:], generator=generator).to(latents)
        flat_t = t.repeat_interleave(n)
        x_t = self.sampler.add_noise(latents, noise.repeat_interleave(n, 0), flat_t)
        prediction = self.denoise(x_t, flat_t, self.encode(prompts).tile(n))
        return self.decode(self.sampler.predict_x0(prediction, x_t, flat_t)).unflatten(0, (b, n))


@dataclass(frozen=True, slots=True)
class JudgeTraining:
    """How the judge trains; the defaults are the paper's for Stable Diffusion 1.5."""

    num_steps: int = 8000
    batch_size: int = 64
    """Pairs per optimizer step."""
    learning_rate: float = 3e-6
    num_warmup_steps: int = 500
    """Linear warm-up, then linear decay to zero."""
    weight_decay: float = 0.3
    max_grad_norm: float = 1.0
    seed: int = 0


def preference_loss(
    scores: Float[Tensor, "b 2"], label: Float[Tensor, " b"], weight: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    """The weighted mean cross-entropy of the label under softmax over two scores, ties shifted to an optimum of 0.

    By hand: scores (1, 0) and label 1 give -ln(.7311) = .3133; label .5 gives .8133 - .6931 = .1201, and 0 for equal
    scores.
    """
    target = torch.stack([label, 1 - label], 1)
    entropy = -(target * target.clamp_min(1e-12).log()).sum(1)
    losses = -(target * F.log_softmax(scores, dim=1)).sum(1) - entropy
    return (weight * losses).sum() / weight.sum()


def train_judge(
    model: StepAwarePreferenceModel,
    tokenizer: CLIPTokenizer,
    *,
    base: FrozenBase,
    draw: Callable[[int], ImagePairs],
    config: JudgeTraining,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> float:
    """Train all of the judge's weights in place and return the last loss, averaged over about 100 steps.

    `draw(step)` gives the batch of a step. Timesteps are uniform on 0 ... 999, one per pair, and both images of a
    pair get the same noise.
    """
    device = model.logit_scale.device
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: linear_schedule(step, config.num_warmup_steps, config.num_steps)
    )
    model.train().requires_grad_(True)
    average = math.log(2)
    for step in range(config.num_steps):
        pairs = draw(step)
        generator = generator_for(config.seed, Purpose.JUDGE_TRAINING, step)
        t = torch.randint(NUM_TRAIN_TIMESTEPS, (len(pairs.prompts),), generator=generator).to(device)
        scores = score_pairs(model, tokenizer, base, pairs, t, generator)
        loss = preference_loss(scores, pairs.label.to(device), pairs.weight.to(device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        schedule.step()
        average += 0.01 * (loss.item() - average)
        progress(step + 1, average)
    model.eval().requires_grad_(False)
    return average


def score_pairs(
    model: StepAwarePreferenceModel,
    tokenizer: CLIPTokenizer,
    base: FrozenBase,
    pairs: ImagePairs,
    t: Int[Tensor, " b"],
    generator: torch.Generator,
) -> Float[Tensor, "b 2"]:
    """The judge's scores of both images of each pair, seen through the base model at timestep t.

    Both images go through the base model in one batch, and the text tower sees each distinct prompt once.
    """
    device = model.logit_scale.device
    estimates = base.noisy_estimates(pairs.images.to(device), pairs.prompts, t, generator).flatten(0, 1)
    pixels = preprocess(estimates / 2 + 0.5, model.config.vision_config.image_size)
    distinct = list(dict.fromkeys(pairs.prompts))
    text = model.text_features(tokenize(tokenizer, model.config, distinct).to(device))
    rows = torch.tensor([distinct.index(prompt) for prompt in pairs.prompts], device=device).repeat_interleave(2)
    return model.score(model.image_features(pixels, t.repeat_interleave(2)), text[rows]).unflatten(0, (-1, 2))


@torch.no_grad()
def pair_accuracy(
    model: StepAwarePreferenceModel,
    tokenizer: CLIPTokenizer,
    *,
    base: FrozenBase,
    batches: Sequence[ImagePairs],
    timestep: int,
    seed: int,
) -> tuple[float, int]:
    """How many pairs the judge orders as their label does at a timestep, and of how many.

    Pairs whose label is a tie are left out; equal scores count half.
    """
    right, total = 0.0, 0
    for index, pairs in enumerate(batches):
        t = torch.full((len(pairs.prompts),), timestep, device=model.logit_scale.device)
        scores = score_pairs(
            model, tokenizer, base, pairs, t, generator_for(seed, Purpose.EVALUATION, timestep, index)
        ).cpu()
        decided = pairs.label != 0.5
        agreement = (scores[:, 0] - scores[:, 1]).sign() * (pairs.label - 0.5).sign()
        right += float(((agreement + 1) / 2)[decided].sum())
        total += int(decided.sum())
    return right, total


def linear_schedule(step: int, num_warmup: int, num_steps: int) -> float:
    """Linear warm-up to 1, then linear decay to 0 at num_steps."""
    if step < num_warmup:
        return (step + 1) / num_warmup
    return max(0.0, (num_steps - step) / max(1, num_steps - num_warmup))
