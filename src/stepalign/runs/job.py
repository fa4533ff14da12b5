"""An alignment run from recipe to report, in a directory of its own.

stepalign.json   the recipe it belongs to, written first (`marker.py`)
recipe.yaml      the resolved recipe; `stepalign train recipe.yaml` runs it again
metrics.jsonl    a row per round
checkpoint.pt    what the same command resumes from; previous-checkpoint.pt is the one before
not-finite.pt    the comparisons on which training stopped being finite, if it did
adapter/         pytorch_lora_weights.safetensors, for `pipe.load_lora_weights`, and kohya.safetensors, the same
                 adapter for ComfyUI and A1111
guard.jsonl      held-out scores during training, where the recipe has a guard; guard/ holds adapters it may restore
scores.jsonl     a row per held-out prompt: the scores of the base and the aligned model
report.html      all results as a page
files.json       size and SHA-256 of the files above, checked when the command is given again
summary.json     held-out scores, base against aligned, with intervals; work done; written last
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from stepalign.data.prompts_cut import PromptsCut, count_cut
from stepalign.reports.figures import weights_panels
from stepalign.reports.run import TrajectoryStep, write_report
from stepalign.reports.summaries import SUMMARY, Guarded, RunSummary, load_run_summary, summary_text
from stepalign.runs.assemble import Parts, assemble
from stepalign.runs.checks import notes_on
from stepalign.runs.guard import GuardWatch
from stepalign.runs.health_checks import add_falls, check_end, start_health
from stepalign.runs.held_out import sampling_of
from stepalign.runs.held_out_rows import SCORES, write_held_out
from stepalign.runs.last_round import LastRound, saving_last_round, with_stops
from stepalign.runs.recipes import Recipe, with_absolute_paths
from stepalign.runs.results import count_calls, evaluate_run, examples_of, held_out_rows
from stepalign.runs.resuming import newest_state, rows_of
from stepalign.runs.run import Run, carry_out
from stepalign.runs.run_directory import (
    CHECKPOINT,
    GUARD_ADAPTERS,
    GUARD_ROWS,
    METRICS,
    PREVIOUS,
    RECIPE,
    REPORT,
    recipe_owner,
    save_run,
    write_recipe,
)
from stepalign.runs.trajectory import candidates_along
from stepalign.support.config import to_yaml
from stepalign.support.environment import timing, versions
from stepalign.support.files import RunState, replacing
from stepalign.support.finite import NotFinite
from stepalign.support.parallel import processes
from stepalign.support.stopping import check_stop
from stepalign.support.watcher import NullWatcher, Watcher
from stepalign.training.held_out_scores import Generated, compare
from stepalign.training.updater import Diverged
from stepalign.training.watch import HealthWatch, Row

ADAPTER, BAD_BATCH = "adapter", "not-finite"
FILES = (RECIPE, METRICS, GUARD_ROWS, CHECKPOINT, PREVIOUS, ADAPTER, GUARD_ADAPTERS, SCORES, REPORT)
BY_CONTENT = frozenset({"model", "base.vae", "base.config", "judge.path", "prompts", "evaluation.prompts"})
"""Fields of a recipe that name parts of `Parts.identity`."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A run in progress: its parts, its directory, the rows so far, and the watches over its training."""

    parts: Parts
    run: Run
    rows: list[Row]
    """Metrics of the finished rounds; training adds to them."""
    health: HealthWatch
    guard: GuardWatch | None
    cut: dict[str, PromptsCut]
    last: LastRound = field(default_factory=LastRound)

    @property
    def stopped(self) -> bool:
        """Whether the guard or the health watch has ended the training."""
        return self.health.stopped or (self.guard is not None and self.guard.stopped)


def run(recipe: Recipe, output: str | Path, *, watcher: Watcher | None = None) -> RunSummary | None:
    """Run a recipe in a directory of its own and return the summary.

    The same call on an unfinished run's directory resumes from its last checkpoint. On a finished one it checks the
    files and returns the summary; damaged and missing files are named and made again from the checkpoint. In a
    distributed run all processes train and measure, and the main one reports; the others return None. Raises
    ValueError, before writing anything, when the recipe cannot be run, the directory is another run's, or another job
    is at work there.
    """
    recipe, output, watcher = with_absolute_paths(recipe), Path(output), watcher or NullWatcher()
    summary = carry_out(
        output,
        recipe_owner("train", recipe, Recipe(name=recipe.name), by_content=BY_CONTENT),
        files=FILES,
        watcher=watcher,
        load=load_run_summary,
        identity=lambda: assemble(recipe).identity,
        work=lambda run: _work(recipe, run),
    )
    if summary is not None and (failed := summary.get("failed")):
        raise ValueError(f"{failed}; {output / REPORT} shows how it came to that")
    return summary


def _work(recipe: Recipe, run: Run) -> RunSummary | None:
    """Train the remaining rounds, measure, and write the results."""
    parts = assemble(recipe)
    run.identify(parts.identity)
    for note in notes_on(recipe, [*parts.stream.prompts, *parts.held_out]):
        run.watcher.note(note)
    cut = {"training": count_cut(parts.readers, parts.stream.prompts, run.watcher, which="training")}
    if parts.held_out:
        readers = parts.readers | parts.scorer_readers
        cut["held-out"] = count_cut(readers, parts.held_out, run.watcher, which="held-out")
    rows = _resume(parts, run)
    health = start_health(parts, rows, run.watcher)
    guard = GuardWatch(parts, run.output, run.watcher) if recipe.guard.every else None
    progress = Progress(parts, run, rows, health, guard, cut)
    with saving_last_round(progress.last, run.output, rows, total=recipe.training.num_rounds):
        _train(progress)
    return _finish(progress)


