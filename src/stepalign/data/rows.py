"""The layouts in which preferences over pictures are published, recognised by their columns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TypeGuard

from stepalign.data.pairs import RawPair, Unreadable

Row = Mapping[str, object]


class Layout(Enum):
    """Which columns say what; the value names them for people."""

    PICK_A_PIC = "caption, jpg_0, jpg_1, label_0, label_1 and optionally has_label, num_example_per_prompt"
    CHOSEN = "prompt, chosen, rejected and optionally weight"
    RANKED = "prompt, images or image_path (lists), human_preference or rank (lists)"
    LABELLED = "prompt, image_0, image_1 and optionally label, weight"
    BEST_FIRST = "prompt, path1 (the preferred one), path2 and optionally weight"


KNOWN_LAYOUTS = "; ".join(layout.value for layout in Layout) + "; caption may stand for prompt"
LISTS_OF_PICTURES = ("images", "image", "image_path", "file_path")
"""The columns of HPDv2 and its copies, pictures before paths."""
COLUMNS = frozenset(LISTS_OF_PICTURES).union(
    ("prompt", "caption", "label", "weight", "human_preference", "rank"),
    ("jpg_0", "jpg_1", "label_0", "label_1", "has_label", "num_example_per_prompt"),
    ("chosen", "rejected", "image_0", "image_1", "path1", "path2"),
)
"""Every column that some layout reads."""


def recognise(columns: Collection[str]) -> Layout | None:
    """The layout that some columns follow, the first that fits, or None."""
    names = set(columns)
    if names >= {"caption", "jpg_0", "jpg_1", "label_0", "label_1"}:
        return Layout.PICK_A_PIC
    if not names & {"prompt", "caption"}:
        return None
    if names >= {"chosen", "rejected"}:
        return Layout.CHOSEN
    if names & set(LISTS_OF_PICTURES) and names & {"human_preference", "rank"}:
        return Layout.RANKED
    if names >= {"image_0", "image_1"}:
        return Layout.LABELLED
    if names >= {"path1", "path2"}:
        return Layout.BEST_FIRST
    return None


def num_pairs(row: Row, layout: Layout) -> int:
    """How many pairs a row gives: n (n - 1) / 2 for a ranking of n pictures, otherwise one."""
    rank = row.get("rank")
    if layout is not Layout.RANKED or row.get("human_preference") or not isinstance(rank, list):
        return 1
    return max(1, math.comb(len(rank), 2))


def pairs_of(row: Row, layout: Layout, *, where: str, folder: Path | None) -> list[RawPair]:
    """The pairs of a row, as many as `num_pairs` says whatever is wrong with it.

    Paths to pictures are relative to `folder`; None says that there is none they could be relative to.
    """
    pair = partial(_pair, where=where, prompt=row.get("prompt", row.get("caption")), folder=folder)
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
    first: object, second: object, *, where: str, prompt: object, label: object, weight: object, folder: Path | None
) -> RawPair:
    return RawPair(where, prompt, (_picture(first, folder), _picture(second, folder)), label, weight)


def _picture(value: object, folder: Path | None) -> object:
    """A picture as a row has it, turned into an `ImageSource` where that is possible without opening it."""
    if isinstance(value, dict):  # how `datasets` keeps an image it has not decoded
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if not isinstance(value, str):
        return value
    if not value:
        return None
    if "://" in value:
        return Unreadable(f"{value} is an address; pictures are read from the rows or from files on this machine")
    if folder is None and not Path(value).is_absolute():
        return Unreadable(f"{value} is a path, and a hub dataset has no folder that it could be relative to")
    return Path(value) if folder is None else folder / value


def _pick_a_pic_label(row: Row) -> object:
    first, second = row["label_0"], row["label_1"]
    if not row.get("has_label", (first, second) != (None, None)):
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
    """HPDv2: a preference between two pictures, or the ranks of n, of which the lowest is the best (tgxs002/HPSv2)."""
    images = row[next(name for name in LISTS_OF_PICTURES if name in row)]
    images = images if isinstance(images, list) else []
    preference, rank = row.get("human_preference"), row.get("rank")
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
                where=f"{where}, pictures {i + 1} and {j + 1}",
                label=_lower(rank[i], rank[j]) if len(images) == len(rank) else _mismatch(len(rank), len(images)),
                weight=1 / math.comb(len(rank), 2),
            )
        )
    return pairs


def _preferred(preference: object, rank: object, num_images: int) -> object:
    if not preference:
        return Unreadable(f"it has no human_preference, and rank {rank} is no ranking of two pictures or more")
    if num_images != 2:
        return Unreadable(f"human_preference is between two pictures; there are {num_images}")
    if preference not in ([1, 0], [0, 1]):
        return Unreadable(f"human_preference {preference} is neither [1, 0] nor [0, 1]")
    return float(preference == [1, 0])


def _lower(first: object, second: object) -> object:
    if not (_is_number(first) and _is_number(second)):
        return Unreadable(f"the ranks {first} and {second} are not both numbers")
    return 0.5 if first == second else float(first < second)


def _mismatch(num_ranks: int, num_images: int) -> Unreadable:
    return Unreadable(f"it has {num_ranks} ranks for {num_images} pictures")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and value == value  # not NaN
