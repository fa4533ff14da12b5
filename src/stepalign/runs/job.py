"""A run from recipe to report, in a directory that says all about it.

stepalign.json   whose directory it is, written first (`claim.py`)
recipe.yaml      the resolved recipe; `stepalign train recipe.yaml` runs it again
metrics.jsonl    a row per round
checkpoint.pt    what the same command resumes from; previous-checkpoint.pt is the one before
not-finite.pt    the comparisons on which training stopped being finite, if it did
adapter/         pytorch_lora_weights.safetensors, for `pipe.load_lora_weights`, and kohya.safetensors, the same
                 adapter for ComfyUI and A1111
guard.jsonl      held-out scores during training, where the recipe has a guard
scores.jsonl     a row per held-out prompt: what the base and the aligned model scored
report.html      all of it to look at
files.json       size and SHA-256 of the files above, checked when the command is given again
summary.json     held-out scores, base against aligned, with intervals; work done; written last
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from stepalign.data.prompts_cut import count_cut
from stepalign.reports.figures import weights_panels
from stepalign.reports.run import write_report
from stepalign.runs.assemble import Parts, assemble
from stepalign.runs.checks import notes_on
from stepalign.runs.guard import ADAPTERS as GUARD_ADAPTERS
from stepalign.runs.guard import ROWS as GUARD_ROWS
from stepalign.runs.guard import GuardWatch
from stepalign.runs.health_checks import add_falls, check_end, start_health
from stepalign.runs.held_out import sampling_of
from stepalign.runs.last_round import LastRound, saving_last_round, with_stops
from stepalign.runs.recipes import Recipe, with_absolute_paths
from stepalign.runs.results import SCORES, evaluate_run, examples_of, work_done, write_scores
from stepalign.runs.resuming import finished_whole, newest_state, rows_of
from stepalign.runs.run_directory import (
    CHECKPOINT,
    METRICS,
    PREVIOUS,
    RECIPE,
    REPORT,
    SUMMARY,
    recipe_owner,
    write_recipe,
    write_rows,
)
from stepalign.runs.trajectory import follow
from stepalign.support.claim import Claim, claim
from stepalign.support.config import to_yaml
from stepalign.support.file_record import record_files
from stepalign.support.files import RunState, replacing, save_state, write_text
from stepalign.support.finite import NotFinite
from stepalign.support.json_text import to_json
from stepalign.support.parallel import decided_by_main, processes
from stepalign.support.stopping import check_stop
from stepalign.support.watcher import NullWatcher, Watcher
from stepalign.training.held_out_scores import compare
from stepalign.training.updater import Diverged
from stepalign.training.watch import HealthWatch

ADAPTER, BAD_BATCH = "adapter", "not-finite"
ROWS = (METRICS, GUARD_ROWS)
"""Kept in a checkpoint, whose state they belong to."""
FILES = (RECIPE, *ROWS, CHECKPOINT, PREVIOUS, ADAPTER, GUARD_ADAPTERS, SCORES, REPORT)
BY_CONTENT = frozenset({"model", "base.vae", "base.config", "judge.path", "prompts", "evaluation.prompts"})
"""Fields of a recipe that name parts of `Parts.identity`."""


def run(recipe: Recipe, output: str | Path, *, watcher: Watcher | None = None) -> dict[str, Any]:
    """Do what a recipe says in a directory of its own and return the summary.

    The same call on an unfinished run's directory resumes from its last checkpoint. On a finished one it checks the
    files and returns the summary; what is damaged or missing is named and made again from the checkpoint. In a
    distributed run all processes train and measure, and the main one reports; the others return an empty summary.
    Raises ValueError, before writing anything, when the recipe cannot be run, the directory is another run's, or
    another job is at work there.
    """
    recipe, output, watcher = with_absolute_paths(recipe), Path(output), watcher or NullWatcher()
    owner = recipe_owner("train", recipe, Recipe(name=recipe.name), by_content=BY_CONTENT)
    with claim(output, owner, tell=watcher.note) as claimed:
        done = decided_by_main(lambda: finished_whole(output, FILES, adopted=claimed.adopted, tell=watcher.note))
        if done is None:
            return _unless_failed(_work_on(recipe, claimed, watcher), output)
        claimed.identify(assemble(recipe).identity if processes().is_main_process else {})
        return _unless_failed(done, output)


def _work_on(recipe: Recipe, claimed: Claim, watcher: Watcher) -> dict[str, Any]:
    """Train what is left to train, measure, and write the results."""
    output, parts = claimed.output, assemble(recipe)
    claimed.identify(parts.identity)
    for note in notes_on(recipe, [*parts.trainer.stream.prompts, *parts.held_out]):
        watcher.note(note)
    cut = {"training": count_cut(parts.readers, parts.trainer.stream.prompts, watcher, which="training")}
    if parts.held_out:
        readers = parts.readers | parts.scorer_readers
        cut["held-out"] = count_cut(readers, parts.held_out, watcher, which="held-out")
    rows = _resume(parts, output, watcher)
    health = start_health(recipe, parts, rows, watcher)
    guard = GuardWatch(recipe, parts, output, watcher) if recipe.guard.every else None
    with saving_last_round(parts.trainer, recipe.training.num_rounds, output, rows, files=ROWS) as last:
        _train(recipe, parts, output, rows, watcher, guard, health, last)
    return _finish(recipe, parts, output, rows, watcher, guard, health, cut)


def _finish(
    recipe: Recipe,
    parts: Parts,
    output: Path,
    rows: list[dict[str, Any]],
    watcher: Watcher,
    guard: GuardWatch | None,
    health: HealthWatch,
    cut: dict[str, Any],
) -> dict[str, Any]:
    """Write the adapter, measure it on held-out prompts, and write the results; the summary on the main process."""
    start = time.perf_counter()
    if processes().is_main_process:
        write_recipe(output, recipe)
        parts.model.save_adapter(output / ADAPTER, parts.policy.weights(recipe.export))
    failed = check_end(recipe, parts, health)
    evaluated = None
    try:
        evaluated = evaluate_run(recipe, parts, watcher)
    except NotFinite as error:
        failed = failed or f"the trained policy cannot be evaluated: {error}"
    parts.trainer.book("evaluation")
    if not processes().is_main_process:
        return {}
    prompt = parts.held_out[0] if parts.held_out else parts.trainer.stream.prompts[0]
    trajectory = []
    with suppress(NotFinite):  # of a policy that `failed` names
        trajectory = follow(recipe, parts, prompt)
    scores = compare(*evaluated, parts.held_out) if evaluated else {}
    add_falls(health, scores, parts.trainer.num_rounds)
    summary = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "num_prompts": len(parts.held_out),
        "prompts_cut": cut,
        "sampling": sampling_of(recipe, parts),
        "scores": scores,
        "watch": health.summary(),
        "failed": failed,
        **({} if guard is None else {"guard": guard.summary()}),
        **work_done(recipe, parts, guard, prompt, parts.trainer.seconds + time.perf_counter() - start),
    }
    if evaluated:
        write_scores(output / SCORES, parts.held_out, *evaluated)
    write_report(
        output / REPORT,
        title=recipe.name,
        recipe=to_yaml(recipe),
        rounds=rows,
        summary=summary,
        examples=examples_of(parts.held_out, *evaluated) if evaluated else [],
        prompt=prompt,
        trajectory=trajectory,
        pairing=recipe.training.pairing,
        signal=recipe.training.signal,
        weights=weights_panels(parts.sampler, recipe.objective.weighting),
        weighting=recipe.objective.weighting,
    )
    text = to_json(summary, indent=2) + "\n"
    record_files(output, FILES, pending={SUMMARY: text})
    write_text(output / SUMMARY, text)
    return summary


def _unless_failed(summary: dict[str, Any], output: Path) -> dict[str, Any]:
    """A finished run's summary; raises ValueError when what it trained is of no use."""
    if failed := summary.get("failed"):
        raise ValueError(f"{failed}; {output / REPORT} shows how it came to that")
    return summary


