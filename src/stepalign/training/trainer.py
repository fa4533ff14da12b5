"""Training in rounds: collect experience from a source, update the LoRA adapter and its average by an objective.

What a round does is decided by the recipe's seed and the round's number alone; processes share its experience and sum
their gradients, so that their number changes nothing but the speed.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from accelerate.utils import gather_object

from stepalign.core.batch import Batch
from stepalign.core.experience import Collected
from stepalign.core.protocols import Objective, Sampler, Source
from stepalign.support.files import RunState
from stepalign.support.finite import check_finite
from stepalign.support.parallel import together
from stepalign.training.updater import Learned, Updater

B = TypeVar("B", bound=Batch)
Tick = Callable[[str, int, int], None]
"""Called with "sample" or "train", how much of that phase is done and how much there is."""


class Trainer(Generic[B]):
    """A run in progress: `round()` does the next round, `state()` is all that another trainer resumes from."""

    def __init__(
        self,
        source: Source[B],
        objective: Objective[B],
        updater: Updater,
        *,
        sampler: Sampler,
        counters: Sequence[Counter[str]] = (),
    ) -> None:
        self.source = source
        self.objective = objective
        self.updater = updater
        self.sampler = sampler
        self.policy = updater.policy
        self.counters = counters
        """Further counts of work, such as a `CountedJudge`'s, beside the policy's network calls."""
        self.num_rounds = self.num_comparisons = 0
        self.seconds = 0.0
        self.calls: Counter[str] = Counter()
        """Work of all processes so far, by kind."""

    def round(self, tick: Tick = lambda phase, done, total: None) -> dict[str, object]:
        """Do one round and return its row of metrics."""
        start = time.perf_counter()
        collected = together(lambda: self.source.collect(self.num_rounds, partial(tick, "sample")))
        self.record_calls("sampling")
        learned = self.updater.learn(
            collected.experience,
            partial(self.objective, self.policy, self.sampler),
            index=self.num_rounds,
            tick=partial(tick, "train"),
        )
        self.record_calls("training")
        self.num_rounds += 1
        self.num_comparisons += learned.num_trained
        self.seconds += time.perf_counter() - start
        return self._row(collected, learned)

    @property
    def num_updates(self) -> int:
        """Optimizer steps taken so far."""
        return self.updater.num_updates

    def state(self) -> RunState:
        """The state from which `restore` resumes on any number of processes."""
        optimizer, scaler = self.updater.state()
        return RunState(
            prompts=self.source.digest,
            num_rounds=self.num_rounds,
            num_updates=self.num_updates,
            num_comparisons=self.num_comparisons,
            num_skipped=self.updater.num_skipped,
            num_failures=self.updater.num_failures,
            seconds=self.seconds,
            calls=dict(self.calls),
            adapter={name: tensor.detach().cpu().clone() for name, tensor in self.policy.adapter.items()},
            ema={name: tensor.detach().cpu().clone() for name, tensor in self.policy.ema.items()},
            optimizer=optimizer,
            scaler=scaler,
        )

    def restore(self, state: RunState) -> None:
        """Resume from a saved state; raises ValueError when it is of other data or another adapter."""
        if state.prompts != self.source.digest:
            raise ValueError("prompts: they are not those this run began with; restore the file, or start a new run")
        self.policy.load(adapter=state.adapter, ema=state.ema)
        for name in ("adapter", "ema"):
            for tensor in getattr(state, name).values():
                check_finite(tensor, f"checkpoint: its {name}", "it was damaged, or written by an older version")
        self.updater.restore(
            optimizer=state.optimizer,
            scaler=state.scaler,
            num_updates=state.num_updates,
            num_skipped=state.num_skipped,
            num_failures=state.num_failures,
        )
        self.num_rounds = state.num_rounds
        self.num_comparisons, self.seconds = state.num_comparisons, state.seconds
        self.calls = Counter(state.calls)

    def drain_counters(self, phase: str) -> dict[str, int]:
        """This process's work since the last call: network calls by phase and role, and the further counters."""
        calls = {f"{phase}_{role}": number for role, number in self.policy.calls.items()}
        self.policy.calls.clear()
        for counter in self.counters:
            calls |= counter
            counter.clear()
        return calls

    def record_calls(self, phase: str) -> None:
        """Add the work of all processes since the last call to the run's."""
        for calls in gather_object([self.drain_counters(phase)]):
            self.calls.update(calls)

    def _row(self, collected: Collected[B], learned: Learned) -> dict[str, object]:
        num_offered = sum(gather_object([collected.num_offered]))
        return {
            "round": self.num_rounds,
            "seconds": round(self.seconds, 3),
            **_source_metrics(gather_object([collected.metrics])),
            "comparisons": learned.num_found,
            "kept": learned.num_found / num_offered if num_offered else None,
            "updates": len(learned.grad_norms),
            "skipped": learned.num_skipped,
            "loss_scale": learned.loss_scale,
            "grad_norm": _mean(learned.grad_norms),
            **_objective_metrics(gather_object([(learned.columns.values, learned.columns.groups)])),
        }


def _source_metrics(found: list[dict[str, list[float] | int | float | None]]) -> dict[str, object]:
    """A source's metrics over all processes: of lists the mean, of numbers the largest."""
    row: dict[str, object] = {}
    for name in _names(found):
        values = [metrics[name] for metrics in found if name in metrics]
        if lists := [value for value in values if isinstance(value, list)]:
            row[name] = _mean([value for part in lists for value in part])
        else:
            row[name] = max((value for value in values if isinstance(value, int | float)), default=None)
    return row


def _objective_metrics(found: list[tuple[dict[str, list[float]], dict[str, list[int | float]]]]) -> dict[str, object]:
    """Means of an objective's metrics over all rows of all processes, of grouped ones by falling group."""
    row: dict[str, object] = {}
    for name in _names([values for values, _ in found]):
        values = [value for part, _ in found for value in part.get(name, [])]
        groups = [group for _, part in found for group in part.get(name, [])]
        if not groups:
            row[name] = _mean(values)
            continue
        pairs = list(zip(groups, values, strict=True))
        row[name] = {
            str(group): _mean([value for own, value in pairs if own == group])
            for group in sorted(set(groups), reverse=True)
        }
    return row


def _names(found: Iterable[dict[str, Any]]) -> list[str]:
    """The names of all processes' metrics, in the order of their first appearance."""
    return list(dict.fromkeys(name for metrics in found for name in metrics))


def _mean(values: list[float]) -> float | None:
    """Of the values that are finite numbers; None where none is."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None
