"""The folder of generated images: its owner, the images still to be generated, and its record.

stepalign.json    the settings it belongs to, written first (`marker.py`), with digests of the model's parts
images/           00012-0.png is image 0 of prompt 12
manifest.jsonl    a row per image, once all are there; `manifest.py` reads it
files.json        size and SHA-256 of images, manifest and record, checked when the command is given again
generation.json   the settings, digests, versions and time of the generation; written last
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict, cast

from stepalign.data.manifest import GENERATION, MANIFEST, ImageRow, write_manifest
from stepalign.data.prompts_cut import PromptsCut
from stepalign.runs.run import Run
from stepalign.support.digests import Identity, values_digest
from stepalign.support.file_record import FILE_RECORD, check_files, describe_damage, record_files
from stepalign.support.images import open_image
from stepalign.support.json_text import to_json
from stepalign.support.marker import Note, Owner
from stepalign.support.parsing import parse_json, read_text

IMAGES = "images"
NOT_IN_THE_IMAGE = frozenset({"batch_size", "base.max_batch"})
"""Settings that decide how fast images are generated, not which ones."""
BY_CONTENT = ("model", "unet", "base.vae", "base.config")
"""Settings that name parts whose digests the marker keeps."""
SHOWN = 5
"""Damaged files that a note names."""


class GenerationTiming(TypedDict):
    """The part of a record that another generation of the same images does not repeat."""

    seconds: float
    num_kept: int
    """Images that an earlier call had generated."""
    num_processes: int
    device: str


class GenerationRecord(TypedDict):
    """The content of generation.json."""

    settings: dict[str, Any]
    finished: bool
    num_prompts: int
    num_images: int
    resolution: list[int]
    prompts_cut: PromptsCut
    identity: Identity
    revisions: dict[str, str]
    """Commits of the parts that come from the hub, by setting."""
    versions: dict[str, str]
    timing: GenerationTiming


def folder_owner(settings: dict[str, Any]) -> Owner:
    """The owner of a folder: the settings that generate its images, the plain values of generation.json."""

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


def read_record(output: Path) -> GenerationRecord | None:
    """The content of generation.json; None when it is missing or damaged."""
    with suppress(ValueError):
        found = parse_json(read_text(output / GENERATION, GENERATION), GENERATION)
        if isinstance(found, dict) and isinstance(found.get("settings"), dict):
            return cast(GenerationRecord, found)
    return None


def images_to_generate(output: Path, rows: list[ImageRow], note: Note) -> list[str] | None:
    """The files of images that are missing, damaged or cannot be read; None for a finished folder that is whole.

    `note` takes lines on damaged files of a finished folder, and on images that an unfinished one has already.
    """
    if not (output / FILE_RECORD).is_file():
        missing = [row.file for row in rows if not _readable(output / row.file)]
        record = read_record(output)
        if not missing and (output / MANIFEST).is_file() and record is not None and record.get("finished"):
            record_files(output, (IMAGES, MANIFEST, GENERATION))  # of a version that kept no digests
            return None
        if len(missing) < len(rows):
            note(f"{len(rows) - len(missing)} of {len(rows)} images are there; generating the others")
        return missing
    found = check_files(output)
    if not found:
        return None
    shown = describe_damage(dict(list(found.items())[:SHOWN]))
    more = f", and {len(found) - SHOWN} more are damaged or missing" if len(found) > SHOWN else ""
    note(f"in {output} {shown}{more}; made again")
    if FILE_RECORD in found:  # nothing records which images are unchanged
        return [row.file for row in rows]
    return [row.file for row in rows if row.file in found]


def finish_folder(run: Run, rows: list[ImageRow], record: GenerationRecord) -> GenerationRecord:
    """Write the manifest, the digests of all files and, last, the record, which is returned as it is read again."""
    write_manifest(run.output, rows)
    run.finish(GENERATION, to_json(record, indent=2, ensure_ascii=False) + "\n")
    written = read_record(run.output)
    assert written is not None
    return written


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
