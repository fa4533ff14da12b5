"""The Human Preference Score v2 (Wu et al., arXiv 2306.09341): a CLIP ViT-H/14 fine-tuned on human choices.

score = 100 cos(image, text), as tables print it; the authors' package returns the cosine itself. Versions 2.0 and 2.1
are two models on two scales, both published as "HPSv2": the same images average 27 to 28 with one and 26 to 32 with
the other. The authors compute in fp16, which rounds scores to steps of .024; here they are fp32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from stepalign.models.clip import CLIP_MEAN, CLIP_STD, load_clip, resolve_folder
from stepalign.scorers.clip_features import IN_MEMORY, ClipFeatures, Source, has_tokenizer, in_precision, load_tokenizer
from stepalign.scorers.open_clip import load_open_clip
from stepalign.scorers.preparation import as_tensor, check_pairs, checked_scores
from stepalign.scorers.weights import SUFFIXES, weights_file
from stepalign.support.tensor_files import weight_files

Version = Literal["v2.0", "v2.1"]
RELEASED = "xswu/HPSv2"
FILES: dict[Version, str] = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}
TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class HPS:
    """HPS v2.0 or v2.1; each distinct prompt is embedded once.

    `antialias` decides how images are reduced. The authors' code leaves it to torchvision, which resized tensors
    without before 0.17, when their tables were made, and does so with it since; the scores differ.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        *,
        version: Version,
        antialias: bool = True,
        source: Source = IN_MEMORY,
    ) -> None:
        _check_version(version)
        for tower in (model.config.vision_config, model.config.text_config):
            if tower.hidden_act != "gelu":
                raise ValueError(f"HPS has the activation gelu, the model's config has {tower.hidden_act!r}")
        self.clip = ClipFeatures(model, tokenizer, name="HPS", cleaned=True, source=source)
        self.version = version
        self.antialias = antialias
        preprocessing = (
            f"RGB, bicubic {'with' if antialias else 'without'} antialias to {self.clip.image_size} on the long side "
            "as a tensor, black bars, CLIP mean and std"
        )
        self.record = self.clip.record(f"hps-{version}", preprocessing=preprocessing, scale="100 cos")

    @classmethod
    def from_pretrained(
        cls,
        name: str = RELEASED,
        *,
        version: Version,
        antialias: bool = True,
        tokenizer: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> HPS:
        """Load the released checkpoint, or a CLIP model with the same weights; the scores stay fp32.

        `name` is a file, a folder or hub repository with the released file of the version, or one in the format of
        CLIPModel, in which no version can be seen. The tokenizer is the one beside the weights, or ViT-H/14's from the
        hub, unless named. Raises ValueError when weights or tokenizer are missing or others.
        """
        _check_version(version)
        if _in_open_clip_layout(name):
            model, source = _load_released(name, version)
        else:
            folder = resolve_folder(name)
            model, source = load_clip(folder), Source(name, tuple(weight_files(folder)))
        beside = source.files[0].parent
        words = load_tokenizer(tokenizer or (str(beside) if has_tokenizer(beside) else TOKENIZER))
        model = in_precision(model, device, dtype)
        return cls(model, words, version=version, antialias=antialias, source=source)

    def num_cut(self, prompts: list[str]) -> int:
        """How many prompts are longer than the text tower reads."""
        return self.clip.num_cut(prompts)

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        """Scores of images in [0, 1], prepared as `score` prepares images; gradients flow to the images."""
        check_pairs(len(images), prompts)
        return self._compared(letter_box(images, self.clip.image_size, antialias=self.antialias), prompts)

    @torch.no_grad()
    def score(self, images: list[Image.Image], prompts: list[str]) -> Float[Tensor, " b"]:
        """Scores of images, in fp32 on the CPU."""
        check_pairs(len(images), prompts)
        size = self.clip.image_size
        boxed = [letter_box(as_tensor(image)[None], size, antialias=self.antialias) for image in images]
        return checked_scores(self._compared(torch.cat(boxed), prompts), f"hps-{self.version}")

    def _compared(self, pixels: Float[Tensor, "b 3 s s"], prompts: list[str]) -> Float[Tensor, " b"]:
        return 100 * self.clip.cosines(pixels, prompts)


def letter_box(images: Float[Tensor, "b 3 h w"], size: int, *, antialias: bool) -> Float[Tensor, "b 3 s s"]:
    """Whole images in [0, 1] on a black square, as HPS's vision tower takes them, at least in fp32.

    Bicubic to `size` on the long side, values that overshoot [0, 1] kept; CLIP mean and std come after the bars. As
    the authors' transform does, but for oblong images whose long side is `size` already, to which that adds no bars.
    """
    pixels = images.to(torch.promote_types(images.dtype, torch.float32))
    height, width = pixels.shape[-2:]
    scale = size / max(height, width)
    scaled = max(round(height * scale), 1), max(round(width * scale), 1)
    if scaled != (height, width):
        pixels = F.interpolate(pixels, size=scaled, mode="bicubic", align_corners=False, antialias=antialias)
    top, left = (size - scaled[0]) // 2, (size - scaled[1]) // 2
    pixels = F.pad(pixels, (left, size - scaled[1] - left, top, size - scaled[0] - top))
    mean, std = (pixels.new_tensor(value)[:, None, None] for value in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


def _check_version(version: str) -> None:
    if version not in FILES:
        raise ValueError(f"HPS has the versions {', '.join(FILES)}, got {version!r}")


def _in_open_clip_layout(name: str) -> bool:
    """Whether a name is a checkpoint file, not a model in CLIPModel's format."""
    path = Path(name).expanduser()
    if path.is_dir():
        return not (path / "config.json").is_file()
    return path.is_file() or name == RELEASED or path.suffix in SUFFIXES


def _load_released(name: str, version: Version) -> tuple[CLIPModel, Source]:
    """The model of a checkpoint's file; raises ValueError when the file name names another version."""
    path = weights_file(name, filename=FILES[version])
    if path.name in FILES.values() and path.name != FILES[version]:
        raise ValueError(f"{path} is not HPS {version}, which is {FILES[version]}")
    try:
        return load_open_clip(path, hidden_act="gelu"), Source(name, (path,))
    except ValueError as error:
        advice = f"the released weights, without their optimizer's state, are {FILES[version]} of {RELEASED}"
        raise ValueError(f"{error}; {advice}") from error
