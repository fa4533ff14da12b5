"""Parquet files, saved datasets and the hub: images stay as stored, and what the hub refuses is explained."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset
from pair_sources import (
    CHOSEN,
    CHOSEN_FEATURES,
    CHOSEN_FOUND,
    IMAGES,
    found,
    image_folder,
    jsonl,
    keep_to_itself,
    parquet,
)

from stepalign.data.sources import open_pairs


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_to_itself(tmp_path / "cache", monkeypatch)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_corrupt_image_in_a_dataset_is_one_bad_row(tmp_path: Path, streaming: bool) -> None:
    rows = [dict(row) for row in CHOSEN]
    rows[1]["rejected"] = {"bytes": IMAGES["red"][:40], "path": None}
    rows[3]["chosen"] = None
    source = open_pairs(parquet(tmp_path / "a.parquet", rows, CHOSEN_FEATURES), streaming=streaming)
    first, truncated, third, missing, last = found(source)
    assert [first, third, last] == [CHOSEN_FOUND[0], CHOSEN_FOUND[2], CHOSEN_FOUND[4]]
    assert truncated[0] == "row 1"
    assert truncated[1].startswith("the second image: ")
    assert missing == ("row 3", "the first image is missing")


@pytest.mark.parametrize("streaming", [False, True])
def test_paths_in_a_local_dataset_are_relative_to_its_file(images: Path, streaming: bool) -> None:
    rows = [
        {"prompt": "a cat", "chosen": {"bytes": None, "path": f"images/{name}.png"}, "rejected": "images/blue.png"}
        for name in ("red", "nowhere")
    ]
    source = open_pairs(parquet(images / "a.parquet", rows), streaming=streaming)
    reason = f"the first image: there is no file {str(images / 'images' / 'nowhere.png')!r}"
    assert found(source) == [("row 0", "a cat", "red blue", 1.0, 1.0), ("row 1", reason)]


def test_a_fingerprint_of_a_saved_dataset_is_of_its_rows(tmp_path: Path) -> None:
    prints = []
    for name, rows in (("a", CHOSEN), ("b", CHOSEN), ("c", CHOSEN[::-1])):
        Dataset.from_list(rows, features=CHOSEN_FEATURES).save_to_disk(str(tmp_path / name))
        prints.append(open_pairs(str(tmp_path / name)).fingerprint)
    assert prints[0] == prints[1] != prints[2]
    arrow = next((tmp_path / "b").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes().replace(b"cat 1", b"dog 1"))
    assert open_pairs(str(tmp_path / "b")).fingerprint != prints[1]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_parquet_file_written_anew_is_read_anew(tmp_path: Path, streaming: bool) -> None:
    """Even in the same moment."""
    path = tmp_path / "a.parquet"
    first = open_pairs(parquet(path, CHOSEN, CHOSEN_FEATURES), streaming=streaming)
    before = path.stat().st_mtime_ns
    parquet(path, CHOSEN[::-1], CHOSEN_FEATURES)
    os.utime(path, ns=(before, before))
    second = open_pairs(str(path), streaming=streaming)
    assert found(second)[0][1] == "cat 4"
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["yuvalkirstain/pickapic_v2", "someone/Pick-a-Pic@main"])
def test_without_pick_a_pic_the_alternatives_are_named(name: str, streaming: bool) -> None:
    with pytest.raises(ValueError, match=r"^data\.pairs: '") as caught:
        open_pairs(name, split="validation", streaming=streaming)
    message = str(caught.value)
    assert "\n" not in message
    assert (
        f"'{name}' is no path on this machine, and as a hub dataset it cannot be loaded, split 'validation': "
        in message
    )
    assert "Pick-a-Pic has been reported missing from its hub since April 2025" in message
    for alternative in (
        "a local parquet copy of it",
        "data-is-better-together/open-image-preferences-v1-binarized",
        "ymhao/HPDv2",
        "win/ and lose/",
        ".jsonl",
    ):
        assert alternative in message


def test_other_datasets_that_cannot_be_had_are_only_named() -> None:
    with pytest.raises(ValueError, match=r"'owner/name' is no path .* cannot be loaded.*Couldn't reach") as caught:
        open_pairs("owner/name")
    assert "Pick-a-Pic" not in str(caught.value)


def test_a_dataset_behind_a_script_leads_to_its_converted_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Dataset scripts are no longer supported, but found HPDv2.py\nmore")

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(ValueError, match=r"found HPDv2\.py; .* try ymhao/HPDv2@refs/convert/parquet$"):
        open_pairs("ymhao/HPDv2")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub whose datasets are all `kind` of `data_files`, at the commit `hash`; notes what was asked for."""
    load, state = datasets.load_dataset_builder, {"kind": "parquet", "hash": "c0ffee"}

    def load_dataset_builder(path: str, **given: Any) -> Any:
        state["asked"] = (path, given)
        builder = load(state["kind"], data_files=state["data_files"])
        builder.hash = state["hash"]
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    return state


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_dataset_is_known_by_its_commit(tmp_path: Path, hub: dict[str, Any], streaming: bool) -> None:
    hub["data_files"] = {
        "train": parquet(tmp_path / "a.parquet", CHOSEN, CHOSEN_FEATURES),
        "test": parquet(tmp_path / "b.parquet", CHOSEN[:1], CHOSEN_FEATURES),
    }
    source = open_pairs("owner/name@v1", streaming=streaming)
    assert hub["asked"] == ("owner/name", {"revision": "v1"})
    assert source.name == "owner/name@v1, split train"
    assert found(source) == CHOSEN_FOUND
    same = open_pairs("owner/name", streaming=not streaming)
    assert hub["asked"] == ("owner/name", {"revision": None})
    assert same.fingerprint == source.fingerprint
    others = [open_pairs("owner/name", split="test"), open_pairs("owner/other"), open_pairs("owner/name", num_rows=2)]
    hub["hash"] = "decade"
    others.append(open_pairs("owner/name"))
    assert len({source.fingerprint, *(other.fingerprint for other in others)}) == 5


