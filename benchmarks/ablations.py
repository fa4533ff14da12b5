"""The page of the papers' ablations on the miniature, from the committed results of their runs.

    python benchmarks/ablations.py        # writes benchmarks/ablations.md; trains nothing

Tables and runs are those of ablations.yaml (`stepalign sweep` makes them); what the papers found, and why the
miniature agrees or does not, is in ablations-paper.yaml. Whether an ordering holds is computed here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import choices
import equal_time
import torch
import yaml

from stepalign.runs.recipes import Recipe
from stepalign.runs.run_directory import finished
from stepalign.runs.sweep import Scores, Sweep, directory, load_sweep, run_scores
from stepalign.support.environment import timing_of
from stepalign.support.statistics import paired_difference

HERE = Path(__file__).parent
RUNS, PAGE = HERE / "results" / "ablations", HERE / "ablations.md"
METRIC = "aesthetic"
HEAD = "| | seeds | `aesthetic`: gain (95 % interval) | against the first | judge: gain | network calls | minutes |"


def main() -> None:
    """Write the page."""
    sweep = load_sweep(HERE / "ablations.yaml")
    notes = yaml.safe_load((HERE / "ablations-paper.yaml").read_text(encoding="utf-8"))
    parts = [notes["introduction"].strip()]
    for table, rows in sweep.tables.items():
        parts.append("\n".join([f"## {table}", "", *table_lines(sweep, rows), "", verdict(sweep, rows, notes[table])]))
    for script, name, note in ((choices, "choices-miniature", "choices"), (equal_time, "equal-time-miniature", "time")):
        parts.append(
            "\n\n".join(
                [
                    notes[note]["heading"].strip(),
                    script.page(HERE / f"results/{name}.json"),
                    notes[note]["text"].strip(),
                ]
            )
        )
    PAGE.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(PAGE)


def table_lines(sweep: Sweep, rows: dict[str, Recipe]) -> list[str]:
    """A table's rows as Markdown: gains over the base, and over the first row."""
    lines, first = [HEAD, "|---" * 7 + "|"], next(iter(rows.values()))
    for name, recipe in rows.items():
        summaries = [finished(RUNS / directory(recipe, seed)) for seed in sweep.seeds]
        done = [summary for summary in summaries if summary is not None]
        if len(done) < len(sweep.seeds):
            raise SystemExit(f"{name}: {len(done)} of {len(sweep.seeds)} runs are done; run the sweep first")
        own = scores(sweep, recipe)
        calls = sum(number for summary in done for call, number in summary["calls"].items() if is_network(call))
        cells = [name, str(len(done)), gain(own[METRIC]), "–" if recipe == first else against(sweep, recipe, first)]
        cells += [gain(own["judge"]), f"{calls / len(done) / 1000:.0f} k"]
        cells.append(f"{min(timing_of(summary)['seconds'] for summary in done) / 60:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def verdict(sweep: Sweep, rows: dict[str, Recipe], note: dict[str, Any]) -> str:
    """What the paper found, whether it holds here, and why."""
    said = []
    for better, worse in (claim.split(" > ") for claim in note.get("expect", [])):
        low, high = difference(sweep, rows[better], rows[worse])[1]
        holds = "holds" if low > 0 else "is reversed" if high < 0 else "is within the noise"
        said.append(f"“{better}” above “{worse}” {holds} here")
    found = f" Of these, {'; '.join(said)}." if said else ""
    return f"**In the paper:** {note['paper'].strip()}{found}\n\n**Here:** {note['here'].strip()}"


def scores(sweep: Sweep, recipe: Recipe) -> Scores:
    """Base and aligned scores by metric, averaged over the seeds."""
    runs = [run_scores(RUNS / directory(recipe, seed)) for seed in sweep.seeds]
    return {
        metric: (
            torch.stack([run[metric][0] for run in runs]).mean(0),
            torch.stack([run[metric][1] for run in runs]).mean(0),
        )
        for metric in runs[0]
    }


def difference(sweep: Sweep, recipe: Recipe, other: Recipe) -> tuple[float, tuple[float, float]]:
    """How much more than another recipe's the aligned pictures score, and its 95 % interval over prompts."""
    found = paired_difference(scores(sweep, other)[METRIC][1], scores(sweep, recipe)[METRIC][1])
    return found.difference, found.interval


def against(sweep: Sweep, recipe: Recipe, first: Recipe) -> str:
    return equal_time.cell(*difference(sweep, recipe, first))


def gain(pair: tuple[torch.Tensor, torch.Tensor]) -> str:
    found = paired_difference(*pair)
    return equal_time.cell(found.difference, found.interval)


def is_network(call: str) -> bool:
    """Whether a kind of call is one of the network in training."""
    return call.startswith(("sampling_", "training_"))


if __name__ == "__main__":
    main()
