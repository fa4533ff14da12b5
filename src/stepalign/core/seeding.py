"""Stateless random numbers: one generator per (seed, purpose, key), independent of earlier samples."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class Purpose(IntEnum):
    """The purpose of random numbers; separates the streams of one seed."""

    PROMPT_ORDER = 1
    ROLLOUT = 2
    COMPARISON_ORDER = 3
    EVALUATION = 4
    JUDGE_TRAINING = 5
    JUDGE_DATA = 6
    JUDGE_ORDER = 7
    GENERATION = 8
    GUARD = 9
    START_CHECK = 10


NUM_KEYS = {Purpose.JUDGE_DATA: 2, Purpose.GENERATION: 2, Purpose.GUARD: 2}
"""How many integers a purpose has as its key; 1 unless it stands here."""


def generator_for(seed: int, purpose: Purpose, *key: int) -> torch.Generator:
    """The generator of a seed, a purpose and non-negative integers; on the CPU, so that devices agree."""
    # SeedSequence pads with zeros, so that (5) and (5, 0) would be one: keys of another length than the purpose's own
    # have theirs mixed in.
    length = () if len(key) == NUM_KEYS.get(purpose, 1) else (len(key),)
    state = np.random.SeedSequence((seed, purpose, *key), spawn_key=length).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


class EpochOrder:
    """Endless epochs over rows 0 ... num-1, each in an order of its own that the seed, the purpose and the epoch
    decide."""

    def __init__(self, num: int, *, seed: int, purpose: Purpose) -> None:
        self._num = num
        self._seed = seed
        self._purpose = purpose
        self._order: dict[int, list[int]] = {}
        """Of the last epoch asked for."""

    def __getitem__(self, position: int) -> int:
        epoch, index = divmod(position, self._num)
        if epoch not in self._order:
            generator = generator_for(self._seed, self._purpose, epoch)
            self._order = {epoch: torch.randperm(self._num, generator=generator).tolist()}
        return self._order[epoch][index]


class PromptNoise:
    """The random numbers of a rollout, each prompt's from its own generator.

    A prompt's random numbers depend on its generator alone, not on other prompts.
    """

    def __init__(self, generators: Sequence[torch.Generator], *, device: torch.device | str = "cpu") -> None:
        self._generators = list(generators)
        self._device = torch.device(device)

    def __len__(self) -> int:
        return len(self._generators)

    def normal(self, *shape: int) -> Float[Tensor, "b *shape"]:
        """Standard normal float32 numbers of the given shape for every prompt."""
        rows = [torch.randn(shape, generator=generator) for generator in self._generators]
        return torch.stack(rows).to(self._device)

    def choice(self, k: int) -> Int[Tensor, " b"]:
        """One of 0 ... k-1 for every prompt, uniformly."""
        rows = [torch.randint(k, (), generator=generator) for generator in self._generators]
        return torch.stack(rows).to(self._device)
