"""Layouts of published preference data, recognised by their columns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TypeGuard

from stepalign.data.pairs import RawPair, Unreadable
from stepalign.support.local_files import local_file

Row = Mapping[str, object]


class Layout(Enum):
    """Layouts by their columns; the value names them in messages."""

    PICK_A_PIC = "caption, jpg_0, jpg_1, label_0, label_1 and optionally has_label, num_example_per_prompt"
    CHOSEN = "prompt, chosen, rejected and optionally weight"
    RANKED = (
        "prompt, images, image_path or file_path (lists), human_preference or rank (lists, or the best one's number)"
    )
    LABELLED = "prompt, image_0, image_1 and optionally label, weight"
    BEST_FIRST = "prompt, path1 (the preferred one), path2 and optionally weight"


KNOWN_LAYOUTS = "; ".join(layout.value for layout in Layout) + "; caption may stand for prompt"
LISTS_OF_IMAGES = ("images", "image", "image_path", "file_path")
"""The columns of HPD v1, HPDv2 and their copies, images before paths."""
MAX_RANKED = 100
"""Most images in one ranking, which makes 4950 pairs."""
COLUMNS = frozenset(LISTS_OF_IMAGES).union(
    ("prompt", "caption", "label", "weight", "human_preference", "rank"),
    ("jpg_0", "jpg_1", "label_0", "label_1", "has_label", "num_example_per_prompt"),
    ("chosen", "rejected", "image_0", "image_1", "path1", "path2"),
)
"""All columns that the layouts read."""


def recognise(columns: Collection[str]) -> Layout | None:
    """The first layout that matches some columns, or None."""
    names = set(columns)
    if names >= {"caption", "jpg_0", "jpg_1", "label_0", "label_1"}:
        return Layout.PICK_A_PIC
    if not names & {"prompt", "caption"}:
        return None
    if names >= {"chosen", "rejected"}:
        return Layout.CHOSEN
    if names & set(LISTS_OF_IMAGES) and names & {"human_preference", "rank"}:
        return Layout.RANKED
    if names >= {"image_0", "image_1"}:
        return Layout.LABELLED
    if names >= {"path1", "path2"}:
        return Layout.BEST_FIRST
    return None


def num_pairs(row: Row, layout: Layout) -> int:
    """The number of pairs of a row: n (n - 1) / 2 for a ranking of n images, n - 1 for the best of n, otherwise one."""
    if layout is not Layout.RANKED:
        return 1
    if _is_number_of(row.get("human_preference")):
        return max(1, _within(len(_images(row))) - 1)
    rank = row.get("rank")
    if row.get("human_preference") or not isinstance(rank, list):
        return 1
    return max(1, math.comb(_within(len(rank)), 2))


@dataclass(frozen=True, slots=True)
class Places:
    """Allowed locations of the image files that rows name."""

    folder: Path | None
    """Paths are relative to it, and stay inside it; None where rows have no folder."""
    allow_outside: bool = False
    """Whether files outside the folder are allowed."""
    caches: tuple[Path, ...] = ()
    """Roots of allowed absolute paths without a folder: the copies of `datasets`."""


def pairs_of(row: Row, layout: Layout, *, where: str, places: Places) -> list[RawPair]:
    """The pairs of a row, always `num_pairs` of them, also of an invalid row."""
    pair = partial(_pair, where=where, prompt=row.get("prompt", row.get("caption")), places=places)
    match layout:
        case Layout.PICK_A_PIC:
            pair = partial(pair, prompt=row["caption"])
            return [pair(row["jpg_0"], row["jpg_1"], label=_pick_a_pic_label(row), weight=_pick_a_pic_weight(row))]
        case Layout.CHOSEN:
            return [pair(row["chosen"], row["rejected"], label=1.0, weight=row.get("weight", 1.0))]
        case Layout.RANKED:
            return _ranked(row, pair, where)
        case Layout.LABELLED:
            return [pair(row["image_0"], row["image_1"], label=row.get("label"), weight=row.get("weight", 1.0))]
        case Layout.BEST_FIRST:
            return [pair(row["path1"], row["path2"], label=1.0, weight=row.get("weight", 1.0))]


def _pair(
    first: object, second: object, *, where: str, prompt: object, label: object, weight: object, places: Places
) -> RawPair:
    return RawPair(where, prompt, (_image(first, places), _image(second, places)), label, weight)


def _image(value: object, places: Places) -> object:
    """A row's image as an argument of `open_image`, without opening it."""
    if isinstance(value, dict):  # an undecoded image of `datasets`
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if not isinstance(value, str):
        return value
    if not value:
        return None
    if "://" in value[:20] or value.startswith("data:"):
        return Unreadable(f"{value[:80]} is an address; images are read from the rows or from files on this machine")
    cached = places.folder is None and any(map(Path(value).is_relative_to, places.caches))
    if places.folder is None and not (cached or (places.allow_outside and Path(value).is_absolute())):
        return Unreadable(f"{value[:80]} is a path, and a hub dataset has no folder that it could be relative to")
    try:
        return local_file(places.folder or Path(), value, allow_outside=places.allow_outside or cached)
    except ValueError as error:
        return Unreadable(f"the image {error}")


