"""The values that flow: conditioning, judged candidates, comparisons.

Letters in shapes: b prompts or comparisons, k candidates of one step, p parents of a comparison, c h w one latent,
l d text tokens and their width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepalign.core.choices import Pairing

B = TypeVar("B", bound="Batch")


class Batch:
    """A frozen dataclass of tensors (or further batches, or None) that share their first axis."""

    __slots__ = ()

    def map(self: B, fn: Callable[[Tensor], Tensor]) -> B:
        """The same value with `fn` applied to every tensor."""
        changes = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            changes[field.name] = None if value is None else value.map(fn) if isinstance(value, Batch) else fn(value)
        return replace(self, **changes)  # type: ignore[type-var]

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))  # type: ignore[arg-type]

    def __getitem__(self: B, index: Tensor | slice | list[int]) -> B:
        return self.map(lambda tensor: tensor[index])

    def tile(self: B, k: int) -> B:
        """Every entry k times in a row: a b c becomes a a b b c c for k = 2."""
        return self.map(lambda tensor: tensor.repeat_interleave(k, 0))


def cat(batches: Sequence[B]) -> B:
    """Batches of one type joined along their first axis; raises ValueError for an empty list."""
    if not batches:
        raise ValueError("cannot join an empty list of batches")
    columns = [[getattr(batch, field.name) for batch in batches] for field in fields(batches[0])]  # type: ignore[arg-type]
    joined = [
        None if column[0] is None else cat(column) if isinstance(column[0], Batch) else torch.cat(column)
        for column in columns
    ]
    return type(batches[0])(*joined)


@dataclass(frozen=True, slots=True)
class Conditioning(Batch):
    """A denoiser's inputs besides x_t and t."""

    tokens: Float[Tensor, "b l d"]
    pooled: Float[Tensor, "b q"] | None = None
    """SDXL and later: the pooled text embedding."""
    time_ids: Float[Tensor, "b 6"] | None = None
    """SDXL: original size, crop and target size."""


@dataclass(frozen=True, slots=True)
class StepCandidates(Batch):
    """k ways to take one denoising step, judged."""

    cond: Conditioning
    step: Int[Tensor, " b"]
    """The sampler's step that was taken from the parents."""
    x_t: Float[Tensor, "b p c h w"]
    """Parents; p = 1: all candidates leave from one sample, p = k: each from its own."""
    prediction: Float[Tensor, "b p c h w"]
    """The guided prediction at the parents, which the step was taken with."""
    noise: Float[Tensor, "b k c h w"]
    """Standard normal; candidate i is x_prev = mean + sigma_t noise_i, `sampler.transition(...).sample(noise)`."""
    scores: Float[Tensor, "b k"]
    """The judge's; larger is better. A PickScore-like judge includes exp(logit_scale)."""


@dataclass(frozen=True, slots=True)
class StepComparisons(Batch):
    """The judge prefers the candidate that took entry 0 of the noise to the one that took entry 1."""

    cond: Conditioning
    step: Int[Tensor, " b"]
    x_t: Float[Tensor, "b p c h w"]
    """p = 1: both entries leave from one parent; p = 2: each from its own."""
    prediction: Float[Tensor, "b p c h w"]
    noise: Float[Tensor, "b 2 c h w"]


def preference_gap(scores: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """The judge's confidence in the best over the worst: P(best) - P(worst) = tanh((s_best - s_worst) / 2)."""
    return torch.tanh((scores.amax(1) - scores.amin(1)) / 2)


def pair(
    candidates: StepCandidates, *, rule: Pairing = "best-worst", min_gap: float = 0.0
) -> tuple[StepComparisons, Bool[Tensor, " b"]]:
    """One comparison per pool, and a mask of the comparisons whose preference gap is large enough to train on.

    "best-worst" compares the best candidate with the worst (SPO section 4.1). "two-random" orders the first two
    candidates by their scores (SPO Table 9). "all-k" lets every candidate vote: the pair's noises are ±z/2 with
    z = sum_i w_i z_i, w the centred scores scaled to sum(w²) = 2, so that |z| is what |z_best - z_worst| would be for
    independent noise.

    A comparison is kept when its two scores' preference gap exceeds `min_gap` ("all-k": the best's and worst's).
    Pools with equal compared scores are never kept.
    """
    scores, k = candidates.scores, candidates.scores.shape[1]
    if k < 2:
        raise ValueError(f"a comparison needs at least two candidates, got k = {k}")
    if rule == "two-random":
        scores = scores[:, :2]
    kept = (preference_gap(scores) > min_gap) & (scores.amax(1) > scores.amin(1))
    x_t, prediction, noise = candidates.x_t, candidates.prediction, candidates.noise
    if rule == "all-k":
        if x_t.shape[1] != 1:
            raise ValueError("pairing 'all-k' needs candidates that leave from one parent")
        half = 0.5 * torch.einsum("bk,bkchw->bchw", vote_weights(scores).to(noise.dtype), noise)
        return StepComparisons(candidates.cond, candidates.step, x_t, prediction, torch.stack([half, -half], 1)), kept
    order = torch.stack([scores.argmax(1), scores.argmin(1)], 1)
    rows = torch.arange(len(order), device=order.device)[:, None]
    if x_t.shape[1] != 1:
        x_t, prediction = x_t[rows, order], prediction[rows, order]
    return StepComparisons(candidates.cond, candidates.step, x_t, prediction, noise[rows, order]), kept


def vote_weights(scores: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Centred scores scaled to a sum of squares of 2; zeros where all scores are equal."""
    # Relative to the first score and in fp64: of scores like 22.30001 a mean in fp32 would lose the differences.
    relative = (scores - scores[:, :1]).double()
    centred = relative - relative.mean(1, keepdim=True)
    norm = centred.norm(dim=1, keepdim=True)
    return torch.where(norm > 0, centred * 2**0.5 / norm, 0.0).to(scores.dtype)


@dataclass(frozen=True, slots=True)
class LatentPairs:
    """Labelled preferences: two images of one prompt each, as latents."""

    prompts: list[str]
    cond: Conditioning
    """Of the prompts, under the base model the judge will look through."""
    latents: Float[Tensor, "b 2 c h w"]
    label: Float[Tensor, " b"]
    """How far image 0 is preferred: 1, 0, or .5 for a tie."""
    weight: Float[Tensor, " b"]
    """Of each pair in the loss; 1 / num_example_per_prompt for Pick-a-Pic."""
