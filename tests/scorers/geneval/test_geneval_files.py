"""Detections from elsewhere: masks in COCO's run lengths, rows that are refused and why; GenEval's folders."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stepalign.data.manifest import ImageRow, read_manifest
from stepalign.data.prompt_sets import load_prompt_set
from stepalign.scorers.geneval.files import (
    decode_mask,
    read_detections,
    read_folder_prompts,
    write_geneval_manifest,
)
from stepalign.scorers.geneval.rules import CLASSES

IMAGES = [ImageRow(0, 0, "a dog", "a.png"), ImageRow(0, 1, "a dog", "b.png"), ImageRow(4, 0, "a cat", "c/d.png")]
DOG = {"class": "dog", "score": 0.9, "box": [1, 2, 3, 4.5]}


def written(folder: Path, *rows: Any) -> Path:
    path = folder / "detections.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def packed(runs: list[int]) -> str:
    """COCO's packing, written from its other end: each number least significant five bits first, in two's
    complement."""
    text = ""
    for place, run in enumerate(runs):
        value = run - runs[place - 2] if place > 2 else run
        length = next(n for n in range(1, 14) if -(2 ** (5 * n - 1)) <= value < 2 ** (5 * n - 1))
        digits = [value % 32**length // 32**n % 32 for n in range(length)]
        text += "".join(chr(48 + digit + (32 if n < length - 1 else 0)) for n, digit in enumerate(digits))
    return text


# Masks


def test_runs_go_down_the_columns_and_begin_outside() -> None:
    """2 by 3: outside 1, inside 2, outside 3."""
    mask = decode_mask({"size": [2, 3], "counts": [1, 2, 3]}, "")
    assert mask.tolist() == [[False, True, False], [True, False, False]]
    assert decode_mask({"size": [2, 2], "counts": [0, 4]}, "").all()


def test_packed_runs_are_those_of_cocos_documentation() -> None:
    """6 and 1; X1 = 8 + 32 = 40; 3 = 4 - 1; mN = 29 + 30 · 32 - 1024 = -35 = 5 - 40; then no changes, and `0 = 16 =
    21 - 5."""
    runs = [6, 1, 40, 4, 5, 4, 5, 4, 21]
    assert packed(runs) == "61X13mN000`0"
    plain, short = ({"size": [9, 10], "counts": counts} for counts in (runs, "61X13mN000`0"))
    np.testing.assert_array_equal(decode_mask(plain, ""), decode_mask(short, ""))
    assert decode_mask(short, "").sum() == 1 + 4 + 4 + 4


