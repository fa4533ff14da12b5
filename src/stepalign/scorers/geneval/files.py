"""GenEval's files: imported detections, and folders of images in its published layout.

Detections are a JSONL file with a row per image: `file` as in the manifest, or `prompt_index` and `image_index`; and
`detections`, a list of objects with `class` (a name) or `class_index` (COCO's 80 from 0), `score`, `box`
([x0, y0, x1, y1], the last two outside), and perhaps `mask` (COCO's run lengths) and `colour`. Colours may also be a
list `colours` beside `detections`.

Images in the published layout are FOLDER/00000/samples/0000.png with the prompt's row in FOLDER/00000/metadata.jsonl.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from jaxtyping import Bool

from stepalign.data.manifest import ImageRow, write_manifest
from stepalign.scorers.geneval.rules import CLASSES, COLOURS, Box, Detection, GenEvalPrompt, class_index, parse_prompt
from stepalign.support.images import MAX_PIXELS
from stepalign.support.parsing import json_lines, parse_json, read_text

IMAGE = re.compile(r"(\d+)\.(png|jpe?g|webp)", re.IGNORECASE)
MAX_LINE = 2**26
"""Characters in a line of detections, whose masks can be long."""
Key = tuple[int, int]


def read_detections(path: Path, images: Sequence[ImageRow]) -> dict[Key, list[Detection]]:
    """The detections in each of some images, by the image's key.

    Raises ValueError naming an invalid line, an image listed twice or not among them, and the images
    that have no row; an image without objects has a row with none.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path} with detections")
    by_file = {_spelling(row.file): row.key for row in images}
    keys = {row.key for row in images}
    found: dict[Key, list[Detection]] = {}
    for where, values in json_lines(read_text(path, "detections"), str(path), longest=MAX_LINE):
        row = _object(values, where)
        key = _key(row, by_file, where)
        if key not in keys:
            raise ValueError(f"{where} is of image {key[1]} of prompt {key[0]}, which the folder does not have")
        if key in found:
            raise ValueError(f"{where}: image {key[1]} of prompt {key[0]} is listed twice")
        found[key] = _detections(row, where)
    missing = [row.file for row in images if row.key not in found]
    if missing:
        raise ValueError(
            f"{path} has no row for {len(missing)} of {len(images)} images, the first {missing[0]!r}; an image "
            "without objects needs one with an empty list"
        )
    return found


def write_geneval_manifest(folder: Path) -> list[ImageRow]:
    """Write the manifest of a folder in GenEval's layout and return its rows: numbers from the names, tasks as
    categories.

    Raises ValueError for a prompt without images or metadata, and for a file among the images that is not an image.
    """
    rows = []
    for index, prompt in read_folder_prompts(folder).items():
        samples = _prompt_folders(folder)[index] / "samples"
        files = sorted(file for file in samples.glob("*") if not file.name.startswith("."))
        if not files:
            raise ValueError(f"{samples} holds no images; GenEval wants them as {samples / '0000.png'}")
        numbers: dict[int, Path] = {}
        for file in files:
            match = IMAGE.fullmatch(file.name)
            if match is None:
                raise ValueError(f"{file} is no image with a number for a name, such as 0000.png")
            if numbers.setdefault(int(match[1]), file) != file:
                raise ValueError(f"{file} and {numbers[int(match[1])].name} have the same number")
        for number, file in sorted(numbers.items()):
            name = file.relative_to(folder).as_posix()
            rows.append(ImageRow(index, number, prompt.prompt, name, category=prompt.tag))
    write_manifest(folder, rows)
    return rows


def read_folder_prompts(folder: Path) -> dict[int, GenEvalPrompt]:
    """The prompts of a folder in GenEval's layout, by the numbers of their folders.

    Raises ValueError when there are none, and naming metadata that are missing or invalid.
    """
    prompts = {}
    for index, inside in _prompt_folders(folder).items():
        path = inside / "metadata.jsonl"
        if not path.is_file():
            raise ValueError(f"{path} is missing; GenEval keeps the prompt's row there")
        prompts[index] = parse_prompt(_object(parse_json(read_text(path, "geneval"), str(path)), str(path)), str(path))
    return prompts


