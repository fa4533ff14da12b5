"""Pairs in tables read by `datasets`: parquet files, saved datasets and datasets on the hub."""

from __future__ import annotations

import glob
import sys
from bisect import bisect_right
from collections.abc import Iterator
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from stepalign.data.files import contents, digest, image_digests
from stepalign.data.pairs import RawPair
from stepalign.data.rows import (
    COLUMNS,
    KNOWN_LAYOUTS,
    LISTS_OF_IMAGES,
    Layout,
    Places,
    num_pairs,
    pairs_of,
    recognise,
)
from stepalign.support.config import require
from stepalign.support.digests import file_digest
from stepalign.support.errors import first_line
from stepalign.support.hub import out_of_reach, reach_hub

WITHOUT_PICK_A_PIC = (
    "Pick-a-Pic has been reported missing from its hub since April 2025. Take a local parquet copy of it, "
    "open-image-preferences (data-is-better-together/open-image-preferences-v1-binarized), HPDv2 (ymhao/HPDv2), or "
    "pairs of your own: a folder with win/ and lose/, or a .jsonl file"
)


class Table:
    """The rows of a dataset with undecoded images; streamed rows are fetched on demand.

    `dataset` is a Dataset or an IterableDataset of `datasets` with these columns, none when it is empty. A stream is to
    be read in one process: the workers of a DataLoader would each see a part of it. Raises ValueError for columns that
    fit no layout, and for no rows.
    """

    def __init__(
        self,
        dataset: Any,
        columns: list[str],
        *,
        name: str,
        fingerprint: str,
        places: Places,
        streaming: bool,
        num_rows: int | None,
    ) -> None:
        self.name = name
        self.fingerprint = digest(fingerprint, num_rows, *([True] if places.allow_outside else []))
        if not columns:
            raise ValueError(f"data.pairs: {name} is empty; give at least one pair")
        layout = recognise(columns)
        if layout is None:
            found = ", ".join(columns)
            raise ValueError(f"data.pairs: the columns of {name} fit no layout: {found}; known are {KNOWN_LAYOUTS}")
        self._layout = layout
        self._places = places
        self._rows = _as_stored(dataset).select_columns([column for column in columns if column in COLUMNS])
        self._ends: list[int] | None = None
        self.num_rows = num_rows
        if not streaming:
            self.num_rows = min(self._num_pairs(dataset, columns), num_rows or sys.maxsize)
        first = next(self.rows(), None)
        if places.folder is not None and first is not None and any(isinstance(image, Path) for image in first.images):
            self.fingerprint = digest(self.fingerprint, image_digests(self.rows(), {}))

    def _num_pairs(self, dataset: Any, columns: list[str]) -> int:
        """The number of pairs of the rows."""
        from datasets import Value  # type: ignore[import-untyped]

        length: int = len(dataset)
        if self._layout is Layout.RANKED:
            wanted = {"human_preference", "rank"}
            if isinstance(dataset.features.get("human_preference"), Value):
                wanted |= {next(column for column in LISTS_OF_IMAGES if column in columns)}  # HPD v1: how many
            ranks: Any = _as_stored(dataset).select_columns([column for column in columns if column in wanted])
            rows = (row for table in ranks.iter(batch_size=100) for row in table.to_pylist())
            self._ends = list(accumulate(num_pairs(row, self._layout) for row in rows))
            length = self._ends[-1]
        return length

    def rows(self, start: int = 0) -> Iterator[RawPair]:
        if self.num_rows is not None and start >= self.num_rows:
            return iter(())
        if self._layout is not Layout.RANKED:
            record, skip = start, 0
        elif self._ends is None:
            record, skip = 0, start  # the number of pairs of a ranking is known only when its row is streamed
        else:
            record = bisect_right(self._ends, start)
            skip = start - (self._ends[record - 1] if record else 0)
        stop = None if self.num_rows is None else skip + self.num_rows - start
        return islice(self._pairs(record), skip, stop)

    def _pairs(self, first: int) -> Iterator[RawPair]:
        found = partial(pairs_of, places=self._places)
        for number, row in enumerate(self._records(first), first):
            yield from found(row, self._layout, where=f"row {number}")

    def _records(self, first: int) -> Iterator[dict[str, object]]:
        rows = self._rows.skip(first) if first else self._rows
        for table in rows.iter(batch_size=1):
            yield from table.to_pylist()


