"""What every user of a CLIP model shares: preprocessing, tokens, folders."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPConfig, CLIPTokenizer

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def preprocess(images: Float[Tensor, "b 3 h w"], size: int) -> Float[Tensor, "b 3 s s"]:
    """Images in [0, 1] (clamped here) as CLIP's vision tower takes them, in fp32 and differentiably.

    Bicubic without antialias to `size` on the short side, centre crop, CLIP mean and std.
    """
    pixels = images.float().clamp(0, 1)
    height, width = pixels.shape[-2:]
    if min(height, width) != size:
        scaled = (size, round(width * size / height)) if height <= width else (round(height * size / width), size)
        pixels = F.interpolate(pixels, size=scaled, mode="bicubic", align_corners=False)
        height, width = scaled
    top, left = (height - size) // 2, (width - size) // 2
    pixels = pixels[:, :, top : top + size, left : left + size]
    mean, std = (torch.tensor(value, device=pixels.device)[:, None, None] for value in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


def tokenize(tokenizer: CLIPTokenizer, config: CLIPConfig, prompts: list[str]) -> Int[Tensor, "b l"]:
    """Token ids padded to the longest prompt, cut at the text tower's length."""
    length = config.text_config.max_position_embeddings
    return tokenizer(prompts, padding=True, truncation=True, max_length=length, return_tensors="pt").input_ids


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
