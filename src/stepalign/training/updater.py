"""Optimizer updates from a round's experience: order, micro-batches, loss scaling, clipping, the running average."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor

from stepalign.core.batch import Batch
from stepalign.core.experience import Experience
from stepalign.core.protocols import Grouped, Metrics, TrainablePolicy
from stepalign.core.seeding import Purpose, generator_for
from stepalign.support.finite import NotFinite, check_finite
from stepalign.support.parallel import processes
from stepalign.training.gradients import sum_gradients
from stepalign.training.settings import Training

B = TypeVar("B", bound=Batch)
Loss = Callable[[B], tuple[Float[Tensor, " b"], Metrics]]
"""An objective with its policy and sampler: losses of a batch, one per row, and metrics."""


class Row(NamedTuple):
    """The place of one row of a round's experience; rows are in order of position, then step."""

    position: int
    step: int
    process: int
    part: int
    """The entry of the process's experience that holds the row."""
    offset: int
    """Of the row within its part."""


@dataclass(slots=True)
class Columns:
    """The metrics of all rows that this process trained on, in the order of training."""

    values: dict[str, list[float]] = field(default_factory=dict)
    groups: dict[str, list[int | float]] = field(default_factory=dict)
    """The group of each value, of the metrics that are reported by group."""

    def add(self, losses: Float[Tensor, " b"], metrics: Metrics) -> None:
        """Append a batch's rows."""
        for name, metric in {"loss": losses.detach(), **metrics}.items():
            values = metric.values if isinstance(metric, Grouped) else metric
            if isinstance(metric, Grouped):
                self.groups.setdefault(name, []).extend(metric.by.tolist())
            self.values.setdefault(name, []).extend(values.tolist())


@dataclass(frozen=True, slots=True)
class Learned:
    """Results of a round's updates."""

    columns: Columns
    grad_norms: list[float]
    """Of all processes' gradient, one per optimizer step."""
    num_found: int
    """Rows of all processes."""
    num_trained: int
    """Of these, the rows behind the steps."""
    num_skipped: int
    """Updates whose gradient was not finite: they changed nothing."""
    loss_scale: float | None
    """At the round's end; None without loss scaling."""


class Diverged(NotFinite):
    """Too many updates in a row had a gradient that is not finite, or a step left the adapter so."""

    def __init__(self, message: str, batch: dict[str, Any]) -> None:
        super().__init__(message)
        self.batch = batch
        """This process's rows of the last update and the adapter they met, as plain values and tensors."""