@pytest.mark.parametrize("streaming", [False, True])
def test_paths_in_a_hub_dataset_are_those_of_its_copy(
    images: Path, tmp_path: Path, hub: dict[str, Any], streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of no other place on this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(images))
    red = str(images / "images" / "red.png")
    (tmp_path / "own.png").write_bytes(IMAGES["red"])
    paths = [(red, red), (red, "images/red.png"), ("hf://datasets/a/b/c.png", red), (red, str(tmp_path / "own.png"))]
    lines = [{"prompt": "a cat", "path1": first, "path2": second} for first, second in paths]
    hub.update(kind="json", data_files=jsonl(tmp_path, *lines))
    good, relative, remote, outside = found(open_pairs("owner/name", streaming=streaming))
    assert good == ("row 0", "a cat", "red red", 1.0, 1.0)
    assert relative == (
        "row 1",
        "images/red.png is a path, and a hub dataset has no folder that it could be relative to",
    )
    assert remote[1].startswith("hf://datasets/a/b/c.png is an address; ")
    assert "own.png is a path, and a hub dataset has no folder" in outside[1]
    *_, allowed = found(open_pairs("owner/name", streaming=streaming, allow_outside=True))
    assert allowed[2] == "red red"


def test_what_fails_at_the_first_row_of_a_stream_is_told_as_a_failure_to_load(
    monkeypatch: pytest.MonkeyPatch, hub: dict[str, Any], tmp_path: Path
) -> None:
    hub.update(kind="json", data_files=jsonl(tmp_path, '{"prompt": '))
    with pytest.raises(ValueError, match=r"^data\.pairs: 'owner/name' is no path .* cannot be loaded"):
        open_pairs("owner/name", streaming=True)
