"""The model card of a trained judge, and its way to the hub, which here is a recorder or a port nobody listens on."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import same_weights
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from stepalign.cli import main
from stepalign.judges.card import model_card
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.judges.spm_files import publish
from stepalign.runs.judge_recipes import load_judge_recipe
from stepalign.support.config import to_yaml

ROW = {
    "timestep": 251,
    "start": {"accuracy": 0.61234, "interval": [0.58, 0.64]},
    "judge": {"accuracy": 0.7, "interval": [0.65, 0.75]},
    "difference": 0.08766,
    "interval": [0.05, 0.12],
}
UNKNOWN = {
    "timestep": 951,
    "start": {"accuracy": None, "interval": [0.0, 1.0]},
    "judge": {"accuracy": None, "interval": [0.0, 1.0]},
    "difference": None,
    "interval": [-1.0, 1.0],
}
SUMMARY = {
    "base": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "start": "yuvalkirstain/PickScore_v1",
    "seed": 7,
    "steps": 8000,
    "num_pairs": 12345,
    "num_pairs_drawn": 512000,
    "num_decided": 456,
    "accuracy": [ROW, UNKNOWN],
    "data": {
        "pairs": "yuvalkirstain/pickapic_v1, split train",
        "held_out": "yuvalkirstain/pickapic_v1, split validation",
        "num_rows": 20000,
        "num_skipped": 3,
    },
    "timing": {"device": "some GPU"},
    "versions": {"stepalign": "0.1.0", "torch": "2.6.0"},
}


def card(**changes: Any) -> str:
    recipe = to_yaml(load_judge_recipe("spm-sd15"))
    return model_card(name="mine", command="stepalign train-judge x", recipe=recipe, summary=SUMMARY | changes)


def metadata(text: str) -> dict[str, Any]:
    opening, block, _ = text.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(block)


# The card


def test_the_hub_learns_base_model_data_and_kind() -> None:
    found = metadata(card())
    assert found["library_name"] == "stepalign"
    assert found["base_model"] == ["yuvalkirstain/PickScore_v1"]
    assert "step-aware-preference-model" in found["tags"]


@pytest.mark.parametrize(
    "name",
    [
        *("owner/pairs", "owner/pairs, split train", "owner/pairs@main, split train"),
        "owner/pairs@refs/convert/parquet, split train",
    ],
)
def test_the_hub_learns_the_data_set_without_split_and_revision(name: str) -> None:
    assert metadata(card(data=SUMMARY["data"] | {"pairs": name}))["datasets"] == ["owner/pairs"]


def test_what_is_not_on_the_hub_is_not_linked() -> None:
    found = metadata(card(start="miniature", data=SUMMARY["data"] | {"pairs": "pairs.jsonl"}))
    assert not {"base_model", "datasets"} & found.keys()


def test_the_table_has_a_line_per_timestep_with_intervals() -> None:
    assert "| 251 | 0.612 (0.580 to 0.640) | 0.700 (0.650 to 0.750) | +0.088 (+0.050 to +0.120) |" in card()
    assert "| 951 | – | – | – |" in card()


def test_the_card_says_what_was_done_to_what() -> None:
    text = card()
    for words in (
        *(
            "# mine\n",
            "8000 steps",
            "12,345 labelled pairs",
            "each seen 41.5 times",
            "3 of 20000 rows",
            "456 pairs",
            "Seed 7",
            "some GPU",
            "torch 2.6.0",
        ),
        *("`stable-diffusion-v1-5/stable-diffusion-v1-5`", "split validation", "```\nstepalign train-judge x\n```"),
    ):
        assert words in text


def test_the_recipe_on_the_card_runs_again(tmp_path: Path) -> None:
    block = card().split("```yaml\n")[1].split("```")[0]
    (tmp_path / "recipe.yaml").write_text(block)
    assert load_judge_recipe(str(tmp_path / "recipe.yaml")) == load_judge_recipe("spm-sd15")


# The hub


class Hub:
    """Keeps what is uploaded in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.created: list[tuple[str, bool]] = []

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        self.created.append((repo_id, private))
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, folder_path: Path, repo_id: str, allow_patterns: list[str], commit_message: str) -> None:
        assert self.created[-1][0] == repo_id
        assert commit_message
        names = [str(path.relative_to(folder_path)) for path in folder_path.rglob("*") if path.is_file()]
        self.folder.mkdir()
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            shutil.copy(folder_path / name, self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    recorder = Hub(tmp_path / "uploaded")
    monkeypatch.setattr("stepalign.judges.spm_files.HfApi", lambda: recorder)
    return recorder


@pytest.fixture
def judge(tiny_spm_folder: Path, tmp_path: Path) -> Path:
    """A folder as training leaves it, and files that are nobody's business."""
    folder = tmp_path / "judge"
    shutil.copytree(tiny_spm_folder, folder)
    (folder / "README.md").write_text(card())
    for name in ("notes.txt", ".model.safetensors.1.tmp", "optimizer.pt"):
        (folder / name).write_text("private")
    return folder


@pytest.mark.parametrize("private", [True, False])
def test_a_judge_is_uploaded_so_that_it_loads_again(hub: Hub, judge: Path, private: bool) -> None:
    assert publish(judge, "owner/name", private=private) == "https://hub/owner/name"
    assert hub.created == [("owner/name", private)]
    names = {path.name for path in hub.folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md", "tokenizer.json", "tokenizer_config.json"}
    original = StepAwarePreferenceModel.from_pretrained(judge)
    assert same_weights(StepAwarePreferenceModel.from_pretrained(hub.folder), original)
    assert CLIPTokenizer.from_pretrained(hub.folder).get_vocab() == CLIPTokenizer.from_pretrained(judge).get_vocab()


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer_config.json", "README.md"])
def test_a_folder_without_one_of_its_files_is_refused_before_the_hub_is_asked(hub: Hub, judge: Path, file: str) -> None:
    (judge / file).unlink()
    with pytest.raises(ValueError, match=f"has no {file}"):
        publish(judge, "owner/name")
    assert hub.created == []


def test_a_model_in_memory_is_pushed_with_tokenizer_and_card(hub: Hub, judge: Path, tokenizer: CLIPTokenizer) -> None:
    model = StepAwarePreferenceModel.from_pretrained(judge)
    pushed = model.push_to_hub("owner/name", tokenizer=tokenizer, card=card(), dtype=torch.bfloat16, private=True)
    assert pushed == "https://hub/owner/name"
    assert hub.created == [("owner/name", True)]
    assert (hub.folder / "README.md").read_text() == card()
    weights = load_file(hub.folder / "model.safetensors")
    assert weights["visual_projection.weight"].dtype == torch.bfloat16
    assert torch.equal(weights["logit_scale"], model.logit_scale)
    assert len(CLIPTokenizer.from_pretrained(hub.folder)) == len(tokenizer)


@pytest.mark.parametrize(
    "error",
    [OSError(), OSError(28, "No space left"), LocalTokenNotFoundError("no token\nlog in"), HFValidationError("bad id")],
    ids=repr,
)
@pytest.mark.parametrize("call", ["create_repo", "upload_folder"])
def test_an_error_of_the_hub_is_one_line(
    hub: Hub, judge: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, call: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(hub, call, refuse)
    with pytest.raises(ValueError, match=r"^cannot publish to 'owner/name': ") as refused:
        publish(judge, "owner/name")
    assert len(str(refused.value).splitlines()) == 1


class Forbidding(BaseHTTPRequestHandler):
    """A hub that refuses."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(403, "Forbidden")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *_: object) -> None: ...


@pytest.fixture(params=["forbids", "is not there"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of a server that refuses, or of none."""
    server = HTTPServer(("127.0.0.1", 0), Forbidding)
    port = server.server_port
    if request.param == "is not there":
        server.server_close()
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
        yield f"http://127.0.0.1:{port}"
        return
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_that_refuses_or_is_not_there_is_one_line_on_the_command_line(
    address: str, judge: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    api = HfApi(endpoint=address, token=False)
    monkeypatch.setattr("stepalign.judges.spm_files.HfApi", lambda: api)
    assert main(["push-judge", str(judge), "owner/name"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stepalign: cannot publish to 'owner/name': ")


@pytest.mark.parametrize("private", [True, False])
def test_push_judge_prints_the_address(
    hub: Hub, judge: Path, capsys: pytest.CaptureFixture[str], private: bool
) -> None:
    assert main(["push-judge", str(judge), "owner/name", *(["--private"] if private else [])]) == 0
    assert capsys.readouterr().out == "https://hub/owner/name\n"
    assert hub.created == [("owner/name", private)]
    assert (hub.folder / "README.md").is_file()


def test_push_judge_refuses_a_folder_that_is_none_in_one_line(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push-judge", str(tmp_path / "nowhere"), "owner/name"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "has no config.json; give the judge/ folder" in line
    assert hub.created == []
