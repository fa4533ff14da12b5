"""The LAION aesthetic predictor, version 2 (Schuhmann 2022): the aesthetic quality of an image, without its prompt.

Five linear layers with no activations between them, on the L2-normalised image embedding of OpenAI's CLIP ViT-L/14:
an affine map with values between 1 and 10, mostly from 4 to 7. These are the weights
"sac+logos+ava1-l14-linearMSE" of github.com/christophschuhmann/improved-aesthetic-predictor.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from stepalign.models.clip import preprocess, resolve_folder
from stepalign.scorers.clip_features import IN_MEMORY, Source
from stepalign.scorers.preparation import check_pairs, checked_scores, clip_pixels, describe_preparation
from stepalign.scorers.record import precision_words, scorer_record
from stepalign.scorers.score_head import ScoreHead
from stepalign.scorers.weights import check_weights, load_clip_vision, weights_file
from stepalign.support.digests import file_digest, module_digest, network_identity
from stepalign.support.tensor_files import read_tensors, weight_files

BACKBONE = "openai/clip-vit-large-patch14"
HEAD, HEAD_FILE = "trl-lib/ddpo-aesthetic-predictor", "aesthetic-model.pth"
RELEASED = "sac+logos+ava1-l14-linearMSE"
RELEASED_SHA256 = ("21dd590f3ccd", "f1e0")
"""First and last characters of the released file's SHA-256."""
RELEASED_WIDTH = 768
RELU_LAYERS = ("layers.0.", "layers.3.", "layers.6.", "layers.9.", "layers.11.")


class AestheticScore:
    """Scores images, or images in tensors, without looking at prompts.

    Called with images in tensors it is a reward with gradients; `score` prepares images as published numbers did.
    The two differ where images are resized: tensors are without antialias.
    """

    def __init__(self, backbone: CLIPVisionModelWithProjection, head: ScoreHead, *, source: Source = IN_MEMORY) -> None:
        config = backbone.config
        width = head.layers[0].in_features
        if config.projection_dim != width:
            raise ValueError(f"the head takes embeddings {width} wide, the backbone's are {config.projection_dim}")
        if width == RELEASED_WIDTH and config.hidden_act != "quick_gelu":
            raise ValueError(
                f"the backbone's hidden_act is {config.hidden_act!r}; the head was trained on {BACKBONE}, whose is "
                "'quick_gelu'"
            )
        self.backbone = backbone.eval().requires_grad_(False)
        self.head = head.eval().requires_grad_(False)
        self.record = scorer_record(
            "aesthetic",
            weights=source.name,
            files=list(source.files),
            preprocessing=describe_preparation(config.image_size, "torchvision") + precision_words(backbone.dtype),
            scale="1 to 10",
            needs_prompt=False,
            tensors=None if source.files else {**backbone.state_dict(), **head.state_dict()},
            parts=network_identity("backbone", backbone, config) | {"head": module_digest(head, "head")},
        )

    @classmethod
    def from_pretrained(
        cls,
        head: str | None = None,
        *,
        backbone: str = BACKBONE,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> AestheticScore:
        """Load a head (a file, a folder with one, or from the hub; the released one by default) and its CLIP.

        The head and the scores stay fp32. Raises ValueError for heads of other layouts and weights that are missing.
        """
        path, folder = weights_file(head or HEAD, filename=HEAD_FILE), resolve_folder(backbone)
        layers, tower = load_head(path), load_clip_vision(folder)
        source = Source(_words(path, backbone), (path, *weight_files(folder)))
        return cls(tower.to(device, dtype), layers.to(device), source=source)

    def num_cut(self, prompts: list[str]) -> int:
        """None: no prompt is read."""
        return 0

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        """Scores of images in [0, 1]; gradients flow to the images."""
        check_pairs(len(images), prompts)
        return self._rate(preprocess(images, self.backbone.config.image_size, rounding="torchvision"))

    @torch.no_grad()
    def score(self, images: list[Image.Image], prompts: list[str]) -> Float[Tensor, " b"]:
        """Scores of images, resized by PIL, in fp32 on the CPU."""
        check_pairs(len(images), prompts)
        pixels = clip_pixels(images, self.backbone.config.image_size, "torchvision")
        return checked_scores(self._rate(pixels), "aesthetic")

    def _rate(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, " b"]:
        embeddings = self.backbone(pixels.to(self.backbone.device, self.backbone.dtype)).image_embeds
        scores: Tensor = self.head(F.normalize(embeddings.float(), dim=-1))
        return scores


def load_head(path: Path) -> ScoreHead:
    """Refuse other layouts than the released one; raises ValueError naming the predictor that a file is instead."""
    weights = read_tensors(path)
    if set(weights) == {f"{layer}{kind}" for layer in RELU_LAYERS for kind in ("weight", "bias")}:
        raise ValueError(
            f"{path} has the layers of ava+logos-l14-reluMSE, another predictor with another scale; the one papers "
            f"report is {RELEASED}"
        )
    if set(weights) == {"weight", "bias"}:
        raise ValueError(
            f"{path} is a single linear layer, as the predictors of version 1 (sa_0_4_vit_l_14_linear) are; their "
            f"scores are on another scale; the one papers report is {RELEASED}"
        )
    first = weights.get("layers.0.weight")
    head = ScoreHead(first.shape[1] if first is not None and first.ndim == 2 else RELEASED_WIDTH)
    check_weights(weights, {name: value.shape for name, value in head.state_dict().items()}, what=str(path))
    head.load_state_dict(weights)
    return head


def _words(head: Path, backbone: str) -> str:
    """The name of the weights for the record, without a path on this machine."""
    digest = file_digest(head)
    released = digest.startswith(RELEASED_SHA256[0]) and digest.endswith(RELEASED_SHA256[1])
    source = Path(backbone).expanduser()
    name = RELEASED if released else f"not {RELEASED}: {head.name}, SHA-256 {digest}"
    return f"{name}; on {source.resolve().name if source.exists() else backbone}"
