"""The record that makes a scorer's numbers repeatable."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from stepalign.scorers.record import scorer_record
from stepalign.support.digests import files_digest, tensors_digest

SAID = {"preprocessing": "none", "scale": "one"}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name, content in (("b.bin", b"second"), ("a.bin", b"first")):
        (tmp_path / name).write_bytes(content)
    return [tmp_path / "b.bin", tmp_path / "a.bin"]


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
    assert json.loads(json.dumps(asdict(made)))["sha256"] == files_digest(files)


def test_files_come_before_tensors_and_one_of_them_is_needed(files: list[Path]) -> None:
    tensors = {"a": torch.ones(2)}
    with_files = scorer_record("one", weights="x", files=files, tensors=tensors, **SAID)
    without = scorer_record("one", weights="x", files=[], tensors=tensors, **SAID)
    assert (with_files.sha256, without.sha256) == (files_digest(files), tensors_digest(tensors))
    with pytest.raises(ValueError, match="record of one needs the files or the tensors"):
        scorer_record("one", weights="x", files=[], **SAID)


def test_the_content_is_that_of_the_parts_whatever_files_they_came_from(files: list[Path]) -> None:
    """Without parts it is the files'."""
    parts = {"clip.weights": "ab", "clip.config": "cd"}
    made = [scorer_record("one", weights="x", files=some, parts=parts, **SAID) for some in (files, files[:1])]
    assert made[0].content == made[1].content != made[0].sha256 != made[1].sha256
    other = scorer_record("one", weights="x", files=files, parts=parts | {"clip.config": "ce"}, **SAID)
    assert other.content != made[0].content
    assert scorer_record("one", weights="x", files=files, **SAID).content == files_digest(files)
