"""`stepalign convert-judge`: a released checkpoint becomes a folder that `--judge.path` takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file

from stepalign.cli import main
from stepalign.judges.spm import StepAwarePreferenceModel


@pytest.fixture
def released(tiny_spm_folder: Path, tmp_path: Path) -> list[str]:
    """The tiny judge in the released layout, and the words that name its sizes and tokenizer."""
    tensors = load_file(tiny_spm_folder / "model.safetensors")
    flat = {f"model.{name}": tensor for name, tensor in tensors.items()}
    flat["model.text_model.embeddings.position_ids"] = torch.arange(16.0)[None]
    torch.save(flat, tmp_path / "spm.bin")
    config = ["--config", str(tiny_spm_folder / "config.json")]
    return [str(tmp_path / "spm.bin"), str(tmp_path / "folder"), "--tokenizer", str(tiny_spm_folder), *config]


@pytest.mark.parametrize(("dtype", "kept"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_converted_judge_is_the_released_one(
    released: list[str], tiny_spm_folder: Path, tmp_path: Path, dtype: str, kept: torch.dtype
) -> None:
    assert main(["convert-judge", *released, "--dtype", dtype]) == 0
    converted = load_file(tmp_path / "folder/model.safetensors")
    original = load_file(tiny_spm_folder / "model.safetensors")
    assert converted.keys() == original.keys()
    assert torch.equal(converted.pop("logit_scale"), original["logit_scale"])  # fp32 in either file
    assert all(torch.equal(tensor, original[name].to(kept)) for name, tensor in converted.items())
    StepAwarePreferenceModel.from_pretrained(tmp_path / "folder")
    assert (tmp_path / "folder/tokenizer.json").is_file()


def test_a_directory_with_files_is_refused(
    released: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes.txt").write_text("mine")
    assert main(["convert-judge", *released]) == 1
    assert "is not an empty directory" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["notes.txt"]


def test_a_checkpoint_of_other_sizes_is_refused_before_anything_is_written(
    released: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert-judge", *released[:4]]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stepalign: ")
    assert "does not fit its config" in line
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("missing", ["--tokenizer", "--config"])
def test_a_tokenizer_or_config_that_is_not_there_is_refused_before_anything_is_written(
    released: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    """transformers makes a tokenizer without words of an empty folder."""
    (tmp_path / "empty").mkdir()
    released[released.index(missing) + 1] = str(tmp_path / "empty")
    assert main(["convert-judge", *released]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stepalign: ")
    assert not (tmp_path / "folder").exists()


def test_without_a_hub_the_folder_waits_for_a_tokenizer_and_says_so(
    released: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("stepalign.models.clip.snapshot_download", refuse)
    words = [word for word in released if word != "--tokenizer"]
    words.pop(2)
    assert main(["convert-judge", *words]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "has no tokenizer yet" in line
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["config.json", "model.safetensors"]


def test_a_checkpoint_on_the_hub_is_named_owner_name_file(
    released: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, asked = released[0], []
    monkeypatch.setattr("stepalign.judges.spm_files.hf_hub_download", lambda *words: asked.append(words) or local)
    assert main(["convert-judge", "owner/name/spm.bin", *released[1:]]) == 0
    assert asked == [("owner/name", "spm.bin")]
    assert (tmp_path / "folder/model.safetensors").is_file()


def test_a_hub_that_does_not_answer_is_one_line(
    released: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: str) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("stepalign.judges.spm_files.hf_hub_download", refuse)
    assert main(["convert-judge", "owner/name/spm.bin", *released[1:]]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "'owner/name/spm.bin' is no file on this machine, and the hub cannot be reached" in line
