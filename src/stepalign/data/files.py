"""Pairs in files of one's own: lines of JSON, or a folder of winners beside a folder of losers."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from itertools import accumulate, islice
from pathlib import Path

from PIL import Image

from stepalign.data.pairs import RawPair, Unreadable
from stepalign.data.rows import KNOWN_LAYOUTS, Layout, Row, num_pairs, pairs_of, recognise
from stepalign.identity import file_digest
from stepalign.images import readable_formats

SIDES = ("win", "lose")


class JsonLines:
    """The rows of a .jsonl file, one object per line, paths to pictures relative to the file.

    A line that is no object, or whose columns fit no layout, is a row that cannot be read. Raises ValueError when no
    line can.
    """

    def __init__(self, path: Path, *, name: str, num_rows: int | None) -> None:
        self.name = name
        self._path = path
        self._lines: list[tuple[int, int]] = []  # the byte each begins at, and its number
        counts, refused = [], []
        content, begin = hashlib.sha256(), 0
        known: dict[Path, str | None] = {}
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    found = _parse(line)
                    if isinstance(found, Unreadable):
                        refused.append(found)
                        counts.append(1)
                    else:
                        counts.append(num_pairs(*found))
                        images = image_digests(pairs_of(*found, where="", folder=path.parent), known)
                        content.update(json.dumps(images).encode())
                    self._lines.append((begin, number))
                content.update(line)
                begin += len(line)
        if not counts:
            raise ValueError(f"data.pairs: {name} is empty; give at least one pair")
        if len(refused) == len(counts):
            raise ValueError(
                f"data.pairs: no line of {name} can be used: {refused[0].reason}; known are {KNOWN_LAYOUTS}"
            )
        self._ends = list(accumulate(counts))
        self.num_rows = min(self._ends[-1], num_rows or self._ends[-1])
        self.fingerprint = digest(content.hexdigest(), num_rows)

    def rows(self, start: int = 0) -> Iterator[RawPair]:
        line = bisect_right(self._ends, start)
        skip = start - (self._ends[line - 1] if line else 0)
        return islice(self._pairs(line), skip, skip + max(0, self.num_rows - start))

    def _pairs(self, first: int) -> Iterator[RawPair]:
        with self._path.open("rb") as file:
            for begin, number in self._lines[first:]:
                file.seek(begin)
                where, found = f"{self._path.name} line {number}", _parse(file.readline())
                if isinstance(found, Unreadable):
                    yield RawPair(where, found, (None, None), None)
                else:
                    yield from pairs_of(*found, where=where, folder=self._path.parent)


class WinLoseFolder:
    """A folder with win/ and lose/: of two pictures of one name, that in win/ is preferred.

    The caption is in NAME.txt beside either picture or in the folder itself. Names are taken in sorted order.
    """

    def __init__(self, folder: Path, *, name: str, num_rows: int | None) -> None:
        for side in SIDES:
            if not (folder / side).is_dir():
                raise ValueError(f"data.pairs: {name} has no folder {side}/; pairs need win/ and lose/")
        self.name = name
        self._folder = folder
        self._pictures = {side: _by_stem(folder / side, _extensions()) for side in SIDES}
        self._captions = {side: _by_stem(folder / side, {".txt"}) for side in (*SIDES, ".")}
        self._stems = sorted(set(self._pictures["win"]) | set(self._pictures["lose"]))[:num_rows]
        if not self._stems:
            raise ValueError(f"data.pairs: {name} has no pictures in win/ and lose/")
        self.num_rows = len(self._stems)
        found = (*self._pictures.values(), *self._captions.values())
        files = [file for by_stem in found for several in by_stem.values() for file in several]
        self.fingerprint = digest(contents(folder, files), num_rows)

    def rows(self, start: int = 0) -> Iterator[RawPair]:
        for stem in self._stems[start:]:
            images = tuple(self._picture(side, stem) for side in SIDES)
            where = next(path.name for side in SIDES for path in self._pictures[side].get(stem, []))
            yield RawPair(where, self._caption(stem), (images[0], images[1]), 1.0)

    def _picture(self, side: str, stem: str) -> Path | Unreadable:
        match self._pictures[side].get(stem, []):
            case []:
                return Unreadable(f"there is no picture {side}/{stem}.*")
            case [path]:
                return path
            case several:
                return Unreadable(f"{side}/ has {' and '.join(path.name for path in several)}; one of them is expected")

    def _caption(self, stem: str) -> str | Unreadable:
        files = [file for captions in self._captions.values() for file in captions.get(stem, [])]
        try:
            texts = {file: file.read_text(encoding="utf-8-sig").strip() for file in files}
        except (OSError, UnicodeDecodeError) as error:
            return Unreadable(f"the caption {stem}.txt cannot be read: {error}")
        if not texts:
            return Unreadable(f"there is no caption {stem}.txt in win/, in lose/ or beside them")
        if len(set(texts.values())) > 1:
            return Unreadable(f"there are different captions in {', '.join(_relative(self._folder, texts))}")
        return texts[files[0]]


def digest(*parts: object) -> str:
    """A hexadecimal digest of plain values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def image_digests(pairs: Iterable[RawPair], known: dict[Path, str | None]) -> list[str | None]:
    """The SHA-256 of every image file that rows name, None for one that is not there; `known` keeps those read."""
    files = [image for pair in pairs for image in pair.images if isinstance(image, Path)]
    for file in files:
        if file not in known:
            known[file] = file_digest(file) if file.is_file() else None
    return [known[file] for file in files]


def contents(folder: Path, files: Collection[Path]) -> list[tuple[str, str]]:
    """Files as names below a folder and the SHA-256 of their content, sorted."""
    return sorted(zip(_relative(folder, files), map(file_digest, files), strict=True))


def _relative(folder: Path, files: Collection[Path]) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in files]


def _by_stem(folder: Path, suffixes: Collection[str]) -> dict[str, list[Path]]:
    """The files of a folder that end in one of the suffixes, without hidden ones, by name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file():
            found.setdefault(path.stem, []).append(path)
    return found


def _extensions() -> set[str]:
    """The endings of the image files that are read."""
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in readable_formats()}


def _parse(line: bytes) -> tuple[Row, Layout] | Unreadable:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Unreadable("the line is not UTF-8 text")
    except (ValueError, RecursionError) as error:
        return Unreadable(f"the line is no JSON: {error}")
    if not isinstance(row, dict):
        return Unreadable(f"the line is a JSON {type(row).__name__}, not an object")
    layout = recognise(row)
    return Unreadable(f"its columns fit no layout: {', '.join(row) or 'none'}") if layout is None else (row, layout)