def _resume(parts: Parts, run: Run) -> list[Row]:
    """Restore the newest checkpoint, if any, and return the rows of metrics up to it."""
    found = newest_state(run.output, RunState, note=run.watcher.note)
    if found is None:
        return []
    state, texts = found
    parts.trainer.restore(state)
    return rows_of(texts, run.output, parts.trainer.num_rounds)


def _train(progress: Progress) -> None:
    """Do the remaining rounds, or those until the guard or the health watch stops them."""
    trainer, recipe, guard = progress.parts.trainer, progress.parts.recipe, progress.guard
    total = recipe.training.num_rounds
    if guard is not None and trainer.num_rounds == 0:
        guard.measure_if_due()
    while trainer.num_rounds < total and not progress.stopped:
        row = _round(progress)
        progress.rows.append(row)
        progress.run.watcher.round(row, total)
        if processes().is_main_process:  # not before a round worked, so that a failure leaves nothing
            write_recipe(progress.run.output, recipe)
        if guard is not None:  # before the checkpoint, which has then counted its work
            guard.measure_if_due()
        progress.health.look(progress.rows)
        if processes().is_main_process:
            _save(progress)
        check_stop()


def _save(progress: Progress) -> None:
    """Write a checkpoint where one is due; keep the round's state in memory otherwise."""
    trainer, recipe = progress.parts.trainer, progress.parts.recipe
    ended = trainer.num_rounds == recipe.training.num_rounds or progress.stopped
    if trainer.num_rounds % recipe.checkpoint_every == 0 or ended:
        save_run(progress.run.output, trainer.state(), progress.rows)
        progress.last.state = None
    else:
        progress.last.state = trainer.state()


def _round(progress: Progress) -> Row:
    """One round of training.

    Raises ValueError when a value stops being a finite number, naming the part, the round, what is kept, and the file
    with the comparisons that it happened on.
    """
    trainer, output = progress.parts.trainer, progress.run.output
    try:
        return trainer.round(with_stops(progress.run.watcher.phase))
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


def _finish(progress: Progress) -> RunSummary | None:
    """Write the adapter, measure it on held-out prompts, and write the results; the summary on the main process."""
    start, parts, run = time.perf_counter(), progress.parts, progress.run
    if processes().is_main_process:
        write_recipe(run.output, parts.recipe)
        parts.model.save_adapter(run.output / ADAPTER, parts.policy.weights(parts.recipe.exported_role))
    failed = check_end(parts, progress.health)
    evaluated = None
    try:
        evaluated = evaluate_run(parts, run.watcher)
    except NotFinite as error:
        failed = failed or f"the trained policy cannot be evaluated: {error}"
    parts.trainer.record_calls("evaluation")
    if not processes().is_main_process:
        return None
    prompt = parts.held_out[0] if parts.held_out else parts.stream.prompts[0]
    trajectory: list[TrajectoryStep] = []
    with suppress(NotFinite):  # of a policy that `failed` names
        trajectory = candidates_along(parts, prompt)
    summary = _summarise(progress, evaluated, prompt, failed, start)
    if evaluated:
        write_held_out(run.output, held_out_rows(parts.held_out, *evaluated))
    _write_page(progress, summary, evaluated, prompt, trajectory)
    run.finish(SUMMARY, summary_text(summary))
    return summary


def _summarise(
    progress: Progress, evaluated: tuple[Generated, Generated] | None, prompt: str, failed: str | None, start: float
) -> RunSummary:
    """The summary of a run whose evaluation, if it has one, began at `start`; `prompt` is the example trajectory's."""
    parts, guard = progress.parts, progress.guard
    trainer, recipe = parts.trainer, parts.recipe
    scores = compare(*evaluated, parts.held_out) if evaluated else {}
    add_falls(progress.health, scores, trainer.num_rounds)
    signs = progress.health.summary() + ([] if guard is None else guard.signs())
    guarded: Guarded = {} if guard is None else {"guard": guard.summary()}
    seconds = trainer.seconds + time.perf_counter() - start
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "num_prompts": len(parts.held_out),
        "prompts_cut": progress.cut,
        "sampling": sampling_of(parts),
        "scores": scores,
        "watch": sorted(signs, key=lambda sign: sign["round"]),
        "failed": failed,
        **guarded,
        "rounds": trainer.num_rounds,
        "updates": trainer.num_updates,
        "comparisons_trained": trainer.num_comparisons,
        "calls": count_calls(parts, guard, prompt),
        "versions": versions(),
        "timing": timing(seconds=seconds, training_seconds=trainer.seconds, device=parts.model.device),
    }


def _write_page(
    progress: Progress,
    summary: RunSummary,
    evaluated: tuple[Generated, Generated] | None,
    prompt: str,
    trajectory: list[TrajectoryStep],
) -> None:
    """Write report.html."""
    parts, recipe = progress.parts, progress.parts.recipe
    write_report(
        progress.run.output / REPORT,
        title=recipe.name,
        recipe=to_yaml(recipe),
        rounds=progress.rows,
        summary=summary,
        examples=examples_of(parts.held_out, *evaluated) if evaluated else [],
        prompt=prompt,
        trajectory=trajectory,
        source=recipe.source,
        weights=weights_panels(parts.sampler, recipe.objective.weighting),
        weighting=recipe.objective.weighting,
    )
