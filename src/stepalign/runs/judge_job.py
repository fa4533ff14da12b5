"""A judge's training from recipe to report, in a directory of its own.

stepalign.json   the recipe it belongs to, written first (`marker.py`)
recipe.yaml      the resolved recipe; `stepalign train-judge recipe.yaml` runs it again
metrics.jsonl    a row per step
start.json       the held-out scores of the model training began with
checkpoint.pt    what the same command resumes from; previous-checkpoint.pt is the one before
judge/           config, weights, tokenizer and model card, for `--judge.path` and `stepalign push-judge`
report.html      all results as a page
files.json       size and SHA-256 of the files above, checked when the command is given again
summary.json     held-out accuracy by noise level, with intervals; work done; written last
"""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from stepalign.data.prompts_cut import PromptsCut, count_cut
from stepalign.judges.card import model_card
from stepalign.judges.spm_files import CARD
from stepalign.reports.judge import JudgedPair, JudgedStep, write_judge_report
from stepalign.reports.summaries import (
    SUMMARY,
    JudgeData,
    JudgeSummary,
    load_judge_summary,
    summary_text,
)
from stepalign.runs.assemble_judge import JudgeParts, assemble_judge, judge_identity
from stepalign.runs.judge_recipes import JudgeRecipe, PairData, map_paths
from stepalign.runs.recipes import MINIATURE, local_path
from stepalign.runs.resuming import newest_state, rows_of
from stepalign.runs.run import Run, carry_out
from stepalign.runs.run_directory import (
    CHECKPOINT,
    METRICS,
    PREVIOUS,
    RECIPE,
    REPORT,
    START,
    recipe_owner,
    save_run,
    write_recipe,
)
from stepalign.support.config import public_name, to_yaml
from stepalign.support.environment import timing, versions
from stepalign.support.files import write_text
from stepalign.support.json_text import to_json
from stepalign.support.parallel import any_asked_to_stop, processes
from stepalign.support.parsing import parse_json, read_text
from stepalign.support.stopping import Stopped, finishing
from stepalign.support.watcher import NullWatcher, Watcher
from stepalign.training.evaluate_judge import Scores, compare_judges, held_out_noise, score_held_out
from stepalign.training.judge_trainer import JudgeState
from stepalign.training.watch import Row, judge_signs

JUDGE = "judge"
FILES = (RECIPE, METRICS, START, CHECKPOINT, PREVIOUS, JUDGE, REPORT)
BY_CONTENT = frozenset(
    {"model", "base.vae", "base.config", "judge.start", "data.pairs", "data.relabel_with", "evaluation.pairs"}
)
"""Fields of a recipe that name parts of `JudgeParts.identity`."""
NUM_EXAMPLES = 4
NUM_LISTED = 20
"""Rows that could not be used, listed in the summary."""


@dataclass(frozen=True, slots=True)
class JudgeProgress:
    """A judge's training in progress: its parts, its directory, the starting model's scores, the rows so far."""

    parts: JudgeParts
    run: Run
    start: Scores
    """Held-out scores of the model that training began with."""
    rows: list[Row]
    """Metrics of the steps done; training adds to them."""
    cut: dict[str, PromptsCut]


def run_judge(recipe: JudgeRecipe, output: str | Path, *, watcher: Watcher | None = None) -> JudgeSummary | None:
    """Train a judge as a recipe says, in a directory of its own, and return the summary.

    The same call on an unfinished run's directory resumes from its last checkpoint. On a finished one it checks the
    files and returns the summary; damaged and missing files are named and made again from the checkpoint. In a
    distributed run the main process reports; the others return None. Raises ValueError, before writing anything but
    the cache of latents, when the recipe cannot be run, the directory is another run's, or another job is at work
    there.
    """
    recipe, watcher = map_paths(recipe, local_path), watcher or NullWatcher()
    blank, free = JudgeRecipe(name=recipe.name), frozenset({"data.cache"})
    return carry_out(
        Path(output),
        recipe_owner("train-judge", recipe, blank, by_content=BY_CONTENT, free=free),
        files=FILES,
        watcher=watcher,
        load=load_judge_summary,
        identity=lambda: judge_identity(recipe),
        work=lambda run: _work(recipe, run),
    )


