"""Optimizer updates from a round's comparisons: their order, micro-batches, loss scaling, clipping, the average."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from accelerate.utils import gather_object, reduce

from stepalign.batch import StepComparisons, cat
from stepalign.parallel import processes
from stepalign.protocols import Objective, Sampler, TrainablePolicy
from stepalign.seeding import Purpose, generator_for
from stepalign.train_settings import Training


@dataclass(frozen=True, slots=True)
class Experience:
    """A round's comparisons on this process, a list entry per step that trains, and which of them do."""

    steps: list[StepComparisons]
    ids: dict[tuple[int, int], tuple[int, int]]
    """(prompt position, step) -> (entry of `steps`, row)."""
    num_pools: int
    judge_scores: list[float]
    """Of the last step's candidates."""

    def take(self, ids: list[tuple[int, int]]) -> list[StepComparisons]:
        """The comparisons with these ids as a batch, or two: those of one parent apart from those of two."""
        rows = [self.steps[entry][[row]] for entry, row in (self.ids[key] for key in ids)]
        by_parents = ([row for row in rows if row.x_t.shape[1] == num] for num in (1, 2))
        return [cat(group) for group in by_parents if group]


@dataclass(frozen=True, slots=True)
class Learned:
    """What a round's updates did."""

    rows: list[dict[str, float]]
    """A row of metrics per comparison of this process."""
    grad_norms: list[float]
    """Of all processes' gradient, one per update."""
    num_comparisons: int
    """Of all processes."""


class Updater:
    """Trains a policy's adapter on comparisons that processes share; the same number on each is not needed."""

    def __init__(
        self,
        policy: TrainablePolicy,
        sampler: Sampler,
        objective: Objective,
        *,
        config: Training,
        seed: int,
        loss_scaling: bool = False,
    ) -> None:
        self.policy = policy
        self.sampler = sampler
        self.objective = objective
        self.config = config
        self.seed = seed
        self.processes = processes()
        self.parameters = list(policy.adapter.values())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, eps=1e-8
        )
        self.device = self.parameters[0].device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=loss_scaling)
        self.scaler.scale(torch.zeros((), device=self.device))  # a process without comparisons needs a scale too
        self.num_updates = 0

    def learn(self, experience: Experience, *, index: int, tick: Callable[[int, int], None]) -> Learned:
        """Train on all processes' comparisons of round `index`, counted from 0; `tick` is called after each update."""
        updates = self._schedule(sorted(gather_object(list(experience.ids))), index)
        rows: list[dict[str, float]] = []
        grad_norms = []
        for number, ids in enumerate(updates):
            grad_norms.append(self._update(experience, ids, rows, index))
            tick(number + 1, len(updates))
        return Learned(rows, grad_norms, sum(len(ids) for ids in updates))

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The optimizer's state and the loss scale's."""
        return copy.deepcopy(self.optimizer.state_dict()), self.scaler.state_dict()

    def restore(self, *, optimizer: dict[str, Any], scaler: dict[str, Any], num_updates: int) -> None:
        """Continue from a saved state."""
        self.optimizer.load_state_dict(copy.deepcopy(optimizer))
        self.scaler.load_state_dict(scaler)
        self.num_updates = num_updates

    def _schedule(self, ids: list[tuple[int, int]], index: int) -> list[list[tuple[int, int]]]:
        """All processes' comparisons shuffled together and split into updates of nearly equal size."""
        if not ids:
            return []
        generator = generator_for(self.seed, Purpose.COMPARISON_ORDER, index)
        order = torch.randperm(len(ids), generator=generator).tolist()
        num_updates = -(-len(ids) // self.config.comparisons_per_update)
        bounds = [len(ids) * i // num_updates for i in range(num_updates + 1)]
        return [[ids[i] for i in order[low:high]] for low, high in pairwise(bounds)]

    def _update(
        self, experience: Experience, ids: list[tuple[int, int]], rows: list[dict[str, float]], index: int
    ) -> float:
        """One optimizer step on the mean loss over `ids`, some of them this process's; returns the gradient norm."""
        own = [key for key in ids if key in experience.ids]
        for group in experience.take(own):
            size = max(1, self.config.train_batch // group.x_t.shape[1])
            for batch in (group[start : start + size] for start in range(0, len(group), size)):
                losses, metrics = self.objective(self.policy, self.sampler, batch)
                if not losses.isfinite().all():
                    raise ValueError(
                        f"the loss is not a finite number in round {index + 1}; the last checkpoint is "
                        "whole: try a lower training.learning_rate, or base.precision fp32"
                    )
                self.scaler.scale(losses.sum() / len(ids)).backward()
                columns = {"loss": losses.detach(), "t": batch.t, **metrics}
                values = [column.tolist() for column in columns.values()]
                rows.extend(dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if self.processes.num_processes > 1:
                parameter.grad = reduce(parameter.grad, "sum")
        self.scaler.unscale_(self.optimizer)
        limit = self.config.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, float("inf") if limit is None else limit)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.policy.update_ema(self.config.ema_decay)
        self.num_updates += 1
        return norm.item()
