"""The table of scorers, and scores in batches."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import an_image, blotches
from jaxtyping import Float
from PIL import Image
from reward_by_hand import TEXT_HEADS, VISION_HEADS, random_weights
from test_aesthetic import random_head, tower
from torch import Tensor, nn
from transformers import BertTokenizer, CLIPModel, CLIPTokenizer

from stepalign.core.protocols import Scorer
from stepalign.scorers.aesthetic import AestheticScore
from stepalign.scorers.clip_score import CLIPScore
from stepalign.scorers.hps import HPS
from stepalign.scorers.image_reward import ImageReward, convert
from stepalign.scorers.load import SCORERS, load_scorer, score_images
from stepalign.scorers.pickscore import PickScore
from stepalign.scorers.record import scorer_record

PROMPTS = ["a red ring", "a dot", "two blue squares on a green background", "a ring", "a dot"]


@pytest.fixture(scope="module")
def folder(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scorers") / "clip"
    tiny_clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Brightness:
    """A scorer that remembers what it was shown: the mean level, and the prompt's length with it."""

    def __init__(self) -> None:
        self.record = scorer_record(
            "brightness",
            weights="none",
            files=[],
            preprocessing="none",
            scale="0 to 1",
            tensors={"none": torch.zeros(1)},
        )
        self.batches: list[int] = []

    def num_cut(self, prompts: list[str]) -> int:
        return 0

    def score(self, images: list[Image.Image], prompts: list[str]) -> Float[Tensor, " b"]:
        self.batches.append(len(images))
        levels = [float(image.convert("L").resize((1, 1)).getpixel((0, 0))) for image in images]
        return torch.tensor([level + 1000 * len(prompt) for level, prompt in zip(levels, prompts, strict=True)])


# The table


def loaded(name: str, folder: Path, *, dtype: torch.dtype = torch.float32) -> Scorer:
    return load_scorer(name, str(folder), device="cpu", dtype=dtype)


def test_all_of_one_clips_scores_follow_from_its_cosines(folder: Path) -> None:
    """On square images of the right size HPS is CLIPScore with its negative side; PickScore has another scale."""
    images = [an_image(32, 32, seed=seed) for seed in range(5)]
    scorers = [loaded(name, folder) for name in ("clip-score", "pickscore", "hps-v2.0")]
    assert all(isinstance(scorer, Scorer) for scorer in scorers)
    clip, pick, hps = (scorer.score(images, PROMPTS) for scorer in scorers)
    torch.testing.assert_close(hps.clamp(min=0), clip, rtol=0, atol=1e-4)
    scale = scorers[1].model.logit_scale.exp()
    torch.testing.assert_close(pick, scale * hps / 100, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["pickscore", "hps-v2.0"])
def test_precision_reaches_every_scorer(name: str, folder: Path) -> None:
    scorer = loaded(name, folder, dtype=torch.bfloat16)
    assert scorer.clip.model.visual_projection.weight.dtype == torch.bfloat16
    assert scorer.score([an_image(8, 8)], ["a dot"]).dtype == torch.float32
    assert scorer.record.preprocessing.endswith("towers in bfloat16")


@pytest.mark.parametrize(
    ("name", "kind", "source"),
    [
        ("pickscore", PickScore, "yuvalkirstain/PickScore_v1"),
        ("hps-v2.0", HPS, "xswu/HPSv2"),
        ("hps-v2.1", HPS, "xswu/HPSv2"),
        ("aesthetic", AestheticScore, None),
        ("image-reward", ImageReward, None),
        ("clip-score", CLIPScore, "openai/clip-vit-large-patch14"),
    ],
)
def test_every_name_has_its_scorer_with_the_published_weights(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: type, source: str | None
) -> None:
    asked = []

    def recorded(*arguments: object, **options: object) -> Brightness:
        asked.append((arguments, options))
        return Brightness()

    monkeypatch.setattr(kind, "from_pretrained", recorded)
    device = torch.device("cpu")
    for given in (None, "some/where"):
        load_scorer(name, given, device=device, dtype=torch.bfloat16)
    (first, options), (second, again) = asked
    assert (first, second) == ((source,), ("some/where",))
    assert options == again
    version = {"version": name.removeprefix("hps-")} if kind is HPS else {}
    assert options == {"device": device, "dtype": torch.bfloat16} | version


def test_the_table_is_whole() -> None:
    assert sorted(SCORERS) == ["aesthetic", "clip-score", "hps-v2.0", "hps-v2.1", "image-reward", "pickscore"]
    with pytest.raises(ValueError, match="there is no scorer 'other'"):
        load_scorer("other", None, device="cpu", dtype=torch.float32)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)):
        loaded("pickscore", tmp_path)


# Batches


