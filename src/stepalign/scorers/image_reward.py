"""ImageReward v1.0 (Xu et al., arXiv 2304.05977): a BLIP image-text cross-encoder with a scalar head.

The image goes through a ViT-L/16; a BERT reads the prompt and attends to the image's patches in every layer; five
linear layers turn its [CLS] state into a number, normalised by the mean and standard deviation over the training
prompts. Scores are about standard normal, -2.3 to 2. Prompts are cut at 33 word pieces.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from stepalign.models.clip import num_cut, preprocess
from stepalign.scorers.clip_features import IN_MEMORY, Source
from stepalign.scorers.preparation import check_pairs, checked_scores, clip_pixels, describe_preparation
from stepalign.scorers.record import precision_words, scorer_record
from stepalign.scorers.score_head import ScoreHead
from stepalign.scorers.weights import check_weights, weights_file
from stepalign.support.digests import network_identity
from stepalign.support.errors import first_line
from stepalign.support.hub import ask_hub
from stepalign.support.tensor_files import read_tensors

WEIGHTS, WEIGHTS_FILE = "THUDM/ImageReward", "ImageReward.pt"
TOKENIZER = "google-bert/bert-base-uncased"
MAX_TOKENS = 35
MEAN, STD = 0.16717362830052426, 1.0333394966054072
HEAD_WIDTH = 64
"""Width of an attention head in either tower."""
VISION, TEXT = "blip.visual_encoder.", "blip.text_encoder."
UNUSED = ("blip.vision_proj.", "blip.text_proj.", f"{TEXT}embeddings.position_ids")
"""Prefixes of tensors in the released file that the reward does not use."""
RELEASED_NAMES = (
    (r"^vision\.embeddings\.class_embedding$", f"{VISION}cls_token"),
    (r"^vision\.embeddings\.position_embedding$", f"{VISION}pos_embed"),
    (r"^vision\.embeddings\.patch_embedding\.", f"{VISION}patch_embed.proj."),
    (r"^vision\.post_layernorm\.", f"{VISION}norm."),
    (r"^vision\.encoder\.layers\.(\d+)\.layer_norm([12])\.", rf"{VISION}blocks.\1.norm\2."),
    (r"^vision\.encoder\.layers\.(\d+)\.self_attn\.qkv\.", rf"{VISION}blocks.\1.attn.qkv."),
    (r"^vision\.encoder\.layers\.(\d+)\.self_attn\.projection\.", rf"{VISION}blocks.\1.attn.proj."),
    (r"^vision\.encoder\.layers\.(\d+)\.mlp\.", rf"{VISION}blocks.\1.mlp."),
    (r"^text\.", TEXT),
)
"""Patterns of our tensor names and their replacements in the released file; the mlp's are equal."""


class RewardNetwork(nn.Module):
    """The network from pixels and tokens to scores: transformers' BLIP towers and the head."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig) -> None:
        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.mlp = ScoreHead(text.hidden_size)

    def forward(
        self, pixels: Float[Tensor, "b 3 s s"], ids: Int[Tensor, "b l"], mask: Int[Tensor, "b l"]
    ) -> Float[Tensor, " b"]:
        patches = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=patches).last_hidden_state
        scores: Tensor = self.mlp(read[:, 0].to(self.mlp.layers[0].weight.dtype))
        return (scores - MEAN) / STD


class ImageReward:
    """Scores images, or images in tensors, for their prompts.

    Called with images in tensors it is a reward with gradients; `score` prepares images as published numbers did.
    The two differ where images are resized: tensors are without antialias.
    """

    def __init__(self, network: RewardNetwork, tokenizer: BertTokenizer, *, source: Source = IN_MEMORY) -> None:
        num_embeddings = network.text.config.vocab_size
        if not num_embeddings - 2 <= len(tokenizer) <= num_embeddings:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens for {num_embeddings} embeddings; it should have as many, "
                "or two fewer ([DEC] and [ENC] are never used); are files of its tokenizer missing?"
            )
        self.network = network.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        tower = network.vision
        self.record = scorer_record(
            "image-reward",
            weights=source.name,
            files=list(source.files),
            preprocessing=describe_preparation(tower.config.image_size, "torchvision")
            + f"; prompts as they are, without ftfy, for BERT's tokenizer, cut at {MAX_TOKENS} tokens"
            + precision_words(tower.dtype),
            scale="standard normal over the training prompts",
            tensors=None if source.files else network.state_dict(),
            parts=network_identity("network", network, tower.config, tokenizer)
            | network_identity("text", network.text, network.text.config),
        )

    @classmethod
    def from_pretrained(
        cls,
        path: str | None = None,
        *,
        tokenizer: str = TOKENIZER,
        vision_heads: int | None = None,
        text_heads: int | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> ImageReward:
        """Load weights in the released layout (a file, a folder with one, or from the hub) and BERT's tokenizer.

        Heads are 64 wide unless their numbers are given. The last layers and the scores stay fp32. Raises ValueError
        for weights that are missing or unknown.
        """
        file = weights_file(path or WEIGHTS, filename=WEIGHTS_FILE)
        network = convert(read_tensors(file), vision_heads=vision_heads, text_heads=text_heads, what=str(file))
        network.vision.to(dtype)
        network.text.to(dtype)
        return cls(network.to(device), load_tokenizer(tokenizer), source=Source(path or WEIGHTS, (file,)))

    def num_cut(self, prompts: list[str]) -> int:
        """How many prompts have more than 33 word pieces."""
        return num_cut(self.tokenizer, prompts, MAX_TOKENS)

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        """Scores of images in [0, 1]; gradients flow to the images."""
        check_pairs(len(images), prompts)
        return self._rate(preprocess(images, self.network.vision.config.image_size, rounding="torchvision"), prompts)

    @torch.no_grad()
    def score(self, images: list[Image.Image], prompts: list[str]) -> Float[Tensor, " b"]:
        """Scores of images, resized by PIL, in fp32 on the CPU."""
        check_pairs(len(images), prompts)
        pixels = clip_pixels(images, self.network.vision.config.image_size, "torchvision")
        return checked_scores(self._rate(pixels, prompts), "image-reward")

    def _rate(self, pixels: Float[Tensor, "b 3 s s"], prompts: list[str]) -> Float[Tensor, " b"]:
        tower = self.network.vision
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(tower.device)
        scores: Tensor = self.network(pixels.to(tower.device, tower.dtype), tokens.input_ids, tokens.attention_mask)
        return scores


def load_tokenizer(name: str) -> BertTokenizer:
    """BERT's tokenizer from a folder or the hub; raises ValueError when there is none."""
    if not Path(name).expanduser().is_dir():
        ask_hub(name, "folder")
    try:
        return BertTokenizer.from_pretrained(name)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{name!r} has no tokenizer of BERT's that can be reached: {first_line(error)}") from error