def _resume(parts: Parts, output: Path, watcher: Watcher) -> list[dict[str, Any]]:
    """Restore the newest checkpoint, if any, and return the rows of metrics up to it."""
    found = newest_state(output, RunState, tell=watcher.note)
    if found is None:
        return []
    state, texts = found
    parts.trainer.restore(state)
    return rows_of(texts, output, parts.trainer.num_rounds)


def _train(
    recipe: Recipe,
    parts: Parts,
    output: Path,
    rows: list[dict[str, Any]],
    watcher: Watcher,
    guard: GuardWatch | None,
    health: HealthWatch,
    last: LastRound,
) -> None:
    """Do the remaining rounds, or those until the guard or the watch stops them; `rows` grows by theirs."""
    trainer, total = parts.trainer, recipe.training.num_rounds
    is_main = processes().is_main_process
    if guard is not None and guard.stopped:
        return guard.restore()
    if guard is not None and trainer.num_rounds == 0:
        guard.look()
    stopped = health.stopped
    while trainer.num_rounds < total and not stopped:
        row = _round(recipe, parts, output, watcher)
        rows.append(row)
        watcher.round(row, total)
        if is_main:  # not before a round worked, so that a failure leaves nothing
            write_recipe(output, recipe)
        if guard is not None:  # before the checkpoint, which has then counted its work
            guard.look()
        health.look(rows)
        stopped = health.stopped or (guard is not None and guard.stopped)
        if is_main and (trainer.num_rounds % recipe.checkpoint_every == 0 or trainer.num_rounds == total or stopped):
            write_rows(output, rows)
            save_state(trainer.state(), output / CHECKPOINT, files=ROWS)
            last.state = None
        elif is_main:
            last.state = trainer.state()
        check_stop()


def _round(recipe: Recipe, parts: Parts, output: Path, watcher: Watcher) -> dict[str, object]:
    """One round of training.

    Raises ValueError when a value stops being a finite number, naming the part, the round, what is kept, and the file
    with the comparisons that it happened on.
    """
    trainer = parts.trainer
    try:
        return trainer.round(with_stops(watcher.phase))
    except NotFinite as error:
        message = f"round {trainer.num_rounds + 1}: {error}"
        if isinstance(error, Diverged):
            rank = processes().process_index
            path = output / (f"{BAD_BATCH}.pt" if rank == 0 else f"{BAD_BATCH}-{rank}.pt")
            with replacing(path) as temporary:
                torch.save(error.batch, temporary)
            message += f"; its comparisons are in {path}"
        if (output / CHECKPOINT).is_file():
            message += f"; the checkpoint in {output} is from before"
        raise ValueError(message) from error
