"""Collecting comparisons prompt by prompt: the loop that sources share which sample a round's prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from stepalign.core.batch import Conditioning, StepComparisons, cat
from stepalign.core.experience import Collected, Experience
from stepalign.core.protocols import Denoiser, Sampler
from stepalign.core.seeding import PromptNoise, Purpose, generator_for
from stepalign.sources.prompt_order import PromptStream
from stepalign.support.parallel import processes

SourceMetrics = dict[str, list[float] | int | float | None]


@dataclass(frozen=True, slots=True, eq=False)
class PromptSampling:
    """How a round's prompts are sampled."""

    denoise: Denoiser
    """The policy in the role that samples."""
    sampler: Sampler
    encode: Callable[[list[str]], Conditioning]
    stream: PromptStream
    latent_shape: tuple[int, int, int]
    prompts_per_round: int
    """Of all processes together."""
    sample_batch: int
    """Prompts sampled at once by one process."""
    seed: int
    device: torch.device


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """The comparisons on one trajectory per prompt, a list entry per step."""

    steps: list[tuple[StepComparisons, Bool[Tensor, " b"]]]
    """Comparisons and which of them train, in the order of the trajectory."""
    metrics: SourceMetrics


Compare = Callable[[list[str], Conditioning, PromptNoise, Callable[[], None]], Compared]
"""(prompts, their conditioning, their noise, called after each step) -> comparisons."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptSource:
    """Collects comparisons along one trajectory per prompt of a round."""

    sampling: PromptSampling
    compare: Compare

    @property
    def digest(self) -> str:
        """Of the prompts."""
        return self.sampling.stream.digest

    def collect(self, index: int, tick: Callable[[int, int], None]) -> Collected[StepComparisons]:
        """This process's comparisons of round `index`, counted from 0."""
        return _collect(self.sampling, index, tick, self.compare)


def _collect(
    sampling: PromptSampling, index: int, tick: Callable[[int, int], None], compare: Compare
) -> Collected[StepComparisons]:
    """The comparisons of this process's share of the prompts of round `index`, those of one parent before those of two.

    A row's step is its place among the trajectory's comparisons.
    """
    first, rank, world = index * sampling.prompts_per_round, processes().process_index, processes().num_processes
    positions = list(range(first, first + sampling.prompts_per_round))[rank::world]
    chunks = [positions[i : i + sampling.sample_batch] for i in range(0, len(positions), sampling.sample_batch)]
    rows: dict[int, list[Experience[StepComparisons]]] = {1: [], 2: []}
    metrics: SourceMetrics = {}
    num_offered = done = 0

    def on_step() -> None:
        nonlocal done
        done += 1
        tick(done, len(chunks) * sampling.sampler.num_steps)

    for chunk in chunks:
        prompts = [sampling.stream[position] for position in chunk]
        noise = PromptNoise(
            [generator_for(sampling.seed, Purpose.ROLLOUT, position) for position in chunk], device=sampling.device
        )
        found = compare(prompts, sampling.encode(prompts), noise, on_step)
        for step, (comparisons, kept) in enumerate(found.steps):
            at = torch.tensor(chunk)[kept.cpu()]
            part = Experience(comparisons[kept], at, torch.full_like(at, step))
            rows[comparisons.x_t.shape[1]].append(part)
            num_offered += len(chunk)
        metrics = _joined(metrics, found.metrics)
    experience = [_cat(parts, num_parents) for num_parents, parts in rows.items() if parts]
    return Collected(experience, num_offered, metrics)


def _cat(parts: list[Experience[StepComparisons]], num_parents: int) -> Experience[StepComparisons]:
    columns = (torch.cat([part.position for part in parts]), torch.cat([part.step for part in parts]))
    return Experience(cat([part.batch for part in parts]), *columns, samples_per_row=num_parents)


def _joined(metrics: SourceMetrics, more: SourceMetrics) -> SourceMetrics:
    """Metrics with those of further prompts: lists joined, numbers replaced."""
    joined = dict(metrics)
    for name, value in more.items():
        before = joined.get(name)
        joined[name] = before + value if isinstance(before, list) and isinstance(value, list) else value
    return joined