def _pick_a_pic_label(row: Row) -> object:
    first, second = (None if label != label else label for label in (row["label_0"], row["label_1"]))  # NaN
    if row.get("has_label") in (False, 0) or (first is None and second is None):
        return None
    if not (_is_number(first) and _is_number(second) and first + second == 1):
        return Unreadable(f"label_0 {first} and label_1 {second} do not add up to 1")
    return first


def _pick_a_pic_weight(row: Row) -> object:
    num = row.get("num_example_per_prompt", 1)
    if not (_is_number(num) and 1 <= num < math.inf):
        return Unreadable(f"num_example_per_prompt {num} is not a number of at least 1")
    return 1 / num


def _ranked(row: Row, pair: Callable[..., RawPair], where: str) -> list[RawPair]:
    """HPDv2: a preference between two images, or the ranks of n, the lowest best (tgxs002/HPSv2). HPD
    v1: the number of the best one of n, from 0 (tgxs002/align_sd)."""
    images, preference, rank = _images(row), row.get("human_preference"), row.get("rank")
    if max(len(images), len(rank) if isinstance(rank, list) else 0) > MAX_RANKED:
        return [pair(None, None, label=Unreadable(f"it ranks more than {MAX_RANKED} images"), weight=1.0)]
    if _is_number_of(preference):
        return _best_of(preference, images, pair, where)
    if preference or not isinstance(rank, list) or len(rank) < 2:
        first, second = images if len(images) == 2 else (None, None)
        return [pair(first, second, label=_preferred(preference, rank, len(images)), weight=1.0)]
    pairs = []
    for i, j in itertools.combinations(range(len(rank)), 2):
        first, second = (images[i], images[j]) if len(images) == len(rank) else (None, None)
        pairs.append(
            pair(
                first,
                second,
                where=f"{where}, images {i + 1} and {j + 1}",
                label=_lower(rank[i], rank[j]) if len(images) == len(rank) else _mismatch(len(rank), len(images)),
                weight=1 / math.comb(len(rank), 2),
            )
        )
    return pairs


def _best_of(best: int, images: list[object], pair: Callable[..., RawPair], where: str) -> list[RawPair]:
    """Pairs of the best image with each of the others, in their order."""
    if len(images) < 2 or not 0 <= best < len(images):
        wrong = Unreadable(f"human_preference {best} is the number of none of {len(images)} images, counted from 0")
        return [pair(None, None, label=wrong, weight=1.0) for _ in range(max(1, len(images) - 1))]
    pairs = []
    for other in range(len(images)):
        if other != best:
            i, j = sorted((best, other))
            place = where if len(images) == 2 else f"{where}, images {i + 1} and {j + 1}"
            weight = 1 / (len(images) - 1)
            pairs.append(pair(images[i], images[j], where=place, label=float(i == best), weight=weight))
    return pairs


def _images(row: Row) -> list[object]:
    images = row[next(name for name in LISTS_OF_IMAGES if name in row)]
    return images if isinstance(images, list) else []


def _within(length: int) -> int:
    """The length of a ranking; 1, which gives a single row, for one that is too long."""
    return length if length <= MAX_RANKED else 1


def _preferred(preference: object, rank: object, num_images: int) -> object:
    if preference is None and rank is None:
        return None
    if not preference:
        return Unreadable(f"it has no human_preference, and rank {rank} is no ranking of two images or more")
    if num_images != 2:
        return Unreadable(f"human_preference is between two images; there are {num_images}")
    if preference not in ([1, 0], [0, 1]):
        return Unreadable(f"human_preference {preference} is neither [1, 0] nor [0, 1]")
    return float(preference == [1, 0])


def _lower(first: object, second: object) -> object:
    if not (_is_number(first) and _is_number(second)):
        return Unreadable(f"the ranks {first} and {second} are not both numbers")
    return 0.5 if first == second else float(first < second)


def _mismatch(num_ranks: int, num_images: int) -> Unreadable:
    return Unreadable(f"it has {num_ranks} ranks for {num_images} images")


def _is_number_of(preference: object) -> TypeGuard[int]:
    """Whether a preference is an image's number, as in HPD v1."""
    return isinstance(preference, int) and not isinstance(preference, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and value == value  # not NaN
