"""A folder of pictures scored by any scorers, once each; what comes of it is in `result_card.py`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stepalign.config import require
from stepalign.images import open_image
from stepalign.manifest import (
    EVALUATION,
    SCORES,
    ImageRow,
    ScoredRow,
    read_manifest,
    read_scores,
    write_scores,
)
from stepalign.metrics.load import score_pictures
from stepalign.metrics.style import style_of, wrong_prompts
from stepalign.picture_sets import SETS, PictureSets, measure_sets
from stepalign.protocols import Scorer
from stepalign.result_card import Scored, prompts_sha256, read_generation, write_results
from stepalign.run_directory import Silence, Watcher
from stepalign.scorers import load_scorer, scorer_entries

WRONG = "-wrong-prompt"
"""Ends the name of a scorer's column in which every picture was scored with another prompt's text."""
NAMED = 10
"""The most bad pictures that an error lists."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """Who scores, and how."""

    scorers: tuple[str, ...] = ()
    """Names, or NAME=PATH with weights of your own: pickscore, hps-v2.0, hps-v2.1, aesthetic, image-reward,
    clip-score; for the miniature's pictures miniature-aesthetic, miniature-alignment, miniature-pickscore."""
    batch_size: int = 16
    """Pictures scored at once."""
    wrong_prompts: bool = False
    """Also score every picture with another prompt's text: a gain that is there too is style, not content."""
    sets: PictureSets = field(default_factory=PictureSets)
    """What else to measure."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        require(bool(self.scorers) or self.sets.anything, "scorers", "none", "named, or something else measured")


def evaluate_folder(
    folder: Path, scoring: Scoring, *, name: str | None = None, watcher: Watcher | None = None
) -> dict[str, Any]:
    """Score a folder's pictures and return what results.json says.

    A scorer that has scored these very pictures and prompts from the same weights' name is not run again; one scorer is
    in memory at a time, and its scores are written before the next begins. Raises ValueError before any scoring for
    scorers that are not known and for pictures that are missing or cannot be read, which it counts and names.
    """
    watcher = watcher or Silence()
    entries = scorer_entries(scoring.scorers) if scoring.scorers else {}
    rows = read_manifest(folder)
    if scoring.sets.reference is not None:
        read_manifest(scoring.sets.reference)
    read_generation(folder)  # these two are refused before the work, not after it
    pictures, style = inspect(folder, rows, watcher)
    scored, more = _before(folder, rows, pictures)
    given: dict[str, Any] = {"pictures": pictures, "name": name, "device": scoring.device, "more": more}
    for column, (entry, prompts) in _columns(entries, rows, wrong=scoring.wrong_prompts).items():
        asked = hashlib.sha256(entry.encode()).hexdigest()
        if scored.asked.get(column) == asked:
            watcher.note(f"{column}: scored before")
            continue
        if prompts is not None and not scored.records[column.removesuffix(WRONG)]["needs_prompt"]:
            continue
        scorer = load_scorer(entry, device=scoring.device)
        scores = _score(folder, rows, scorer, prompts or [row.prompt for row in rows], scoring, watcher)
        if column in scored.columns:  # what other weights gave, which a stop must not leave beside the new scores
            for part in (scored.columns, scored.records, scored.asked):
                del part[column]
            write_results(folder, rows, scored, style, **given)
        scored.columns[column] = scores
        scored.records[column], scored.asked[column] = asdict(scorer.record), asked
        write_scores(folder, _rows(rows, scored.columns))
        write_results(folder, rows, scored, style, **given)
        del scorer  # before the next is loaded
    given["more"] |= measure_sets(folder, rows, scoring.sets, device=scoring.device, watcher=watcher)
    return write_results(folder, rows, scored, style, **given)


def inspect(folder: Path, rows: list[ImageRow], watcher: Watcher) -> tuple[str, list[dict[str, float]]]:
    """The SHA-256 of a folder's pictures in the order of its manifest, and each one's style.

    Raises ValueError that counts the pictures which cannot be read and names the first of them.
    """
    digest, style, problems = hashlib.sha256(), [], []
    for number, row in enumerate(rows, 1):
        path = folder / row.file
        try:
            style.append(style_of(open_image(path)))
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except ValueError as error:
            problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
        watcher.phase("inspect", number, len(rows))
    if problems:
        more = f", and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise ValueError(
            f"{len(problems)} of {len(rows)} pictures of {folder} cannot be scored: {'; '.join(problems[:NAMED])}{more}"
        )
    return digest.hexdigest(), style


def _columns(entries: dict[str, str], rows: list[ImageRow], *, wrong: bool) -> dict[str, tuple[str, list[str] | None]]:
    """Every column to be filled: its scorer as asked for, and the prompts, None for the pictures' own."""
    columns: dict[str, tuple[str, list[str] | None]] = {name: (entry, None) for name, entry in entries.items()}
    if wrong:
        others = wrong_prompts([row.prompt for row in rows], seed=0)
        columns |= {f"{name}{WRONG}": (entry, others) for name, entry in entries.items()}
    return columns


def _score(
    folder: Path, rows: list[ImageRow], scorer: Scorer, prompts: list[str], scoring: Scoring, watcher: Watcher
) -> list[float]:
    """A scorer's score of every picture; raises ValueError naming the pictures among which one has none."""
    scores: list[float] = []
    for start in range(0, len(rows), scoring.batch_size):
        batch = rows[start : start + scoring.batch_size]
        images = [open_image(folder / row.file) for row in batch]
        try:
            part = score_pictures(scorer, images, prompts[start : start + len(batch)], batch_size=scoring.batch_size)
        except ValueError as error:
            raise ValueError(f"{folder}, {batch[0].file} to {batch[-1].file}: {error}") from error
        scores += part.tolist()
        watcher.phase("score", len(scores), len(rows))
    return scores


def _before(folder: Path, rows: list[ImageRow], pictures: str) -> tuple[Scored, dict[str, Any]]:
    """What an earlier evaluation of the very same pictures and prompts found, and what it measured beside the scores;
    nothing of others."""
    nothing = Scored({}, {}, {})
    if not (folder / EVALUATION).is_file():
        return nothing, {}
    earlier = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))
    if earlier.get("pictures_sha256") != pictures or earlier.get("prompts_sha256") != prompts_sha256(rows):
        return nothing, {}
    more = {name: earlier[name] for name in SETS if name in earlier}
    if not (folder / SCORES).is_file():
        return nothing, more
    scores = read_scores(folder)
    if [(row.key, row.prompt) for row in scores] != [(row.key, row.prompt) for row in rows]:
        return nothing, {}
    names = [name for name in scores[0].scores if name in earlier["asked_sha256"]]  # a stop can leave one without
    columns = {name: [row.scores[name] for row in scores] for name in names}
    records, asked = ({name: earlier[part][name] for name in names} for part in ("scorers", "asked_sha256"))
    return Scored(columns, records, asked), more


def _rows(rows: list[ImageRow], columns: dict[str, list[float]]) -> list[ScoredRow]:
    """The rows of scores.jsonl."""
    return [
        ScoredRow(row.prompt_index, row.image_index, row.prompt, {name: column[i] for name, column in columns.items()})
        for i, row in enumerate(rows)
    ]