def convert(
    weights: dict[str, Tensor], *, vision_heads: int | None = None, text_heads: int | None = None, what: str
) -> RewardNetwork:
    """The network of weights in the released layout, its sizes read off them; raises ValueError naming every weight
    that is missing or unknown."""
    stripped = {name.removeprefix("module."): value for name, value in weights.items()}
    used = {name: value for name, value in stripped.items() if not name.startswith(UNUSED)}
    network = RewardNetwork(
        vision_config(used, heads=vision_heads, what=what), text_config(used, heads=text_heads, what=what)
    )
    own = network.state_dict()
    names = {name: released_name(name) for name in own}
    check_weights(used, {released: own[name].shape for name, released in names.items()}, what=what)
    network.load_state_dict({name: used[released] for name, released in names.items()})
    return network


def released_name(name: str) -> str:
    """The released file's name of one of our weights."""
    for pattern, released in RELEASED_NAMES:
        if re.match(pattern, name):
            return re.sub(pattern, released, name)
    return name


def vision_config(weights: dict[str, Tensor], *, heads: int | None, what: str) -> BlipVisionConfig:
    """The ViT config of weights in the released layout."""
    num_positions, width = _shape(weights, f"{VISION}pos_embed", 3, what)[1:]
    patch = _shape(weights, f"{VISION}patch_embed.proj.weight", 4, what)[-1]
    side = round((num_positions - 1) ** 0.5)
    if side**2 != num_positions - 1:
        raise ValueError(f"{what}: {VISION}pos_embed has {num_positions} positions, not one and a square number")
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=_shape(weights, f"{VISION}blocks.0.mlp.fc1.weight", 2, what)[0],
        num_hidden_layers=_num_layers(weights, rf"{VISION}blocks\.(\d+)\."),
        num_attention_heads=_num_heads(width, heads, "vision_heads"),
        image_size=side * patch,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )


def text_config(weights: dict[str, Tensor], *, heads: int | None, what: str) -> BlipTextConfig:
    """The config of the BERT with cross-attention of weights in the released layout."""
    num_tokens, width = _shape(weights, f"{TEXT}embeddings.word_embeddings.weight", 2, what)
    layer = f"{TEXT}encoder.layer.0."
    return BlipTextConfig(
        vocab_size=num_tokens,
        hidden_size=width,
        encoder_hidden_size=_shape(weights, f"{layer}crossattention.self.key.weight", 2, what)[1],
        intermediate_size=_shape(weights, f"{layer}intermediate.dense.weight", 2, what)[0],
        num_hidden_layers=_num_layers(weights, rf"{TEXT}encoder\.layer\.(\d+)\."),
        num_attention_heads=_num_heads(width, heads, "text_heads"),
        max_position_embeddings=_shape(weights, f"{TEXT}embeddings.position_embeddings.weight", 2, what)[0],
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        bos_token_id=None,  # this and the next belong to text generation, which is not used
        sep_token_id=None,
        is_decoder=True,  # gives every layer its cross-attention; the mask stays bidirectional
    )


def _shape(weights: dict[str, Tensor], name: str, num_axes: int, what: str) -> torch.Size:
    if name not in weights:
        raise ValueError(f"{what} is no ImageReward: it has no weights for {name}")
    if weights[name].ndim != num_axes:
        raise ValueError(f"{what}: {name} should have {num_axes} axes, it is {tuple(weights[name].shape)}")
    return weights[name].shape


def _num_layers(weights: dict[str, Tensor], pattern: str) -> int:
    return 1 + max(int(found[1]) for name in weights if (found := re.match(pattern, name)))


def _num_heads(width: int, heads: int | None, argument: str) -> int:
    if heads is None and width % HEAD_WIDTH:
        raise ValueError(f"a width of {width} is no whole number of heads {HEAD_WIDTH} wide; give {argument}")
    return heads or width // HEAD_WIDTH
