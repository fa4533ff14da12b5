"""Shared CLIP preprocessing, tokenization and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, PreTrainedTokenizerBase

from stepalign.core.choices import Preprocessing
from stepalign.support.errors import first_line
from stepalign.support.hub import ask_hub, not_on_hub
from stepalign.support.tensor_files import variant_of

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
TOKENIZED = 4096
"""Prompts per tokenizer call when only lengths are needed."""
Rounding = Literal["torchvision", "transformers", "spo"]
"""Rounding of the long side of a resized image and of half the margin of its centre crop, by program."""


def resized_size(height: int, width: int, size: int, rounding: Rounding) -> tuple[int, int]:
    """Height and width of an image whose short side becomes `size`; the long side is then not a whole number.

    torchvision and transformers truncate it, SPO's scorer rounds it.
    """
    short = min(height, width)
    if rounding == "spo":
        scale = size / short
        return int(height * scale + 0.5), int(width * scale + 0.5)
    return int(size * height / short), int(size * width / short)


def crop_start(extent: int, size: int, rounding: Rounding) -> int:
    """The first pixel of a centre crop of `size` out of `extent`.

    Half an odd margin is floored by transformers and rounded half to even by torchvision: 57.5 becomes 57 or 58.
    """
    margin = extent - size
    return margin // 2 if rounding == "transformers" else round(margin / 2)


def preprocess(images: Float[Tensor, "b 3 h w"], size: int, *, rounding: Rounding) -> Float[Tensor, "b 3 s s"]:
    """Images in [0, 1], clamped to it, as CLIP's vision tower takes them, in fp32 and differentiably.

    Bicubic without antialias to `size` on the short side, clamped again since bicubic overshoots (and PIL, with which
    finished images are prepared, clamps too), centre crop, CLIP mean and std.
    """
    pixels = _resize(images.float().clamp(0, 1), size, rounding).clamp(0, 1)
    return _normalise(_centre_crop(pixels, size, rounding))


def preprocess_decoded(
    images: Float[Tensor, "b 3 h w"], size: int, *, order: Preprocessing = "clamp-first"
) -> Float[Tensor, "b 3 s s"]:
    """Decoded images, around [-1, 1], as a step-aware preference model takes them, in fp32 and differentiably.

    "clamp-first" is `preprocess` after bringing them to [0, 1], as in SPO's released training of the model.
    "resize-first" resizes and crops in fp16 in [-1, 1], brings to [0, 1] and clamps there, as SPO's released scorer.
    """
    if order == "clamp-first":
        return preprocess(images / 2 + 0.5, size, rounding="spo")
    pixels = _centre_crop(_resize(images.half(), size, "spo"), size, "spo")
    return _normalise((pixels / 2 + 0.5).clamp(0, 1).float())


def _resize(pixels: Float[Tensor, "b 3 h w"], size: int, rounding: Rounding) -> Float[Tensor, "b 3 hh ww"]:
    scaled = resized_size(pixels.shape[-2], pixels.shape[-1], size, rounding)
    if scaled == tuple(pixels.shape[-2:]):
        return pixels
    return F.interpolate(pixels, size=scaled, mode="bicubic", align_corners=False)


def _centre_crop(pixels: Float[Tensor, "b 3 h w"], size: int, rounding: Rounding) -> Float[Tensor, "b 3 s s"]:
    top, left = (crop_start(extent, size, rounding) for extent in pixels.shape[-2:])
    return pixels[:, :, top : top + size, left : left + size]


def _normalise(pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 3 s s"]:
    mean, std = (torch.tensor(value, device=pixels.device)[:, None, None] for value in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


def tokenize(tokenizer: CLIPTokenizer, config: CLIPConfig, prompts: list[str]) -> Int[Tensor, "b l"]:
    """Token ids padded to the longest prompt, cut at the text tower's length."""
    length = config.text_config.max_position_embeddings
    return tokenizer(prompts, padding=True, truncation=True, max_length=length, return_tensors="pt").input_ids


def num_cut(tokenizer: PreTrainedTokenizerBase, prompts: list[str], length: int) -> int:
    """The number of prompts with more than `length` tokens, start and end included, which an encoder cuts."""
    parts = (prompts[start : start + TOKENIZED] for start in range(0, len(prompts), TOKENIZED))
    return sum(
        len(ids) > length for part in parts for ids in tokenizer(part, truncation=True, max_length=length + 1).input_ids
    )


def load_clip(folder: Path) -> CLIPModel:
    """A CLIP model in fp32; raises ValueError for missing or unknown weights, which transformers would initialise at
    random or drop."""
    given = {"dtype": torch.float32, "variant": variant_of(folder)}
    try:
        model, found = CLIPModel.from_pretrained(folder, output_loading_info=True, **given)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no CLIP model that fits its config: {first_line(error)}") from error
    unknown = [key for key in found["unexpected_keys"] if "position_ids" not in key]
    for problem, keys in (("no weights for", found["missing_keys"]), ("weights unknown to CLIP,", unknown)):
        if keys:
            raise ValueError(f"{folder} has {problem} {', '.join(sorted(keys))}")
    return model


def check_tokenizer(tokenizer: CLIPTokenizer, num_embeddings: int, name: str) -> None:
    """Raise ValueError for a tokenizer without files or of another text encoder, which transformers accepts."""
    if not 3 < len(tokenizer) <= num_embeddings:
        raise ValueError(
            f"{name} has a tokenizer of {len(tokenizer)} tokens for a text encoder of {num_embeddings}; are files "
            "of its tokenizer missing?"
        )


def resolve_folder(name: str) -> Path:
    """A local folder, or a hub repository's snapshot; raises ValueError for other names."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    ask_hub(name, "folder")
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except (HFValidationError, HfHubHTTPError, OSError, ValueError) as error:
        raise ValueError(not_on_hub(name, "folder")) from error