def decode_mask(mask: object, where: str) -> Bool[np.ndarray, "h w"]:
    """Decode COCO's run lengths to a mask; runs go down the columns and begin with pixels outside.

    `counts` is a list of numbers, or the text that COCO packs them into: five bits a character from "0" on, the lowest
    first, another 32 where more follow; from the fourth on the difference from the last but one.
    """
    size, counts = (mask.get("size"), mask.get("counts")) if isinstance(mask, dict) else (None, None)
    if not isinstance(size, list) or len(size) != 2 or not all(_is_count(side) for side in size):
        raise ValueError(f"{where}: a mask must have size [height, width] and counts")
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"{where}: a mask of {size[0]} by {size[1]} pixels; at most {MAX_PIXELS:,} pixels are read")
    runs = _unpack(counts, where) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(_is_count(run) for run in runs) or sum(runs) != size[0] * size[1]:
        raise ValueError(f"{where}: a mask's counts must be run lengths that add up to {size[0]} times {size[1]}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(size[1], size[0]).T


def _unpack(text: str, where: str) -> list[int]:
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"{where}: {character!r} cannot be among a mask's counts")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            if shift > 60:
                raise ValueError(f"{where}: a mask's counts hold a number beyond 60 bits")
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError(f"{where}: a mask's counts end in the middle of a number")
    return runs


def _prompt_folders(folder: Path) -> dict[int, Path]:
    """The folders whose names are numbers, by number."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("*")):
        if path.is_dir() and path.name.isdecimal() and found.setdefault(int(path.name), path) != path:
            raise ValueError(f"{path} and {found[int(path.name)].name} have the same number")
    if not found:
        raise ValueError(f"{folder} has no folders 00000, 00001, ... of GenEval's layout")
    return dict(sorted(found.items()))


def _object(row: object, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is no JSON object: {json.dumps(row)[:80]}")
    return row


def _spelling(file: str) -> str:
    """A file name with slashes and in Unicode normal form C."""
    return unicodedata.normalize("NFC", file.replace("\\", "/"))


def _key(row: dict[str, Any], by_file: dict[str, Key], where: str) -> Key:
    prompt, image, file = row.get("prompt_index"), row.get("image_index"), row.get("file")
    if _is_count(prompt) and _is_count(image):
        return prompt, image
    if isinstance(file, str):
        if _spelling(file) not in by_file:
            raise ValueError(f"{where} is of {file!r}, which the folder does not have")
        return by_file[_spelling(file)]
    raise ValueError(f"{where} names no image: file, or prompt_index and image_index, is wanted")


def _detections(row: dict[str, Any], where: str) -> list[Detection]:
    objects = row.get("detections")
    if not isinstance(objects, list):
        raise ValueError(f"{where} has no list of detections; an image without objects has an empty one")
    colours = row.get("colours", [None] * len(objects))
    if not isinstance(colours, list) or len(colours) != len(objects):
        raise ValueError(f"{where}: colours must be a list as long as detections, {len(objects)}")
    pairs = zip(objects, colours, strict=True)
    return [_detection(one, colour, f"{where} detection {number}") for number, (one, colour) in enumerate(pairs, 1)]


def _detection(one: object, colour: object, where: str) -> Detection:
    if not isinstance(one, dict):
        raise ValueError(f"{where} is no JSON object")
    score, mask, colour = one.get("score"), one.get("mask"), one.get("colour", colour)
    if not _is_number(score):
        raise ValueError(f"{where}: score must be a number, got {score!r}")
    if colour is not None and colour not in COLOURS:
        raise ValueError(f"{where}: colour must be one of {', '.join(COLOURS)}; got {colour!r}")
    pixels = None if mask is None else decode_mask(mask, where)
    return Detection(_class_of(one, where), float(score), _box(one.get("box"), where), pixels, colour)


def _class_of(one: dict[str, Any], where: str) -> int:
    index = one.get("class_index")
    if index is None:
        return class_index(one.get("class"), where)
    if not _is_count(index) or index >= len(CLASSES):
        raise ValueError(f"{where}: class_index must be a whole number from 0 to {len(CLASSES) - 1}, got {index!r}")
    if "class" in one and class_index(one["class"], where) != index:
        raise ValueError(f"{where}: class {one['class']!r} is not class_index {index}, which is {CLASSES[index]!r}")
    return int(index)


def _box(box: object, where: str) -> Box:
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(edge) for edge in box):
        raise ValueError(f"{where}: box must be [x0, y0, x1, y1], got {box!r}")
    x0, y0, x1, y1 = (float(edge) for edge in box)
    if x1 < x0 or y1 < y0:
        raise ValueError(f"{where}: box must be [x0, y0, x1, y1] with x1 and y1 not below x0 and y0, got {box!r}")
    return x0, y0, x1, y1


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
