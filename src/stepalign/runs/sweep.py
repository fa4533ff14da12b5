"""Many runs from one file: tables whose rows are recipes, each at several seeds, collected with paired intervals.

    recipe: gradspo-miniature           # what every run starts from
    seeds: [0, 1, 2]
    changes: {training: {num_rounds: 6}}    # for all of them
    tables:
      continuation:                     # rows are compared with the first
        random: {}
        best: {branching: {continue_from: best}}

A row may start from another recipe under `recipe`. Rows that come to the same recipe share their runs. The same command
goes on where it stopped; of a finished run it needs summary.json and scores.jsonl.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stepalign.runs.assemble import assemble
from stepalign.runs.job import run
from stepalign.runs.recipes import Recipe, load_recipe
from stepalign.runs.results import SCORES
from stepalign.runs.run_directory import CHECKPOINT, PREVIOUS, finished
from stepalign.support.claim import LOCK, Owner, claim, marker_of
from stepalign.support.config import change, check_directory_name, require, to_plain
from stepalign.support.digests import Identity, refuse_differences, values_digest
from stepalign.support.environment import timing_of
from stepalign.support.file_record import check_files
from stepalign.support.files import write_text
from stepalign.support.json_text import to_json
from stepalign.support.markdown import markdown_text
from stepalign.support.parsing import parse_yaml, read_text
from stepalign.support.statistics import cluster_means, clusters_of, paired_difference
from stepalign.support.watcher import Watcher

RESULTS, PAGE = "sweep.json", "sweep.md"
Scores = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""By metric: what the base and the aligned model scored on every held-out prompt."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep's file says."""

    seeds: tuple[int, ...]
    tables: dict[str, dict[str, Recipe]]
    """Table -> row -> its recipe, without a seed of its own."""

    def runs(self) -> dict[str, Recipe]:
        """Every run there is to do, once, by the name of its directory."""
        rows = [recipe for table in self.tables.values() for recipe in table.values()]
        return {directory(recipe, seed): replace(recipe, seed=seed) for recipe in rows for seed in self.seeds}


def load_sweep(path: Path) -> Sweep:
    """Read a sweep's file; raises ValueError saying what in it makes no sense."""
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


