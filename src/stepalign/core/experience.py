"""Experience: the batches that a source collects in a training round, and where each of their rows comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from jaxtyping import Int
from torch import Tensor

from stepalign.core.batch import Batch

B_co = TypeVar("B_co", bound=Batch, covariant=True)


@dataclass(frozen=True, slots=True, eq=False)
class Experience(Generic[B_co]):
    """Rows of one shape that an objective is evaluated on."""

    batch: B_co
    position: Int[Tensor, " n"]
    """The prompt or pair that a row belongs to, counted from the run's first; processes share a round's positions."""
    step: Int[Tensor, " n"]
    """The step of the sampler that a row belongs to, or any other number that distinguishes rows of one position."""
    samples_per_row: int = 1
    """Latents that a row sends through the network for one prediction."""

    def take(self, rows: list[int]) -> B_co:
        """The batch of some rows, in their order."""
        return self.batch[rows]


@dataclass(frozen=True, slots=True, eq=False)
class Collected(Generic[B_co]):
    """A round's experience on one process."""

    experience: list[Experience[B_co]]
    """One entry per shape of row; rows that do not train are left out."""
    num_offered: int
    """Rows before any were left out."""
    metrics: dict[str, list[float] | int | float | None]
    """Of a list, the round reports the mean over all processes; of a number, the largest."""