def _work(recipe: JudgeRecipe, run: Run) -> JudgeSummary | None:
    """Train the remaining steps, measure, and write the results."""
    parts = assemble_judge(recipe, run.watcher)
    run.identify(parts.identity)
    cut = {
        which: count_cut(parts.readers, pairs.prompts, run.watcher, which=which)
        for which, pairs in (("training", parts.trainer.pairs), ("held-out", parts.held_out))
    }
    start, rows = _resume(parts, run)
    progress = JudgeProgress(parts, run, start, rows, cut)
    with finishing():
        _train(progress)
    if parts.trainer.num_skipped == parts.trainer.num_steps:
        raise ValueError(
            f"none of {parts.trainer.num_steps} steps had a gradient of finite numbers: nothing was trained; check the "
            "files of judge.start and the pairs, or lower training.learning_rate"
        )
    began = time.perf_counter()
    judge = _held_out_scores(parts, run.watcher)
    if not processes().is_main_process:
        return None
    write_recipe(run.output, recipe)
    summary = _summarise(progress, judge, began)
    for sign in summary["watch"]:
        run.watcher.note(f"watch: {sign['message']}")
    _save_judge(parts, run.output / JUDGE, summary)
    write_judge_report(
        run.output / REPORT,
        title=recipe.name,
        recipe=to_yaml(recipe),
        rows=rows,
        summary=summary,
        examples=_examples(progress, judge),
    )
    run.finish(SUMMARY, summary_text(summary))
    return summary


def _resume(parts: JudgeParts, run: Run) -> tuple[Scores, list[Row]]:
    """The starting model's held-out scores and the rows so far, with the newest checkpoint restored, if any."""
    found = newest_state(run.output, JudgeState, note=run.watcher.note)
    if found is None:
        return _held_out_scores(parts, run.watcher), []
    state, texts = found
    start = _start_scores(texts[START] if START in texts else read_text(run.output / START, "output"), run.output)
    parts.trainer.restore(state)
    return start, rows_of(texts, run.output, parts.trainer.num_steps)


def _start_scores(text: str, output: Path) -> Scores:
    try:
        return {int(t): torch.tensor(pairs) for t, pairs in parse_json(text, START).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"output: {output / START} is damaged; restore it, or give another directory") from error


def _held_out_scores(parts: JudgeParts, watcher: Watcher) -> Scores:
    evaluation = parts.recipe.evaluation
    return score_held_out(
        parts.scorer,
        parts.held_out,
        timesteps=evaluation.timesteps,
        seed=evaluation.seed,
        batch_size=evaluation.batch_size,
        tick=lambda done, total: watcher.phase("evaluate", done, total),
    )


def _train(progress: JudgeProgress) -> None:
    """Do the remaining steps."""
    trainer, recipe = progress.parts.trainer, progress.parts.recipe
    total = recipe.training.num_steps
    progress.parts.scorer.drain_counters()  # those of the evaluation do not count as training's
    while trainer.num_steps < total:
        row = trainer.step()
        progress.rows.append(row)
        progress.run.watcher.round(row, total)
        stop = any_asked_to_stop()
        due = stop or trainer.num_steps % recipe.checkpoint_every == 0 or trainer.num_steps == total
        if processes().is_main_process and due:
            _save(progress)
        if stop:
            raise Stopped(stop, f"step {trainer.num_steps} of {total} is saved")


def _save(progress: JudgeProgress) -> None:
    """Write a checkpoint and the files that belong to it."""
    output = progress.run.output
    write_recipe(output, progress.parts.recipe)
    write_text(output / START, to_json({t: pairs.tolist() for t, pairs in progress.start.items()}) + "\n")
    save_run(output, progress.parts.trainer.state(), progress.rows)