def run_sweep(
    sweep: Sweep,
    output: Path,
    *,
    only: str = "",
    share: tuple[int, int] = (1, 1),
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Do a sweep's runs and collect what is done; the runs of tables whose names contain `only`, and of these every
    n-th from the i-th where `share` is (i, n)."""
    part, parts = share
    require(1 <= part <= parts, "share", f"{part}/{parts}", "i/n with i from 1 to n")
    tables = {table: rows for table, rows in sweep.tables.items() if only.lower() in table.lower()}
    require(bool(tables), "only", repr(only), f"part of a table's name: {', '.join(sweep.tables)}")
    runs = Sweep(sweep.seeds, tables).runs()
    identities: dict[str, Identity] = {}
    for path in (output, *output.parents):
        require(path.is_dir() or not path.exists(), "output", path, "a directory, not a file")
    with claim(output, _owner(sweep), tell=watcher.note if watcher else print, lock=_lock_of(part, parts)):
        for number, (name, recipe) in enumerate(runs.items()):
            if number % parts == part - 1 and not _is_done(recipe, output / name, identities):
                if watcher is not None:
                    watcher.note(f"{number + 1} of {len(runs)}: {name}")
                run(recipe, output / name, watcher=watcher)
        return collect(sweep, output)


def _owner(sweep: Sweep) -> Owner:
    """A sweep's directory: it holds the runs of any tables, each in a directory that belongs to its recipe."""
    names = (RESULTS, *sweep.runs())
    return Owner("sweep", {}, legacy=lambda output: {} if any((output / name).exists() for name in names) else None)


def _lock_of(part: int, parts: int) -> str:
    """The lock of a share: several machines work on a sweep at once, each on runs of its own."""
    return LOCK if parts == 1 else f"{LOCK}-{part}-of-{parts}"


def _is_done(recipe: Recipe, folder: Path, identities: dict[str, Identity]) -> bool:
    """Whether a run is finished and its results are as they were written, checkpoints aside.

    Raises ValueError when it is one of other content of its parts. `identities` keeps those of parts that several rows
    share, which are read once.
    """
    if finished(folder) is None or check_files(folder).keys() - {CHECKPOINT, PREVIOUS}:
        return False
    theirs = (marker_of(folder) or {}).get("identity", {})
    if theirs:
        values = to_plain(recipe)
        named = values_digest([values[name] for name in ("model", "base", "judge", "prompts", "evaluation", "guard")])
        if named not in identities:
            identities[named] = assemble(recipe).identity
        refuse_differences(identities[named], theirs, whose=f"{folder} was run with")
    return True


def collect(sweep: Sweep, output: Path) -> dict[str, Any]:
    """The tables of a sweep from the runs that are done, also written as sweep.json and sweep.md.

    A row's gain is aligned less base over held-out prompts, averaged over seeds first, so that the intervals over
    prompts speak of new prompts and not of new seeds; the seeds' own gains stand beside them.
    """
    results = {
        table: [_collect_row(sweep, output, row, recipe, next(iter(rows.values()))) for row, recipe in rows.items()]
        for table, rows in sweep.tables.items()
    }
    write_text(output / RESULTS, to_json(results, indent=1) + "\n")
    write_text(output / PAGE, "\n".join(_markdown(table, rows) for table, rows in results.items()))
    return results


def directory(recipe: Recipe, seed: int) -> str:
    """The name of a run's directory, of all that its recipe has other than by default: a field that comes to recipes
    later leaves it alone."""
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


def _collect_row(sweep: Sweep, output: Path, row: str, recipe: Recipe, first: Recipe) -> dict[str, Any]:
    summaries = [finished(output / directory(recipe, seed)) for seed in sweep.seeds]
    done = [seed for seed, summary in zip(sweep.seeds, summaries, strict=True) if summary is not None]
    result: dict[str, Any] = {"row": row, "seeds": done, "missing": len(sweep.seeds) - len(done)}
    result["seconds"] = [timing_of(summary)["seconds"] for summary in summaries if summary is not None]
    if not done:
        return result | {"scores": {}}
    own = [run_scores(output / directory(recipe, seed)) for seed in done]
    shared = [seed for seed in done if finished(output / directory(first, seed)) is not None]
    result["scores"] = {
        metric: _gain(own, metric, [run_scores(output / directory(first, seed)) for seed in shared])
        if shared == done and recipe != first
        else _gain(own, metric, [])
        for metric in own[0]
    }
    return result


def _gain(own: list[Scores], metric: str, first: list[Scores]) -> dict[str, Any]:
    """One metric of a row: base, aligned, gain, and the difference from the first row's aligned scores."""
    base, aligned = (torch.stack([scores[metric][side] for scores in own]).mean(0) for side in (0, 1))
    gain = paired_difference(base, aligned)
    found: dict[str, Any] = {"base": gain.base, "aligned": gain.aligned, "gain": gain.difference}
    found |= {"interval": list(gain.interval), "by_seed": [float((s[metric][1] - s[metric][0]).mean()) for s in own]}
    if first:
        other = paired_difference(torch.stack([scores[metric][1] for scores in first]).mean(0), aligned)
        found["against_first"] = {"difference": other.difference, "interval": list(other.interval)}
    return found


def run_scores(run_directory: Path) -> Scores:
    """What a finished run's held-out prompts scored, each distinct prompt once."""
    rows = [json.loads(line) for line in (run_directory / SCORES).read_text(encoding="utf-8").splitlines()]
    clusters = clusters_of([row["prompt"] for row in rows])

    def means(side: str, metric: str) -> torch.Tensor:
        return torch.from_numpy(cluster_means(np.array([row[side][metric] for row in rows], dtype=float), clusters))

    return {metric: (means("base", metric), means("aligned", metric)) for metric in rows[0]["base"]}


def _markdown(table: str, rows: list[dict[str, Any]]) -> str:
    metrics = list(next((row["scores"] for row in rows if row["scores"]), {}))
    heads = [f"{markdown_text(metric)}: gain (95 % interval) | against the first" for metric in metrics]
    lines = [
        f"## {markdown_text(table)}",
        "",
        f"| | runs | {' | '.join(heads)} | minutes |",
        "|---" * (3 + 2 * len(metrics)) + "|",
    ]
    for row in rows:
        cells = [markdown_text(row["row"]), str(len(row["seeds"]))]
        for metric in metrics:
            score = row["scores"].get(metric)
            against = score and score.get("against_first")
            cells.append(_cell(score["gain"], score["interval"]) if score else "–")
            cells.append(_cell(against["difference"], against["interval"]) if against else "–")
        cells.append(f"{sum(row['seconds']) / 60:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: float, interval: list[float]) -> str:
    return f"{value:+.3f} ({interval[0]:+.3f} to {interval[1]:+.3f})".replace("-", "−")
