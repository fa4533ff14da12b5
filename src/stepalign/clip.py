"""What every user of a CLIP model shares: preprocessing, tokens, folders."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from stepalign.protocols import Preprocessing

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def preprocess(
    images: Float[Tensor, "b 3 h w"], size: int, *, order: Preprocessing = "clamp-first"
) -> Float[Tensor, "b 3 s s"]:
    """Images in [0, 1], or what a VAE makes of them, as CLIP's vision tower takes them, in fp32 and differentiably.

    Bicubic without antialias to `size` on the short side, centre crop, CLIP mean and std. "clamp-first" clamps to
    [0, 1] in fp32 and then resizes; "resize-first" resizes in fp16 and then clamps, as SPO's released scorer does.
    """
    pixels = images.float().clamp(0, 1) if order == "clamp-first" else images.half()
    height, width = pixels.shape[-2:]
    if min(height, width) != size:
        scaled = (size, round(width * size / height)) if height <= width else (round(height * size / width), size)
        pixels = F.interpolate(pixels, size=scaled, mode="bicubic", align_corners=False)
        height, width = scaled
    top, left = (height - size) // 2, (width - size) // 2
    pixels = pixels[:, :, top : top + size, left : left + size]
    if order == "resize-first":
        pixels = pixels.float().clamp(0, 1)
    mean, std = (torch.tensor(value, device=pixels.device)[:, None, None] for value in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


def tokenize(tokenizer: CLIPTokenizer, config: CLIPConfig, prompts: list[str]) -> Int[Tensor, "b l"]:
    """Token ids padded to the longest prompt, cut at the text tower's length."""
    length = config.text_config.max_position_embeddings
    return tokenizer(prompts, padding=True, truncation=True, max_length=length, return_tensors="pt").input_ids


def load_clip(folder: Path) -> CLIPModel:
    """A CLIP model in fp32, strictly: raises ValueError where transformers would draw missing weights at random or
    drop those that it does not know."""
    try:
        model, found = CLIPModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no CLIP model that fits its config: {first_line(error)}") from error
    unknown = [key for key in found["unexpected_keys"] if "position_ids" not in key]
    for problem, keys in (("no weights for", found["missing_keys"]), ("weights that CLIP does not know,", unknown)):
        if keys:
            raise ValueError(f"{folder} has {problem} {', '.join(sorted(keys))}")
    return model


def first_line(error: Exception) -> str:
    """What an error says first, or what it is."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def check_tokenizer(tokenizer: CLIPTokenizer, num_embeddings: int, name: str) -> None:
    """Refuse what transformers lets pass: a tokenizer whose files are missing, or one of another text encoder."""
    if not 3 < len(tokenizer) <= num_embeddings:
        raise ValueError(
            f"{name} has a tokenizer of {len(tokenizer)} tokens for a text encoder of {num_embeddings}; are files "
            "of its tokenizer missing?"
        )


def resolve_folder(name: str) -> Path:
    """A local folder, or a hub repository's snapshot; raises ValueError when it is neither."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except (HFValidationError, HfHubHTTPError, OSError, ValueError) as error:
        raise ValueError(f"{name!r} is no local folder, and no hub repository that can be reached") from error
