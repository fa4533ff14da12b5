"""Scoring of a folder of images, each image once by each scorer; `result_card` writes the results."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stepalign.core.protocols import Scorer, ScorerRecord
from stepalign.data.manifest import EVALUATION, SCORES, ImageRow, ScoredRow, read_manifest, read_scores, write_scores
from stepalign.data.prompts_cut import count_cut
from stepalign.evaluation.image_sets import SETS, ImageSets, measure_sets
from stepalign.evaluation.result_card import WRONG, Scored, prompts_sha256, read_generation, write_results
from stepalign.runs.checks import check_device, check_folder, check_scorers
from stepalign.runs.scorer_names import load_scorer, scorer_entries
from stepalign.scorers.load import score_images
from stepalign.scorers.record import read_record, record_differences
from stepalign.scorers.style import style_of, wrong_prompts
from stepalign.support.claim import locked
from stepalign.support.config import require
from stepalign.support.digests import ordered_files_digest, values_digest
from stepalign.support.errors import first_line
from stepalign.support.images import open_image
from stepalign.support.parsing import parse_json, read_text
from stepalign.support.stopping import check_stop, finishing
from stepalign.support.watcher import NullWatcher, StoppingWatcher, Watcher

NAMED = 10
"""Most unreadable images that an error lists."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """Scorers and their settings."""

    scorers: tuple[str, ...] = ()
    """Names, or NAME=PATH with weights of your own: pickscore, hps-v2.0, hps-v2.1, aesthetic, image-reward,
    clip-score; for the miniature's images miniature-aesthetic, miniature-alignment, miniature-pickscore."""
    batch_size: int = 16
    """Images scored at once."""
    wrong_prompts: bool = False
    """Also score every image with another prompt's text: a gain under these is style, not content."""
    sets: ImageSets = field(default_factory=ImageSets)
    """Set-level metrics."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        require(bool(self.scorers) or self.sets.anything, "scorers", "none", "named, or something else measured")


def check_scoring(scoring: Scoring) -> dict[str, str]:
    """Check the settings without loading anything; returns the scorers by name, raises ValueError for anything
    missing."""
    entries = scorer_entries(scoring.scorers) if scoring.scorers else {}
    check_scorers(scoring.scorers, "scorers")
    check_device(scoring.device)
    sets = scoring.sets
    check_folder(sets.features, "features")
    check_folder(sets.cmmd, "cmmd")
    if sets.geneval and sets.detector.endswith(".jsonl"):
        require(Path(sets.detector).is_file(), "detector", repr(sets.detector), "a file that is there")
    elif sets.geneval:
        check_folder(sets.detector, "detector")
        check_folder(sets.colours, "colours")
    return entries


def evaluate_folder(
    folder: Path, scoring: Scoring, *, name: str | None = None, watcher: Watcher | None = None
) -> dict[str, Any]:
    """Score a folder's images and return the content of results.json.

    Scores of the same images and prompts by the same weights, config and tokenizer are kept; one scorer is in memory at
    a time, and its scores are written before the next begins. Raises ValueError before any scoring for unknown scorers,
    for missing or unreadable images, with their names and number, and while another job holds the folder.
    """
    watcher = watcher or NullWatcher()
    entries = check_scoring(scoring)
    rows = read_manifest(folder, allow_outside=scoring.sets.allow_outside)
    if scoring.sets.reference is not None:
        read_manifest(scoring.sets.reference, allow_outside=scoring.sets.allow_outside)
    read_generation(folder)  # these two are refused before the scoring, not after it
    with locked(folder, note=watcher.note), finishing():
        return _evaluate(folder, rows, entries, scoring, name, StoppingWatcher(watcher))


def _evaluate(
    folder: Path,
    rows: list[ImageRow],
    entries: dict[str, str],
    scoring: Scoring,
    name: str | None,
    watcher: StoppingWatcher,
) -> dict[str, Any]:
    images, style = inspect(folder, rows, watcher)
    scored, more = _before(folder, rows, images, watcher)
    given: dict[str, Any] = {"images": images, "name": name, "device": scoring.device, "more": more}
    own = [row.prompt for row in rows]
    others = wrong_prompts(own, seed=0) if scoring.wrong_prompts and entries else None
    for number, (scorer_name, entry) in enumerate(entries.items()):
        watcher.saved = f"the scores of {number} of {len(entries)} scorers are saved"
        check_stop(watcher.saved)  # before a scorer is loaded, which takes long
        scorer = load_scorer(entry, device=scoring.device)
        for column, prompts in _columns(scorer_name, scorer, own, others):
            if not _is_due(scored, column, scorer.record, watcher):
                continue
            told = (
                watcher if column == scorer_name else NullWatcher()
            )  # the others are the same prompts in another order
            cut = count_cut({scorer_name: scorer.num_cut}, own, told)
            scores = _score(folder, rows, scorer, prompts, scoring, watcher)
            if (
                column in scored.columns
            ):  # scores of another scorer, which must not remain beside the new ones after a stop
                scored.remove(column)
                write_results(folder, rows, scored, style, **given)
            scored.add(column, scores, asdict(scorer.record) | {"prompts_cut": cut})
            write_scores(folder, _rows(rows, scored.columns))
            write_results(folder, rows, scored, style, **given)
        del scorer  # before the next is loaded
    watcher.saved = f"the scores of {len(entries)} scorers are saved" if entries else ""
    given["more"] |= measure_sets(folder, rows, scoring.sets, device=scoring.device, watcher=watcher)
    return write_results(folder, rows, scored, style, **given)


def inspect(folder: Path, rows: list[ImageRow], watcher: Watcher) -> tuple[str, list[dict[str, float]]]:
    """The digest of a folder's images in the order of its manifest, and the style statistics of each.

    Raises ValueError with the number of unreadable images and the names of the first.
    """
    style, problems = [], []
    for number, row in enumerate(rows, 1):
        path = folder / row.file
        try:
            style.append(style_of(open_image(path)))
        except ValueError as error:
            problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
        watcher.phase("inspect", number, len(rows))
    if problems:
        more = f", and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise ValueError(
            f"{len(problems)} of {len(rows)} images of {folder} cannot be scored: {'; '.join(problems[:NAMED])}{more}"
        )
    return ordered_files_digest([folder / row.file for row in rows]), style


def _columns(name: str, scorer: Scorer, own: list[str], others: list[str] | None) -> list[tuple[str, list[str]]]:
    """The columns of a scorer with their prompts: the images' own, and wrong ones if asked for."""
    wrong = [] if others is None or not scorer.record.needs_prompt else [(f"{name}{WRONG}", others)]
    return [(name, own), *wrong]


