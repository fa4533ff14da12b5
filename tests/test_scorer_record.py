"""The record that makes a scorer's numbers repeatable."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from stepalign.metrics import record
from stepalign.metrics.record import files_sha256, scorer_record, tensors_sha256

SAID = {"preprocessing": "none", "scale": "one"}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name, content in (("b.bin", b"second"), ("a.bin", b"first")):
        (tmp_path / name).write_bytes(content)
    return [tmp_path / "b.bin", tmp_path / "a.bin"]


def test_one_files_digest_is_its_sha256(files: list[Path]) -> None:
    assert files_sha256(files[:1]) == hashlib.sha256(b"second").hexdigest()


def test_a_large_file_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "CHUNK", 3)
    (tmp_path / "file").write_bytes(b"ten bytes.")
    assert files_sha256([tmp_path / "file"]) == hashlib.sha256(b"ten bytes.").hexdigest()


def test_several_files_digest_is_that_of_theirs_by_name(files: list[Path]) -> None:
    both = [hashlib.sha256(content).hexdigest() for content in (b"first", b"second")]
    expected = hashlib.sha256("\n".join(both).encode()).hexdigest()
    assert files_sha256(files) == files_sha256(files[::-1]) == expected
    files[0].write_bytes(b"another")
    assert files_sha256(files) != expected


def test_tensors_are_told_apart_by_value_name_type_and_shape() -> None:
    weights = {"a": torch.arange(6.0), "b": torch.tensor(1.5)}
    others = [
        {"a": torch.arange(6.0), "c": torch.tensor(1.5)},
        {"a": torch.arange(6.0), "b": torch.tensor(1.75)},
        {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.5)},
        {"a": torch.arange(6.0).bfloat16(), "b": torch.tensor(1.5)},
        {"a": torch.arange(6.0).view(torch.int32), "b": torch.tensor(1.5)},
        {"a": torch.arange(6.0)},
    ]
    digests = {tensors_sha256(other) for other in [weights, *others]}
    assert len(digests) == 7
    assert tensors_sha256(dict(reversed(weights.items()))) == tensors_sha256(weights)
    transposed = {"a": torch.arange(6.0).reshape(2, 3).T.contiguous().T.reshape(6), "b": weights["b"]}
    assert tensors_sha256(transposed) == tensors_sha256(weights)


def test_a_local_path_keeps_its_last_part_and_a_hub_id_everything(files: list[Path], tmp_path: Path) -> None:
    for weights, expected in (
        (str(tmp_path), tmp_path.name),
        (str(files[0]), "b.bin"),
        (f"{tmp_path}/.", tmp_path.name),
        ("owner/model", "owner/model"),
    ):
        assert scorer_record("one", weights=weights, files=files, **SAID).weights == expected


def test_the_record_names_the_libraries_and_can_be_written(files: list[Path]) -> None:
    made = scorer_record("one", weights="owner/model", files=files, needs_prompt=False, **SAID)
    assert made.libraries == {name: version(name) for name in ("stepalign", "torch", "transformers", "pillow")}
    assert (made.needs_prompt, made.name) == (False, "one")
    assert json.loads(json.dumps(asdict(made)))["sha256"] == files_sha256(files)


def test_files_come_before_tensors_and_one_of_them_is_needed(files: list[Path]) -> None:
    tensors = {"a": torch.ones(2)}
    with_files = scorer_record("one", weights="x", files=files, tensors=tensors, **SAID)
    without = scorer_record("one", weights="x", files=[], tensors=tensors, **SAID)
    assert (with_files.sha256, without.sha256) == (files_sha256(files), tensors_sha256(tensors))
    with pytest.raises(ValueError, match="record of one needs the files or the tensors"):
        scorer_record("one", weights="x", files=[], **SAID)
