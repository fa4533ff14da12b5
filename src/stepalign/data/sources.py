"""Opens a source of preference pairs: recognises the kind of a path or name."""

from __future__ import annotations

from pathlib import Path

from stepalign.data.files import SIDES, JsonLines, WinLoseFolder
from stepalign.data.pairs import PairSource
from stepalign.data.tables import hub_pairs, parquet_pairs, saved_pairs
from stepalign.support.config import require
from stepalign.support.hub import is_hub_id

KINDS = (
    "a .jsonl or .json file, a folder with win/ and lose/, a .parquet file or a folder of them, a folder written by "
    "save_to_disk of `datasets`, or a hub dataset OWNER/NAME or OWNER/NAME@REVISION"
)


def open_pairs(
    source: str,
    *,
    split: str = "train",
    streaming: bool = False,
    num_rows: int | None = None,
    allow_outside: bool = False,
) -> PairSource:
    """The pairs at a path, or in a dataset of the hub.

    A row is one pair: a ranking of n images is n (n - 1) / 2 rows. `num_rows` keeps the first so many. `split` is for
    parquet folders, saved dictionaries of datasets and the hub; sources without splits take "train" only. `streaming`
    reads parquet files and the hub's datasets without a copy in the cache; the other kinds are never copied.
    `allow_outside` lets rows name image files outside the folder of their file.

    Raises ValueError for a source of unknown kind or layout, for an empty one, and for errors of the hub.
    """
    require(num_rows is None or num_rows >= 1, "num_rows", num_rows, "at least 1")
    path = Path(source).expanduser()
    if not source.strip() or not path.exists():
        if is_hub_id(source.partition("@")[0]):
            return hub_pairs(source, split=split, streaming=streaming, num_rows=num_rows, allow_outside=allow_outside)
        raise ValueError(f"data.pairs: there is nothing at {source!r}; expected {KINDS}")
    if path.is_dir():
        return _open_folder(
            path, name=source, split=split, streaming=streaming, num_rows=num_rows, allow_outside=allow_outside
        )
    match path.suffix.lower():
        case ".jsonl" | ".json":
            _require_no_split(split, source)
            return JsonLines(path, name=source, num_rows=num_rows, allow_outside=allow_outside)
        case ".parquet":
            _require_no_split(split, source)
            return parquet_pairs(
                path, name=source, split=split, streaming=streaming, num_rows=num_rows, allow_outside=allow_outside
            )
    raise ValueError(f"data.pairs: {source} is of an unknown kind; expected {KINDS}")


def _open_folder(
    path: Path, *, name: str, split: str, streaming: bool, num_rows: int | None, allow_outside: bool
) -> PairSource:
    if any((path / side).is_dir() for side in SIDES):
        _require_no_split(split, name)
        return WinLoseFolder(path, name=name, num_rows=num_rows, allow_outside=allow_outside)
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return saved_pairs(path, name=name, split=split, num_rows=num_rows, allow_outside=allow_outside)
    if next(path.rglob("*.parquet"), None) is not None:
        return parquet_pairs(
            path, name=name, split=split, streaming=streaming, num_rows=num_rows, allow_outside=allow_outside
        )
    raise ValueError(f"data.pairs: the folder {name} is of an unknown kind; expected {KINDS}")


def _require_no_split(split: str, name: str) -> None:
    require(split == "train", "split", repr(split), f"'train' for {name}, which has no splits")
