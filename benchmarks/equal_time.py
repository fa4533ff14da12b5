"""One step against looking several ahead, at equal time: multi-step GradSPO and the exact gradient on the miniature.

    python benchmarks/equal_time.py [--seconds 60] [--seeds 0 1 2] [--output FILE.json]

Every variant of gradspo-miniature trains for the same number of seconds, as near as whole rounds come to it (the time
spent is reported), and is then compared with its base on the same held-out prompts from the same seeds. The clock is
the processor time of one thread: wall time on an idle core, and hardly changed by other work on the machine.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepalign.runs.assemble import Parts, assemble
from stepalign.runs.held_out import measure
from stepalign.runs.recipes import load_recipe
from stepalign.support.config import change
from stepalign.support.environment import device_name, versions
from stepalign.support.statistics import paired_difference

SHORT_ROUNDS = {"prompts_per_round": 16, "sample_batch": 16}
"""For all, so that times can be equal."""
EVALUATION = {"eta": 1.0}
"""Held-out images take the noise of training, as when the committed figures were made."""
AHEAD = {"num_inner_steps": [4, 1], "inner_step_bounds": [400], "inner_steps": "look-ahead"}
VARIANTS: dict[str, dict[str, Any]] = {
    "one step": {},
    "four steps ahead above 400": {"branching": AHEAD},
    "the same, resuming at the next step": {"branching": AHEAD | {"resume_at": "next-step"}},
    "exact gradient": {"source": {"kind": "clean-gradient"}},
}


def main() -> None:
    """Train and measure every variant at every seed, print a table, write the figures."""
    parser = argparse.ArgumentParser(description="Multi-step GradSPO against one step at equal time.")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training for each run (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num-prompts", type=int, default=216, help="held-out prompts (%(default)s)")
    parser.add_argument("--output", type=Path, default=None, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = load_recipe("gradspo-miniature")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    scores: dict[str, list[dict[str, Tensor]]] = {name: [] for name in VARIANTS}
    for seed in arguments.seeds:
        for name, changes in VARIANTS.items():
            shared = {
                "seed": seed,
                "training": SHORT_ROUNDS,
                "evaluation": EVALUATION | {"num_prompts": arguments.num_prompts},
            }
            recipe = change(change(start, shared), changes)
            parts = assemble(recipe)
            runs[name].append(train(parts, arguments.seconds))
            scores[name].append(evaluate(parts))
            print(name, seed, runs[name][-1], flush=True)
    rows = {name: summarise(runs[name], scores[name], scores["one step"]) for name in VARIANTS}
    figures = {"recipe": start.name, "seconds": arguments.seconds, "seeds": arguments.seeds}
    figures |= {"num_prompts": arguments.num_prompts, "variants": rows}
    figures |= {"device": device_name(torch.device("cpu")), "versions": versions()}
    print(table(rows))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def train(parts: Parts, seconds: float) -> dict[str, Any]:
    """Rounds until another would lead farther from the time than it is now, and what they amounted to."""
    trainer, start, spent = parts.trainer, time.process_time(), 0.0
    while trainer.num_rounds == 0 or spent + spent / trainer.num_rounds / 2 < seconds:
        trainer.round()
        spent = time.process_time() - start
    return {"seconds": round(spent, 1), "rounds": trainer.num_rounds, "comparisons": trainer.num_comparisons}


def evaluate(parts: Parts) -> dict[str, Tensor]:
    """Every metric's gain, aligned less base, by held-out prompt."""
    base, aligned = (measure(parts, role) for role in ("reference", parts.recipe.exported_role))
    return {name: aligned.scores[name].double() - base.scores[name].double() for name in base.scores}


def summarise(
    runs: list[dict[str, Any]], own: list[dict[str, Tensor]], first: list[dict[str, Tensor]]
) -> dict[str, Any]:
    """A variant's gain over its base and over one step, averaged over seeds first; intervals over prompts."""
    result: dict[str, Any] = {"runs": runs, "scores": {}}
    for metric in own[0]:
        gains, ours = (torch.stack([scores[metric] for scores in each]) for each in (own, first))
        gain = paired_difference(torch.zeros_like(gains[0]), gains.mean(0))
        row = {"gain": gain.difference, "interval": gain.interval, "by_seed": gains.mean(1).tolist()}
        if own is not first:
            more = paired_difference(ours.mean(0), gains.mean(0))
            row |= {"against_one_step": more.difference, "against_one_step_interval": more.interval}
        result["scores"][metric] = row
    return result


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The variants as Markdown."""
    metrics = list(next(iter(rows.values()))["scores"])
    heads = [f"{metric}: gain | against one step" for metric in metrics]
    lines = [f"| | rounds | comparisons | {' | '.join(heads)} |", "|---" * (3 + 2 * len(metrics)) + "|"]
    for name, row in rows.items():
        cells = [name, *(", ".join(str(run[key]) for run in row["runs"]) for key in ("rounds", "comparisons"))]
        for metric in metrics:
            score = row["scores"][metric]
            cells.append(cell(score["gain"], score["interval"]))
            against = score.get("against_one_step")
            cells.append("–" if against is None else cell(against, score["against_one_step_interval"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page(path: Path) -> str:
    """The table of committed figures."""
    figures = json.loads(path.read_text(encoding="utf-8"))
    return table(figures["variants"])


def cell(value: float, interval: tuple[float, float]) -> str:
    """A difference and its 95 % interval."""
    return f"{value:+.3f} ({interval[0]:+.3f} to {interval[1]:+.3f})".replace("-", "−")


if __name__ == "__main__":
    main()
