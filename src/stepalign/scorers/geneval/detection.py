"""Objects in images, found by Mask2Former (Cheng et al., arXiv 2112.01527) trained on COCO's instances.

GenEval was published with another training of the same architecture, mmdetection's; results are named after the
detector. Images and outputs are treated as mmdetection does: the short side becomes 800 pixels, at most 1333 on the
long one, zeros below and right to a multiple of 32; masks are compared with zero at the image's own size.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import Mask2FormerForUniversalSegmentation

from stepalign.core.protocols import ScorerRecord
from stepalign.models.clip import resolve_folder
from stepalign.scorers.geneval.rules import CLASSES, THRESHOLD, Box, Detection
from stepalign.scorers.record import scorer_record
from stepalign.support.digests import network_identity
from stepalign.support.errors import first_line
from stepalign.support.images import as_rgb
from stepalign.support.tensor_files import variant_of, weight_files

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHORT_SIDE, LONG_SIDE, MULTIPLE = 800, 1333, 32
MAX_DETECTIONS = 100
"""Most detections in one image, over all classes."""

Size = tuple[int, int]
"""Height and width."""


class Mask2FormerDetector:
    """A frozen Mask2Former that finds objects of COCO's 80 classes."""

    def __init__(
        self,
        model: Mask2FormerForUniversalSegmentation,
        *,
        name: str = "in memory",
        files: tuple[Path, ...] = (),
        short_side: int = SHORT_SIDE,
        long_side: int = LONG_SIDE,
        min_score: float = THRESHOLD,
    ) -> None:
        """`min_score` drops detections that no rule uses; a smaller one costs memory and time."""
        check_classes(model.config.num_labels, model.config.id2label, name)
        self.model = model.eval().requires_grad_(False)
        self.label = f"HF Mask2Former {name}"
        self.name, self.files = name, files
        self.short_side, self.long_side = short_side, long_side
        self.min_score = min_score

    @classmethod
    def from_pretrained(
        cls, name: str = DETECTOR, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Mask2FormerDetector:
        """Load a folder or hub repository.

        Raises ValueError when weights are missing or others, or the classes are not COCO's 80.
        """
        folder = resolve_folder(name)
        shown = folder.resolve().name if Path(name).expanduser().is_dir() else name
        return cls(load_mask2former(folder).to(device, dtype), name=shown, files=tuple(weight_files(folder)))

    @cached_property
    def record(self) -> ScorerRecord:
        """The record of the detector; the first access reads the weight files."""
        return scorer_record(
            "geneval-detector",
            weights=self.name,
            files=list(self.files),
            preprocessing=f"RGB, PIL bilinear to {self.short_side} on the short side, at most {self.long_side} on the "
            f"long one, ImageNet mean and std, zeros below and right to a multiple of {MULTIPLE}",
            scale="probability of the class times the mask's mean probability within it",
            needs_prompt=False,
            tensors=None if self.files else self.model.state_dict(),
            parts=network_identity("detector", self.model, self.model.config),
        )

    @torch.no_grad()
    def detect(self, images: list[Image.Image]) -> list[list[Detection]]:
        """The objects of each image, independent of the others: only images of one padded size share a batch."""
        pixels = [detector_pixels(image, self.short_side, self.long_side) for image in images]
        padded = [_padded_size(one.shape[1], one.shape[2]) for one in pixels]
        found: dict[int, list[Detection]] = {}
        for size in dict.fromkeys(padded):
            chosen = [index for index, other in enumerate(padded) if other == size]
            batch = torch.stack([_pad(pixels[index], size) for index in chosen])
            output = self.model(pixel_values=batch.to(self.model.device, self.model.dtype))
            for row, index in enumerate(chosen):
                found[index] = instances(
                    output.class_queries_logits[row].float(),
                    output.masks_queries_logits[row].float(),
                    padded=size,
                    resized=(pixels[index].shape[1], pixels[index].shape[2]),
                    original=(images[index].height, images[index].width),
                    min_score=self.min_score,
                )
        return [found[index] for index in range(len(images))]


def load_mask2former(folder: Path) -> Mask2FormerForUniversalSegmentation:
    """The Mask2Former of a folder in fp32; raises ValueError where weights are missing or unknown.

    Tables of positions within a window, which published checkpoints still carry, are computed anew by transformers 5;
    the weights of the training loss are not needed.
    """
    kind = Mask2FormerForUniversalSegmentation
    given = {"dtype": torch.float32, "variant": variant_of(folder)}
    try:
        model, found = kind.from_pretrained(folder, output_loading_info=True, **given)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no Mask2Former that fits its config: {first_line(error)}") from error
    unknown = [key for key in found["unexpected_keys"] if not key.endswith(".relative_position_index")]
    missing = [key for key in found["missing_keys"] if not key.startswith("criterion.")]
    for problem, keys in (("no weights for", missing), ("weights unknown to Mask2Former,", unknown)):
        if keys:
            raise ValueError(f"{folder} has {problem} {', '.join(sorted(keys))}")
    return model


def detector_pixels(image: Image.Image, short_side: int, long_side: int) -> Float[Tensor, "3 h w"]:
    """An image in ImageNet's mean and std, resized by PIL, its proportions kept."""
    image = as_rgb(image)
    scale = min(short_side / min(image.size), long_side / max(image.size))
    width, height = (max(1, int(side * scale + 0.5)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(resized)).movedim(2, 0).float() / 255
    mean, std = (torch.tensor(value)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std


def instances(
    class_logits: Float[Tensor, "q classes"],
    mask_logits: Float[Tensor, "q h w"],
    *,
    padded: Size,
    resized: Size,
    original: Size,
    min_score: float,
) -> list[Detection]:
    """The detections that a model's queries make in one image; the last class is none.

    Of all pairs of a query and a class the `MAX_DETECTIONS` likeliest; a score is the class's probability times the
    mean of the mask's probabilities where they are above one half. Only scores above `min_score` are kept: no score
    exceeds its class's probability, so masks of lower ones are not resized.
    """
    probabilities = class_logits.softmax(-1)[:, :-1]
    num_classes = probabilities.shape[1]
    likeliest = probabilities.flatten().topk(min(MAX_DETECTIONS, probabilities.numel()))
    masks: dict[int, tuple[Bool[np.ndarray, "H W"], float]] = {}
    found = []
    for probability, place in zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True):
        query, index = divmod(place, num_classes)
        if probability <= min_score:
            continue
        if query not in masks:
            masks[query] = _mask(mask_logits[query], padded, resized, original)
        mask, certainty = masks[query]
        if probability * certainty > min_score:
            found.append(Detection(index, probability * certainty, box_of(mask), mask))
    return found


def box_of(mask: Bool[np.ndarray, "h w"]) -> Box:
    """The smallest box around a mask's pixels; zeros for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def check_classes(num_labels: int, names: dict[int, str], model: str) -> None:
    """Raise ValueError unless the detector's classes can be COCO's 80 in their order."""
    ends = {0: "person", len(CLASSES) - 1: "toothbrush"}
    named = not names.get(0, "LABEL_0").startswith("LABEL_")
    if num_labels != len(CLASSES) or (named and any(names.get(index) != name for index, name in ends.items())):
        raise ValueError(
            f"{model} detects {num_labels} classes, {names.get(0)!r} first; COCO's 80 from person to toothbrush are "
            "wanted, such as facebook/mask2former-swin-small-coco-instance"
        )


def _mask(
    logits: Float[Tensor, "h w"], padded: Size, resized: Size, original: Size
) -> tuple[Bool[np.ndarray, "H W"], float]:
    """A query's mask at the image's size, and the mean probability within it, zero when it is empty."""
    full = F.interpolate(logits[None, None], size=padded, mode="bilinear", align_corners=False)
    full = full[..., : resized[0], : resized[1]]
    if resized != original:
        full = F.interpolate(full, size=original, mode="bilinear", align_corners=False)
    inside = full[0, 0] > 0
    certainty = (full[0, 0].sigmoid() * inside).sum() / (inside.sum() + 1e-6)
    return inside.cpu().numpy(), certainty.item()


def _padded_size(height: int, width: int) -> Size:
    return -(-height // MULTIPLE) * MULTIPLE, -(-width // MULTIPLE) * MULTIPLE


def _pad(pixels: Float[Tensor, "3 h w"], size: Size) -> Float[Tensor, "3 H W"]:
    return F.pad(pixels, (0, size[1] - pixels.shape[2], 0, size[0] - pixels.shape[1]))
