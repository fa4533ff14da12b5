"""Gains by timestep: scores of x̂0 by the base and the aligned model on the same noise (GradSPO figure 2b).

gains.json   metric -> timestep -> base, aligned, difference and its 95 % interval over prompts
gains.png    the same as a figure, which the run's report shows too
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from stepalign.core.choices import Role
from stepalign.core.sampling import trajectory
from stepalign.core.seeding import PromptNoise, Purpose, generator_for
from stepalign.reports.figures import gains_panels, plot_gains
from stepalign.reports.run import add_gains
from stepalign.runs.assemble import Parts, assemble
from stepalign.runs.held_out import sampling_of
from stepalign.runs.recipes import load_recipe
from stepalign.runs.run_directory import CHECKPOINT, RECIPE, REPORT
from stepalign.support.config import to_plain
from stepalign.support.digests import refuse_differences
from stepalign.support.file_record import update_record
from stepalign.support.files import RunState, load_state, replacing, write_text
from stepalign.support.json_text import to_json
from stepalign.support.marker import identity_of
from stepalign.support.statistics import clusters_of, paired_difference
from stepalign.training.held_out_scores import ScoreChange

GAINS, FIGURE = "gains.json", "gains.png"
Scores = dict[str, dict[int | float, torch.Tensor]]
"""By metric and timestep, "n" of them."""


def measure_gains(
    run: Path, *, num_prompts: int = 64, tick: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, dict[str, ScoreChange]]:
    """Measure a run's gains on its first held-out prompts, and write gains.json and gains.png beside its report and
    the figure into it.

    The metrics are the run's judge, at each x̂0's own timestep, and its oracles. Returns metric -> timestep -> gain.
    Raises ValueError when the directory has no trained run, or one without held-out prompts.
    """
    parts = _trained_parts(run)
    prompts = parts.held_out[:num_prompts]
    if len(set(prompts)) < 2:
        raise ValueError(f"run: {run} has no held-out prompts to measure on; give its recipe evaluation.prompts")
    total, done = 2 * len(prompts), 0

    def measured(role: Role) -> Scores:
        nonlocal done
        scores: Scores = {name: {} for name in ("judge", *parts.metrics)}
        size = parts.recipe.evaluation.batch_size
        for start in range(0, len(prompts), size):
            chunk = prompts[start : start + size]
            _add_scores(scores, parts, role, chunk, start)
            done += len(chunk)
            tick(done, total)
        return scores

    base, aligned = measured("reference"), measured(parts.recipe.exported_role)
    clusters = clusters_of(prompts)
    gains: dict[str, dict[str, ScoreChange]] = {
        metric: {
            str(t): to_plain(paired_difference(base[metric][t], aligned[metric][t], clusters=clusters))
            for t in base[metric]
        }
        for metric in base
    }
    found = {"num_prompts": len(prompts), "sampling": sampling_of(parts), "gains": gains}
    write_text(run / GAINS, to_json(found, indent=1) + "\n")
    figure = plot_gains(gains)
    with replacing(run / FIGURE) as temporary:
        temporary.write_bytes(figure)
    if (run / REPORT).is_file():
        add_gains(run / REPORT, gains_panels(gains))
    update_record(run, (GAINS, FIGURE, REPORT))
    return gains


def _trained_parts(run: Path) -> Parts:
    """The parts of a trained run, with its checkpoint restored."""
    for file in (RECIPE, CHECKPOINT):
        if not (run / file).is_file():
            raise ValueError(f"run: {run} has no {file}; give the directory of a run")
    parts = assemble(load_recipe(str(run / RECIPE)))
    refuse_differences(parts.identity, identity_of(run), whose=f"{run} was trained with")
    parts.trainer.restore(load_state(run / CHECKPOINT, RunState))
    return parts


@torch.no_grad()
def _add_scores(scores: Scores, parts: Parts, role: Role, prompts: list[str], first: int) -> None:
    """Add the scores of a few prompts' x̂0 along the evaluation's trajectories; prompt i has the noise of image i."""
    rows, recipe = range(first, first + len(prompts)), parts.recipe
    device = parts.model.device
    noise = PromptNoise([generator_for(recipe.seed, Purpose.EVALUATION, row) for row in rows], device=device)
    walk = trajectory(
        parts.policy.denoiser(role),
        parts.sampler.with_eta(recipe.evaluation.eta),
        cond=parts.model.encode(prompts),
        latent_shape=parts.model.latent_shape,
        noise=noise,
    )
    for t, x_t, x_0 in walk:
        step_t = torch.full((len(prompts),), t, device=device)
        found = {"judge": parts.judge(x_t, x_0, step_t, prompts)}
        if parts.metrics:
            images = (parts.model.decode(x_0) / 2 + 0.5).clamp(0, 1).cpu()
            found |= {name: metric(images, prompts) for name, metric in parts.metrics.items()}
        for name, values in found.items():
            scores[name][t] = torch.cat([*([scores[name][t]] if t in scores[name] else []), values.float().cpu()])