def parquet_pairs(
    path: Path, *, name: str, split: str, streaming: bool, num_rows: int | None, allow_outside: bool = False
) -> Table:
    """A .parquet file, or a folder of them with splits by their names; without streaming copied to the cache first."""
    from datasets import config

    files, folder = ([path], path.parent) if path.is_file() else (sorted(path.rglob("*.parquet")), path)
    place = glob.escape(str(path.absolute()))  # `datasets` takes names as glob patterns
    given = {"data_files": place} if path.is_file() else {"data_dir": place}
    fingerprint = digest(contents(folder, files), split)
    # `datasets` knows its copy of a file by path and time of modification: a folder for each content, then
    given["cache_dir"] = str(Path(config.HF_DATASETS_CACHE) / f"stepalign-{fingerprint[:16]}")
    try:
        dataset, columns, _ = _built("parquet", split=split, streaming=streaming, **given)
    except Exception as error:  # exceptions of a dozen unrelated kinds
        raise ValueError(f"data.pairs: {name} cannot be loaded, split {split!r}: {first_line(error)}") from error
    return Table(
        dataset,
        columns,
        name=name if path.is_file() else f"{name}, split {split}",
        fingerprint=fingerprint,
        places=Places(folder, allow_outside),
        streaming=streaming,
        num_rows=num_rows,
    )


def saved_pairs(folder: Path, *, name: str, split: str, num_rows: int | None, allow_outside: bool = False) -> Table:
    """A folder written by save_to_disk of a Dataset, or of a DatasetDict with its splits."""
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(folder))
    except Exception as error:  # exceptions of a dozen unrelated kinds
        raise ValueError(f"data.pairs: {name} cannot be loaded: {first_line(error)}") from error
    if isinstance(dataset, DatasetDict):
        require(split in dataset, "split", repr(split), f"one of {', '.join(map(repr, dataset))} for {name}")
        name, dataset = f"{name}, split {split}", dataset[split]
    else:
        require(split == "train", "split", repr(split), f"'train' for {name}, which has no splits")
    files = [Path(file["filename"]) for file in dataset.cache_files]
    fingerprint = digest([file_digest(file) for file in files], split)
    return Table(
        dataset,
        _columns(dataset),
        name=name,
        fingerprint=fingerprint,
        places=Places(folder, allow_outside),
        streaming=False,
        num_rows=num_rows,
    )


def hub_pairs(source: str, *, split: str, streaming: bool, num_rows: int | None, allow_outside: bool = False) -> Table:
    """A dataset of the hub, OWNER/NAME or OWNER/NAME@REVISION."""
    repository, _, revision = source.partition("@")
    reach_hub()
    try:
        dataset, columns, commit = _built(repository, revision=revision or None, split=split, streaming=streaming)
    except Exception as error:  # exceptions of a dozen unrelated kinds
        advice = _advice(repository, str(error))
        raise ValueError(
            f"data.pairs: {source!r} is no path on this machine, and as a hub dataset it cannot be loaded, split "
            f"{split!r}: {out_of_reach() or first_line(error)}{advice}"
        ) from error
    return Table(
        dataset,
        columns,
        name=f"{source}, split {split}",
        fingerprint=digest(repository, commit, split),
        places=Places(None, allow_outside, _caches()),
        streaming=streaming,
        num_rows=num_rows,
    )


def _caches() -> tuple[Path, ...]:
    """Cache folders of `datasets` and of the hub's client."""
    from datasets import config
    from huggingface_hub import constants

    return tuple(map(Path, (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)))


def _built(path: str, *, split: str, streaming: bool, **given: str | None) -> tuple[Any, list[str], str]:
    """A dataset, its columns, and its version for the fingerprint: for a hub dataset the commit."""
    from datasets import load_dataset_builder

    builder = load_dataset_builder(path, **given)
    if streaming:
        dataset = builder.as_streaming_dataset(split=split)
    else:
        builder.download_and_prepare()
        dataset = builder.as_dataset(split=split)
    return dataset, _columns(dataset), builder.hash


def _as_stored(dataset: Any) -> Any:
    """The dataset in Arrow format, which leaves images undecoded, so that `read` finds broken ones.

    A cast to Image(decode=False) would do so too, but write a column of lists to disk again.
    """
    return dataset.with_format("arrow")


def _columns(dataset: Any) -> list[str]:
    """The columns of the first row, since a stream may not know them earlier; empty without a row."""
    first = next(iter(_as_stored(dataset).iter(batch_size=1)), None)
    return [] if first is None else first.column_names


def _advice(repository: str, error: str) -> str:
    if "pickapic" in repository.lower().replace("-", ""):
        return f". {WITHOUT_PICK_A_PIC}"
    if "scripts are no longer supported" in error:
        return f"; the hub may have converted it: try {repository}@refs/convert/parquet"
    return ""
