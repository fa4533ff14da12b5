"""ImageReward: the released layout, and the same numbers as its architecture written out by hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reward_by_hand import BERT, TEXT_HEADS, VISION_HEADS, VIT, ByHand, random_weights, released_shapes
from torch import Tensor
from transformers import BertTokenizer

from stepalign.core.protocols import Metric, Scorer
from stepalign.scorers import image_reward
from stepalign.scorers.image_reward import MAX_TOKENS, ImageReward, convert, load_tokenizer, text_config, vision_config
from stepalign.scorers.preparation import clip_pixels
from stepalign.support.images import open_image

WORDS = ("a", "cat", "dog", "red", "blue", "two", "boat", "##s", "on", "sea")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
    BertTokenizer(vocab={name: index for index, name in enumerate(names)}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights()


@pytest.fixture(scope="module")
def file(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("released") / "ImageReward.pt"
    torch.save(weights, path)
    return path


def load(file: Path, tokenizer_folder: Path, **options: object) -> ImageReward:
    heads = {"vision_heads": VISION_HEADS, "text_heads": TEXT_HEADS}
    return ImageReward.from_pretrained(str(file), tokenizer=str(tokenizer_folder), **heads, **options)


@pytest.fixture(scope="module")
def scorer(file: Path, tokenizer_folder: Path) -> ImageReward:
    return load(file, tokenizer_folder)


def images(num: int = 3) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40 + 9 * i, 50, 3), dtype=np.uint8)) for i in range(num)]


PROMPTS = ["a red cat", "two boats on a blue sea", "dog"]


PIECES = [[2, 5, 8, 6, 3], [2, 10, 11, 12, 13, 5, 9, 14, 3], [2, 7, 3]]
"""Of the prompts, between [CLS] and [SEP]."""


def test_the_scores_are_those_of_the_architecture_written_out(scorer: ImageReward, weights: dict[str, Tensor]) -> None:
    """By hand there is no padding, and so nothing to mask."""
    by_hand = ByHand(weights)
    expected = [
        by_hand.score(one, ids) for one, ids in zip(clip_pixels(images(), 32, "torchvision"), PIECES, strict=True)
    ]
    assert np.std(expected) > 0.1
    assert scorer.score(images(), PROMPTS).tolist() == pytest.approx(expected, abs=1e-4)


def test_in_float64_they_are_the_same_to_the_last_digits(weights: dict[str, Tensor]) -> None:
    network, by_hand = converted(weights).eval().double(), ByHand(weights)
    pixels = clip_pixels(images(), 32, "torchvision").double()
    ids = torch.tensor([[*ids, *[0] * (35 - len(ids))] for ids in PIECES])
    expected = [by_hand.score(one, words) for one, words in zip(pixels, PIECES, strict=True)]
    with torch.no_grad():
        assert network(pixels, ids, (ids != 0).long()).tolist() == pytest.approx(expected, abs=1e-11)


def test_prompts_are_cut_at_33_pieces(scorer: ImageReward) -> None:
    """35 with [CLS] and [SEP]: the 33rd word counts, the 34th does not."""
    image = images(1) * 3
    long = ["cat"] * 33
    scores = scorer.score(image, [" ".join(words) for words in (long, [*long, "dog"], [*long[:32], "dog"])])
    assert MAX_TOKENS == 35
    assert scores[1].item() == pytest.approx(scores[0].item(), abs=1e-6)
    assert abs(scores[2] - scores[0]) > 1e-4


def test_gradients_reach_images(scorer: ImageReward) -> None:
    """In the middle of a wide image, which is all that is seen of it; and up the gradient the score rises."""
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scores = scorer(images, PROMPTS[:2])
    scores.sum().backward()
    assert images.grad is not None
    assert images.grad[..., 8:40].count_nonzero() == images.grad.count_nonzero() == 2 * 3 * 32 * 32
    step = 1e-2 * images.grad / images.grad.flatten(1).norm(dim=1)[:, None, None, None]
    with torch.no_grad():
        assert (scorer((images + step).clamp(0, 1), PROMPTS[:2]) > scores).all()
    assert all(parameter.grad is None for parameter in scorer.network.parameters())


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 35), (35, 32)])
def test_at_the_networks_own_size_both_paths_agree(scorer: ImageReward, height: int, width: int) -> None:
    """Without resizing; of a margin of 3 both leave out 2 pixels and then 1."""
    levels = np.random.default_rng(1).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    images = torch.from_numpy(levels).permute(0, 3, 1, 2) / 255
    top, left = 2 * (height > 32), 2 * (width > 32)
    exact = scorer.score([Image.fromarray(one) for one in levels], PROMPTS[:2])
    torch.testing.assert_close(scorer(images, PROMPTS[:2]), exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(scorer(images[..., top:, left:][..., :32, :32], PROMPTS[:2]), exact, rtol=0, atol=1e-5)


def test_it_is_a_scorer_and_a_metric(scorer: ImageReward) -> None:
    assert isinstance(scorer, Scorer)
    assert isinstance(scorer, Metric)
    assert (scorer.record.name, scorer.record.weights) == ("image-reward", "ImageReward.pt")
    assert scorer.record.needs_prompt
    assert not any(module.training for module in scorer.network.modules())


def test_half_precision_keeps_the_head_and_the_scores_in_fp32(
    scorer: ImageReward, file: Path, tokenizer_folder: Path
) -> None:
    half = load(file, tokenizer_folder, dtype=torch.bfloat16)
    assert half.network.vision.dtype == half.network.text.dtype == torch.bfloat16
    assert half.network.mlp.layers[0].weight.dtype == torch.float32
    scores = half.score(images(), PROMPTS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, scorer.score(images(), PROMPTS), rtol=0, atol=0.3)
    assert half.record.preprocessing.endswith("; towers in bfloat16")


def converted(weights: dict[str, Tensor]) -> image_reward.RewardNetwork:
    return convert(weights, vision_heads=VISION_HEADS, text_heads=TEXT_HEADS, what="it")


def test_every_weight_goes_somewhere_but_the_unused(weights: dict[str, Tensor]) -> None:
    taken = sorted(float(value.double().sum()) for value in converted(weights).state_dict().values())
    unused = ("position_ids", "vision_proj", "text_proj")
    given = [value for name, value in weights.items() if not any(part in name for part in unused)]
    assert taken == sorted(float(value.double().sum()) for value in given)
    assert len(given) == len(weights) - 5


def test_what_parallel_training_puts_before_names_is_taken_off(weights: dict[str, Tensor]) -> None:
    one, other = converted(weights), converted({f"module.{name}": value for name, value in weights.items()})
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_a_file_without_the_unused_weights_will_do(weights: dict[str, Tensor]) -> None:
    converted({name: value for name, value in weights.items() if "_proj." not in name and "_ids" not in name})


USED = [name for name in released_shapes() if "_proj." not in name and "_ids" not in name]


@pytest.mark.parametrize("name", USED)
def test_every_missing_weight_is_named(weights: dict[str, Tensor], name: str) -> None:
    with pytest.raises(ValueError, match="has no weights for ") as caught:
        converted({key: value for key, value in weights.items() if key != name})
    assert str(caught.value).endswith(f"has no weights for {name}")


@pytest.mark.parametrize(
    "name",
    ["blip.text_encoder.pooler.dense.weight", "blip.visual_encoder.blocks.0.attn.qkv.scale", "logit_scale", "mlp.head"],
)
def test_every_unknown_weight_is_named(weights: dict[str, Tensor], name: str) -> None:
    with pytest.raises(ValueError, match=rf"it has weights that are not part of it, {name}$"):
        converted(weights | {name: torch.ones(1)})


def test_weights_of_another_shape_are_named(weights: dict[str, Tensor]) -> None:
    name = f"{BERT}encoder.layer.1.crossattention.self.value.weight"
    with pytest.raises(ValueError, match=rf"it: {name} should be \(12, 16\), it is \(12, 12\)"):
        converted(weights | {name: torch.ones(12, 12)})
    with pytest.raises(ValueError, match=r"pos_embed has 18 positions, not one and a square number"):
        converted(weights | {f"{VIT}pos_embed": torch.ones(1, 18, 16)})
    with pytest.raises(ValueError, match=r"pos_embed should have 3 axes, it is \(17, 16\)"):
        converted(weights | {f"{VIT}pos_embed": torch.ones(17, 16)})


def test_the_released_sizes_are_read_off_the_weights() -> None:
    """ViT-L/16 at 224 and BERT-base: 16 and 12 heads, which no weight shows."""
    shapes = released_shapes(v=1024, t=768, patch=16, side=14, tokens=30524, layers=24)
    weights = {
        name: torch.empty(shape, device="meta")
        for name, shape in shapes.items()
        if not any(f"encoder.layer.{layer}." in name for layer in range(12, 24))
    }
    vision = vision_config(weights, heads=None, what="it")
    text = text_config(weights, heads=None, what="it")
    assert (vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers) == (1024, 4096, 24)
    assert (vision.num_attention_heads, vision.image_size, vision.patch_size) == (16, 224, 16)
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (768, 3072, 12)
    assert (text.num_attention_heads, text.vocab_size, text.encoder_hidden_size) == (12, 30524, 1024)
    assert text.max_position_embeddings == 512


def test_narrow_towers_need_their_numbers_of_heads(weights: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="a width of 16 is no whole number of heads 64 wide; give vision_heads"):
        convert(weights, what="it")
    with pytest.raises(ValueError, match="a width of 12 is no whole number of heads 64 wide; give text_heads"):
        convert(weights, vision_heads=2, what="it")


def test_a_tokenizer_of_another_model_is_refused(scorer: ImageReward, tokenizer_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the tokenizer has 5 tokens for 17 embeddings"):
        ImageReward(scorer.network, BertTokenizer())
    ImageReward(scorer.network, load_tokenizer(str(tokenizer_folder)))
    with pytest.raises(ValueError, match="there is no folder"):
        load_tokenizer(str(tmp_path / "no tokenizer"))


@pytest.mark.hub
@pytest.mark.skipif("STEPALIGN_IMAGE_REWARD_IMAGES" not in os.environ, reason="names the folder of its images")
def test_the_released_weights_give_the_published_scores() -> None:
    """Those of the README of github.com/zai-org/ImageReward for its assets/images, 1.webp to 4.webp.

    STEPALIGN_IMAGE_REWARD_IMAGES names a folder with these; STEPALIGN_IMAGE_REWARD the weights, if not the hub's.
    """
    folder = Path(os.environ["STEPALIGN_IMAGE_REWARD_IMAGES"])
    scorer = ImageReward.from_pretrained(os.environ.get("STEPALIGN_IMAGE_REWARD"))
    prompt = "a painting of an ocean with clouds and birds, day time, low depth field effect"
    scores = scorer.score([open_image(folder / f"{number}.webp") for number in range(1, 5)], [prompt] * 4)
    assert scores.tolist() == pytest.approx([0.5812, 0.2745, -1.4132, -2.0296], abs=2e-3)
