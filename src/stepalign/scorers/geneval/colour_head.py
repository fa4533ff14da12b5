"""The colour of an object in an image, named by CLIP: GenEval's classifier (Ghosh et al., arXiv 2310.11513).

Everything but the object is painted grey, the object's box is cropped, and of ten colours the one is chosen with the
largest cosine between the mean embedding of its texts and the crop's embedding. Published numbers use OpenAI's
ViT-L/14.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from stepalign.core.protocols import ScorerRecord
from stepalign.models.clip import check_tokenizer, tokenize
from stepalign.scorers.clip_features import IN_MEMORY, Source, load_clip_folder
from stepalign.scorers.geneval.rules import COLOURS, Detection
from stepalign.scorers.preparation import clip_pixels, describe_preparation
from stepalign.scorers.record import scorer_record
from stepalign.support.digests import network_identity
from stepalign.support.images import as_rgb

COLOUR_MODEL = "openai/clip-vit-large-patch14"
BACKGROUND = (153, 153, 153)
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
PREPROCESSING = "grey #999 outside the object's mask, cropped to its box, then "


class ColourHead:
    """A frozen CLIP model that names the colours of objects; the texts of each class are embedded once."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, *, source: Source = IN_MEMORY) -> None:
        check_tokenizer(tokenizer, model.config.text_config.vocab_size, "the colour classifier")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.source = source
        self._texts: dict[str, Float[Tensor, "10 e"]] = {}

    @classmethod
    def from_pretrained(
        cls, name: str = COLOUR_MODEL, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> ColourHead:
        """Load a folder or hub repository with a CLIP model and its tokenizer.

        Raises ValueError when weights are missing or not CLIP's.
        """
        model, tokenizer, source = load_clip_folder(name, device=device, dtype=dtype)
        return cls(model, tokenizer, source=source)

    @cached_property
    def record(self) -> ScorerRecord:
        """The record of the CLIP; the first access reads the weight files."""
        size = self.model.config.vision_config.image_size
        return scorer_record(
            "geneval-colours",
            weights=self.source.name,
            files=list(self.source.files),
            preprocessing=PREPROCESSING + describe_preparation(size, "torchvision"),
            scale=f"the nearest of {', '.join(COLOURS)}",
            tensors=None if self.source.files else self.model.state_dict(),
            parts=network_identity("clip", self.model, self.model.config, self.tokenizer),
        )

    def __call__(self, image: Image.Image, objects: Sequence[Detection], class_name: str) -> list[str]:
        """The colour of each object of a class in an image, one of `COLOURS`."""
        if not objects:
            return []
        return [COLOURS[index] for index in self.cosines(image, objects, class_name).argmax(-1).tolist()]

    @torch.no_grad()
    def cosines(self, image: Image.Image, objects: Sequence[Detection], class_name: str) -> Float[Tensor, "n 10"]:
        """Cosines of each object with each of `COLOURS`, in fp32; n is at least 1."""
        cuttings = [cut_out(image, found) for found in objects]
        size = self.model.config.vision_config.image_size
        pixels = clip_pixels(cuttings, size, "torchvision").to(self.model.device)
        features = self.model.get_image_features(pixel_values=pixels).pooler_output
        return F.normalize(features.float(), dim=-1) @ self._colour_texts(class_name).T

    def _colour_texts(self, class_name: str) -> Float[Tensor, "10 e"]:
        """For each colour the normalised mean of its texts' unit embeddings."""
        if class_name not in self._texts:
            texts = [template.format(colour=colour, name=class_name) for colour in COLOURS for template in TEMPLATES]
            ids = tokenize(self.tokenizer, self.model.config, texts).to(self.model.device)
            features = F.normalize(self.model.get_text_features(input_ids=ids).pooler_output.float(), dim=-1)
            means = features.reshape(len(COLOURS), len(TEMPLATES), -1).mean(1)
            self._texts[class_name] = F.normalize(means, dim=-1)
        return self._texts[class_name]


def cut_out(image: Image.Image, found: Detection) -> Image.Image:
    """The crop of an object's box, grey outside its mask; without a mask, the plain crop.

    Raises ValueError for a mask of another size than the image, and for a box without pixels.
    """
    image = as_rgb(image)
    if found.mask is not None:
        height, width = found.mask.shape
        if (width, height) != image.size:
            raise ValueError(
                f"a mask of {width} by {height} pixels is not of an image of {image.width} by {image.height}"
            )
        background = Image.new("RGB", image.size, BACKGROUND)
        image = Image.composite(image, background, Image.fromarray(found.mask))
    left, top, right, bottom = (round(edge) for edge in found.box)
    if right <= left or bottom <= top:
        raise ValueError(f"the box {found.box} holds no pixels; x0, y0, x1, y1 are wanted, x1 and y1 outside")
    return image.crop((left, top, right, bottom))
