"""Which names are of the hub, and that a hub out of reach costs seconds, once."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from stepalign.data.prompt_sets import load_prompt_set
from stepalign.data.sources import open_pairs
from stepalign.judges.spm_files import read_released
from stepalign.models.adapters import find_adapter
from stepalign.models.clip import resolve_folder
from stepalign.models.load import load
from stepalign.scorers.weights import weights_file
from stepalign.support import hub


@pytest.mark.parametrize("name", ["runwayml/stable-diffusion-v1-5", "a/b", "laion/CLIP-ViT-H-14", "o.w/n_a.v2-1"])
def test_exactly_owner_and_name_is_a_hub_id(name: str) -> None:
    assert hub.is_hub_id(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "gpt2",
            "a/b/c",
            "/a/b",
            "./a",
            "../a",
            "~/a",
            "a/",
            "/b",
            "a//b",
            "a\\b",
            "C:/a",
            "a/b:c",
            "",
            ".",
            "a/..",
            "a /b",
        ),
        *("models/mine.safetensors", "models/mine.ckpt", "pairs/all.JSONL", "ä/b", "a/b\n"),
    ],
)
def test_paths_are_none(name: str) -> None:
    assert not hub.is_hub_id(name)


def test_a_name_below_a_folder_that_is_here_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub.is_hub_id("runs/mine")
    (tmp_path / "runs").mkdir()
    assert not hub.is_hub_id("runs/mine")
    assert hub.split_hub_file("runs/mine/judge.bin") is None
    assert hub.split_hub_file("owner/name/sub/judge.bin") == ("owner/name", "sub/judge.bin")


ASK = {
    "folder": resolve_folder,
    "model": load,
    "vae": lambda name: load("owner/model", vae=name),
    "weights": lambda name: weights_file(name, filename="head.pth"),
    "judge": lambda name: read_released(f"{name}/judge.bin"),
    "adapter": find_adapter,
    "pairs": open_pairs,
    "prompts": lambda name: load_prompt_set("parti"),
}


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> float:
    """A process that has not asked the hub yet and does not wait long for it."""
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_answers", [])
    return 0.2


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "silent"])
def test_a_hub_out_of_reach_is_one_line_soon_and_asked_once(
    closed: bool, patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", "http://{}:{}".format(*listener.getsockname()))
        if not closed:
            listener.listen()
        start = time.perf_counter()
        for ask in ASK.values():
            with pytest.raises(ValueError, match="reach") as raised:
                ask("owner/name")
            assert "\n" not in str(raised.value)
        assert time.perf_counter() - start < 5 * patience
        if not closed:
            listener.settimeout(0)
            listener.accept()[0].close()
            with pytest.raises(BlockingIOError):
                listener.accept()


@pytest.mark.parametrize("kind", [kind for kind in ASK if kind != "prompts"])
@pytest.mark.parametrize("name", ["runs/mine.safetensors", "./mine", "~/mine", "/nowhere/mine", "a\\b", "mine"])
def test_a_path_that_is_not_there_is_never_asked_of_the_hub(
    kind: str, name: str, patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("huggingface_hub.get_session", lambda: asked.append(name))
    with pytest.raises(ValueError, match="there is no"):
        ASK[kind](name)
    assert asked == []