class Updater:
    """Trains a policy's adapter on rows that processes share; the same number on each is not needed."""

    def __init__(self, policy: TrainablePolicy, *, config: Training, seed: int, loss_scaling: bool = False) -> None:
        self.policy = policy
        self.config = config
        self.seed = seed
        self.processes = processes()
        self.parameters = list(policy.adapter.values())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, eps=1e-8
        )
        self.device = self.parameters[0].device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=loss_scaling)
        self.scaler.scale(torch.zeros((), device=self.device))  # a process without rows needs a scale too
        self.num_updates = self.num_skipped = self.num_failures = 0
        """`num_failures` are skipped updates in a row, those aside with which loss scaling looks for its scale."""

    def learn(
        self, experience: Sequence[Experience[B]], loss: Loss[B], *, index: int, tick: Callable[[int, int], None]
    ) -> Learned:
        """Train on all processes' experience of round `index`, counted from 0; `tick` is called after each update.

        Raises Diverged as `Training.max_skipped` says, on every process alike.
        """
        updates = self._schedule(experience, index)
        columns = Columns()
        grad_norms: list[float] = []
        num_trained = 0
        for number, update in enumerate(updates):
            own = [row for row in update if row.process == self.processes.process_index]
            fault = self._add_gradients(_batches(experience, own, self.config.train_batch), loss, len(update), columns)
            norm = self._gradient_norm(fault)
            if norm.isfinite():
                fault = self._step(norm)
                grad_norms.append(norm.item())
                num_trained += len(update)
            else:
                fault = self._skip(fault)
            if fault:
                where = {"round": index + 1, "update": number + 1, "ids": [(row.position, row.step) for row in own]}
                raise Diverged(fault, where | self._evidence(experience, own))
            tick(number + 1, len(updates))
        num_found = sum(len(update) for update in updates)
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else None
        return Learned(columns, grad_norms, num_found, num_trained, len(updates) - len(grad_norms), scale)

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

    def _schedule(self, experience: Sequence[Experience[B]], index: int) -> list[list[Row]]:
        """All processes' rows shuffled together and split into updates of nearly equal size."""
        own = [
            Row(position, step, self.processes.process_index, number, offset)
            for number, part in enumerate(experience)
            for offset, (position, step) in enumerate(zip(part.position.tolist(), part.step.tolist(), strict=True))
        ]
        rows = sorted(gather_object(own))
        if not rows:
            return []
        generator = generator_for(self.seed, Purpose.COMPARISON_ORDER, index)
        order = torch.randperm(len(rows), generator=generator).tolist()
        num_updates = -(-len(rows) // self.config.comparisons_per_update)
        bounds = [len(rows) * i // num_updates for i in range(num_updates + 1)]
        return [[rows[i] for i in order[low:high]] for low, high in pairwise(bounds)]

    def _add_gradients(self, batches: list[B], loss: Loss[B], num_rows: int, columns: Columns) -> str:
        """Add this process's share of the gradient of the mean loss over `num_rows`; returns what was not finite on
        the way, "" for nothing."""
        for batch in batches:
            try:
                losses, metrics = loss(batch)
                check_finite(losses, "the loss", self._remedy())
            except NotFinite as error:
                return str(error)
            self.scaler.scale(losses.sum() / num_rows).backward()
            columns.add(losses, metrics)
        return ""

    def _gradient_norm(self, fault: str) -> Tensor:
        """The norm of all processes' gradient, which is left in place, unscaled; NaN where one process found a fault.

        Every process gets the same.
        """
        if fault:
            for parameter in self.parameters:
                parameter.grad = torch.full_like(parameter, torch.nan)
        sum_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        return torch.nn.utils.get_total_norm(
            [grad for parameter in self.parameters if (grad := parameter.grad) is not None]
        )

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
        """The remedy where a loss or gradient is not finite."""
        if self.scaler.is_enabled():
            return "fp16 overflows above 65504: give --base.precision bf16 or fp32"
        if self.num_updates:
            return "training has diverged: start again with a lower training.learning_rate"
        return "no update was made yet: check the model's files, and objective.beta"

    def _evidence(self, experience: Sequence[Experience[B]], rows: list[Row]) -> dict[str, Any]:
        """Rows of experience and the adapter they met, as plain values and tensors on the CPU."""
        return {
            "batches": [to_cpu(batch) for batch in _batches(experience, rows, len(rows))],
            "adapter": {name: tensor.detach().cpu().clone() for name, tensor in self.policy.adapter.items()},
        }


def _batches(experience: Sequence[Experience[B]], rows: list[Row], size: int) -> list[B]:
    """Rows of this process, in their order within each part, in batches of at most `size` latents."""
    batches: list[B] = []
    for number, part in enumerate(experience):
        taken = part.take([row.offset for row in rows if row.part == number])
        step = max(1, size // part.samples_per_row)
        batches += [taken[start : start + step] for start in range(0, len(taken), step)]
    return batches


def to_cpu(batch: Batch) -> dict[str, Any]:
    """A batch as nested dicts of tensors on the CPU."""
    columns = {field.name: getattr(batch, field.name) for field in fields(batch)}  # type: ignore[arg-type]
    return {
        name: None if column is None else to_cpu(column) if isinstance(column, Batch) else column.detach().cpu()
        for name, column in columns.items()
    }
