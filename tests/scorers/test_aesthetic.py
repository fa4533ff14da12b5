"""The aesthetic predictor: an affine map of a normalised embedding, its layout, its images."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from stepalign.core.protocols import Metric, Scorer
from stepalign.scorers import aesthetic
from stepalign.scorers.aesthetic import AestheticScore, load_head
from stepalign.scorers.preparation import clip_pixels
from stepalign.scorers.score_head import ScoreHead
from stepalign.support.digests import files_digest

KEYS = [f"layers.{layer}.{kind}" for layer in (0, 2, 4, 6, 7) for kind in ("weight", "bias")]


def tower(*, width: int = 6, hidden_act: str = "quick_gelu") -> CLIPVisionModelWithProjection:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=width,
        hidden_act=hidden_act,
        initializer_factor=5.0,  # embeddings that tell images apart
    )
    return CLIPVisionModelWithProjection(config)


def random_head(width: int = 6) -> ScoreHead:
    torch.manual_seed(1)
    head = ScoreHead(width)
    with torch.no_grad():
        for index in (0, 2, 4, 6, 7):  # scores as far apart as real ones
            head.layers[index].weight.mul_(3)
    return head


def images(num: int = 3) -> list[Image.Image]:
    """Noise of several shapes."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40 + 9 * i, 50, 3), dtype=np.uint8)) for i in range(num)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone, and a head in a folder of its own."""
    folder = tmp_path_factory.mktemp("aesthetic")
    tower().save_pretrained(folder / "backbone")
    (folder / "head").mkdir()
    torch.save(random_head().state_dict(), folder / "head" / "mine.pth")
    return folder


@pytest.fixture(scope="module")
def scorer(folder: Path) -> AestheticScore:
    return AestheticScore.from_pretrained(str(folder / "head"), backbone=str(folder / "backbone"))


def folded(head: ScoreHead) -> tuple[Tensor, Tensor]:
    """The one affine map that the layers are: their weights multiplied, their biases carried through."""
    layers = [head.layers[index] for index in (0, 2, 4, 6, 7)]
    weight, bias = torch.eye(layers[0].in_features).double(), torch.zeros(layers[0].in_features).double()
    for layer in layers:
        weight, bias = layer.weight.double() @ weight, layer.weight.double() @ bias + layer.bias.double()
    return weight[0].detach(), bias[0].detach()


def test_a_score_by_hand() -> None:
    """One path through the layers: ((((2e + 1)3 - 4)5 + 1)(-1) + 2)10 + 3 for the first entry e of the embedding.

    e = .6: 2.2, 2.6, 14, -12, and -117.
    """
    head = random_head(2).eval()
    path = zip((0, 2, 4, 6, 7), (2, 3, 5, -1, 10), (1, -4, 1, 2, 3), strict=True)
    with torch.no_grad():
        for index, weight, bias in path:
            head.layers[index].weight.zero_()[0, 0] = weight
            head.layers[index].bias.zero_()[0] = bias
        assert head(torch.tensor([[0.6, 0.8], [0.0, 1.0]])).tolist() == pytest.approx([-117, 3 + 10 * (2 - 1 + 5)])


def test_the_layout_is_the_released_one() -> None:
    """768-1024-128-64-16-1, the dropouts of training leaving gaps in the numbers."""
    weights = ScoreHead(768).state_dict()
    assert list(weights) == KEYS
    shapes = [tuple(weights[key].shape) for key in KEYS if "weight" in key]
    assert shapes == [(1024, 768), (128, 1024), (64, 128), (16, 64), (1, 16)]


def test_a_score_is_affine_in_the_normalised_embedding(scorer: AestheticScore) -> None:
    with torch.no_grad():
        embeddings = scorer.backbone(pixel_values=clip_pixels(images(), 32, "torchvision")).image_embeds.double()
    weight, bias = folded(scorer.head)
    expected = embeddings @ weight / embeddings.square().sum(1).sqrt() + bias
    assert embeddings.norm(dim=1).sub(1).abs().min() > 0.1
    assert expected.std() > 0.1
    torch.testing.assert_close(scorer.score(images(), ["", "", ""]).double(), expected, rtol=0, atol=1e-5)


def test_the_dropouts_are_off(scorer: AestheticScore) -> None:
    assert not any(module.training for part in (scorer.head, scorer.backbone) for module in part.modules())
    assert torch.equal(scorer.score(images(), ["a", "b", "c"]), scorer.score(images(), ["c", "c", "c"]))


