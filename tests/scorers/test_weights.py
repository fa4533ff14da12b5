"""Where weights come from, and that none is missing, left over or run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPVisionModelWithProjection

from stepalign.scorers.weights import check_weights, load_clip_vision, model_type, weights_file
from stepalign.support.tensor_files import read_tensors, weight_files

WEIGHTS = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}


@pytest.fixture(scope="module")
def clip_folder(tiny_clip: CLIPModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip.save_pretrained(folder)
    return folder


def test_a_file_is_itself_and_a_folder_its_only_file_of_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "mine.pth").touch()
    assert weights_file(str(tmp_path / "mine.pth"), filename="head.pth") == tmp_path / "mine.pth"
    assert weights_file(str(tmp_path), filename="head.pth") == tmp_path / "mine.pth"


def test_of_several_files_the_one_of_the_expected_name_is_taken(tmp_path: Path) -> None:
    for name in ("a.safetensors", "head.pth"):
        (tmp_path / name).touch()
    assert weights_file(str(tmp_path), filename="head.pth").name == "head.pth"
    with pytest.raises(ValueError, match=r"or one named other\.pth; it has a\.safetensors, head\.pth"):
        weights_file(str(tmp_path), filename="other.pth")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it has none"):
        weights_file(str(tmp_path), filename="head.pth")


@pytest.mark.parametrize("name", ["no such name", "nothing.pth", "a/b c"])
def test_a_name_that_is_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="there is no file or folder"):
        weights_file(name, filename="head.pth")


def test_a_hub_name_says_repository_and_file(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(
        "stepalign.scorers.weights.hf_hub_download", lambda *names: asked.append(names) or "/somewhere/head.pth"
    )
    assert weights_file("some/repository", filename="head.pth") == Path("/somewhere/head.pth")
    weights_file("some/repository/sub/other.pth", filename="head.pth")
    assert asked == [("some/repository", "head.pth"), ("some/repository", "sub/other.pth")]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_are_read_from_both_kinds_of_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(WEIGHTS, path)
    else:
        save_file(WEIGHTS, path)
    read = read_tensors(path)
    assert read.keys() == WEIGHTS.keys()
    assert all(torch.equal(read[name], value) for name, value in WEIGHTS.items())


class Runs:
    """What runs a program when a pickle of it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_something_is_refused_unrun(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    torch.save({"a": Runs(trace)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="is damaged, or holds more than tensors"):
        read_tensors(tmp_path / "weights.pt")
    assert not trace.exists()
    with (tmp_path / "plain.pt").open("wb") as file:
        pickle.dump(Runs(trace), file, protocol=2)
    with pytest.raises(ValueError, match="is damaged, or holds more than tensors"):
        read_tensors(tmp_path / "plain.pt")
    assert not trace.exists()


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", b"version https://git-lfs.github.com/spec/v1\n", b"\x80\x02s."]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_is_none_is_refused_by_name(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"weights{suffix} is damaged, or holds more than tensors"):
        read_tensors(path)


def test_every_missing_and_unknown_weight_is_named() -> None:
    shapes = {name: value.shape for name, value in WEIGHTS.items()}
    check_weights(WEIGHTS, shapes, what="it")
    with pytest.raises(ValueError, match=r"it has no weights for c, d$"):
        check_weights(WEIGHTS, shapes | {"d": torch.Size([1]), "c": torch.Size([1])}, what="it")
    with pytest.raises(ValueError, match=r"it has weights that are not part of it, b$"):
        check_weights(WEIGHTS, {"a": shapes["a"]}, what="it")
    with pytest.raises(ValueError, match=r"it: b should be \(2, 3\), it is \(2, 2\)"):
        check_weights(WEIGHTS, shapes | {"b": torch.Size([2, 3])}, what="it")


def test_the_vision_tower_of_a_whole_clip_is_its_own(clip_folder: Path, tiny_clip: CLIPModel) -> None:
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = tiny_clip.get_image_features(pixel_values=pixels).pooler_output
        assert torch.equal(load_clip_vision(clip_folder)(pixel_values=pixels).image_embeds, expected)


def test_a_vision_tower_alone_is_loaded_too(clip_folder: Path, tmp_path: Path) -> None:
    whole = load_clip_vision(clip_folder)
    whole.save_pretrained(tmp_path)
    alone = load_clip_vision(tmp_path)
    assert model_type(tmp_path) == "clip_vision_model"
    assert alone.state_dict().keys() == whole.state_dict().keys()
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in alone.state_dict().items())


def damaged(clip_folder: Path, folder: Path, *, without: str = "", extra: str = "") -> Path:
    weights = {key: value for key, value in load_file(clip_folder / "model.safetensors").items() if key != without}
    save_file(weights | ({extra: torch.ones(1)} if extra else {}), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_bytes((clip_folder / "config.json").read_bytes())
    return folder


def test_missing_weights_of_a_vision_tower_are_named(clip_folder: Path, tmp_path: Path) -> None:
    key = "visual_projection.weight"
    with pytest.raises(ValueError, match=f"CLIPVisionModelWithProjection has no weights for {key}"):
        load_clip_vision(damaged(clip_folder, tmp_path, without=key))


def test_unknown_weights_of_a_vision_tower_are_named(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has unknown weights, (vision_model\.)?head\.bias"):
        load_clip_vision(damaged(clip_folder, tmp_path, extra="vision_model.head.bias"))


def test_a_tower_whose_weights_do_not_fit_its_config_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    damaged(clip_folder, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["projection_dim"] = 9
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="holds no CLIPVisionModelWithProjection that fits its config"):
        load_clip_vision(tmp_path)


def test_a_folder_of_another_model_or_of_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json with a model_type"):
        load_clip_vision(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="holds a model of type 'bert', not a CLIP"):
        load_clip_vision(tmp_path)


def test_the_files_of_weights_are_those_that_transformers_reads(clip_folder: Path, tmp_path: Path) -> None:
    assert [path.name for path in weight_files(clip_folder)] == ["model.safetensors"]
    (tmp_path / "pytorch_model.bin").touch()
    assert [path.name for path in weight_files(tmp_path)] == ["pytorch_model.bin"]
    assert isinstance(load_clip_vision(clip_folder), CLIPVisionModelWithProjection)
