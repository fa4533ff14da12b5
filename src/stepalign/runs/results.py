"""The results of a run: held-out images of the base and the aligned model, their scores, and the work done."""

from __future__ import annotations

from collections import Counter

from stepalign.reports.run import Example
from stepalign.runs.assemble import Parts
from stepalign.runs.guard import GuardWatch
from stepalign.runs.held_out import measure
from stepalign.runs.held_out_rows import HeldOutRow
from stepalign.support.parallel import processes
from stepalign.support.watcher import Watcher
from stepalign.training.held_out_scores import Generated

NUM_EXAMPLES = 12


def evaluate_run(parts: Parts, watcher: Watcher) -> tuple[Generated, Generated] | None:
    """Images of held-out prompts by the base and by the aligned model, from the same seeds."""
    if not parts.held_out:
        return None
    total, done = 2 * len(parts.held_out), 0

    def tick(num: int) -> None:
        nonlocal done
        done = min(total, done + num)
        watcher.phase("evaluate", done, total)

    base = measure(parts, "reference", num_kept=NUM_EXAMPLES, tick=tick)
    return base, measure(parts, parts.recipe.exported_role, num_kept=NUM_EXAMPLES, tick=tick)


def count_calls(parts: Parts, guard: GuardWatch | None, example: str) -> dict[str, int]:
    """Network calls, judged images and embedded texts of the whole run."""
    trainer = parts.trainer
    calls = trainer.calls + Counter(trainer.drain_counters("evaluation"))  # the last are the example trajectory's
    return dict(calls) | _num_texts(parts, guard, example)


def _num_texts(parts: Parts, guard: GuardWatch | None, example: str) -> dict[str, int]:
    """How many texts the main process embeds in the whole run, however often the run is interrupted.

    Base model and judge embed every distinct prompt once, and the base model the empty one where guidance needs it.
    """
    world, num = processes().num_processes, parts.recipe.training.prompts_per_round
    stream, held_out = parts.stream, parts.held_out[::world]
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


def held_out_rows(prompts: list[str], base: Generated, aligned: Generated) -> list[HeldOutRow]:
    """Every prompt's scores before and after training."""
    return [
        HeldOutRow(prompt, _scores_of(base, index), _scores_of(aligned, index)) for index, prompt in enumerate(prompts)
    ]


def examples_of(prompts: list[str], base: Generated, aligned: Generated) -> list[Example]:
    """The first held-out prompts, base and aligned."""
    return [
        Example(prompts[row], base.images[row], aligned.images[row], _scores_of(base, row), _scores_of(aligned, row))
        for row in range(min(NUM_EXAMPLES, len(prompts)))
    ]


def _scores_of(generated: Generated, row: int) -> dict[str, float]:
    """The scores of one image by metric."""
    return {name: values[row].item() for name, values in generated.scores.items()}
