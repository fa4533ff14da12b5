"""The run directory: file names, and which recipe it belongs to."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from stepalign.support.config import to_plain
from stepalign.support.files import load_texts, previous, save_state, write_text
from stepalign.support.json_text import to_json
from stepalign.support.marker import MARKER, Owner
from stepalign.support.parsing import parse_yaml, read_text
from stepalign.support.relative_paths import absolute, near

RECIPE, METRICS, CHECKPOINT = "recipe.yaml", "metrics.jsonl", "checkpoint.pt"
REPORT, START = "report.html", "start.json"
GUARD_ROWS, GUARD_ADAPTERS = "guard.jsonl", "guard"
PREVIOUS = previous(Path(CHECKPOINT)).name
WITH_STATE = (METRICS, GUARD_ROWS, START, MARKER)
"""Files whose texts a checkpoint keeps, since they belong to its state."""


def recipe_owner(
    kind: str, recipe: Any, blank: Any, *, by_content: frozenset[str], free: frozenset[str] = frozenset()
) -> Owner:
    """The owner of a run's directory: its recipe. Fields that an older version's recipe lacks are as in `blank`.

    `by_content` are fields that name parts whose digests the run compares, as the paths of scorers are in any case.
    """

    def legacy(output: Path) -> dict[str, Any] | None:
        try:
            values = parse_yaml(read_text(output / RECIPE, "output"), RECIPE)
        except ValueError:
            return None
        own = isinstance(values, dict) and ("data" in values) == ("data" in to_plain(recipe))
        return _scorers_by_name(absolute(values, output)) if own else None

    settings, defaults = (_scorers_by_name(to_plain(values)) for values in (recipe, blank))
    scorers = (f"evaluation.scorers_from.{name}" for name in settings["evaluation"].get("scorers_from", {}))
    return Owner(kind, settings, defaults, free, by_content | frozenset(scorers), legacy, marker_in_checkpoint)


def _scorers_by_name(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a recipe with its scorers' names, and apart from these where each one's weights come from."""
    evaluation = settings.get("evaluation")
    if not isinstance(evaluation, dict) or not isinstance(evaluation.get("scorers"), list):
        return settings
    entries = [str(entry).partition("=") for entry in evaluation["scorers"]]
    named = {"scorers": [name for name, _, _ in entries], "scorers_from": {name: path for name, _, path in entries}}
    return {**settings, "evaluation": evaluation | named}


def write_recipe(output: Path, recipe: Any) -> None:
    """Write the recipe with paths relative to the directory where they are near, unless it is there."""
    text = yaml.safe_dump(near(to_plain(recipe), str(output.resolve())), sort_keys=False, allow_unicode=True)
    path = output / RECIPE
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def marker_in_checkpoint(output: Path) -> str | None:
    """The text of the marker that a run's newest whole checkpoint keeps; None without one."""
    for path in (output / CHECKPOINT, output / PREVIOUS):
        with suppress(ValueError):
            return load_texts(path).get(MARKER)
    return None


def save_run(output: Path, state: object, rows: list[dict[str, Any]]) -> None:
    """Write the rows of metrics, and the checkpoint that they belong to."""
    write_text(output / METRICS, "".join(to_json(row) + "\n" for row in rows))
    save_state(state, output / CHECKPOINT, files=WITH_STATE)
