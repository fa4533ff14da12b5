"""The miniature's base model, trained from scratch: tokenizer, VAE, then text encoder and UNet together.

The result is an ordinary `StableDiffusionPipeline` of 32-pixel images with 8x8x4 latents.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from stepalign.miniature import world

MAX_TOKENS = 16
WIDTH = 64
Progress = Callable[[str, int, int, float], None]
"""Callback with a stage's name, the step, the number of steps and the loss."""


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer that knows every byte, with the words of the world as single tokens."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer = Tokenizer(BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = sorted(ByteLevel.alphabet())
    words = sorted({word for captions in world.split_captions() for text in captions for word in text.split()})
    trainer = BpeTrainer(vocab_size=10_000, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator(words, trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    tokens = alphabet + [letter + "</w>" for letter in alphabet] + ["".join(pair) for pair in merges] + [start, end]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merged = "".join(f"{a} {b}\n" for a, b in merges)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merged}", encoding="utf-8", newline="\n")
    return CLIPTokenizer(vocabulary, merges, model_max_length=MAX_TOKENS, pad_token=end)


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """The size of both text towers: the base model's and the judge's."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """Token ids "b l", padded to the model's length."""
    return tokenizer(
        prompts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


def optimise(
    model: nn.Module,
    loss_of: Callable[[], tuple[Tensor, Tensor]],
    *,
    rate: float,
    weight_decay: float,
    num_warmup: int,
    num_steps: int,
    progress: Callable[[int, int, float], None],
    after_step: Callable[[int], None] = lambda step: None,
) -> float:
    """AdamW with a linear warm-up and half a cosine down to zero, gradients clipped to 1.

    `loss_of` returns the loss to minimise and the one to report; its average over about 100 steps is returned.
    """

    def factor(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / num_warmup
        return 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / max(1, num_steps - num_warmup)))

    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    average = 0.0
    for step in range(num_steps):
        loss, reported = loss_of()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        after_step(step)
        average = reported.item() if step == 0 else 0.99 * average + 0.01 * reported.item()
        progress(step + 1, num_steps, average)
    return average


def sample_images(num: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
    """Rendered images in [-1, 1] and their captions."""
    attributes = world.sample_attributes(num, generator)
    images = world.render(world.sample_scenes(attributes, generator), generator)
    return images * 2 - 1, [world.caption(row) for row in attributes.tolist()]


def train_vae(*, num_steps: int, batch_size: int, seed: int, progress: Progress) -> tuple[AutoencoderKL, float]:
    """The autoencoder, 3x32x32 to 4x8x8, and its final loss (mean squared error, [-1, 1] images)."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=world.PIXELS,
    )

    def loss_of() -> tuple[Tensor, Tensor]:
        images, _ = sample_images(batch_size, generator)
        posterior = vae.encode(images).latent_dist
        reconstruction = F.mse_loss(vae.decode(posterior.sample(generator)).sample, images)
        return reconstruction + 1e-5 * posterior.kl().mean(), reconstruction

    average = optimise(
        vae,
        loss_of,
        rate=3e-3,
        weight_decay=1e-4,
        num_warmup=100,
        num_steps=num_steps,
        progress=lambda *row: progress("vae", *row),
    )
    with torch.no_grad():
        latents = vae.encode(sample_images(1024, generator)[0]).latent_dist.mode()
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return vae.eval().requires_grad_(False), average


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.5's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def train_denoiser(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, *, num_steps: int, batch_size: int, seed: int, progress: Progress
) -> tuple[UNet2DConditionModel, CLIPTextModel, float]:
    """UNet and text encoder (averages of their weights over training) and the final noise-prediction loss.

    The images are encoded once, before training. A tenth of the captions is left empty for guidance.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=world.PIXELS // 4,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(48, 64),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    text_encoder = CLIPTextModel(text_config(tokenizer))
    with torch.no_grad():
        rows = [sample_images(1000, generator) for _ in range(40)]
        latents = torch.cat([vae.encode(p).latent_dist.mode() for p, _ in rows]) * vae.config.scaling_factor
    tokens = tokenize(tokenizer, [text for _, captions in rows for text in captions])
    empty = tokenize(tokenizer, [""])
    alphas = make_scheduler().alphas_cumprod
    model = nn.ModuleList([unet, text_encoder])
    average_model = copy.deepcopy(model).requires_grad_(False)

    def loss_of() -> tuple[Tensor, Tensor]:
        index = torch.randint(len(latents), (batch_size,), generator=generator)
        timestep = torch.randint(1000, (batch_size,), generator=generator)
        noise = torch.randn(latents[index].shape, generator=generator)
        dropped = torch.rand(batch_size, 1, generator=generator) < 0.1
        alpha = alphas[timestep][:, None, None, None]
        noisy = alpha.sqrt() * latents[index] + (1 - alpha).sqrt() * noise
        states = text_encoder(torch.where(dropped, empty, tokens[index])).last_hidden_state
        loss = F.mse_loss(unet(noisy, timestep, states).sample, noise)
        return loss, loss

    def follow(step: int) -> None:
        decay = min(0.998, (step + 1) / (step + 10))
        for slow, fast in zip(average_model.parameters(), model.parameters(), strict=True):
            slow.lerp_(fast.detach(), 1 - decay)

    average = optimise(
        model,
        loss_of,
        rate=1.5e-3,
        weight_decay=1e-3,
        num_warmup=200,
        num_steps=num_steps,
        progress=lambda *row: progress("denoiser", *row),
        after_step=follow,
    )
    return average_model[0].eval(), average_model[1].eval(), average


def halve_weights(folder: Path) -> None:
    """Rewrite every safetensors file under a folder in half precision; the configs keep float32."""
    for path in sorted(folder.rglob("*.safetensors")):
        save_file({key: value.half() for key, value in load_file(path).items()}, path, metadata={"format": "pt"})


def build_base(folder: Path, *, seed: int, vae_steps: int, denoiser_steps: int, progress: Progress) -> dict[str, float]:
    """Train the base model and save it in half precision as a diffusers folder; returns the final losses."""
    tokenizer = make_tokenizer(folder / "tokenizer")
    vae, vae_loss = train_vae(num_steps=vae_steps, batch_size=64, seed=seed, progress=progress)
    unet, text_encoder, loss = train_denoiser(
        vae, tokenizer, num_steps=denoiser_steps, batch_size=64, seed=seed, progress=progress
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    halve_weights(folder)
    return {"vae_loss": vae_loss, "denoiser_loss": loss}
