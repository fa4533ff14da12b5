"""The marker of an output directory: which command and settings it belongs to, and digests of the parts of its job.

stepalign.json   the command, its settings, the identity of what it works with, and a digest of these three
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

from stepalign.support.digests import Identity, values_digest
from stepalign.support.files import write_text
from stepalign.support.json_text import flatten, to_json
from stepalign.support.parsing import parse_json, read_text
from stepalign.support.relative_paths import relative

MARKER = "stepalign.json"
Note = Callable[[str], None]
"""Takes one line for the user."""


class Marker(TypedDict):
    """The content of a marker."""

    kind: str
    """The command: "train", "train-judge", "generate", "sweep"."""
    version: str
    """Of stepalign, when the directory was begun."""
    directory: str
    """Where the directory was when the marker was written; paths in the settings are compared relative to it."""
    settings: dict[str, Any]
    identity: Identity


@dataclass(frozen=True, slots=True)
class Owner:
    """The job that a directory belongs to."""

    kind: str
    """The command: "train", "train-judge", "generate", "sweep"."""
    settings: dict[str, Any]
    """All settings that decide the results, as nested plain values."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Of settings that the marker of an older version does not mention."""
    free: frozenset[str] = frozenset()
    """Settings, with dots, that decide no result and may differ."""
    by_content: frozenset[str] = frozenset()
    """Settings that name parts by path; where the marker has digests of the parts, the digests are compared."""
    legacy: Callable[[Path], dict[str, Any] | None] = lambda output: None
    """Settings of a directory without a whole marker, read from its other files; None where these name no owner."""
    copy: Callable[[Path], str | None] = lambda output: None
    """The text of a second copy of the marker in another file of the directory; None without one."""
    noun: str = "recipe"
    """The name of the settings in messages."""


def marker_of(output: Path) -> Marker | None:
    """The marker of a directory; None when there is none that can be read."""
    with suppress(OSError, ValueError):
        return parse_marker(read_text(output / MARKER, MARKER))
    return None


def identity_of(output: Path) -> Identity:
    """The digests of parts that a directory's job began with; empty where none are known."""
    marker = marker_of(output)
    return {} if marker is None else marker["identity"]


def parse_marker(text: str) -> Marker:
    """The marker that a text holds; raises ValueError unless it is whole."""
    values = parse_json(text, MARKER)
    if isinstance(values, dict) and values.pop("sha256", None) in (None, values_digest(values)):
        kinds = {"kind": str, "directory": str, "settings": dict, "identity": dict}
        if all(isinstance(values.get(name), kind) for name, kind in kinds.items()):
            return Marker(
                kind=values["kind"],
                version=str(values.get("version", "")),
                directory=values["directory"],
                settings=values["settings"],
                identity=values["identity"],
            )
    raise ValueError(f"{MARKER} is damaged")


def new_marker(output: Path, owner: Owner) -> Marker:
    """The marker of a directory that a job begins in."""
    directory, settings = str(output.resolve()), json.loads(json.dumps(owner.settings))
    own = version("stepalign")
    return Marker(kind=owner.kind, version=own, directory=directory, settings=settings, identity={})


def write_marker(output: Path, marker: Marker) -> None:
    """Write the marker of a directory, with a digest of it."""
    write_text(output / MARKER, to_json({**marker, "sha256": values_digest(marker)}, indent=1) + "\n")


def recognise(output: Path, owner: Owner, *, blank: bool) -> Marker | None:
    """The marker of a locked directory, or one made of its other files where that is lost; None for a new directory.

    `blank`: the directory holds nothing but the files of a claim. Raises ValueError for a directory of another
    command, and for one whose owner is not known.
    """
    marker = marker_of(output)
    if marker is None:
        marker = _second_copy(output, owner)
    if marker is not None:
        if marker["kind"] != owner.kind:
            raise ValueError(f"output: {output} belongs to {marker['kind']}, not {owner.kind}; give another directory")
        return marker
    settings = owner.legacy(output)
    if settings is not None:
        return Marker(kind=owner.kind, version="", directory="", settings=settings, identity={})
    if not blank:
        raise ValueError(
            f"output: {output / MARKER} is damaged, and no other file names the directory's owner; "
            "restore it, or give another directory"
        )
    return None


def compare_settings(output: Path, owner: Owner, theirs: Marker, note: Note) -> str:
    """Raise ValueError, naming a setting, unless the settings known on both sides are equal, as paths here or there.

    Returns, for messages, which parts known by content are named by another path.
    """
    here = str(output.resolve())
    there = theirs["directory"] or here
    ours, usual = (_dotted(json.loads(json.dumps(values))) for values in (owner.settings, owner.defaults))
    kept = _dotted(theirs["settings"])
    unknown = [key for key in kept if key not in ours]
    if unknown:
        note(f"{output} is of another version: {', '.join(sorted(unknown))} of its {owner.noun} is ignored")
    known = usual | kept
    moved = []
    for key in sorted(ours.keys() & known.keys() - owner.free):
        if known[key] == ours[key] or relative(known[key], there) == relative(ours[key], here):
            continue
        differs = f"its {key} is {known[key]!r}, this {owner.noun}'s {ours[key]!r}"
        if key in owner.by_content and theirs["identity"] and None not in (known[key], ours[key]):
            moved.append(differs)
        else:
            raise ValueError(f"output: {output} is another run's: {differs}; give another directory")
    return f" ({'; '.join(moved)})" if moved else ""


def _second_copy(output: Path, owner: Owner) -> Marker | None:
    """The marker that another file of the directory holds a whole copy of."""
    text = owner.copy(output)
    if text is None:
        return None
    with suppress(ValueError):
        return parse_marker(text)
    return None


def _dotted(values: dict[str, Any]) -> dict[str, Any]:
    return {".".join(path): value for path, value in flatten(values).items()}
