"""Shared by the CLIP scorers: the model with its tokenizer, cosines, and where the weights came from."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import ftfy
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from stepalign.core.protocols import ScorerRecord
from stepalign.models.clip import check_tokenizer, load_clip, num_cut, resolve_folder, tokenize
from stepalign.scorers.record import scorer_record
from stepalign.support.digests import network_identity
from stepalign.support.errors import first_line
from stepalign.support.tensor_files import weight_files

TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
CLEANED = "mended by ftfy, HTML unescaped twice, spaces collapsed, in lower case, as OpenAI's CLIP and open_clip do"
NOT_CLEANED = "as they are, without ftfy, for transformers' tokenizer"


@dataclass(frozen=True, slots=True)
class Source:
    """Where weights came from; weights without files are identified by their tensors."""

    name: str
    files: tuple[Path, ...]


IN_MEMORY = Source("in memory", ())


class ClipFeatures:
    """A frozen CLIP model that compares images with prompts; each distinct prompt is embedded once.

    `cleaned`: prompts go through `clean` first, as in OpenAI's CLIP and in open_clip; PickScore's do not.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        *,
        name: str,
        cleaned: bool,
        source: Source = IN_MEMORY,
    ) -> None:
        check_tokenizer(tokenizer, model.config.text_config.vocab_size, name)
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.cleaned = cleaned
        self.source = source
        self.num_texts = 0
        self._text: dict[str, Float[Tensor, " e"]] = {}

    @property
    def image_size(self) -> int:
        """Height and width of the vision tower's input."""
        return int(self.model.config.vision_config.image_size)

    def cosines(self, pixels: Float[Tensor, "b 3 s s"], prompts: list[str]) -> Float[Tensor, " b"]:
        """cos(image, text) of every pair, at least in fp32; gradients flow to the pixels."""
        prompts = self._texts(prompts)
        self._embed([prompt for prompt in dict.fromkeys(prompts) if prompt not in self._text])
        features = self.model.get_image_features(pixel_values=pixels.to(self.model.device)).pooler_output
        text = torch.stack([self._text[prompt] for prompt in prompts])
        return (_unit(features) * text).sum(-1)

    def num_cut(self, prompts: list[str]) -> int:
        """How many prompts are longer than the text tower reads."""
        return num_cut(self.tokenizer, self._texts(prompts), self.model.config.text_config.max_position_embeddings)

    def _texts(self, prompts: list[str]) -> list[str]:
        """Prompts after cleaning, ready for the tokenizer."""
        return [clean(prompt) for prompt in prompts] if self.cleaned else prompts

    @torch.no_grad()
    def _embed(self, prompts: list[str]) -> None:
        if prompts:
            ids = tokenize(self.tokenizer, self.model.config, prompts).to(self.model.device)
            features = _unit(self.model.get_text_features(input_ids=ids).pooler_output)
            self._text.update(zip(prompts, features, strict=True))
            self.num_texts += len(prompts)

    def record(self, name: str, *, preprocessing: str, scale: str) -> ScorerRecord:
        """The record of a scorer that uses these features, with the precision of the towers where it is not fp32."""
        preprocessing += f"; prompts {CLEANED if self.cleaned else NOT_CLEANED}"
        dtype = self.model.visual_projection.weight.dtype
        if dtype != torch.float32:
            preprocessing += f"; towers in {str(dtype).removeprefix('torch.')}"
        return scorer_record(
            name,
            weights=self.source.name,
            files=list(self.source.files),
            preprocessing=preprocessing,
            scale=scale,
            libraries=("ftfy",) if self.cleaned else (),
            tensors=None if self.source.files else self.model.state_dict(),
            parts=network_identity("clip", self.model, self.model.config, self.tokenizer),
        )


def clean(prompt: str) -> str:
    """Clean a prompt as the tokenizers of OpenAI's CLIP and of open_clip do before they split it into tokens.

    Without it a few prompts in a thousand get other tokens: curly quotes, full-width signs, HTML. Python's lower case
    knows the final sigma, transformers' tokenizer does not.
    """
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split()).lower()


def load_clip_folder(
    name: str, *, device: str | torch.device, dtype: torch.dtype
) -> tuple[CLIPModel, CLIPTokenizer, Source]:
    """The CLIP model and tokenizer of a folder or hub repository, and where they came from.

    Raises ValueError when weights are missing or not CLIP's, or the tokenizer is missing.
    """
    folder = resolve_folder(name)
    model = in_precision(load_clip(folder), device, dtype)
    return model, load_tokenizer(str(folder)), Source(name, tuple(weight_files(folder)))


def in_precision(model: CLIPModel, device: str | torch.device, dtype: torch.dtype) -> CLIPModel:
    """A CLIP model on a device in a precision, all but its scale, which keeps its own."""
    scale = model.logit_scale.data
    model.to(device, dtype)
    model.logit_scale.data = scale.to(device)
    return model


def load_tokenizer(name: str) -> CLIPTokenizer:
    """The CLIP tokenizer of a folder or hub repository; raises ValueError when it cannot be read."""
    try:
        return CLIPTokenizer.from_pretrained(name)
    except Exception as error:  # for damaged files transformers and tokenizers raise exceptions of many kinds
        raise ValueError(f"no CLIP tokenizer can be read from {name!r}: {first_line(error)}") from error


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer's files lie in a folder."""
    return any((folder / file).is_file() for file in TOKENIZER_FILES)


def _unit(features: Float[Tensor, "b e"]) -> Float[Tensor, "b e"]:
    """Unit features, at least in fp32."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
