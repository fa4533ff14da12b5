"""A judge's training from recipe to report, in a directory that says all about it.

stepalign.json   whose directory it is, written first (`claim.py`)
recipe.yaml      the resolved recipe; `stepalign train-judge recipe.yaml` runs it again
metrics.jsonl    a row per step
start.json       the held-out scores of the model training began with
checkpoint.pt    what the same command resumes from; previous-checkpoint.pt is the one before
judge/           config, weights, tokenizer and model card, for `--judge.path` and `stepalign push-judge`
report.html      all of it to look at
files.json       size and SHA-256 of the files above, checked when the command is given again
summary.json     held-out accuracy by noise level, with intervals; work done; written last
"""

from __future__ import annotations

import json
import shlex
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from stepalign.data.prompts_cut import count_cut
from stepalign.judges.card import model_card
from stepalign.judges.spm_files import CARD
from stepalign.reports.judge import JudgedPair, JudgedStep, write_judge_report
from stepalign.runs.assemble_judge import JudgeParts, assemble_judge, judge_identity
from stepalign.runs.judge_recipes import JudgeRecipe, PairData, map_paths
from stepalign.runs.recipes import MINIATURE, local_path
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
from stepalign.support.claim import Claim, claim
from stepalign.support.config import public_name, to_yaml
from stepalign.support.environment import timing, versions
from stepalign.support.file_record import record_files
from stepalign.support.files import save_state, write_text
from stepalign.support.json_text import to_json
from stepalign.support.parallel import any_asked_to_stop, decided_by_main, processes
from stepalign.support.stopping import Stopped, finishing
from stepalign.support.watcher import NullWatcher, Watcher
from stepalign.training.evaluate_judge import Scores, compare_judges, held_out_noise, score_held_out
from stepalign.training.judge_trainer import JudgeState
from stepalign.training.watch import judge_signs

JUDGE, START = "judge", "start.json"
FILES = (RECIPE, METRICS, START, CHECKPOINT, PREVIOUS, JUDGE, REPORT)
BY_CONTENT = frozenset(
    {"model", "base.vae", "base.config", "judge.start", "data.pairs", "data.relabel_with", "evaluation.pairs"}
)
"""Fields of a recipe that name parts of `JudgeParts.identity`."""
NUM_EXAMPLES = 4
NUM_LISTED = 20
"""Rows that could not be used, listed in the summary."""


def run_judge(recipe: JudgeRecipe, output: str | Path, *, watcher: Watcher | None = None) -> dict[str, Any]:
    """Train a judge as a recipe says, in a directory of its own, and return the summary.

    The same call on an unfinished run's directory resumes from its last checkpoint. On a finished one it checks the
    files and returns the summary; what is damaged or missing is named and made again from the checkpoint. In a
    distributed run the main process reports; the others return an empty summary. Raises ValueError, before writing
    anything but the cache of latents, when the recipe cannot be run, the directory is another run's, or another job is
    at work there.
    """
    recipe, output, watcher = map_paths(recipe, local_path), Path(output), watcher or NullWatcher()
    blank, free = JudgeRecipe(name=recipe.name), frozenset({"data.cache"})
    owner = recipe_owner("train-judge", recipe, blank, by_content=BY_CONTENT, free=free)
    with claim(output, owner, tell=watcher.note) as claimed:
        done = decided_by_main(lambda: finished_whole(output, FILES, adopted=claimed.adopted, tell=watcher.note))
        if done is None:
            return _work_on(recipe, claimed, watcher)
        claimed.identify(judge_identity(recipe) if processes().is_main_process else {})
        return done


