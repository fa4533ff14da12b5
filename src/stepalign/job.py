"""A run from recipe to report, in a directory that says all about it.

recipe.yaml      the resolved recipe; `stepalign train recipe.yaml` runs it again
metrics.jsonl    a row per round
checkpoint.pt    what the same command goes on from
not-finite.pt    the comparisons on which training stopped being finite, if it did
adapter/         pytorch_lora_weights.safetensors, for `pipe.load_lora_weights`, and kohya.safetensors, the same
                 adapter for ComfyUI and A1111
guard.jsonl      held-out scores during training, where the recipe has a guard
scores.jsonl     a row per held-out prompt: what the base and the aligned model scored
summary.json     held-out scores, base against aligned, with intervals; work done
report.html      all of it to look at
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepalign.assemble import Parts, assemble
from stepalign.batch import pair
from stepalign.checkpoint import RunState, load_state, replacing, save_state, write_text
from stepalign.checks import notes_on
from stepalign.config import to_yaml
from stepalign.evaluate import Generated, compare
from stepalign.figures import plot_weights
from stepalign.finite import NotFinite
from stepalign.guard import GuardWatch
from stepalign.held_out import measure, sampling_of
from stepalign.parallel import processes
from stepalign.prompts_cut import count_cut
from stepalign.recipes import Recipe, with_absolute_paths
from stepalign.report import Example, TrajectoryStep, write_report
from stepalign.rollout import rollout
from stepalign.run_directory import (
    CHECKPOINT,
    RECIPE,
    REPORT,
    SUMMARY,
    Silence,
    Watcher,
    claim,
    device_name,
    finished,
    read_rows,
    versions,
    write_rows,
)
from stepalign.seeding import PromptNoise, Purpose, generator_for
from stepalign.updater import Diverged

ADAPTER, SCORES, BAD_BATCH = "adapter", "scores.jsonl", "not-finite"
NUM_EXAMPLES = 12


def run(recipe: Recipe, output: str | Path, *, watcher: Watcher | None = None) -> dict[str, Any]:
    """Do what a recipe says in a directory of its own and return the summary.

    The same call on an unfinished run's directory goes on from its last checkpoint; on a finished one it only
    returns the summary. In a distributed run all processes train and measure, and the main one reports; the others
    return an empty summary. Raises ValueError, before writing anything, when the recipe cannot be run or the
    directory is another run's.
    """
    recipe, output, watcher = with_absolute_paths(recipe), Path(output), watcher or Silence()
    claim(output, to_yaml(recipe), default=to_yaml(Recipe(name=recipe.name)))
    if (done := finished(output)) is not None:
        return done
    parts = assemble(recipe)
    for note in notes_on(recipe, [*parts.trainer.stream.prompts, *parts.held_out]):
        watcher.note(note)
    cut = {"training": count_cut(parts.readers, parts.trainer.stream.prompts, watcher, which="training")}
    if parts.held_out:
        readers = parts.readers | parts.scorer_readers
        cut["held-out"] = count_cut(readers, parts.held_out, watcher, which="held-out")
    rows = _resume(parts, output)
    guard = GuardWatch(recipe, parts, output, watcher) if recipe.guard.every else None
    _train(recipe, parts, output, rows, watcher, guard)
    start = time.perf_counter()
    if processes().is_main_process:
        parts.model.save_adapter(output / ADAPTER, parts.policy.weights(recipe.export))
    evaluated = _evaluate(recipe, parts, watcher)
    parts.trainer.book("evaluation")
    if not processes().is_main_process:
        return {}
    prompt = parts.held_out[0] if parts.held_out else parts.trainer.stream.prompts[0]
    trajectory = follow(recipe, parts, prompt)
    summary = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "num_prompts": len(parts.held_out),
        "prompts_cut": cut,
        "sampling": sampling_of(recipe, parts),
        "scores": compare(*evaluated, parts.held_out) if evaluated else {},
        **({} if guard is None else {"guard": guard.summary()}),
        **_work(parts, parts.trainer.seconds + time.perf_counter() - start),
    }
    if evaluated:
        _write_scores(output / SCORES, parts.held_out, *evaluated)
    write_report(
        output / REPORT,
        title=recipe.name,
        recipe=to_yaml(recipe),
        rounds=rows,
        summary=summary,
        examples=_examples(parts.held_out, *evaluated) if evaluated else [],
        prompt=prompt,
        trajectory=trajectory,
        weights=plot_weights(parts.sampler),
        weighting=recipe.objective.weighting,
    )
    write_text(output / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def follow(recipe: Recipe, parts: Parts, prompt: str) -> list[TrajectoryStep]:
    """One prompt's trajectory under the trained policy, pool by pool, with decoded candidates."""
    pools, _ = rollout(
        parts.policy.denoiser(recipe.training.sample_with),
        parts.sampler,
        parts.judge,
        cond=parts.model.encode([prompt]),
        prompts=[prompt],
        latent_shape=parts.model.latent_shape,
        noise=PromptNoise([generator_for(recipe.seed, Purpose.EVALUATION, 0)], device=parts.model.device),
        branching=recipe.branching,
    )
    steps = []
    for pool in pools:
        scores = pool.candidates.scores
        _, sure = pair(pool.candidates, rule=recipe.training.pairing, min_gap=recipe.training.min_gap)
        with torch.no_grad():
            images = (parts.model.decode(pool.x_0[0]) / 2 + 0.5).clamp(0, 1).cpu()
        steps.append(
            TrajectoryStep(
                timestep=pool.t_prev,
                images=images,
                scores=scores[0].tolist(),
                best=int(scores[0].argmax()),
                worst=int(scores[0].argmin()),
                followed=int(pool.followed[0]),
                trained=bool(sure[0]),
            )
        )
    return steps


