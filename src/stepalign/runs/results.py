"""The results of a run: held-out images of the base and the aligned model, their scores, and the work done."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor

from stepalign.reports.run import Example
from stepalign.runs.assemble import Parts
from stepalign.runs.guard import GuardWatch
from stepalign.runs.held_out import measure
from stepalign.runs.recipes import Recipe
from stepalign.support.environment import timing, versions
from stepalign.support.files import write_text
from stepalign.support.json_text import to_json
from stepalign.support.parallel import processes
from stepalign.support.watcher import Watcher
from stepalign.training.held_out_scores import Generated

SCORES = "scores.jsonl"
NUM_EXAMPLES = 12


def evaluate_run(recipe: Recipe, parts: Parts, watcher: Watcher) -> tuple[Generated, Generated] | None:
    """Held-out prompts drawn by the base and by the aligned model from the same seeds."""
    if not parts.held_out:
        return None
    total, done = 2 * len(parts.held_out), 0

    def tick(num: int) -> None:
        nonlocal done
        done = min(total, done + num)
        watcher.phase("evaluate", done, total)

    base = measure(recipe, parts, "reference", num_kept=NUM_EXAMPLES, tick=tick)
    return base, measure(recipe, parts, recipe.export, num_kept=NUM_EXAMPLES, tick=tick)


def work_done(recipe: Recipe, parts: Parts, guard: GuardWatch | None, example: str, seconds: float) -> dict[str, Any]:
    """What a run took, and what took it: rounds, updates, network calls, versions; seconds apart from the rest."""
    trainer = parts.trainer
    calls = trainer.calls + Counter(trainer.work("evaluation"))  # the last are the example trajectory's
    return {
        "rounds": trainer.num_rounds,
        "updates": trainer.num_updates,
        "comparisons_trained": trainer.num_comparisons,
        "calls": dict(calls) | _num_texts(recipe, parts, guard, example),
        "versions": versions(),
        "timing": timing(seconds=seconds, training_seconds=trainer.seconds, device=parts.model.device),
    }


def _num_texts(recipe: Recipe, parts: Parts, guard: GuardWatch | None, example: str) -> dict[str, int]:
    """How many texts the main process embeds in the whole run, however often the run is interrupted.

    Base model and judge embed every distinct prompt once, and the base model the empty one where guidance needs it.
    """
    world, num = processes().num_processes, recipe.training.prompts_per_round
    stream, held_out = parts.trainer.stream, parts.held_out[::world]
    trained = [
        stream[position]
        for first in range(0, num * parts.trainer.num_rounds, num)
        for position in range(first, first + num)[::world]
    ]
    watched = [] if guard is None else parts.guard.prompts[::world]
    if guard is not None and any("second" in row for row in guard.rows):
        watched += parts.guard.second[::world]
    distinct = len({*trained, *held_out, *watched, example})
    return {"judge_texts": distinct, "base_texts": distinct + (parts.model.negative_row is None)}


def write_scores(path: Path, prompts: list[str], base: Generated, aligned: Generated) -> None:
    """Every prompt's scores before and after, a line each."""

    def row(scores: dict[str, Tensor], index: int) -> dict[str, float]:
        return {name: round(values[index].item(), 6) for name, values in scores.items()}

    lines = [
        to_json({"prompt": prompt, "base": row(base.scores, index), "aligned": row(aligned.scores, index)})
        for index, prompt in enumerate(prompts)
    ]
    write_text(path, "\n".join(lines) + "\n")


def examples_of(prompts: list[str], base: Generated, aligned: Generated) -> list[Example]:
    """The first held-out prompts, base and aligned."""
    return [
        Example(
            prompts[row],
            base.images[row],
            aligned.images[row],
            {name: values[row].item() for name, values in base.scores.items()},
            {name: values[row].item() for name, values in aligned.scores.items()},
        )
        for row in range(min(NUM_EXAMPLES, len(prompts)))
    ]
