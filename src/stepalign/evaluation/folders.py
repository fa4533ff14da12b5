"""Reading of evaluated folders, and the checks that they can be compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stepalign.core.protocols import ScorerRecord
from stepalign.data.manifest import EVALUATION, MANIFEST, SCORES, ImageRow, ScoredRow, read_manifest, read_scores
from stepalign.scorers.record import read_record, record_differences
from stepalign.support.config import require
from stepalign.support.digests import ordered_files_digest, values_digest
from stepalign.support.parsing import parse_json, read_text

SHOWN = 3
"""Most places that an error lists."""
AGAIN = "run `stepalign evaluate` on the folder again"

Key = tuple[int, int]
"""An image: prompt_index and image_index."""


@dataclass(frozen=True, slots=True)
class EvaluatedFolder:
    """Images with their scores and the records of the scorers."""

    path: Path
    name: str | None
    """The name given at the evaluation."""
    images: dict[Key, ImageRow]
    scores: dict[Key, dict[str, float]]
    """Every image has a score of every recorded scorer."""
    records: dict[str, ScorerRecord]
    generation: dict[str, Any] | None
    """How the images were generated, where it is known."""

    @property
    def prompts(self) -> dict[int, str]:
        """By prompt index, in order."""
        return {number: row.prompt for (number, _), row in sorted(self.images.items())}


def read_folder(path: Path, *, allow_outside: bool = False) -> EvaluatedFolder:
    """An evaluated folder; raises ValueError, with the first places and their number, when files, images or scores
    are missing, scores belong to no image, or a scorer has no record; `read_scores` checks that scores are finite."""
    evaluation = _read_evaluation(path)
    name, generation = evaluation.get("name"), evaluation.get("generation")
    records = {scorer: _record(values, scorer, path) for scorer, values in evaluation["scorers"].items()}
    images = {row.key: row for row in read_manifest(path, allow_outside=allow_outside)}
    rows = {row.key: row for row in read_scores(path)}
    _none([image_name(key) for key in images if key not in rows], "images without scores", path / SCORES, AGAIN)
    absent = [image_name(key) for key in rows if key not in images]
    _none(absent, "scored, but not listed", path / MANIFEST, AGAIN)
    other = [image_name(key) for key, row in rows.items() if row.prompt != images[key].prompt]
    _none(other, "scored for another prompt than the manifest's", path / SCORES, AGAIN)
    files = [row.file for row in images.values() if not (path / row.file).is_file()]
    _none(files, "files that are missing", path, "put it back, or generate and evaluate again")
    _check_scores(rows, records, path)
    _check_unchanged(path, evaluation, [path / row.file for row in images.values()], rows)
    scores = {key: rows[key].scores for key in images}
    return EvaluatedFolder(path, name if isinstance(name, str) else None, images, scores, records, generation)


def model_names(folders: list[EvaluatedFolder], names: list[str] | None) -> list[str]:
    """Names of the folders: the given ones, else those of their evaluations, else the last parts of their paths.

    Raises ValueError when there are too few or too many, or when none of these are distinct.
    """
    if names is not None:
        holds = len(names) == len(folders) and len(set(names)) == len(names) and all(name.strip() for name in names)
        require(holds, "names", names, f"{len(folders)} different names, one per folder")
        return names
    for found in ([folder.name for folder in folders], [folder.path.resolve().name for folder in folders]):
        known = [name for name in found if name]
        if len(set(known)) == len(folders):
            return known
    raise ValueError(f"names: several folders are named {folders[0].path.resolve().name}; give every folder a name")


def check_same_images(folders: dict[str, EvaluatedFolder]) -> None:
    """Raise ValueError unless the folders, by model, have the same prompts under the same numbers and as many images
    of each."""
    (first, base), *others = folders.items()
    for name, folder in others:
        ours, theirs = base.prompts, folder.prompts
        here, there = (f"{len(prompts)} prompts in {model}" for model, prompts in ((first, ours), (name, theirs)))
        for less, more, lacking in ((ours, theirs, first), (theirs, ours, name)):
            absent = [f"{number} {prompt!r}" for number, prompt in more.items() if number not in less]
            if absent:
                raise ValueError(
                    f"{here}, {there}: {lacking} lacks prompt {some(absent)}; {_order_advice(ours, theirs)}"
                )
        changed = [f"{n} is {ours[n]!r} in {first} and {theirs[n]!r} in {name}" for n in ours if ours[n] != theirs[n]]
        if changed:
            raise ValueError(f"{len(changed)} of {here} differ: prompt {some(changed)}; {_order_advice(ours, theirs)}")
        for few, many, lacking in ((base, folder, first), (folder, base, name)):
            absent = [image_name(key) for key in sorted(many.images) if key not in few.images]
            if absent:
                raise ValueError(
                    f"{len(base.images)} images in {first}, {len(folder.images)} in {name}: {lacking} lacks "
                    f"{some(absent)}; generate as many images of every prompt"
                )


def categories(folders: dict[str, EvaluatedFolder]) -> dict[int, str | None]:
    """Every prompt's category by index; raises ValueError for two of one prompt."""
    found: dict[int, str | None] = {}
    for name, folder in folders.items():
        for (number, _), row in sorted(folder.images.items()):
            before = found.setdefault(number, row.category)
            if before is None:
                found[number] = row.category
            elif row.category not in (None, before):
                raise ValueError(
                    f"prompt {number} has the category {row.category!r} in {name}, and {before!r} elsewhere"
                )
    return found


