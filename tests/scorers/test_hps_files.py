"""HPS's versions and files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import an_image
from open_clip_layout import random_state
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from stepalign.core.protocols import Metric, Scorer
from stepalign.scorers import hps
from stepalign.scorers.hps import FILES, HPS
from stepalign.support.images import open_image

PROMPTS = ["a red ring", "a dot"]


def test_the_version_must_be_said_and_be_known(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    with pytest.raises(TypeError, match="version"):
        HPS(tiny_clip, tokenizer)
    for version in ("v2", "2.1", "v3"):
        with pytest.raises(ValueError, match=f"versions v2.0, v2.1, got '{version}'"):
            hps._check_version(version)


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_the_record_has_the_version_in_its_name(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer, version: str) -> None:
    scorer = HPS(tiny_clip, tokenizer, version=version)
    assert (scorer.record.name, scorer.record.scale, scorer.record.needs_prompt) == (f"hps-{version}", "100 cos", True)
    assert scorer.record.weights == "in memory"
    assert isinstance(scorer, Scorer)
    assert isinstance(scorer, Metric)


@pytest.fixture
def released(tokenizer: CLIPTokenizer, tmp_path: Path) -> Path:
    """A file like the released ones, in fp16 and narrow where it can be, with a tokenizer beside it."""
    state = random_state(vision=768, text=512, num_layers=1, patch=8, side=4, vocabulary=len(tokenizer))
    path = tmp_path / "hps" / FILES["v2.1"]
    tokenizer.save_pretrained(path.parent)
    torch.save({"state_dict": {key: value.half() for key, value in state.items()}}, path)
    return path


def test_the_released_file_loads_by_its_path_and_by_its_folder(released: Path, tokenizer: CLIPTokenizer) -> None:
    scorers = [HPS.from_pretrained(str(path), version="v2.1") for path in (released, released.parent)]
    some_images, prompts = [an_image(40, 60), an_image(50, 30, seed=1)], PROMPTS
    one, other = (scorer.score(some_images, prompts) for scorer in scorers)
    assert torch.equal(one, other)
    state = torch.load(released)["state_dict"]
    assert scorers[0].clip.model.dtype == torch.float32
    assert torch.equal(scorers[0].clip.model.visual_projection.weight, state["visual.proj"].T.float())
    assert scorers[0].record.weights == FILES["v2.1"]
    assert len({scorer.record.sha256 for scorer in scorers}) == 1


def test_the_same_weights_in_clipmodels_format_score_alike(
    released: Path, tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    first = HPS.from_pretrained(str(released), version="v2.1")
    first.clip.model.save_pretrained(tmp_path / "folder")
    second = HPS.from_pretrained(str(tmp_path / "folder"), version="v2.1", tokenizer=str(released.parent))
    some_images, prompts = [an_image(40, 60), an_image(50, 30, seed=1)], PROMPTS
    torch.testing.assert_close(second.score(some_images, prompts), first.score(some_images, prompts), rtol=0, atol=1e-4)


def test_a_file_of_the_other_version_is_refused(released: Path) -> None:
    for path in (released, released.parent):
        with pytest.raises(
            ValueError, match=r"HPS_v2\.1_compressed\.pt is not HPS v2\.0, which is HPS_v2_compressed\.pt"
        ):
            HPS.from_pretrained(str(path), version="v2.0")


def test_the_file_with_the_optimizer_is_refused_with_advice(tmp_path: Path, tokenizer: CLIPTokenizer) -> None:
    path = tmp_path / "HPS_v2.pt"
    torch.save({"state_dict": random_state(), "optimizer": {"lr": np.float64(1e-5)}}, path)
    with pytest.raises(
        ValueError, match=r"holds more than tensors .*; the released weights, .* are HPS_v2_compressed\.pt"
    ):
        HPS.from_pretrained(str(path), version="v2.0")


def test_weights_come_from_the_hub_by_version(
    released: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: CLIPTokenizer
) -> None:
    asked = []

    def download(repository: str, filename: str) -> str:
        asked.append((repository, filename))
        return str(released)

    monkeypatch.setattr("stepalign.scorers.weights.hf_hub_download", download)
    scorer = HPS.from_pretrained(version="v2.1")
    HPS.from_pretrained("owner/copy/weights.pt", version="v2.1")
    assert asked == [("xswu/HPSv2", "HPS_v2.1_compressed.pt"), ("owner/copy", "weights.pt")]
    assert scorer.record.weights == "xswu/HPSv2"


def test_without_a_tokenizer_beside_the_weights_it_is_vit_hs(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: CLIPTokenizer
) -> None:
    alone, asked = tmp_path / FILES["v2.1"], []
    alone.write_bytes(released.read_bytes())

    def load(name: str) -> CLIPTokenizer:
        asked.append(name)
        return tokenizer

    monkeypatch.setattr(hps, "load_tokenizer", load)
    HPS.from_pretrained(str(alone), version="v2.1")
    HPS.from_pretrained(str(released), version="v2.1")
    assert asked == ["laion/CLIP-ViT-H-14-laion2B-s32B-b79K", str(released.parent)]


def test_another_activation_is_refused(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    config = CLIPConfig.from_dict(tiny_clip.config.to_dict())
    config.vision_config.hidden_act = "quick_gelu"
    with pytest.raises(ValueError, match="activation gelu, the model's config has 'quick_gelu'"):
        HPS(CLIPModel(config), tokenizer, version="v2.0")


@pytest.mark.hub
@pytest.mark.skipif(
    not {"STEPALIGN_HPS", "STEPALIGN_HPS_IMAGE"} <= os.environ.keys(),
    reason="STEPALIGN_HPS: path of HPS_v2_compressed.pt; STEPALIGN_HPS_IMAGE: of hpsv2/assets/demo_image.jpg",
)
def test_the_authors_image_scores_what_they_print() -> None:
    """28.76 for v2.0 (tgxs002/HPSv2, issue 27), in their fp16 and with the torchvision of the day."""
    image = open_image(Path(os.environ["STEPALIGN_HPS_IMAGE"]))
    scores = []
    for antialias in (True, False):
        scorer = HPS.from_pretrained(os.environ["STEPALIGN_HPS"], version="v2.0", antialias=antialias)
        scores += scorer.score([image], ["A cat with two horns on its head"]).tolist()
    assert min(abs(score - 28.76) for score in scores) < 0.06