@pytest.mark.parametrize(("batch_size", "batches"), [(1, [1] * 5), (2, [2, 2, 1]), (3, [3, 2]), (5, [5]), (64, [5])])
def test_each_image_is_scored_once_in_batches_with_its_prompt(batch_size: int, batches: list[int]) -> None:
    scorer, images = Brightness(), [Image.new("RGB", (4, 4), (level,) * 3) for level in (10, 20, 30, 40, 50)]
    scores = score_images(scorer, images, PROMPTS, batch_size=batch_size)
    expected = [level + 1000 * len(prompt) for level, prompt in zip((10, 20, 30, 40, 50), PROMPTS, strict=True)]
    assert scores.tolist() == expected
    assert scorer.batches == batches


def image_reward() -> ImageReward:
    special, words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), ("a", "red", "ring", "dot", "two", "blue", "on")
    vocabulary = (*special, *words, "square", "##s", "green")
    network = convert(random_weights(), vision_heads=VISION_HEADS, text_heads=TEXT_HEADS, what="it")
    return ImageReward(network.eval(), BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)}))


def make_scorer(name: str, model: CLIPModel, tokenizer: CLIPTokenizer) -> tuple[Scorer, nn.Module]:
    """A scorer with random weights, and the part of them that its images go through last."""
    match name:
        case "pickscore":
            return PickScore(model, tokenizer), model.visual_projection
        case "clip-score":
            return CLIPScore(model, tokenizer), model.visual_projection
        case "hps-v2.1":
            return HPS(model, tokenizer, version="v2.1"), model.visual_projection
        case "aesthetic":
            scorer = AestheticScore(tower(), random_head())
            return scorer, scorer.head
        case _:
            reward = image_reward()
            return reward, reward.network.mlp


NAMES = ["pickscore", "clip-score", "hps-v2.1", "aesthetic", "image-reward"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_does_not_matter(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer, name: str, batch_size: int) -> None:
    """To 2e-6 of a score, with what kernels over other batches round in a sum of 64 products."""
    images = [blotches(30 + 5 * seed, 60 - 7 * seed, seed=seed) for seed in range(5)]
    whole, parted = (
        score_images(make_scorer(name, tiny_clip, tokenizer)[0], images, PROMPTS, batch_size=size)
        for size in (5, batch_size)
    )
    torch.testing.assert_close(parted, whole, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_images_of_the_networks_own_size_and_their_tensors_score_alike(
    tiny_clip: CLIPModel, tokenizer: CLIPTokenizer, name: str
) -> None:
    """And without gradients for any weight."""
    scorer, last = make_scorer(name, copy.deepcopy(tiny_clip).requires_grad_(), tokenizer)
    levels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    exact = scorer.score([Image.fromarray(one) for one in levels], PROMPTS[:2])
    tensors = torch.from_numpy(levels).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(scorer(tensors, PROMPTS[:2]), exact, rtol=0, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in last.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_images_and_prompts_must_pair_off(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer, name: str) -> None:
    scorer, _ = make_scorer(name, tiny_clip, tokenizer)
    for num, prompts in ((0, []), (2, ["a"]), (1, ["a", "b"])):
        for call in (scorer.score, scorer):
            images = [an_image(40, 40)] * num if call == scorer.score else torch.rand(num, 3, 40, 40)
            with pytest.raises(ValueError, match=r"no images|one prompt per image|\d images and \d prompts"):
                call(images, prompts)


@pytest.mark.parametrize("name", NAMES)
def test_no_scorer_gives_scores_that_are_no_numbers(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer, name: str) -> None:
    scorer, last = make_scorer(name, copy.deepcopy(tiny_clip), tokenizer)
    column = scorer.record.name  # before the weights are damaged: a record refuses these
    for parameter in last.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=rf"^{column} gave 2 of 2 images no finite score, first image"):
        scorer.score([an_image(40, 40)] * 2, ["a dot", "a ring"])


def test_each_image_and_prompt_goes_through_its_tower_once(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """Five images, four prompts, in batches of two."""
    images, rows = [an_image(40, 48, seed=seed) for seed in range(5)], Counter()

    def count(module: nn.Module, positional: tuple[object, ...], named: dict[str, Tensor]) -> None:
        rows.update({key: len(value) for key, value in named.items() if key in ("pixel_values", "input_ids")})

    towers = (tiny_clip.vision_model, tiny_clip.text_model)
    hooks = [tower.register_forward_pre_hook(count, with_kwargs=True) for tower in towers]
    for name in NAMES[:3]:
        rows.clear()
        score_images(make_scorer(name, tiny_clip, tokenizer)[0], images, PROMPTS, batch_size=2)
        assert rows == {"pixel_values": 5, "input_ids": 4}
    for hook in hooks:
        hook.remove()


def test_what_cannot_be_scored_is_refused() -> None:
    image = an_image(4, 4)
    for images, prompts, size, message in (
        ([], [], 1, "there are no images"),
        ([image], ["a", "b"], 1, "there are 1 images and 2 prompts"),
        ([image], ["a"], 0, "batch_size must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            score_images(Brightness(), images, prompts, batch_size=size)