def shared_scorers(
    folders: dict[str, EvaluatedFolder],
) -> tuple[dict[str, ScorerRecord], dict[str, list[str]], list[str]]:
    """The records of scorers in all folders, the left-out scorers with the models that have them, and warnings.

    Raises ValueError when a scorer differs between two folders, or when no scorer is in all.
    """
    (first, base), *others = folders.items()
    having: dict[str, list[str]] = {}
    for name, folder in folders.items():
        for scorer in folder.records:
            having.setdefault(scorer, []).append(name)
    left_out = {scorer: models for scorer, models in having.items() if len(models) < len(folders)}
    shared = [scorer for scorer in base.records if scorer not in left_out]
    if not shared:
        told = "; ".join(f"{name} has {', '.join(folder.records)}" for name, folder in folders.items())
        raise ValueError(f"no scorer has scored all folders: {told}")
    different: dict[str, list[str]] = {}
    for scorer in shared:
        for name, folder in others:
            _check_record(base.records[scorer], folder.records[scorer], first, name)
            for told in _other_libraries(base.records[scorer], folder.records[scorer], first, name):
                different.setdefault(told, []).append(scorer)
    warnings = [f"{told}: scores by {', '.join(scorers)} may differ a little" for told, scorers in different.items()]
    return {scorer: base.records[scorer] for scorer in shared}, left_out, warnings


def other_seeds(folders: dict[str, EvaluatedFolder]) -> list[str]:
    """A warning for every folder with images from other seeds than the first folder's."""
    (first, base), *others = folders.items()
    warnings = []
    for name, folder in others:
        known = [(row.seed, folder.images[key].seed) for key, row in base.images.items()]
        different = sum(None not in pair and pair[0] != pair[1] for pair in known)
        if different:
            warnings.append(
                f"{different} of {len(known)} images were generated from other seeds by {name} than by {first}: the "
                "comparison is fair, but its intervals are wider than they need be"
            )
    return warnings


def repeated_prompts(num_prompts: int, num_distinct: int) -> list[str]:
    """A warning where prompts with the same text are listed under several numbers."""
    if num_distinct == num_prompts:
        return []
    return [
        f"{num_prompts} prompts have {num_distinct} different texts: the same text is one prompt in means, intervals "
        "and p-values"
    ]


