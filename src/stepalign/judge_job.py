"""A judge's training from recipe to report, in a directory that says all about it.

recipe.yaml      the resolved recipe; `stepalign train-judge recipe.yaml` runs it again
metrics.jsonl    a row per step
start.json       the held-out scores of the model training began with
checkpoint.pt    what the same command goes on from
judge/           config, weights, tokenizer and model card, for `--judge.path` and `stepalign push-judge`
summary.json     held-out accuracy by noise level, with intervals; work done
report.html      all of it to look at
"""

from __future__ import annotations

import json
import shlex
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stepalign.assemble_judge import JudgeParts, assemble_judge
from stepalign.checkpoint import load_state, save_state, write_text
from stepalign.config import public_name, to_yaml
from stepalign.evaluate_judge import Scores, compare_judges, held_out_noise, score_held_out
from stepalign.judge_recipes import JudgeRecipe, PairData, map_paths
from stepalign.judge_report import JudgedPair, JudgedStep, write_judge_report
from stepalign.judges.card import model_card
from stepalign.judges.spm_files import CARD
from stepalign.parallel import processes
from stepalign.prompts_cut import count_cut
from stepalign.recipes import local_path
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
from stepalign.train_judge import JudgeState

JUDGE, START = "judge", "start.json"
NUM_EXAMPLES = 4
NUM_LISTED = 20
"""Rows that could not be used, listed in the summary."""


def run_judge(recipe: JudgeRecipe, output: str | Path, *, watcher: Watcher | None = None) -> dict[str, Any]:
    """Train a judge as a recipe says, in a directory of its own, and return the summary.

    The same call on an unfinished run's directory goes on from its last checkpoint; on a finished one it only
    returns the summary. In a distributed run the main process reports; the others return an empty summary. Raises
    ValueError, before writing anything but the cache of latents, when the recipe cannot be run or the directory is
    another run's.
    """
    recipe, output, watcher = map_paths(recipe, local_path), Path(output), watcher or Silence()
    claim(output, to_yaml(recipe))
    if (done := finished(output)) is not None:
        return done
    parts = assemble_judge(recipe, watcher)
    cut = {
        which: count_cut(parts.readers, pairs.prompts, watcher, which=which)
        for which, pairs in (("training", parts.trainer.pairs), ("held-out", parts.held_out))
    }
    start, rows = _resume(recipe, parts, output, watcher)
    _train(recipe, parts, output, start, rows, watcher)
    began = time.perf_counter()
    judge = _held_out_scores(recipe, parts, watcher)
    if not processes().is_main_process:
        return {}
    summary = _summarise(recipe, parts, rows, start, judge, began) | {"prompts_cut": cut}
    _save_judge(recipe, parts, output / JUDGE, summary)
    write_judge_report(
        output / REPORT,
        title=recipe.name,
        recipe=to_yaml(recipe),
        rows=rows,
        summary=summary,
        examples=_examples(recipe, parts, start, judge),
    )
    write_text(output / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def _resume(
    recipe: JudgeRecipe, parts: JudgeParts, output: Path, watcher: Watcher
) -> tuple[Scores, list[dict[str, Any]]]:
    """The starting model's held-out scores and the rows so far, with the last checkpoint taken up, if any."""
    if not (output / CHECKPOINT).is_file():
        return _held_out_scores(recipe, parts, watcher), []
    saved = json.loads((output / START).read_text())
    parts.trainer.restore(load_state(output / CHECKPOINT, JudgeState))
    return {int(t): torch.tensor(pairs) for t, pairs in saved.items()}, read_rows(output, parts.trainer.num_steps)


def _held_out_scores(recipe: JudgeRecipe, parts: JudgeParts, watcher: Watcher) -> Scores:
    return score_held_out(
        parts.scorer,
        parts.held_out,
        timesteps=recipe.evaluation.timesteps,
        seed=recipe.evaluation.seed,
        batch_size=recipe.evaluation.batch_size,
        tick=lambda done, total: watcher.phase("evaluate", done, total),
    )


def _train(
    recipe: JudgeRecipe,
    parts: JudgeParts,
    output: Path,
    start: Scores,
    rows: list[dict[str, Any]],
    watcher: Watcher,
) -> None:
    """Do the remaining steps; `rows` grows by theirs."""
    trainer, total = parts.trainer, recipe.training.num_steps
    parts.scorer.take_calls()  # the evaluation's are no part of the training's
    while trainer.num_steps < total:
        row = trainer.step()
        rows.append(row)
        watcher.round(row, total)
        due = trainer.num_steps % recipe.checkpoint_every == 0 or trainer.num_steps == total
        if processes().is_main_process and due:
            write_text(output / RECIPE, to_yaml(recipe))
            write_text(output / START, json.dumps({t: pairs.tolist() for t, pairs in start.items()}) + "\n")
            write_rows(output, rows)
            save_state(trainer.state(), output / CHECKPOINT)


def _summarise(
    recipe: JudgeRecipe, parts: JudgeParts, rows: list[dict[str, Any]], start: Scores, judge: Scores, began: float
) -> dict[str, Any]:
    accuracy, reliability = compare_judges(start, judge, parts.held_out.label, parts.held_out.prompts)
    manifest, tail = parts.manifest, [row["loss"] for row in rows[-100:]]
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "base": public_name(recipe.model),
        "start": public_name(recipe.judge.start),
        "judge": "step-aware" if recipe.judge.timestep_conditioning else "without timesteps",
        "num_pairs": len(parts.trainer.pairs),
        "num_held_out": len(parts.held_out),
        "num_held_out_prompts": len(set(parts.held_out.prompts)),
        "num_decided": int((parts.held_out.label != 0.5).sum()),
        "accuracy": accuracy,
        "reliability": reliability,
        "data": {
            "pairs": public_name(manifest.pairs),
            "held_out": parts.held_out_name,
            "num_rows": manifest.num_rows,
            "num_unlabelled": manifest.num_unlabelled,
            "num_skipped": len(manifest.skipped),
            "skipped": [{"where": row.where, "reason": row.reason} for row in manifest.skipped[:NUM_LISTED]],
            "cache_bytes": manifest.num_bytes,
        },
        "steps": parts.trainer.num_steps,
        "final_loss": sum(tail) / len(tail),
        "seconds": round(parts.trainer.seconds + time.perf_counter() - began, 1),
        "training_seconds": round(parts.trainer.seconds, 1),
        "calls": dict(Counter({f"training_{name}": num for name, num in parts.trainer.calls.items()})),
        "device": device_name(parts.model.device),
        "versions": versions(),
    }


