"""How well a judge orders held-out pairs at each noise level, next to the model its training began with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor

from stepalign.core.protocols import PairScorer
from stepalign.core.seeding import PromptNoise, Purpose, generator_for
from stepalign.data.prepared import PreparedPairs
from stepalign.judges.pairs import agreement
from stepalign.support.parallel import processes
from stepalign.support.shares import reliability, share_change_interval, share_interval
from stepalign.support.statistics import clusters_of

Scores = dict[int, Float[Tensor, "n 2"]]
"""Of every held-out pair, by timestep."""


@torch.no_grad()
def score_held_out(
    scorer: PairScorer,
    pairs: PreparedPairs,
    *,
    timesteps: tuple[int, ...],
    seed: int,
    batch_size: int,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """The judge's scores of every pair at every timestep, on the CPU; pair i's noise depends on nothing but i.

    Processes share the pairs, and each embeds its distinct prompts once.
    """
    training = scorer.model.training
    scorer.model.eval()
    rows = list(range(len(pairs)))[processes().process_index :: processes().num_processes]
    distinct = list(dict.fromkeys(pairs.prompts[row] for row in rows))
    text: dict[str, Tensor] = {}
    for start in range(0, len(distinct), batch_size):
        chunk = distinct[start : start + batch_size]
        text.update(zip(chunk, scorer.text_features(chunk), strict=True))
    found: list[tuple[int, int, list[float]]] = []
    for start in range(0, len(rows), batch_size):
        chunk_rows = rows[start : start + batch_size]
        batch = pairs.take(chunk_rows)
        features = torch.stack([text[prompt] for prompt in batch.prompts])
        for timestep in timesteps:
            noise = held_out_noise(seed, timestep, chunk_rows, scorer.device)
            t = torch.full((len(chunk_rows),), timestep, device=scorer.device)
            scores = scorer.scores(batch.latents, batch.cond, features, t, noise.normal(*batch.latents.shape[2:]))
            found += [(timestep, row, pair) for row, pair in zip(chunk_rows, scores.tolist(), strict=True)]
        tick(start + len(chunk_rows), len(rows))
    scorer.model.train(training)
    gathered = sorted(gather_object(found))
    return {timestep: torch.tensor([pair for at, _, pair in gathered if at == timestep]) for timestep in timesteps}


def held_out_noise(seed: int, timestep: int, rows: Sequence[int], device: torch.device) -> PromptNoise:
    """The noise of held-out pairs at a timestep."""
    return PromptNoise([generator_for(seed, Purpose.EVALUATION, timestep, row) for row in rows], device=device)


def compare_judges(
    start: Scores, judge: Scores, label: Float[Tensor, " n"], prompts: Sequence[str]
) -> tuple[list[dict[str, object]], dict[str, object]]:
    """Accuracy by timestep and reliability of two judges on the same inputs, as plain values for a summary.

    Pairs whose label is a tie are left out. Intervals are 95 %, with prompts as clusters: Wilson's for an
    accuracy, Agresti and Min's for the paired difference. For reliability every pair counts once, at one of the
    timesteps in turn.
    """
    decided = label != 0.5
    clusters = clusters_of([prompt for prompt, kept in zip(prompts, decided.tolist(), strict=True) if kept])
    accuracy = []
    for timestep in sorted(judge):
        right = [agreement(scores[timestep], label)[decided].double() for scores in (start, judge)]
        names = ("start", "judge")
        row = {name: _share(values, clusters) for name, values in zip(names, right, strict=True)}
        accuracy.append({"timestep": timestep, **row, **_difference(right[1] - right[0], clusters)})
    towards = torch.where(label > 0.5, 1.0, -1.0)
    gaps = {
        name: torch.stack([(scores[at][:, 0] - scores[at][:, 1]) * towards for at in sorted(scores)], 1)[decided]
        for name, scores in (("start", start), ("judge", judge))
    }
    turn = torch.arange(int(decided.sum())) % len(judge)
    return accuracy, {
        name: reliability(gap[torch.arange(len(gap)), turn], clusters=clusters) for name, gap in gaps.items()
    }


def _share(right: Float[Tensor, " n"], clusters: np.ndarray) -> dict[str, object]:
    accuracy = right.mean().item() if len(right) else None
    return {"accuracy": accuracy, "interval": list(share_interval(right.numpy(), clusters))}


def _difference(changes: Float[Tensor, " n"], clusters: np.ndarray) -> dict[str, object]:
    difference = changes.mean().item() if len(changes) else None
    return {"difference": difference, "interval": list(share_change_interval(changes.numpy(), clusters))}