def some(items: list[str]) -> str:
    """The first few items, and the number of the others."""
    more = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def image_name(key: Key) -> str:
    """An image's key in words."""
    return f"image {key[1]} of prompt {key[0]}"


def _read_evaluation(path: Path) -> dict[str, Any]:
    file = path / EVALUATION
    if not file.is_file():
        raise ValueError(f"there is no {file}; run `stepalign evaluate` on the folder first")
    try:
        values = parse_json(read_text(file, file.stem), str(file))
    except ValueError as error:
        raise ValueError(f"{error}; {AGAIN}") from error
    if not isinstance(values, dict) or not isinstance(values.get("scorers"), dict) or not values["scorers"]:
        raise ValueError(f"{file} has no scorers; {AGAIN}")
    if not isinstance(values.get("generation"), dict | None):
        raise ValueError(f"{file}: generation must be an object or null, got {values['generation']!r}")
    return values


def _record(values: Any, scorer: str, path: Path) -> ScorerRecord:
    try:
        if not isinstance(values, dict) or not isinstance(values.get("libraries", {}), dict):
            raise ValueError("it is no object with its libraries")
        return read_record(values)
    except ValueError as error:
        raise ValueError(f"{path / EVALUATION}: the record of {scorer} cannot be read: {error}; {AGAIN}") from error


def _check_scores(rows: dict[Key, ScoredRow], records: dict[str, ScorerRecord], path: Path) -> None:
    file = path / SCORES
    unknown = sorted({scorer for row in rows.values() for scorer in row.scores if scorer not in records})
    _none(unknown, f"scorers without a record in {EVALUATION}", file, AGAIN)
    for scorer in records:
        absent = [image_name(key) for key, row in rows.items() if scorer not in row.scores]
        _none(absent, f"images without a score by {scorer}", file, AGAIN)


def _check_unchanged(path: Path, evaluation: dict[str, Any], images: list[Path], rows: dict[Key, ScoredRow]) -> None:
    """Raise ValueError when images or scores differ from the evaluation's digests; older results may have none."""
    if evaluation.get("images_sha256") not in (None, ordered_files_digest(images)):
        raise ValueError(f"{path}: its images are not those that were scored; {AGAIN}")
    digests = evaluation.get("scores_sha256")
    for scorer, digest in (digests if isinstance(digests, dict) else {}).items():
        if digest != values_digest([row.scores.get(scorer) for row in rows.values()]):
            raise ValueError(f"{path / SCORES}: its scores by {scorer} are not those that were written; {AGAIN}")


def _none(items: Iterable[str], what: str, where: Path, advice: str) -> None:
    """Raise ValueError, listing the places, if there are any."""
    found = list(items)
    if found:
        raise ValueError(f"{where}: {what} ({len(found)}): {some(found)}; {advice}")


def _order_advice(ours: dict[int, str], theirs: dict[int, str]) -> str:
    if sorted(ours.values()) == sorted(theirs.values()):
        return "the prompts are the same in another order: give both manifests the same prompt_index"
    return "evaluate images of the same prompts"


def _check_record(ours: ScorerRecord, theirs: ScorerRecord, first: str, name: str) -> None:
    for field in record_differences(ours, theirs):
        here, there = asdict(ours)[field], asdict(theirs)[field]
        raise ValueError(
            f"{ours.name}: its {field} is {here!r} in {first} and {there!r} in {name}; numbers of different scorers"
            " cannot be compared: evaluate both folders with one"
        )


def _other_libraries(ours: ScorerRecord, theirs: ScorerRecord, first: str, name: str) -> list[str]:
    names = sorted(ours.libraries.keys() | theirs.libraries.keys())
    versions = [(library, ours.libraries.get(library), theirs.libraries.get(library)) for library in names]
    return [
        f"{library} is {here} in {first} and {there} in {name}" for library, here, there in versions if here != there
    ]