def _resume(parts: Parts, output: Path) -> list[dict[str, Any]]:
    """Take up the last checkpoint, if any, and return the rows of metrics up to it."""
    if not (output / CHECKPOINT).is_file():
        return []
    parts.trainer.restore(load_state(output / CHECKPOINT, RunState))
    return read_rows(output, parts.trainer.num_rounds)


def _train(
    recipe: Recipe,
    parts: Parts,
    output: Path,
    rows: list[dict[str, Any]],
    watcher: Watcher,
    guard: GuardWatch | None,
) -> None:
    """Do the remaining rounds, or those until the guard stops them; `rows` grows by theirs."""
    trainer, total = parts.trainer, recipe.training.num_rounds
    is_main = processes().is_main_process
    if guard is not None and guard.stopped:
        return guard.restore()
    if guard is not None and trainer.num_rounds == 0:
        guard.look()
    stopped = False
    while trainer.num_rounds < total and not stopped:
        row = _round(recipe, parts, output, watcher)
        rows.append(row)
        watcher.round(row, total)
        if is_main and not (output / RECIPE).is_file():  # not before a round worked, so that a failure leaves nothing
            write_text(output / RECIPE, to_yaml(recipe))
        if guard is not None:  # before the checkpoint, which has then counted its work
            guard.look()
            stopped = guard.stopped
        if is_main and (trainer.num_rounds % recipe.checkpoint_every == 0 or trainer.num_rounds == total or stopped):
            write_rows(output, rows)
            save_state(trainer.state(), output / CHECKPOINT)


def _round(recipe: Recipe, parts: Parts, output: Path, watcher: Watcher) -> dict[str, object]:
    """One round of training.

    Raises ValueError when a value stops being a finite number, naming the part, the round, what is kept, and the file
    with the comparisons that it happened on.
    """
    trainer = parts.trainer
    try:
        return trainer.round(watcher.phase)
    except NotFinite as error:
        message = f"round {trainer.num_rounds + 1}: {error}"
        if isinstance(error, Diverged):
            rank = processes().process_index
            path = output / (f"{BAD_BATCH}.pt" if rank == 0 else f"{BAD_BATCH}-{rank}.pt")
            if rank == 0 and not (output / RECIPE).is_file():
                write_text(output / RECIPE, to_yaml(recipe))
            with replacing(path) as temporary:
                torch.save(error.batch, temporary)
            message += f"; its comparisons are in {path}"
        if (output / CHECKPOINT).is_file():
            message += f"; the checkpoint in {output} is from before"
        raise ValueError(message) from error


def _evaluate(recipe: Recipe, parts: Parts, watcher: Watcher) -> tuple[Generated, Generated] | None:
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


def _work(parts: Parts, seconds: float) -> dict[str, Any]:
    calls = parts.trainer.calls + Counter(parts.trainer.work("evaluation"))  # the last are the example trajectory's
    texts = {"judge_texts": parts.count_judge_texts(), "base_texts": parts.model.num_encoded}
    return {
        "seconds": round(seconds, 1),
        "training_seconds": round(parts.trainer.seconds, 1),
        "rounds": parts.trainer.num_rounds,
        "updates": parts.trainer.num_updates,
        "comparisons_trained": parts.trainer.num_comparisons,
        "calls": dict(calls) | texts,
        "device": device_name(parts.model.device),
        "versions": versions(),
    }


def _write_scores(path: Path, prompts: list[str], base: Generated, aligned: Generated) -> None:
    """Every prompt's scores before and after, a line each."""

    def row(scores: dict[str, Tensor], index: int) -> dict[str, float]:
        return {name: round(values[index].item(), 6) for name, values in scores.items()}

    lines = [
        json.dumps({"prompt": prompt, "base": row(base.scores, index), "aligned": row(aligned.scores, index)})
        for index, prompt in enumerate(prompts)
    ]
    write_text(path, "\n".join(lines) + "\n")


def _examples(prompts: list[str], base: Generated, aligned: Generated) -> list[Example]:
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