def _work_on(recipe: JudgeRecipe, claimed: Claim, watcher: Watcher) -> dict[str, Any]:
    """Train what is left to train, measure, and write the results."""
    output, parts = claimed.output, assemble_judge(recipe, watcher)
    claimed.identify(parts.identity)
    cut = {
        which: count_cut(parts.readers, pairs.prompts, watcher, which=which)
        for which, pairs in (("training", parts.trainer.pairs), ("held-out", parts.held_out))
    }
    start, rows = _resume(recipe, parts, output, watcher)
    with finishing():
        _train(recipe, parts, output, start, rows, watcher)
    began = time.perf_counter()
    judge = _held_out_scores(recipe, parts, watcher)
    if not processes().is_main_process:
        return {}
    write_recipe(output, recipe)
    summary = _summarise(recipe, parts, rows, start, judge, began) | {"prompts_cut": cut}
    signs = judge_signs(rows, summary["accuracy"])
    summary["watch"] = [asdict(sign) for sign in signs]
    for sign in signs:
        watcher.note(f"watch: {sign.message}")
    _save_judge(recipe, parts, output / JUDGE, summary)
    write_judge_report(
        output / REPORT,
        title=recipe.name,
        recipe=to_yaml(recipe),
        rows=rows,
        summary=summary,
        examples=_examples(recipe, parts, start, judge),
    )
    text = to_json(summary, indent=2) + "\n"
    record_files(output, FILES, pending={SUMMARY: text})
    write_text(output / SUMMARY, text)
    return summary


def _resume(
    recipe: JudgeRecipe, parts: JudgeParts, output: Path, watcher: Watcher
) -> tuple[Scores, list[dict[str, Any]]]:
    """The starting model's held-out scores and the rows so far, with the newest checkpoint restored, if any."""
    found = newest_state(output, JudgeState, tell=watcher.note)
    if found is None:
        return _held_out_scores(recipe, parts, watcher), []
    state, texts = found
    start = _start_scores(texts[START] if START in texts else (output / START).read_text(encoding="utf-8"), output)
    parts.trainer.restore(state)
    return start, rows_of(texts, output, parts.trainer.num_steps)


def _start_scores(text: str, output: Path) -> Scores:
    try:
        return {int(t): torch.tensor(pairs) for t, pairs in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"output: {output / START} is damaged; restore it, or give another directory") from error


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
        stop = any_asked_to_stop()
        due = stop or trainer.num_steps % recipe.checkpoint_every == 0 or trainer.num_steps == total
        if processes().is_main_process and due:
            write_recipe(output, recipe)
            write_text(output / START, to_json({t: pairs.tolist() for t, pairs in start.items()}) + "\n")
            write_rows(output, rows)
            save_state(trainer.state(), output / CHECKPOINT, files=(METRICS, START))
        if stop:
            raise Stopped(stop, f"step {trainer.num_steps} of {total} is saved")


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
        "num_pairs_drawn": parts.trainer.num_steps * recipe.training.batch_size,
        "num_held_out": len(parts.held_out),
        "num_held_out_prompts": len(set(parts.held_out.prompts)),
        "num_decided": int((parts.held_out.label != 0.5).sum()),
        "accuracy": accuracy,
        "reliability": reliability,
        "data": {
            "pairs": public_name(manifest.pairs),
            "held_out": parts.held_out_name,
            "labels": _labelled_by(recipe.data),
            "num_rows": manifest.num_rows,
            "num_unlabelled": manifest.num_unlabelled,
            "num_skipped": len(manifest.skipped),
            "skipped": [{"where": row.where, "reason": row.reason} for row in manifest.skipped[:NUM_LISTED]],
            "cache_bytes": manifest.num_bytes,
        },
        "steps": parts.trainer.num_steps,
        "final_loss": sum(tail) / len(tail),
        "calls": dict(Counter({f"training_{name}": num for name, num in parts.trainer.calls.items()})),
        "versions": versions(),
        "timing": timing(
            seconds=parts.trainer.seconds + time.perf_counter() - began,
            training_seconds=parts.trainer.seconds,
            device=parts.model.device,
        ),
    }


def _labelled_by(data: PairData) -> str:
    """Where the training pairs' labels come from, in words."""
    if data.relabel_with is not None:
        return public_name(data.relabel_with)
    return "oracles that measure the miniature's images" if data.pairs == MINIATURE else "the data set"


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