def _save_judge(recipe: JudgeRecipe, parts: JudgeParts, folder: Path, summary: dict[str, Any]) -> None:
    """Write the judge as `--judge.path` takes it, with a model card that names no folder of this machine."""
    dtype = torch.bfloat16 if recipe.export == "bf16" else torch.float32
    parts.scorer.model.save_pretrained(folder, dtype=dtype)
    parts.scorer.tokenizer.save_pretrained(folder)
    command = shlex.join(["stepalign", "train-judge", RECIPE])
    public = to_yaml(map_paths(replace(recipe, data=replace(recipe.data, cache=PairData().cache)), public_name))
    write_text(folder / CARD, model_card(name=recipe.name, command=command, recipe=public, summary=summary))


@torch.no_grad()
def _examples(recipe: JudgeRecipe, parts: JudgeParts, start: Scores, judge: Scores) -> list[JudgedPair]:
    """The first decided held-out pairs as the judge saw them at every noise level."""
    rows = (parts.held_out.label != 0.5).nonzero()[:NUM_EXAMPLES, 0].tolist()
    device = parts.scorer.device
    examples = []
    for row in rows:
        pair = parts.held_out.take([row])
        steps = []
        for timestep in sorted(judge):
            noise = held_out_noise(recipe.evaluation.seed, timestep, [row], device).normal(*pair.latents.shape[2:])
            t, cond = torch.tensor([timestep], device=device), pair.cond.map(lambda value: value.to(device))
            images = parts.scorer.base.estimates(pair.latents.to(device), cond, t, noise)[0]
            first = [
                float((scores[timestep][row, 0] - scores[timestep][row, 1]).sigmoid()) for scores in (start, judge)
            ]
            steps.append(JudgedStep(timestep, (images / 2 + 0.5).clamp(0, 1).cpu(), *first))
        examples.append(JudgedPair(pair.prompts[0], pair.label.item(), steps))
    return examples