def test_gradients_reach_images(scorer: AestheticScore) -> None:
    """In the middle of a wide image, which is all that is seen of it; and up the gradient the score rises."""
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scores = scorer(images, ["a", "b"])
    scores.sum().backward()
    assert images.grad is not None
    assert images.grad[..., 8:40].count_nonzero() == 2 * 3 * 32 * 32
    assert images.grad.count_nonzero() == 2 * 3 * 32 * 32
    step = 1e-2 * images.grad / images.grad.flatten(1).norm(dim=1)[:, None, None, None]
    with torch.no_grad():
        assert (scorer((images + step).clamp(0, 1), ["a", "b"]) > scores).all()
    assert all(parameter.grad is None for parameter in scorer.head.parameters())


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 35), (35, 32)])
def test_at_the_networks_own_size_both_paths_agree(scorer: AestheticScore, height: int, width: int) -> None:
    """Without resizing; of a margin of 3 both leave out 2 pixels and then 1."""
    levels = np.random.default_rng(1).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    images = torch.from_numpy(levels).permute(0, 3, 1, 2) / 255
    top, left = 2 * (height > 32), 2 * (width > 32)
    exact = scorer.score([Image.fromarray(one) for one in levels], ["a", "b"])
    torch.testing.assert_close(scorer(images, ["a", "b"]), exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(scorer(images[..., top:, left:][..., :32, :32], ["a", "b"]), exact, rtol=0, atol=1e-5)


def test_it_is_a_scorer_and_a_metric_that_needs_no_prompt(scorer: AestheticScore) -> None:
    assert isinstance(scorer, Scorer)
    assert isinstance(scorer, Metric)
    assert not scorer.record.needs_prompt
    assert scorer.record.name == "aesthetic"
    assert scorer.record.preprocessing == (
        "RGB, PIL bicubic to 32 on the short side, centre crop (odd margins halved to even, as torchvision does), "
        "CLIP mean and std"
    )


def test_half_precision_keeps_the_head_and_the_scores_in_fp32(folder: Path, scorer: AestheticScore) -> None:
    half = AestheticScore.from_pretrained(str(folder / "head"), backbone=str(folder / "backbone"), dtype=torch.bfloat16)
    assert half.backbone.dtype == torch.bfloat16
    assert half.head.layers[0].weight.dtype == torch.float32
    assert half.record.preprocessing == scorer.record.preprocessing + "; towers in bfloat16"
    scores = half.score(images(), ["a"] * 3)
    assert scores.dtype == torch.float32
    # The scores lie 6 apart; how far bfloat16 is off depends on torch's kernels: .04 with 2.13, .28 with 2.6.
    torch.testing.assert_close(scores, scorer.score(images(), ["a"] * 3), rtol=0, atol=0.5)


def test_the_record_says_when_the_head_is_another(
    folder: Path, scorer: AestheticScore, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = folder / "head" / "mine.pth"
    digest = hashlib.sha256(head.read_bytes()).hexdigest()
    assert scorer.record.weights == f"not sac+logos+ava1-l14-linearMSE: mine.pth, SHA-256 {digest}; on backbone"
    monkeypatch.setattr(aesthetic, "RELEASED_SHA256", (digest[:12], digest[-4:]))
    again = AestheticScore.from_pretrained(str(head), backbone=str(folder / "backbone"))
    assert again.record.weights == "sac+logos+ava1-l14-linearMSE; on backbone"
    assert again.record.sha256 == files_digest([head, folder / "backbone" / "model.safetensors"])
    for other in ((digest[:12], "zzzz"), ("zzzz", digest[-4:])):
        monkeypatch.setattr(aesthetic, "RELEASED_SHA256", other)
        assert aesthetic._words(head, "some/backbone").startswith("not ")


def save_head(path: Path, keys: list[str]) -> Path:
    torch.save({key: torch.ones(2, 2) for key in keys}, path)
    return path


def test_the_predictor_with_activations_is_refused(tmp_path: Path) -> None:
    keys = [f"layers.{layer}.{kind}" for layer in (0, 3, 6, 9, 11) for kind in ("weight", "bias")]
    with pytest.raises(ValueError, match=r"has the layers of ava\+logos-l14-reluMSE, another predictor"):
        load_head(save_head(tmp_path / "head.pth", keys))


def test_the_first_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a single linear layer, as the predictors of version 1"):
        load_head(save_head(tmp_path / "head.pth", ["weight", "bias"]))


def test_missing_and_unknown_layers_are_named(tmp_path: Path) -> None:
    weights = random_head().state_dict()
    path = tmp_path / "head.pth"
    torch.save({key: value for key, value in weights.items() if "layers.4" not in key}, path)
    with pytest.raises(ValueError, match=r"no weights for layers\.4\.bias, layers\.4\.weight"):
        load_head(path)
    torch.save(weights | {"layers.8.weight": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"not part of it, layers\.8\.weight"):
        load_head(path)
    torch.save(weights | {"layers.6.weight": torch.ones(15, 64)}, path)
    with pytest.raises(ValueError, match=r"layers\.6\.weight should be \(16, 64\), it is \(15, 64\)"):
        load_head(path)
    torch.save({key: value for key, value in weights.items() if key != "layers.0.weight"}, path)
    with pytest.raises(ValueError, match=r"no weights for layers\.0\.weight"):
        load_head(path)


def test_a_backbone_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="takes embeddings 5 wide, the backbone's are 6"):
        AestheticScore(tower(), random_head(5))


def test_a_backbone_with_another_activation_is_refused_where_the_released_head_is_meant() -> None:
    with pytest.raises(ValueError, match="hidden_act is 'gelu'; the head was trained on openai/clip-vit-large-patch14"):
        AestheticScore(tower(width=768, hidden_act="gelu"), random_head(768))
    AestheticScore(tower(width=768), random_head(768))
    AestheticScore(tower(hidden_act="gelu"), random_head())


def test_weights_from_no_file_are_recorded_by_what_they_are() -> None:
    one, same, other = (AestheticScore(tower(), head).record for head in (random_head(), random_head(), ScoreHead(6)))
    assert one.weights == "in memory"
    assert one.sha256 == same.sha256 != other.sha256


@pytest.mark.hub
def test_the_released_head_is_the_known_affine_map() -> None:
    """STEPALIGN_AESTHETIC names its file, or the hub has it: weights of norm 17.9956 and a constant of 5.2366458."""
    name = os.environ.get("STEPALIGN_AESTHETIC", aesthetic.HEAD)
    path = aesthetic.weights_file(name, filename=aesthetic.HEAD_FILE)
    weight, bias = folded(load_head(path))
    assert weight.norm().item() == pytest.approx(17.9956, abs=1e-3)
    assert bias.item() == pytest.approx(5.2366458, abs=1e-5)
    assert aesthetic._words(path, aesthetic.BACKBONE) == f"{aesthetic.RELEASED}; on {aesthetic.BACKBONE}"
