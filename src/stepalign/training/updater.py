"""Optimizer updates from a round's comparisons: their order, micro-batches, loss scaling, clipping, the average."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import torch
from accelerate.utils import gather_object, reduce
from torch import Tensor

from stepalign.core.batch import Batch, StepComparisons, cat
from stepalign.core.protocols import Objective, Sampler, TrainablePolicy
from stepalign.core.seeding import Purpose, generator_for
from stepalign.support.finite import NotFinite, check_finite
from stepalign.support.parallel import processes
from stepalign.training.settings import Training


@dataclass(frozen=True, slots=True)
class Experience:
    """A round's comparisons on this process, a list entry per step that trains, and which of them do."""

    steps: list[StepComparisons]
    ids: dict[tuple[int, int], tuple[int, int]]
    """(prompt position, step) -> (entry of `steps`, row)."""
    num_pools: int
    judge_scores: list[float]
    """Of the candidates that were judged last."""
    judge_spreads: list[float] = field(default_factory=list)
    """Best less worst score of every pool."""
    judge_timestep: int | None = None
    """Where the last candidates were judged."""

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
    """Of all processes' gradient, one per optimizer step."""
    num_found: int
    """Comparisons of all processes."""
    num_comparisons: int
    """Of them, those behind the steps."""
    num_skipped: int
    """Updates whose gradient was not finite: they changed nothing."""
    loss_scale: float | None
    """At the round's end; None without loss scaling."""