def _is_due(scored: Scored, column: str, record: ScorerRecord, watcher: Watcher) -> bool:
    """Whether a column must be computed: it is missing, or of another scorer."""
    if column not in scored.columns:
        return True
    different = record_differences(record, read_record(scored.records[column]))
    if different:
        watcher.note(f"{column}: scored before by another scorer (its {different[0]} differs); scoring again")
    else:
        watcher.note(f"{column}: scored before")
    return bool(different)


def _score(
    folder: Path, rows: list[ImageRow], scorer: Scorer, prompts: list[str], scoring: Scoring, watcher: Watcher
) -> list[float]:
    """A scorer's score of every image; raises ValueError naming the batch with a non-finite one."""
    scores: list[float] = []
    for start in range(0, len(rows), scoring.batch_size):
        batch = rows[start : start + scoring.batch_size]
        images = [open_image(folder / row.file) for row in batch]
        try:
            part = score_images(scorer, images, prompts[start : start + len(batch)], batch_size=scoring.batch_size)
        except ValueError as error:
            raise ValueError(f"{folder}, {batch[0].file} to {batch[-1].file}: {error}") from error
        scores += part.tolist()
        watcher.phase("score", len(scores), len(rows))
    return scores


def _before(folder: Path, rows: list[ImageRow], images: str, watcher: Watcher) -> tuple[Scored, dict[str, Any]]:
    """Scores and set-level metrics of an earlier evaluation of the same images and prompts; empty for other images and
    for damaged files."""
    if not (folder / EVALUATION).is_file():
        return Scored({}, {}), {}
    try:
        earlier = parse_json(read_text(folder / EVALUATION, EVALUATION), EVALUATION)
        if earlier.get("images_sha256") != images or earlier.get("prompts_sha256") != prompts_sha256(rows):
            return Scored({}, {}), {}
        return _reusable(folder, rows, earlier), {name: earlier[name] for name in SETS if name in earlier}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        watcher.note(f"the earlier evaluation of {folder} cannot be read, scoring again: {first_line(error)}")
        return Scored({}, {}), {}


def _reusable(folder: Path, rows: list[ImageRow], earlier: dict[str, Any]) -> Scored:
    """The columns of scores.jsonl with a record in the evaluation and an unchanged digest."""
    scored = Scored({}, {})
    if not (folder / SCORES).is_file():
        return scored
    scores = read_scores(folder)
    if [(row.key, row.prompt) for row in scores] != [(row.key, row.prompt) for row in rows]:
        return scored
    for name in (
        name for name in scores[0].scores if name in earlier["scorers"]
    ):  # a stop can leave a column without a record
        column = [row.scores[name] for row in scores]
        if earlier.get("scores_sha256", {}).get(name) in (None, values_digest(column)):
            read_record(earlier["scorers"][name])
            scored.add(name, column, earlier["scorers"][name])
    return scored


def _rows(rows: list[ImageRow], columns: dict[str, list[float]]) -> list[ScoredRow]:
    """The rows of scores.jsonl."""
    return [
        ScoredRow(row.prompt_index, row.image_index, row.prompt, {name: column[i] for name, column in columns.items()})
        for i, row in enumerate(rows)
    ]
