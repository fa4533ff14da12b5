"""The file of a sweep: tables whose rows are recipes, each at several seeds.

    recipe: gradspo-miniature           # the recipe that every run starts from
    seeds: [0, 1, 2]
    changes: {training: {num_rounds: 6}}    # to all runs
    tables:
      continuation:                     # rows are compared with the first
        random: {}
        best: {branching: {continue_from: best}}

A row may start from another recipe under `recipe`. Rows that result in the same recipe share their runs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stepalign.runs.recipes import Recipe, load_recipe
from stepalign.support.config import change, check_directory_name, require, to_plain
from stepalign.support.parsing import parse_yaml, read_text


@dataclass(frozen=True, slots=True)
class Sweep:
    """The content of a sweep's file."""

    seeds: tuple[int, ...]
    tables: dict[str, dict[str, Recipe]]
    """Table -> row -> its recipe, without a seed of its own."""

    def runs(self) -> dict[str, Recipe]:
        """Every run, once, by the name of its directory."""
        rows = [recipe for table in self.tables.values() for recipe in table.values()]
        return {directory(recipe, seed): replace(recipe, seed=seed) for recipe in rows for seed in self.seeds}


def load_sweep(path: Path) -> Sweep:
    """Read a sweep's file; raises ValueError for invalid content."""
    values = parse_yaml(read_text(path, "sweep"), f"sweep: {path}")
    known = {"recipe", "seeds", "changes", "tables"}
    if not isinstance(values, dict) or not known - {"changes"} <= values.keys() <= known:
        raise ValueError(f"sweep: {path} must hold recipe, seeds, tables and, if wanted, changes, and nothing else")
    seeds, tables = values["seeds"], values["tables"]
    whole = isinstance(seeds, list) and seeds and all(isinstance(seed, int) for seed in seeds)
    require(bool(whole), "sweep: seeds", seeds, "a list of whole numbers")
    nested = isinstance(tables, dict) and tables and all(isinstance(rows, dict) and rows for rows in tables.values())
    require(bool(nested), "sweep: tables", tables, "tables of rows of changes")
    start, common = str(values["recipe"]), values.get("changes") or {}
    require(isinstance(common, dict), "sweep: changes", common, "changes of fields")
    return Sweep(
        tuple(seeds),
        {
            str(table): {str(row): _row(start, common, changes, f"{table}, {row}") for row, changes in rows.items()}
            for table, rows in tables.items()
        },
    )


def directory(recipe: Recipe, seed: int) -> str:
    """The name of a run's directory, from the fields of its recipe that are not as by default, so that a field added to
    recipes later does not change it."""
    chosen = _differences(to_plain(recipe), to_plain(Recipe(name=recipe.name, seed=recipe.seed)))
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()
    return f"{recipe.name}-{digest[:10]}-seed{seed}"


def _differences(values: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """The entries of nested values that are not as by default."""
    return {
        key: _differences(value, default[key]) if isinstance(value, dict) and isinstance(default[key], dict) else value
        for key, value in values.items()
        if value != default[key]
    }


def _row(start: str, common: dict[str, Any], changes: Any, where: str) -> Recipe:
    require(changes is None or isinstance(changes, dict), f"sweep: {where}", changes, "changes of fields")
    own = dict(changes or {})
    try:
        recipe = change(change(load_recipe(str(own.pop("recipe", start))), common), own)
    except ValueError as error:
        raise ValueError(f"sweep: {where}: {error}") from error
    check_directory_name(recipe.name, f"sweep: {where}")
    require(recipe.evaluation.prompts is not None, f"sweep: {where}: evaluation.prompts", None, "given, to compare by")
    return recipe
