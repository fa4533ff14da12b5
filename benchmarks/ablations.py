"""The page of the papers' ablations on the miniature, from the committed results of their runs.

    python benchmarks/ablations.py        # writes benchmarks/ablations.md; trains nothing

The runs are in results/ablations.json: `stepalign sweep` makes them from ablations.yaml, study.py puts them into one
file. The papers' findings, and why the miniature agrees or does not, are in ablations-paper.yaml. Whether an ordering
holds is computed here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import choices
import equal_time
import torch
import yaml
from study import Run, load

from stepalign.runs.sweep_results import Scores
from stepalign.support.environment import timing_of
from stepalign.support.statistics import paired_difference

HERE = Path(__file__).parent
STUDY, PAGE = HERE / "results" / "ablations.json", HERE / "ablations.md"
METRIC = "aesthetic"
HEAD = "| | seeds | `aesthetic`: gain (95 % interval) | against the first | judge: gain | network calls | minutes |"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


def page() -> str:
    """The page as Markdown."""
    study = load(STUDY)
    notes = yaml.safe_load((HERE / "ablations-paper.yaml").read_text(encoding="utf-8"))
    parts = [notes["introduction"].strip()]
    for table, names in study.tables.items():
        rows = {row: [study.runs[name] for name in own] for row, own in names.items()}
        parts.append("\n".join([f"## {table}", "", *table_lines(rows), "", verdict(rows, notes[table])]))
    for script, name, note in ((choices, "choices-miniature", "choices"), (equal_time, "equal-time-miniature", "time")):
        figures = script.page(HERE / f"results/{name}.json")
        parts.append("\n\n".join([notes[note]["heading"].strip(), figures, notes[note]["text"].strip()]))
    return "\n\n".join(parts) + "\n"


def table_lines(rows: dict[str, list[Run]]) -> list[str]:
    """A table's rows as Markdown: gains over the base, and over the first row."""
    lines, first = [HEAD, "|---" * 7 + "|"], next(iter(rows.values()))
    for name, runs in rows.items():
        own = scores(runs)
        calls = sum(number for run in runs for call, number in run.summary["calls"].items() if is_network(call))
        cells = [name, str(len(runs)), gain(own[METRIC]), "–" if runs is first else against(runs, first)]
        cells += [gain(own["judge"]), f"{calls / len(runs) / 1000:.0f} k"]
        cells.append(f"{min(timing_of(run.summary)['seconds'] for run in runs) / 60:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def verdict(rows: dict[str, list[Run]], note: dict[str, Any]) -> str:
    """The paper's finding, whether it holds here, and why."""
    orderings = []
    for better, worse in (claim.split(" > ") for claim in note.get("expect", [])):
        low, high = difference(rows[better], rows[worse])[1]
        holds = "holds" if low > 0 else "is reversed" if high < 0 else "is within the noise"
        orderings.append(f"“{better}” above “{worse}” {holds} here")
    found = f" Of these, {'; '.join(orderings)}." if orderings else ""
    return f"**In the paper:** {note['paper'].strip()}{found}\n\n**Here:** {note['here'].strip()}"


def scores(runs: list[Run]) -> Scores:
    """Base and aligned scores by metric, averaged over the seeds."""
    return {metric: (mean_over(runs, metric, 0), mean_over(runs, metric, 1)) for metric in runs[0].scores}


def mean_over(runs: list[Run], metric: str, side: int) -> torch.Tensor:
    return torch.stack([run.scores[metric][side] for run in runs]).mean(0)


def difference(runs: list[Run], others: list[Run]) -> tuple[float, tuple[float, float]]:
    """The difference in score between the aligned images of two rows, and its 95 % interval over prompts."""
    found = paired_difference(mean_over(others, METRIC, 1), mean_over(runs, METRIC, 1))
    return found.difference, found.interval


def against(runs: list[Run], first: list[Run]) -> str:
    return equal_time.cell(*difference(runs, first))


def gain(pair: tuple[torch.Tensor, torch.Tensor]) -> str:
    found = paired_difference(*pair)
    return equal_time.cell(found.difference, found.interval)


def is_network(call: str) -> bool:
    """Whether a kind of call is one of the network in training."""
    return call.startswith(("sampling_", "training_"))


if __name__ == "__main__":
    main()
