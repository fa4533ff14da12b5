"""Prompt sets for evaluation: published sets by name, or a local file.

GenEval's come with the package. The others are searched in a folder of downloaded files and then on the Hugging
Face hub; they are checked against the set's known size, and its digest where it is known.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepalign.data.prompt_files import ENDINGS, column_of, read_prompt_file
from stepalign.support.errors import nearest
from stepalign.support.hub import reach_hub
from stepalign.support.parsing import parse_json
from stepalign.support.prompt_text import check_prompt

FOLDER_VARIABLE = "STEPALIGN_PROMPTS"
"""The environment variable that names a folder of downloaded prompt files."""
SHIPPED = Path(__file__).parent / "prompts"
STYLES = ("anime", "concept-art", "paintings", "photo")
"""Styles of the HPDv2 benchmark, in the order of its results."""


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts in their order, with their origin."""

    name: str
    prompts: list[str]
    categories: list[str] | None
    """One category per prompt, where the set has them."""
    metadata: list[dict[str, Any]] | None
    """The whole row of each prompt, where it holds more than the text."""
    source: str
    sha256: str
    """SHA-256 of the file; of several, of their digests in order."""
    licence: str


Rows = tuple[list[str], list[str] | None, list[dict[str, Any]] | None]
"""Prompts, categories, metadata."""


@dataclass(frozen=True, slots=True)
class KnownSet:
    """A published set: its files, size, licence and parser."""

    num_prompts: int
    licence: str
    read: Callable[[list[bytes]], Rows]
    """Parses the files' contents; raises ValueError, KeyError or TypeError for invalid ones."""
    files: tuple[str, ...]
    repository: str | None = None
    """A dataset on the hub; None for a shipped set."""
    sha256: str | None = None
    """SHA-256, where it is known."""


def load_prompt_set(name: str, *, folder: Path | None = None, own: Mapping[str, list[str]] | None = None) -> PromptSet:
    """The prompts of a published set, or of a file that `read_prompt_file` reads.

    `folder`, or else the environment variable STEPALIGN_PROMPTS, is searched for the files of published sets before
    the hub. `own` are sets of the caller, such as the miniature's captions. Raises ValueError for an unknown name, for
    files that cannot be found, with the way to provide them, and for files that are not the set's.
    """
    if own is not None and name in own:
        return _own(name, own[name])
    if name in KNOWN:
        return _load_known(name, KNOWN[name], folder)
    path = Path(name).expanduser()
    if path.suffix or path.exists() or len(path.parts) > 1:
        return _load_file(path)
    known = [*(own or ()), *KNOWN]
    raise ValueError(
        f"prompts: there is no set {name!r}{nearest(name, known)}; known: {', '.join(known)}, or a "
        f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]} file"
    )


def _load_known(name: str, known: KnownSet, folder: Path | None) -> PromptSet:
    paths = [_find(name, known, file, folder) for file in known.files]
    contents = [path.read_bytes() for path in paths]
    digest = _digest(contents)
    source = f"{known.repository}: {', '.join(known.files)}" if known.repository else "shipped with stepalign"
    if known.sha256 is not None and digest != known.sha256:
        raise ValueError(f"prompts: {paths[0]} is not the file that {name} was published as; SHA-256 {digest}")
    try:
        prompts, categories, metadata = known.read(contents)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"prompts: {paths[0]} cannot be read as {name}: {type(error).__name__}: {error}") from error
    if len(prompts) != known.num_prompts:
        raise ValueError(f"prompts: {name} has {known.num_prompts} prompts; {paths[0]} has {len(prompts)}")
    return PromptSet(name, prompts, categories, metadata, source, digest, known.licence)


def _find(name: str, known: KnownSet, file: str, folder: Path | None) -> Path:
    """A file of a set: shipped, in a folder (under the repository's name, as in the repository, or by itself), or from
    the hub."""
    if known.repository is None:
        return SHIPPED / file
    given = folder if folder is not None else os.environ.get(FOLDER_VARIABLE) or None
    if given is not None:
        place = Path(given).expanduser()
        if not place.is_dir():
            raise ValueError(f"prompts: {given} is no folder; it should hold {file} of {known.repository}")
        inside = known.repository.partition("/")[2]
        for path in (place / inside / file, place / inside / Path(file).name, place / file, place / Path(file).name):
            if path.is_file():
                return path
    try:
        return download(known.repository, file)
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"prompts: {name} needs {file} of the hub's dataset {known.repository}, which is out of reach ({reason}); "
            f"run `hf download {known.repository} {file} --repo-type dataset --local-dir FOLDER` where the hub can be "
            f"reached and name the folder in {FOLDER_VARIABLE}"
        ) from error


def download(repository: str, file: str) -> Path:
    """A file of a dataset of the hub, from the cache if it is there; raises OSError or ValueError."""
    from huggingface_hub import hf_hub_download

    if reason := reach_hub():
        raise OSError(reason)
    return Path(hf_hub_download(repository, file, repo_type="dataset"))


