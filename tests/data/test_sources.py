"""Which kind of source a name means; for every kind, the order of rows, their number, and the fingerprint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from datasets import Dataset
from pair_sources import CHOSEN_FEATURES, CHOSEN_FOUND, KINDS, found, image_folder, jsonl, keep_to_itself, open_kind
from PIL import Image

from stepalign.data.sources import open_pairs

GOOD = {"prompt": "a cat", "image_0": "images/red.png", "image_1": "images/blue.png", "label": 1}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_to_itself(tmp_path / "cache", monkeypatch)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images")


@pytest.mark.parametrize("kind", KINDS)
def test_rows_come_in_one_order_from_any_start(tmp_path: Path, kind: str) -> None:
    source = open_kind(kind, tmp_path)
    rows = found(source)
    count = 15 if "rankings" in kind else 5
    assert len(rows) == count
    assert source.num_rows == (None if "streamed" in kind else count)
    assert found(source) == rows
    for start in range(count + 3):
        assert found(source, start) == rows[start:]
    if kind == "folder":
        assert rows == [(f"cat-{i}.png", *CHOSEN_FOUND[i][1:]) for i in range(5)]
    elif kind == "jsonl":
        assert rows == [(f"pairs.jsonl line {i + 1}", *CHOSEN_FOUND[i][1:]) for i in range(5)]
    elif "rankings" not in kind:
        assert rows == CHOSEN_FOUND


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_rows", [1, 4, 100])
def test_only_the_first_rows_are_kept(tmp_path: Path, kind: str, num_rows: int) -> None:
    everything, source = found(open_kind(kind, tmp_path)), open_kind(kind, tmp_path, num_rows=num_rows)
    assert source.num_rows == (num_rows if "streamed" in kind else min(num_rows, len(everything)))
    assert found(source) == everything[:num_rows]
    assert found(source, 3) == everything[3:num_rows]


def test_nothing_is_opened_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = [open_kind(kind, tmp_path) for kind in KINDS]
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: pytest.fail("an image is opened"))
    for source in opened:
        assert len(list(source.rows())) >= 5


@pytest.mark.parametrize("kind", ["saved with splits", "parquet folder", "parquet folder streamed"])
def test_splits_are_told_apart(tmp_path: Path, kind: str) -> None:
    train = open_kind(kind, tmp_path)
    path, streaming = train.name.removesuffix(", split train"), kind.endswith("streamed")
    test = open_pairs(path, split="test_unique", streaming=streaming)
    assert found(test) == [("row 0", *CHOSEN_FOUND[4][1:])]
    assert train.name == f"{path}, split train"
    assert test.name == f"{path}, split test_unique"
    assert train.fingerprint != test.fingerprint
    with pytest.raises(ValueError, match="'dev'") as caught:
        open_pairs(path, split="dev", streaming=streaming)
    assert "'train'" in str(caught.value)
    assert "'test_unique'" in str(caught.value)


@pytest.mark.parametrize("kind", ["jsonl", "folder", "parquet", "saved"])
def test_what_has_no_splits_says_so(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError, match=r"^split must be 'train' for .*, which has no splits, got 'test'"):
        open_kind(kind, tmp_path, split="test")
    assert "split" not in Path(open_kind(kind, tmp_path).name).name


def test_the_name_is_as_given(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(images, GOOD)
    monkeypatch.chdir(images)
    source = open_pairs("pairs.jsonl")
    assert source.name == "pairs.jsonl"
    assert len(found(source)[0]) == 5


def test_a_path_may_begin_at_home(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(images, GOOD)
    monkeypatch.setenv("HOME", str(images.parent))
    assert open_pairs("~/images/pairs.jsonl").name == "~/images/pairs.jsonl"


@pytest.mark.parametrize("kind", KINDS)
def test_a_fingerprint_stays_while_the_rows_do(tmp_path: Path, kind: str) -> None:
    source = open_kind(kind, tmp_path)
    assert len(bytes.fromhex(source.fingerprint)) == 32
    path, streaming = source.name.removesuffix(", split train"), kind.endswith("streamed")
    assert open_pairs(path, streaming=streaming).fingerprint == source.fingerprint
    assert open_pairs(path, streaming=streaming, num_rows=3).fingerprint != source.fingerprint


@pytest.mark.parametrize("kind", ["folder", "parquet", "parquet folder", "parquet streamed"])
def test_a_fingerprint_is_of_names_and_contents_not_of_times_and_places(tmp_path: Path, kind: str) -> None:
    source = open_kind(kind, tmp_path)
    path, streaming = Path(source.name.removesuffix(", split train")), kind.endswith("streamed")
    for file in sorted(file for file in [path, *path.rglob("*")] if file.is_file()):
        stat = file.stat()
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    assert open_pairs(str(path), streaming=streaming).fingerprint == source.fingerprint
    moved = path.rename(path.with_name("moved" + path.suffix))
    if moved.is_dir():
        before = open_pairs(str(moved)).fingerprint
        assert before == source.fingerprint
        file = next(file for file in moved.rglob("*1*") if file.is_file())
        file.rename(file.with_name(file.name.replace("1", "9")))
        assert open_pairs(str(moved)).fingerprint != before


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "",
            r"there is nothing at ''; expected a \.jsonl or \.json file, a folder with win/ and",
        ),
        ("nowhere", "there is nothing at 'nowhere'; expected a .*OWNER/NAME or OWNER/NAME@REVISION"),
        ("data/nowhere.jsonl", r"there is nothing at 'data/nowhere\.jsonl'"),
        ("data/nowhere.parquet", r"there is nothing at 'data/nowhere\.parquet'"),
        ("../owner/name", r"there is nothing at '\.\./owner/name'"),
        ("./name", r"there is nothing at '\./name'"),
        ("owner/name/more", "there is nothing at 'owner/name/more'"),
        ("rows.json", r"rows\.json is empty; give at least one pair"),
        ("rows.csv", r"rows\.csv is of an unknown kind; expected "),
        ("nothing", "the folder nothing is of an unknown kind; expected "),
        ("empty.jsonl", r"empty\.jsonl is empty; give at least one pair"),
        ("broken.jsonl", r"no line of broken\.jsonl can be used: the line is not valid JSON: "),
        ("broken.parquet", r"broken\.parquet cannot be loaded, split 'train': "),
        (
            "empty.parquet",
            r"empty\.parquet (is empty; give at least one pair|cannot be loaded, .* corresponds to no data)",
        ),
        ("pairs", "pairs has no images in win/ and lose/"),
        ("saved", "saved cannot be loaded: "),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_other_sources_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, words: str, streaming: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("nothing", "pairs/win", "pairs/lose", "saved"):
        Path(folder).mkdir(parents=True)
    Path("rows.json").write_text("[]")
    Path("rows.csv").write_text("prompt\n")
    Path("saved/state.json").write_text("{}")
    Path("empty.jsonl").write_text("\n \n")
    Path("broken.jsonl").write_text('{"prompt":\n')
    Path("broken.parquet").write_text("PAR1")
    Dataset.from_dict({name: [] for name in CHOSEN_FEATURES}, features=CHOSEN_FEATURES).to_parquet("empty.parquet")
    with pytest.raises(ValueError, match=r"^data\.pairs: .*" + words):
        open_pairs(source, streaming=streaming)


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_rows must be at least 1, got 0"):
        open_pairs(jsonl(tmp_path, GOOD), num_rows=0)