def test_packed_masks_are_the_unpacked_ones() -> None:
    """Half of the pixels at random, outside and inside by turns down the columns."""
    mask = np.random.default_rng(0).random((37, 53)) < 0.5
    runs = [len(list(group)) for _, group in groupby(mask.T.ravel().tolist())]
    runs = [0, *runs] if mask[0, 0] else runs
    for counts in (runs, packed(runs)):
        np.testing.assert_array_equal(decode_mask({"size": [37, 53], "counts": counts}, ""), mask)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ("mask", r"here: a mask must have size \[height, width\] and counts"),
        ({"size": [2], "counts": [4]}, "here: a mask must have size"),
        ({"size": [2, 2], "counts": [3]}, "here: a mask's counts must be run lengths that add up to 2 times 2"),
        ({"size": [2, 2], "counts": [5, -1]}, "here: a mask's counts must be run lengths"),
        ({"size": [2, 2]}, "here: a mask's counts must be run lengths"),
        ({"size": [2, 2], "counts": "4é"}, "here: 'é' cannot be among a mask's counts"),
        ({"size": [2, 2], "counts": "4P"}, "here: a mask's counts end in the middle of a number"),
    ],
)
def test_masks_that_make_no_sense_are_refused(mask: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode_mask(mask, "here")


# Detections


def test_rows_are_found_by_file_or_by_number(tmp_path: Path) -> None:
    mask = {"size": [2, 2], "counts": [1, 3]}
    car = {"class_index": 2, "score": 1, "box": [0, 0, 2, 2], "mask": mask, "colour": "red"}
    path = written(
        tmp_path,
        {"file": "c/d.png", "detections": [car, DOG | {"class": "keyboard"}], "colours": [None, "blue"]},
        "",
        {"prompt_index": 0, "image_index": 1, "detections": []},
        {"file": "a.png", "detections": [DOG]},
    )
    found = read_detections(path, IMAGES)
    assert set(found) == {(0, 0), (0, 1), (4, 0)}
    assert found[0, 1] == []
    dog = found[0, 0][0]
    assert (CLASSES[dog.class_index], dog.score, dog.box, dog.mask, dog.colour) == (
        "dog",
        0.9,
        (1, 2, 3, 4.5),
        None,
        None,
    )
    car_found, keyboard = found[4, 0]
    assert (car_found.class_index, car_found.score, car_found.colour) == (2, 1.0, "red")
    assert car_found.mask is not None
    assert car_found.mask.tolist() == [[False, True], [True, True]]
    assert (CLASSES[keyboard.class_index], keyboard.colour) == ("computer keyboard", "blue")


def test_images_without_a_row_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, {"file": "a.png", "detections": []})
    with pytest.raises(ValueError, match=r"has no row for 2 of 3 images, the first 'b\.png'; an image without objects"):
        read_detections(path, IMAGES)
    with pytest.raises(ValueError, match=r"there is no file .*none\.jsonl with detections"):
        read_detections(tmp_path / "none.jsonl", IMAGES)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "line 1 is not valid JSON"),
        ("[]", "line 1 is no JSON object"),
        ({"detections": []}, "line 1 names no image: file, or prompt_index and image_index"),
        ({"file": "z.png", "detections": []}, r"line 1 is of 'z\.png', which the folder does not have"),
        ({"prompt_index": 9, "image_index": 0, "detections": []}, "line 1 is of image 0 of prompt 9, which"),
        ({"file": "a.png"}, "line 1 has no list of detections"),
        ({"file": "a.png", "detections": [DOG], "colours": []}, "line 1: colours must be a list as long as .* 1"),
        ({"file": "a.png", "detections": ["dog"]}, "line 1 detection 1 is no JSON object"),
        ({"file": "a.png", "detections": [DOG, DOG | {"class": "wug"}]}, "detection 2: there is no class 'wug'"),
        ({"file": "a.png", "detections": [DOG | {"class_index": 80}]}, "class_index must be .* 0 to 79, got 80"),
        ({"file": "a.png", "detections": [DOG | {"class_index": 0}]}, "class 'dog' is not class_index 0, .*'person'"),
        ({"file": "a.png", "detections": [DOG | {"score": "high"}]}, "score must be a number, got 'high'"),
        ({"file": "a.png", "detections": [DOG | {"score": float("nan")}]}, "score must be a number, got nan"),
        ({"file": "a.png", "detections": [DOG | {"box": [1, 2, 3]}]}, r"box must be \[x0, y0, x1, y1\], got"),
        ({"file": "a.png", "detections": [DOG | {"box": [5, 2, 3, 4]}]}, "with x1 and y1 not below"),
        ({"file": "a.png", "detections": [DOG | {"colour": "teal"}]}, "colour must be one of red, .*got 'teal'"),
        ({"file": "a.png", "detections": [DOG | {"mask": {}}]}, "detection 1: a mask must have size"),
    ],
)
def test_rows_that_make_no_sense_are_refused(tmp_path: Path, row: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_detections(written(tmp_path, row), IMAGES)


def test_an_image_listed_twice_is_refused(tmp_path: Path) -> None:
    row = {"file": "a.png", "detections": []}
    path = written(tmp_path, row, row)
    with pytest.raises(ValueError, match="line 2: image 0 of prompt 0 is listed twice"):
        read_detections(path, IMAGES)


# Folders


def geneval_folder(folder: Path, numbers: dict[int, list[str]]) -> Path:
    rows = load_prompt_set("geneval").metadata or []
    for index, names in numbers.items():
        samples = folder / f"{index:05}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps(rows[index]) + "\n")
        (samples.parent / "grid.png").touch()
        for name in names:
            Image.new("RGB", (4, 4)).save(samples / name)
    return folder


def test_a_published_folder_becomes_a_manifest(tmp_path: Path) -> None:
    folder = geneval_folder(tmp_path, {0: ["0001.png", "0000.png"], 179: ["00000.png"]})
    (folder / "notes").mkdir()
    rows = write_geneval_manifest(folder)
    assert read_manifest(folder) == rows
    assert rows == [
        ImageRow(0, 0, "a photo of a bench", "00000/samples/0000.png", category="single_object"),
        ImageRow(0, 1, "a photo of a bench", "00000/samples/0001.png", category="single_object"),
        ImageRow(179, 0, rows[2].prompt, "00179/samples/00000.png", category="counting"),
    ]
    prompts = read_folder_prompts(folder)
    assert {index: prompt.prompt for index, prompt in prompts.items()} == {0: rows[0].prompt, 179: rows[2].prompt}


def test_folders_that_are_not_geneval_s_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no folders 00000, 00001, \.\.\. of GenEval's layout"):
        write_geneval_manifest(tmp_path)
    folder = geneval_folder(tmp_path, {0: ["0000.png"], 1: []})
    with pytest.raises(ValueError, match=r"00001/samples holds no images; GenEval wants them as .*0000\.png"):
        write_geneval_manifest(folder)
    (folder / "00001/samples/best.png").touch()
    with pytest.raises(ValueError, match=r"best\.png is no image with a number for a name"):
        write_geneval_manifest(folder)
    (folder / "00001/samples/best.png").unlink()
    for name in ("1.png", "01.jpg"):
        (folder / "00001/samples" / name).touch()
    with pytest.raises(ValueError, match=r"1\.png and 01\.jpg have the same number"):
        write_geneval_manifest(folder)
    (folder / "00001/metadata.jsonl").unlink()
    with pytest.raises(ValueError, match=r"00001/metadata\.jsonl is missing"):
        write_geneval_manifest(folder)
    (folder / "1").mkdir()
    with pytest.raises(ValueError, match="1 and 00001 have the same number"):
        write_geneval_manifest(folder)
    assert not (folder / "manifest.jsonl").exists()
