"""A study in one file: the runs of a sweep with their per-prompt scores, network calls and seconds.

    python benchmarks/study.py pack benchmarks/ablations.yaml runs/ablations benchmarks/results/ablations.json
    python benchmarks/study.py unpack benchmarks/ablations.yaml runs/ablations benchmarks/results/ablations.json

`pack` reads the runs that `stepalign sweep` made. `unpack` writes their summaries and scores back, so that a sweep to
which rows were added continues from the committed ones.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stepalign.reports.summaries import SUMMARY
from stepalign.runs.held_out_rows import SCORES
from stepalign.runs.sweep_file import Sweep, directory, load_sweep
from stepalign.runs.sweep_results import Scores
from stepalign.support.files import write_text
from stepalign.support.json_text import to_json
from stepalign.support.statistics import cluster_means, clusters_of

SIDES = ("base", "aligned")


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run of a study."""

    summary: dict[str, Any]
    scores: Scores
    """By metric: the base and the aligned model's mean for every distinct held-out prompt."""


@dataclass(frozen=True, slots=True)
class Study:
    """The runs of a sweep, by table and row."""

    tables: dict[str, dict[str, list[str]]]
    """Table -> row -> names of its runs, one per seed."""
    runs: dict[str, Run]


def main() -> None:
    """Pack or unpack the runs of a sweep."""
    parser = argparse.ArgumentParser(description="The runs of a sweep as one file, and back.")
    parser.add_argument("action", choices=["pack", "unpack"])
    parser.add_argument("sweep", type=Path, help="the sweep's YAML file")
    parser.add_argument("runs", type=Path, help="the directory of its runs")
    parser.add_argument("study", type=Path, help="the JSON file")
    arguments = parser.parse_args()
    act = pack if arguments.action == "pack" else unpack
    act(load_sweep(arguments.sweep), arguments.runs, arguments.study)


def pack(sweep: Sweep, runs: Path, path: Path) -> None:
    """Write the study of a sweep whose runs are all done: one line per run and per distinct set of base scores."""
    prompts: list[str] = []
    bases: list[str] = []
    lines = []
    for name in sweep.runs():
        summary = json.loads((runs / name / SUMMARY).read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (runs / name / SCORES).read_text(encoding="utf-8").splitlines()]
        prompts = prompts or [row["prompt"] for row in rows]
        if prompts != [row["prompt"] for row in rows]:
            raise SystemExit(f"{name}: its held-out prompts are not those of the runs before it")
        base, aligned = (to_json({key: [row[side][key] for row in rows] for key in rows[0][side]}) for side in SIDES)
        if base not in bases:
            bases.append(base)
        entry = f'{{"summary": {to_json(summary)}, "base": {bases.index(base)}, "aligned": {aligned}}}'
        lines.append(f"{to_json(name)}: {entry}")
    tables = {
        table: {row: [directory(recipe, seed) for seed in sweep.seeds] for row, recipe in rows.items()}
        for table, rows in sweep.tables.items()
    }
    parts = [f'"prompts": {to_json(prompts)}', f'"tables": {to_json(tables, indent=1)}']
    parts += ['"bases": [\n' + ",\n".join(bases) + "\n]", '"runs": {\n' + ",\n".join(lines) + "\n}"]
    write_text(path, "{\n" + ",\n".join(parts) + "\n}\n")


def load(path: Path) -> Study:
    """The study in a file."""
    values = json.loads(path.read_text(encoding="utf-8"))
    clusters = clusters_of(values["prompts"])

    def means(scores: list[float]) -> torch.Tensor:
        return torch.from_numpy(cluster_means(np.array(scores, dtype=float), clusters))

    bases = [{metric: means(scores) for metric, scores in base.items()} for base in values["bases"]]
    runs = {
        name: Run(
            entry["summary"],
            {metric: (bases[entry["base"]][metric], means(scores)) for metric, scores in entry["aligned"].items()},
        )
        for name, entry in values["runs"].items()
    }
    return Study(values["tables"], runs)


def unpack(sweep: Sweep, runs: Path, path: Path) -> None:
    """Write summary.json and scores.jsonl of the study's runs to the directories that the sweep has for its rows."""
    values = json.loads(path.read_text(encoding="utf-8"))
    rows = [(table, row, recipe) for table, rows in sweep.tables.items() for row, recipe in rows.items()]
    for table, row, recipe in rows:
        for name in values["tables"].get(table, {}).get(row, []):
            entry = values["runs"][name]
            scores = {"base": values["bases"][entry["base"]], "aligned": entry["aligned"]}
            lines = [
                to_json({"prompt": prompt} | {side: _at(own, index) for side, own in scores.items()})
                for index, prompt in enumerate(values["prompts"])
            ]
            folder = runs / directory(recipe, entry["summary"]["seed"])
            write_text(folder / SUMMARY, to_json(entry["summary"], indent=2) + "\n")
            write_text(folder / SCORES, "\n".join(lines) + "\n")


def _at(scores: dict[str, list[float]], index: int) -> dict[str, float]:
    return {metric: values[index] for metric, values in scores.items()}


if __name__ == "__main__":
    main()