class Diverged(NotFinite):
    """Too many updates in a row had a gradient that is not finite, or a step left the adapter so."""

    def __init__(self, message: str, batch: dict[str, Any]) -> None:
        super().__init__(message)
        self.batch = batch
        """This process's comparisons of the last one with the adapter they met, as plain values and tensors."""


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
        self.num_updates = self.num_skipped = self.num_failures = 0
        """`num_failures` are skipped updates in a row, those aside with which loss scaling looks for its scale."""

    def learn(self, experience: Experience, *, index: int, tick: Callable[[int, int], None]) -> Learned:
        """Train on all processes' comparisons of round `index`, counted from 0; `tick` is called after each update.

        Raises Diverged as `Training.max_skipped` says, on every process alike.
        """
        updates = self._schedule(sorted(gather_object(list(experience.ids))), index)
        rows: list[dict[str, float]] = []
        grad_norms: list[float] = []
        num_comparisons = 0
        for number, ids in enumerate(updates):
            own = [key for key in ids if key in experience.ids]
            groups = experience.take(own)
            fault = self._add_gradients(groups, len(ids), rows)
            norm = self._gradient_norm(fault)
            if norm.isfinite():
                fault = self._step(norm)
                grad_norms.append(norm.item())
                num_comparisons += len(ids)
            else:
                fault = self._skip(fault)
            if fault:
                raise Diverged(fault, {"round": index + 1, "update": number + 1, "ids": own} | self._evidence(groups))
            tick(number + 1, len(updates))
        num_found = sum(len(ids) for ids in updates)
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else None
        return Learned(rows, grad_norms, num_found, num_comparisons, len(updates) - len(grad_norms), scale)

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The optimizer's state and the loss scale's."""
        return copy.deepcopy(self.optimizer.state_dict()), self.scaler.state_dict()

    def restore(
        self,
        *,
        optimizer: dict[str, Any],
        scaler: dict[str, Any],
        num_updates: int,
        num_skipped: int,
        num_failures: int,
    ) -> None:
        """Continue from a saved state."""
        self.optimizer.load_state_dict(copy.deepcopy(optimizer))
        self.scaler.load_state_dict(scaler)
        self.num_updates, self.num_skipped, self.num_failures = num_updates, num_skipped, num_failures

    def _schedule(self, ids: list[tuple[int, int]], index: int) -> list[list[tuple[int, int]]]:
        """All processes' comparisons shuffled together and split into updates of nearly equal size."""
        if not ids:
            return []
        generator = generator_for(self.seed, Purpose.COMPARISON_ORDER, index)
        order = torch.randperm(len(ids), generator=generator).tolist()
        num_updates = -(-len(ids) // self.config.comparisons_per_update)
        bounds = [len(ids) * i // num_updates for i in range(num_updates + 1)]
        return [[ids[i] for i in order[low:high]] for low, high in pairwise(bounds)]

    def _add_gradients(self, groups: list[StepComparisons], num_comparisons: int, rows: list[dict[str, float]]) -> str:
        """Add this process's share of the gradient of the mean loss over `num_comparisons`; returns what was not
        finite on the way, "" for nothing."""
        for group in groups:
            size = max(1, self.config.train_batch // group.x_t.shape[1])
            for batch in (group[start : start + size] for start in range(0, len(group), size)):
                try:
                    losses, metrics = self.objective(self.policy, self.sampler, batch)
                    check_finite(losses, "the loss", self._remedy())
                except NotFinite as error:
                    return str(error)
                self.scaler.scale(losses.sum() / num_comparisons).backward()
                columns = {"loss": losses.detach(), "t": batch.t, **metrics}
                values = [column.tolist() for column in columns.values()]
                rows.extend(dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))
        return ""

    def _gradient_norm(self, fault: str) -> Tensor:
        """The norm of all processes' gradient, which is left in place, unscaled; NaN where one process found a fault.

        Every process gets the same.
        """
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if fault:
                parameter.grad.fill_(torch.nan)
            if self.processes.num_processes > 1:
                parameter.grad = reduce(parameter.grad, "sum")
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm(
            [grad for parameter in self.parameters if (grad := parameter.grad) is not None]
        )
        if self.processes.num_processes > 1 and reduce((~norm.isfinite()).float(), "sum"):
            return torch.full_like(norm, torch.nan)
        return norm

    def _step(self, norm: Tensor) -> str:
        """One optimizer step and one of the average; returns what is wrong with the weights it left, "" for nothing."""
        if self.config.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.max_grad_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.policy.update_ema(self.config.ema_decay)
        self.num_updates += 1
        self.num_failures = 0
        if torch.nn.utils.get_total_norm(self.parameters, norm_type=math.inf).isfinite():
            return ""
        return "the adapter: the update left weights that are not finite numbers; lower training.learning_rate"

    def _skip(self, fault: str) -> str:
        """Leave out an update whose gradient is not finite; returns why training cannot continue, "" where it can.

        Loss scaling begins with a scale that is too large and halves it at each skip; that is no failure as long as
        there is a scale left to halve and the loss itself is finite.
        """
        faults = [found for found in gather_object([fault]) if found]
        overflown = not all(
            parameter.grad.isfinite().all() for parameter in self.parameters if parameter.grad is not None
        )
        searching = self.scaler.is_enabled() and overflown and not faults and self.scaler.get_scale() > 1
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.num_skipped += 1
        self.num_failures += not searching
        if self.num_failures < self.config.max_skipped or searching:
            return ""
        cause = faults[0] if faults else f"the gradient: its norm is not a finite number; {self._remedy()}"
        return f"{cause} ({self.num_failures} updates in a row were skipped for it, training.max_skipped)"

    def _remedy(self) -> str:
        """What to try where a loss or gradient is not finite."""
        if self.scaler.is_enabled():
            return "fp16 overflows above 65504: give --base.precision bf16 or fp32"
        if self.num_updates:
            return "training has diverged: start again with a lower training.learning_rate"
        return "no update was made yet: check the model's files, and objective.beta"

    def _evidence(self, groups: list[StepComparisons]) -> dict[str, Any]:
        """Comparisons and the adapter they met, as plain values and tensors on the CPU."""
        return {
            "comparisons": [to_cpu(group) for group in groups],
            "adapter": {name: tensor.detach().cpu().clone() for name, tensor in self.policy.adapter.items()},
        }


def to_cpu(batch: Batch) -> dict[str, Any]:
    """A batch as nested dicts of tensors on the CPU."""
    columns = {field.name: getattr(batch, field.name) for field in fields(batch)}  # type: ignore[arg-type]
    return {
        name: None if column is None else to_cpu(column) if isinstance(column, Batch) else column.detach().cpu()
        for name, column in columns.items()
    }
