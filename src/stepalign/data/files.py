"""Preference pairs in local files: JSON, or a folder of winners beside a folder of losers."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from itertools import accumulate, islice
from pathlib import Path

from PIL import Image

from stepalign.data.pairs import RawPair, Unreadable
from stepalign.data.rows import KNOWN_LAYOUTS, Layout, Places, Row, num_pairs, pairs_of, recognise
from stepalign.support.digests import file_digest
from stepalign.support.images import readable_formats
from stepalign.support.local_files import file_size, local_file
from stepalign.support.parsing import MAX_LINE, is_wide, parse_json, read_text

SIDES = ("win", "lose")
CAPTIONS = (".txt", ".caption")
"""Suffixes of caption files; the second is kohya's default."""


class JsonLines:
    """The rows of a .jsonl file, one object per line, or of a .json file with a list of objects; paths to images
    relative to the file.

    A row that is not an object, or whose columns match no layout, is unusable. Raises ValueError when every row is.
    """

    def __init__(self, path: Path, *, name: str, num_rows: int | None, allow_outside: bool = False) -> None:
        self.name = name
        self._path = path
        self._pairs_of = partial(pairs_of, places=Places(path.parent, allow_outside))
        self._list = _lines_of_list(path) if path.suffix.lower() == ".json" else None
        self._lines: list[tuple[int, int]] = []  # the byte at which each begins (in a list its index), and its number
        counts, refused = [], []
        content = hashlib.sha256()
        known: dict[Path, str | None] = {}
        for begin, number, line in self._all():
            content.update(line)
            if not line.strip():
                continue
            found = _parse(line)
            if isinstance(found, Unreadable):
                refused.append(found)
                counts.append(1)
            else:
                counts.append(num_pairs(*found))
                content.update(json.dumps(image_digests(self._pairs_of(*found, where=""), known)).encode())
            self._lines.append((begin, number))
        if not counts:
            raise ValueError(f"data.pairs: {name} is empty; give at least one pair")
        if len(refused) == len(counts):
            raise ValueError(
                f"data.pairs: no line of {name} can be used: {refused[0].reason}; known are {KNOWN_LAYOUTS}"
            )
        self._ends = list(accumulate(counts))
        self.num_rows = min(self._ends[-1], num_rows or self._ends[-1])
        self.fingerprint = digest(content.hexdigest(), num_rows, *([allow_outside] if allow_outside else []))

    def rows(self, start: int = 0) -> Iterator[RawPair]:
        line = bisect_right(self._ends, start)
        skip = start - (self._ends[line - 1] if line else 0)
        return islice(self._pairs(line), skip, skip + max(0, self.num_rows - start))

    def _pairs(self, first: int) -> Iterator[RawPair]:
        kind = "line" if self._list is None else "entry"
        for number, line in self._read(self._lines[first:]):
            where, found = f"{self._path.name} {kind} {number}", _parse(line)
            if isinstance(found, Unreadable):
                yield RawPair(where, found, (None, None), found)
            else:
                yield from self._pairs_of(*found, where=where)

    def _all(self) -> Iterator[tuple[int, int, bytes]]:
        """Where each line begins, its number and its text, of which no more than `MAX_LINE` bytes and one are kept."""
        if self._list is not None:
            yield from ((place, place + 1, line) for place, line in enumerate(self._list))
            return
        with self._path.open("rb") as file:
            begin, number = 0, 1
            while line := file.readline(MAX_LINE + 1):
                if begin == 0 and is_wide(line):
                    raise ValueError(f"data.pairs: {self.name} is UTF-16 or UTF-32 text; save it as UTF-8")
                yield begin, number, line
                while not line.endswith(b"\n") and (rest := file.readline(MAX_LINE)):
                    line = rest
                begin, number = file.tell(), number + 1

    def _read(self, places: list[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        if self._list is not None:
            yield from ((number, self._list[place]) for place, number in places)
            return
        with self._path.open("rb") as file:
            for begin, number in places:
                file.seek(begin)
                yield number, file.readline(MAX_LINE + 1)


class WinLoseFolder:
    """A folder with win/ and lose/: of two images with one name, the one in win/ is preferred.

    The caption is in NAME.txt or NAME.caption beside either image or in the folder itself. Names are taken in sorted
    order. Unless `allow_outside`, a symbolic link that leads out of the folder is an unusable row.
    """

    def __init__(self, folder: Path, *, name: str, num_rows: int | None, allow_outside: bool = False) -> None:
        for side in SIDES:
            if not (folder / side).is_dir():
                raise ValueError(f"data.pairs: {name} has no folder {side}/; pairs need win/ and lose/")
        self.name = name
        self._folder = folder
        self._allow_outside = allow_outside
        self._images = {side: _by_stem(folder / side, _extensions()) for side in SIDES}
        self._captions = {side: _by_stem(folder / side, CAPTIONS) for side in (*SIDES, ".")}
        self._stems = sorted(set(self._images["win"]) | set(self._images["lose"]))[:num_rows]
        if not self._stems:
            raise ValueError(f"data.pairs: {name} has no images in win/ and lose/")
        self.num_rows = len(self._stems)
        found = (*self._images.values(), *self._captions.values())
        files = [file for by_stem in found for several in by_stem.values() for file in several]
        self.fingerprint = digest(contents(folder, files), num_rows, *([allow_outside] if allow_outside else []))

    def rows(self, start: int = 0) -> Iterator[RawPair]:
        for stem in self._stems[start:]:
            images = tuple(self._image(side, stem) for side in SIDES)
            where = next(path.name for side in SIDES for path in self._images[side].get(stem, []))
            yield RawPair(where, self._caption(stem), (images[0], images[1]), 1.0)

    def _image(self, side: str, stem: str) -> Path | Unreadable:
        match self._images[side].get(stem, []):
            case []:
                return Unreadable(f"there is no image {side}/{stem}.*")
            case [path]:
                try:
                    return self._inside(path)
                except ValueError as error:
                    return Unreadable(f"the image {error}")
            case several:
                return Unreadable(f"{side}/ has {' and '.join(path.name for path in several)}; one of them is expected")

    def _caption(self, stem: str) -> str | Unreadable:
        files = [file for captions in self._captions.values() for file in captions.get(stem, [])]
        try:
            texts = {file: read_text(self._inside(file), f"the caption {file.name} cannot be read") for file in files}
        except ValueError as error:
            return Unreadable(str(error))
        texts = {file: text.strip() for file, text in texts.items()}
        if not texts:
            return Unreadable(f"there is no caption {stem}.txt or {stem}.caption in win/, in lose/ or beside them")
        if len(set(texts.values())) > 1:
            return Unreadable(f"there are different captions in {', '.join(_relative(self._folder, texts))}")
        return texts[files[0]]

    def _inside(self, path: Path) -> Path:
        name = path.relative_to(self._folder).as_posix()
        return local_file(self._folder, name, allow_outside=self._allow_outside)


def _lines_of_list(path: Path) -> list[bytes]:
    """The entries of a .json file, each as a line of JSON."""
    text = read_text(path, "data.pairs")
    rows = parse_json(text, f"data.pairs: {path}") if text.strip() else []
    if not isinstance(rows, list):
        raise ValueError(f"data.pairs: {path} holds a JSON {type(rows).__name__}; a list of objects is expected")
    return [json.dumps(row).encode() for row in rows]


def digest(*parts: object) -> str:
    """A hexadecimal digest of plain values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def image_digests(pairs: Iterable[RawPair], known: dict[Path, str | None]) -> list[str | None]:
    """The SHA-256 of every image file that rows name, None for a missing one; `known` caches the digests."""
    files = [image for pair in pairs for image in pair.images if isinstance(image, Path)]
    for file in files:
        if file not in known:
            known[file] = _digest_of(file)
    return [known[file] for file in files]


def contents(folder: Path, files: Collection[Path]) -> list[tuple[str, str]]:
    """Sorted file names below a folder with the SHA-256 of their content, None for unreadable ones."""
    return sorted(zip(_relative(folder, files), [_digest_of(file) or "" for file in files], strict=True))


def _digest_of(file: Path) -> str | None:
    """The SHA-256 of a file; None where it cannot be read and will be a bad row."""
    try:
        file_size(file)
        return file_digest(file)
    except (OSError, ValueError):
        return None


def _relative(folder: Path, files: Collection[Path]) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in files]


def _by_stem(folder: Path, suffixes: Collection[str]) -> dict[str, list[Path]]:
    """The files of a folder that end in one of the suffixes, without hidden ones, sorted by name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file():
            found.setdefault(path.stem, []).append(path)
    return found


def _extensions() -> set[str]:
    """Suffixes of image files that Pillow can read."""
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in readable_formats()}


def _parse(line: bytes) -> tuple[Row, Layout] | Unreadable:
    if len(line) > MAX_LINE:
        return Unreadable(f"the line is longer than the {MAX_LINE:,} bytes that are read")
    try:
        row = parse_json(line.decode("utf-8-sig"), "the line")
    except UnicodeDecodeError:
        return Unreadable("the line is not UTF-8 text")
    except ValueError as error:
        return Unreadable(str(error))
    if not isinstance(row, dict):
        return Unreadable(f"the line is a JSON {type(row).__name__}, not an object")
    layout = recognise(row)
    return Unreadable(f"its columns fit no layout: {', '.join(row) or 'none'}") if layout is None else (row, layout)
