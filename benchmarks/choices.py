"""The value of a judge's choice at every timestep, by the final images of the best and the worst of a pool.

    python benchmarks/choices.py [--recipe spo-miniature] [--num-prompts 108] [--output FILE.json]

Trajectories of the untrained base model branch at every step, k candidates each; the pool's best and its worst are both
led to an image without further noise, and the oracle scores the two. Where best and worst do not differ in the end,
training on that timestep can teach nothing; where the trajectories themselves end elsewhere than the model's own, pools
are sampled from images that it would not generate. Measured for trajectories that continue from a random candidate,
from the best and from the worst (SPO Tables 4 and 8).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from stepalign.core.batch import StepCandidates
from stepalign.core.sampling import times_at
from stepalign.core.seeding import PromptNoise, Purpose, generator_for
from stepalign.runs.assemble import Parts, assemble
from stepalign.runs.recipes import Recipe, load_recipe
from stepalign.sources.rollout import Pool, rollout
from stepalign.sources.settings import Continuation
from stepalign.support.environment import device_name, versions
from stepalign.support.statistics import mean_interval

ORACLE = "aesthetic"
Columns = dict[str, list[Tensor]]


def main() -> None:
    """Measure, print a table, write the figures."""
    parser = argparse.ArgumentParser(description="What a judge's choice is worth at every timestep.")
    parser.add_argument("--recipe", default="spo-miniature", help="a miniature recipe (%(default)s)")
    parser.add_argument("--num-prompts", type=int, default=108, help="held-out prompts, from the first (%(default)s)")
    parser.add_argument("--output", type=Path, default=None, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe)
    parts = assemble(recipe)
    prompts = parts.held_out[: arguments.num_prompts]
    rules = {rule: measure(recipe, parts, prompts, rule) for rule in get_args(Continuation)}
    figures = {"recipe": recipe.name, "num_prompts": len(prompts), "oracle": ORACLE, "continue_from": rules}
    figures |= {"device": device_name(parts.model.device), "versions": versions()}
    print(table(rules))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


@torch.no_grad()
def measure(recipe: Recipe, parts: Parts, prompts: list[str], rule: Continuation) -> dict[str, Any]:
    """One rule's trajectories: where they end, and by timestep what the judge's choice is worth."""
    branching = replace(recipe.branching, timestep_range=(0, 1000), continue_from=rule)
    by_timestep: dict[int, Columns] = {}
    ends: list[Tensor] = []
    for start in range(0, len(prompts), recipe.evaluation.batch_size):
        chunk = prompts[start : start + recipe.evaluation.batch_size]
        seeds = [generator_for(recipe.seed, Purpose.EVALUATION, row) for row in range(start, start + len(chunk))]
        pools, x_0 = rollout(
            parts.policy.denoiser("reference"),
            parts.sampler,
            parts.judge,
            cond=parts.model.encode(chunk),
            prompts=chunk,
            latent_shape=parts.model.latent_shape,
            noise=PromptNoise(seeds, device=parts.model.device),
            branching=branching,
        )
        ends.append(oracle(parts, x_0, chunk))
        for pool in pools:
            columns = by_timestep.setdefault(
                int(parts.sampler.times[int(pool.candidates.step[0])]), {"worth": [], "gap": []}
            )
            columns["worth"].append(worth(parts, pool, chunk))
            columns["gap"].append(pool.candidates.scores.amax(1) - pool.candidates.scores.amin(1))
    return {
        "trajectory_ends_at": mean(torch.cat(ends)),
        "timesteps": {
            str(t): {
                "judge_gap": float(torch.cat(columns["gap"]).mean()),
                "best_less_worst": mean(torch.cat(columns["worth"])),
                "rightly_ordered": mean((torch.cat(columns["worth"]).sign() + 1) / 2),
            }
            for t, columns in by_timestep.items()
        },
    }


def worth(parts: Parts, pool: Pool, prompts: list[str]) -> Tensor:
    """The oracle's score of the best candidate's image less that of the worst's, per prompt."""
    candidates = pool.candidates
    order = torch.stack([candidates.scores.argmax(1), candidates.scores.argmin(1)], 1)
    rows = torch.arange(len(order), device=order.device)[:, None]
    pair = replace(candidates, noise=candidates.noise[rows, order])
    twice = [prompt for prompt in prompts for _ in range(2)]
    best, worst = oracle(parts, finish(parts, pair, pool.judged_at), twice).unflatten(0, (-1, 2)).unbind(1)
    return best - worst


def finish(parts: Parts, candidates: StepCandidates, start: int) -> Tensor:
    """Candidates where step `start` begins led to clean samples without further noise, "(b k) c h w"."""
    sampler, denoise = parts.sampler, parts.policy.denoiser("reference")
    taken = sampler.transition(candidates.prediction[:, 0], candidates.x_t[:, 0], candidates.step)
    x_t = taken.sample(candidates.noise).flatten(0, 1)
    cond = candidates.cond.tile(candidates.noise.shape[1])
    for index in range(start, sampler.num_steps):
        step = torch.full((len(x_t),), index, device=x_t.device)
        x_t = sampler.with_eta(0.0).transition(denoise(x_t, times_at(sampler, step), cond), x_t, step).mean
    return x_t


def oracle(parts: Parts, x_0: Tensor, prompts: list[str]) -> Tensor:
    """The oracle's scores of clean samples."""
    return parts.metrics[ORACLE]((parts.model.decode(x_0) / 2 + 0.5).clamp(0, 1).cpu(), prompts)


def mean(values: Tensor) -> dict[str, Any]:
    """A mean over prompts with its 95 % interval."""
    numbers = values.double().numpy()
    return {"mean": float(numbers.mean()), "interval": list(mean_interval(numbers))}


def table(rules: dict[str, dict[str, Any]]) -> str:
    """By timestep the worth of the judge's choice under each rule, as Markdown."""
    lines = [
        f"| timestep | {' | '.join(rules)} | rightly ordered ({next(iter(rules))}) |",
        "|---" * (len(rules) + 2) + "|",
    ]
    lines.append(f"| ends at | {' | '.join(cell(rule['trajectory_ends_at']) for rule in rules.values())} | |")
    first = next(iter(rules.values()))["timesteps"]
    for t, row in first.items():
        cells = [cell(rule["timesteps"][t]["best_less_worst"]) for rule in rules.values()]
        lines.append(f"| {t} | {' | '.join(cells)} | {cell(row['rightly_ordered'])} |")
    return "\n".join(lines)


def page(path: Path) -> str:
    """The table of committed figures."""
    figures = json.loads(path.read_text(encoding="utf-8"))
    return table(figures["continue_from"])


def cell(value: dict[str, Any]) -> str:
    """A mean and its interval."""
    low, high = value["interval"]
    return f"{value['mean']:.4f} ({low:.4f} to {high:.4f})"


if __name__ == "__main__":
    main()
