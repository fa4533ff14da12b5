"""Tiny images and the sources of pairs they make, for the tests of `stepalign.data`."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, DatasetDict, Features, Value
from PIL import Image

from stepalign.data.pairs import BadRow, ImagePair, PairSource, read
from stepalign.data.sources import open_pairs

datasets.disable_progress_bars()

COLOURS = ("red", "blue", "lime", "black")
Row = dict[str, Any]
Found = tuple[str, str, str, float | None, float] | tuple[str, str]


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = {colour: png(colour) for colour in COLOURS}
NAMES = {Image.new("RGB", (1, 1), colour).getpixel((0, 0)): colour for colour in COLOURS}


def stored(colour: str) -> Row:
    return {"bytes": IMAGES[colour], "path": None}


CHOSEN = [
    {"prompt": f"cat {i}", "chosen": stored(COLOURS[i % 4]), "rejected": stored(COLOURS[(i + 1) % 4])} for i in range(5)
]
CHOSEN_FEATURES = Features({"prompt": Value("string"), "chosen": datasets.Image(), "rejected": datasets.Image()})
CHOSEN_FOUND = [(f"row {i}", f"cat {i}", f"{COLOURS[i % 4]} {COLOURS[(i + 1) % 4]}", 1.0, 1.0) for i in range(5)]


def keep_to_itself(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave nothing in the user's cache, and never ask the hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def image_folder(folder: Path) -> Path:
    """A folder with an image of each colour in `images`."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for colour, data in IMAGES.items():
        (folder / "images" / f"{colour}.png").write_bytes(data)
    return folder


def jsonl(folder: Path, *lines: object, name: str = "pairs.jsonl") -> str:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return str(path)


def parquet(path: Path, rows: list[Row], features: Features | None = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=features).to_parquet(path)
    return str(path)


def found(source: PairSource, start: int = 0) -> list[Found]:
    """(where, prompt, colours, label, weight) of the rows that can be read, (where, reason) of the others."""
    assert isinstance(source, PairSource)
    result: list[Found] = []
    for raw in source.rows(start):
        row = read(raw)
        if isinstance(row, BadRow):
            result.append((row.where, row.reason))
        else:
            assert isinstance(row, ImagePair)
            names = " ".join(NAMES[image.getpixel((0, 0))] for image in row.images)
            result.append((raw.where, row.prompt, names, row.label, row.weight))
    return result


KINDS = [
    "jsonl", "jsonl of rankings", "folder", "parquet", "parquet folder", "saved", "saved with splits",
    "parquet of rankings", "parquet streamed", "parquet folder streamed", "parquet of rankings streamed",
]  # fmt: skip


def open_kind(kind: str, tmp_path: Path, **options: Any) -> PairSource:
    """A source of a kind; those of rankings have five rows of three images, the others five pairs."""
    images = image_folder(tmp_path / "images")
    paths = [f"images/{colour}.png" for colour in COLOURS]
    ranked = [{"prompt": f"cat {i}", "image_path": paths[:3], "rank": [1, 2, i]} for i in range(5)]
    match kind.removesuffix(" streamed"):
        case "jsonl":
            lines = [{"prompt": f"cat {i}", "chosen": paths[i % 4], "rejected": paths[(i + 1) % 4]} for i in range(5)]
            path = jsonl(images, *lines)
        case "jsonl of rankings":
            path = jsonl(images, *ranked)
        case "folder":
            path = str(win_lose(tmp_path / "folder"))
        case "parquet":
            path = parquet(tmp_path / "five.parquet", CHOSEN, CHOSEN_FEATURES)
        case "parquet folder":
            folder = tmp_path / "shards [1] *"
            parquet(folder / "data" / "train-00000-of-00002.parquet", CHOSEN[:2], CHOSEN_FEATURES)
            parquet(folder / "data" / "train-00001-of-00002.parquet", CHOSEN[2:], CHOSEN_FEATURES)
            parquet(folder / "data" / "test_unique-00000-of-00001.parquet", CHOSEN[4:], CHOSEN_FEATURES)
            path = str(folder)
        case "saved":
            path = str(tmp_path / "saved [1]")
            Dataset.from_list(CHOSEN, features=CHOSEN_FEATURES).save_to_disk(path)
        case "saved with splits":
            path = str(tmp_path / "splits")
            parts = {"train": CHOSEN, "test_unique": CHOSEN[4:]}
            DatasetDict(
                {name: Dataset.from_list(rows, features=CHOSEN_FEATURES) for name, rows in parts.items()}
            ).save_to_disk(path)
        case _:
            path = parquet(images / "ranked.parquet", ranked)
    return open_pairs(path, streaming=kind.endswith("streamed"), **options)


def win_lose(folder: Path) -> Path:
    for side, step in (("win", 0), ("lose", 1)):
        (folder / side).mkdir(parents=True, exist_ok=True)
        for i in range(5):
            (folder / side / f"cat-{i}.png").write_bytes(IMAGES[COLOURS[(i + step) % 4]])
    for i in range(5):
        (folder / f"cat-{i}.txt").write_text(f"cat {i}\n", encoding="utf-8")
    return folder
