"""The folder of generated images: whom it belongs to, which images are still to be generated, and its record.

stepalign.json    whose folder it is, written first (`claim.py`), with digests of what generates the images
images/           00012-0.png is image 0 of prompt 12
manifest.jsonl    a row per image, once all are there; `manifest.py` reads it
files.json        size and SHA-256 of images, manifest and record, checked when the command is given again
generation.json   the settings, what generated the images and how long it took; written last
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from stepalign.data.manifest import GENERATION, MANIFEST, ImageRow, write_manifest
from stepalign.support.claim import Note, Owner
from stepalign.support.digests import values_digest
from stepalign.support.file_record import FILE_RECORD, check_files, describe_damage, record_files
from stepalign.support.files import write_text
from stepalign.support.images import open_image
from stepalign.support.json_text import to_json
from stepalign.support.parsing import parse_json, read_text

IMAGES = "images"
NOT_IN_THE_IMAGE = frozenset({"batch_size", "base.max_batch"})
"""Settings that decide how fast images are generated, not which ones."""
BY_CONTENT = ("model", "unet", "base.vae", "base.config")
"""Settings that name parts whose digests the marker keeps."""
SHOWN = 5
"""Damaged files that a note names."""


def folder_owner(settings: dict[str, Any]) -> Owner:
    """The folder as that of these settings, the plain values of generation.json."""

    def legacy(output: Path) -> dict[str, Any] | None:
        found = read_record(output)
        return None if found is None else _numbered(found["settings"])

    named = [f"adapters.{number}.{name}" for number in range(len(settings["adapters"])) for name in ("name", "sha256")]
    return Owner(
        "generate",
        _numbered(settings),
        free=NOT_IN_THE_IMAGE,
        by_content=frozenset({*BY_CONTENT, *named}),
        legacy=legacy,
        noun="call",
    )


def read_record(output: Path) -> dict[str, Any] | None:
    """What generation.json holds; None when it is not there or damaged."""
    with suppress(OSError, ValueError):
        found = parse_json(read_text(output / GENERATION, GENERATION), GENERATION)
        if isinstance(found, dict) and isinstance(found.get("settings"), dict):
            return found
    return None


def images_to_generate(output: Path, rows: list[ImageRow], tell: Note) -> list[str] | None:
    """The files of images that are missing, damaged or cannot be read; None for a finished folder that is whole.

    `tell` is told of what is damaged in a finished folder, and of images that an unfinished one has already.
    """
    if not (output / FILE_RECORD).is_file():
        missing = [row.file for row in rows if not _readable(output / row.file)]
        record = read_record(output)
        if not missing and (output / MANIFEST).is_file() and record is not None and record.get("finished"):
            record_files(output, (IMAGES, MANIFEST, GENERATION))  # of a version that kept no digests
            return None
        if len(missing) < len(rows):
            tell(f"{len(rows) - len(missing)} of {len(rows)} images are there; generating the others")
        return missing
    found = check_files(output)
    if not found:
        return None
    shown = describe_damage(dict(list(found.items())[:SHOWN]))
    more = f", and {len(found) - SHOWN} more are damaged or missing" if len(found) > SHOWN else ""
    tell(f"in {output} {shown}{more}; made again")
    if FILE_RECORD in found:  # nothing says which images are as they were
        return [row.file for row in rows]
    return [row.file for row in rows if row.file in found]


def finish_folder(output: Path, rows: list[ImageRow], record: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest, the digests of all files and, last, the record, which it returns as it is read again."""
    write_manifest(output, rows)
    text = to_json(record, indent=2, ensure_ascii=False) + "\n"
    record_files(output, (IMAGES, MANIFEST), pending={GENERATION: text})
    write_text(output / GENERATION, text)
    return json.loads(text)


def rows_digest(rows: list[ImageRow]) -> str:
    """The digest of prompts and categories, image by image."""
    return values_digest([[row.prompt, row.category] for row in rows])


def _numbered(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with a field for each adapter and their number, so that they are compared one by one."""
    adapters = settings.get("adapters", [])
    return {**settings, "adapters": {str(n): one for n, one in enumerate(adapters)}, "num_adapters": len(adapters)}


def _readable(path: Path) -> bool:
    with suppress(ValueError):
        open_image(path)
        return True
    return False