def _summarise(progress: JudgeProgress, judge: Scores, began: float) -> JudgeSummary:
    """The summary of a training whose last evaluation, with the scores of `judge`, began at a moment."""
    parts, recipe, trainer = progress.parts, progress.parts.recipe, progress.parts.trainer
    accuracy, reliability = compare_judges(progress.start, judge, parts.held_out.label, parts.held_out.prompts)
    tail = [row["loss"] for row in progress.rows[-100:] if row["loss"] is not None]
    seconds = trainer.seconds + time.perf_counter() - began
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "base": public_name(recipe.model),
        "start": public_name(recipe.judge.start),
        "judge": "step-aware" if recipe.judge.timestep_conditioning else "without timesteps",
        "num_pairs": len(trainer.pairs),
        "num_pairs_drawn": trainer.num_steps * recipe.training.batch_size,
        "num_held_out": len(parts.held_out),
        "num_held_out_prompts": len(set(parts.held_out.prompts)),
        "num_decided": int((parts.held_out.label != 0.5).sum()),
        "accuracy": accuracy,
        "reliability": reliability,
        "data": _data_summary(parts),
        "steps": trainer.num_steps,
        "final_loss": sum(tail) / len(tail) if tail else None,
        "calls": {f"training_{name}": num for name, num in trainer.calls.items()},
        "versions": versions(),
        "timing": timing(seconds=seconds, training_seconds=trainer.seconds, device=parts.model.device),
        "prompts_cut": progress.cut,
        "watch": [sign.row() for sign in judge_signs(progress.rows, accuracy, num_skipped=trainer.num_skipped)],
    }


def _data_summary(parts: JudgeParts) -> JudgeData:
    """The preference data of a training, and the rows of it that could not be used."""
    manifest = parts.manifest
    return {
        "pairs": public_name(manifest.pairs),
        "held_out": parts.held_out_name,
        "labels": _labelled_by(parts.recipe.data),
        "num_rows": manifest.num_rows,
        "num_unlabelled": manifest.num_unlabelled,
        "num_skipped": len(manifest.skipped),
        "skipped": [{"where": row.where, "reason": row.reason} for row in manifest.skipped[:NUM_LISTED]],
        "cache_bytes": manifest.num_bytes,
    }


def _labelled_by(data: PairData) -> str:
    """Where the training pairs' labels come from, in words."""
    if data.relabel_with is not None:
        return public_name(data.relabel_with)
    return "oracles that measure the miniature's images" if data.pairs == MINIATURE else "the data set"


def _save_judge(parts: JudgeParts, folder: Path, summary: JudgeSummary) -> None:
    """Write the judge as `--judge.path` takes it, with a model card that names no folder of this machine."""
    recipe = parts.recipe
    dtype = torch.bfloat16 if recipe.export == "bf16" else torch.float32
    parts.scorer.model.save_pretrained(folder, dtype=dtype)
    parts.scorer.tokenizer.save_pretrained(folder)
    command = shlex.join(["stepalign", "train-judge", RECIPE])
    public = to_yaml(map_paths(replace(recipe, data=replace(recipe.data, cache=PairData().cache)), public_name))
    write_text(folder / CARD, model_card(name=recipe.name, command=command, recipe=public, summary=summary))


@torch.no_grad()
def _examples(progress: JudgeProgress, judge: Scores) -> list[JudgedPair]:
    """The first decided held-out pairs as the judge saw them at every noise level."""
    parts, start, seed = progress.parts, progress.start, progress.parts.recipe.evaluation.seed
    rows = (parts.held_out.label != 0.5).nonzero()[:NUM_EXAMPLES, 0].tolist()
    device = parts.scorer.device
    examples = []
    for row in rows:
        pair = parts.held_out.take([row])
        steps = []
        for timestep in sorted(judge):
            noise = held_out_noise(seed, timestep, [row], device).normal(*pair.latents.shape[2:])
            t, cond = torch.tensor([timestep], device=device), pair.cond.map(lambda value: value.to(device))
            images = parts.scorer.base.estimates(pair.latents.to(device), cond, t, noise)[0]
            first = [
                float((scores[timestep][row, 0] - scores[timestep][row, 1]).sigmoid()) for scores in (start, judge)
            ]
            steps.append(JudgedStep(timestep, (images / 2 + 0.5).clamp(0, 1).cpu(), *first))
        examples.append(JudgedPair(pair.prompts[0], pair.label.item(), steps))
    return examples