def _own(name: str, prompts: list[str]) -> PromptSet:
    if not prompts:
        raise ValueError(f"prompts: {name} is empty; give at least one prompt")
    content = "".join(f"{json.dumps(prompt)}\n" for prompt in prompts).encode()
    return PromptSet(name, list(prompts), None, None, name, _digest([content]), "the caller's")


def _load_file(path: Path) -> PromptSet:
    found = read_prompt_file(path)
    categories = [column_of(row, "category", "tag") for row in found.rows or ()]
    named = bool(categories) and all(isinstance(category, str) for category in categories)
    digest = _digest([path.read_bytes()])
    return PromptSet(
        path.stem, found.prompts, categories if named else None, found.rows, path.name, digest, "the file's owner's"
    )


def _digest(contents: list[bytes]) -> str:
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


# parsers of the published sets' files


def _texts(values: list[Any]) -> list[str]:
    """The values as prompts; raises ValueError naming the first that is not a prompt."""
    return [check_prompt(value, f"prompt {number}") for number, value in enumerate(values, 1)]


def _parquet_captions(contents: list[bytes]) -> Rows:
    from pyarrow import BufferReader, parquet  # type: ignore[import-untyped]

    table = parquet.read_table(BufferReader(contents[0]), columns=["caption"])
    return _texts(table["caption"].to_pylist()), None, None


def _benchmark(contents: list[bytes]) -> Rows:
    """A JSON list of texts per style."""
    styles = [parse_json(content, f"style {style}") for style, content in zip(STYLES, contents, strict=True)]
    for style, texts in zip(STYLES, styles, strict=True):
        if not isinstance(texts, list) or len(texts) != 800:
            raise ValueError(f"a list of 800 prompts is wanted for the style {style}")
    prompts = [text for texts in styles for text in texts]
    return _texts(prompts), [style for style, texts in zip(STYLES, styles, strict=True) for _ in texts], None


def _rows_with_prompt(contents: list[bytes]) -> Rows:
    rows = parse_json(contents[0], "the file")
    return _texts([row["prompt"] for row in rows]), None, rows


def _parti(contents: list[bytes]) -> Rows:
    """Tabs between columns; quotation marks belong to the prompts, one of which begins with one."""
    text = io.StringIO(contents[0].decode("utf-8"), newline="")
    rows: list[dict[str, Any]] = list(csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE))
    return _texts([row["Prompt"] for row in rows]), [row["Category"] for row in rows], rows


def _geneval(contents: list[bytes]) -> Rows:
    rows = [json.loads(line) for line in contents[0].decode("utf-8").splitlines()]
    return _texts([row["prompt"] for row in rows]), [row["tag"] for row in rows], rows


def _pick_a_pic(version: str, file: str, sha256: str | None) -> KnownSet:
    repository = f"yuvalkirstain/pickapic_{version}_no_images"
    licence = "none stated by the dataset; the authors' code is MIT"
    return KnownSet(500, licence, _parquet_captions, (f"data/{file}",), repository, sha256)


KNOWN = {
    "pick-a-pic-v1-validation": _pick_a_pic(
        "v1",
        "validation_unique-00000-of-00001-847ed34b90bbafc3.parquet",
        "0421b8768e06148eddcc135287c758a0484357544020876ca9ae925ed4988ae0",
    ),
    "pick-a-pic-v1-test": _pick_a_pic(
        "v1",
        "test_unique-00000-of-00001-73a51cbb6488571d.parquet",
        "666a2de97e18d7b99055a2a5cbe5d0d53ef5efeb6514ae541dea4367446f1609",
    ),
    "pick-a-pic-v2-validation": _pick_a_pic("v2", "validation_unique-00000-of-00001-c2396290184ff49d.parquet", None),
    "pick-a-pic-v2-test": _pick_a_pic(
        "v2",
        "test_unique-00000-of-00001-e852c19ead276a89.parquet",
        "6575ecb7f4f24b0f1a4a4359ffdab7ab66cbecb93273418bf0d53ac87049b2ec",
    ),
    "hpdv2-benchmark": KnownSet(
        3200, "Apache-2.0", _benchmark, tuple(f"benchmark/{style}.json" for style in STYLES), "ymhao/HPDv2"
    ),
    "hpdv2-test": KnownSet(400, "Apache-2.0", _rows_with_prompt, ("test.json",), "ymhao/HPDv2"),
    "parti": KnownSet(1632, "Apache-2.0", _parti, ("PartiPrompts.tsv",), "nateraw/parti-prompts"),
    "geneval": KnownSet(
        553,
        "MIT, Copyright (c) 2023 Dhruba Ghosh",
        _geneval,
        ("geneval.jsonl",),
        None,
        "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
    ),
}
