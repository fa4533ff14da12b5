"""The loop: experience in, adapter out. A round samples with pools, pairs their candidates and trains on the pairs.

What a round does is decided by the recipe's seed and the round's number alone; processes share its prompts and sum
their gradients, so that their number changes nothing but the speed.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from accelerate.utils import gather_object, reduce
from jaxtyping import Bool
from torch import Tensor

from stepalign.batch import Conditioning, Pairing, StepComparisons, cat, pair
from stepalign.checkpoint import RunState
from stepalign.clean_gradient import gradient_rollout
from stepalign.config import require
from stepalign.parallel import processes
from stepalign.prompts import PromptStream
from stepalign.protocols import DifferentiableJudge, Judge, Objective, Role, Sampler, TrainablePolicy
from stepalign.rollout import Branching, rollout
from stepalign.seeding import PromptNoise, Purpose, generator_for

Tick = Callable[[str, int, int], None]
"""Called with "sample" or "train", how much of that phase is done and how much there is."""


@dataclass(frozen=True, slots=True)
class Training:
    """How a run collects comparisons and learns from them."""

    num_rounds: int = 1000
    """Rounds of sampling and training."""
    prompts_per_round: int = 40
    """Prompts sampled each round, by all processes together."""
    sample_batch: int = 10
    """Prompts sampled at once by one process."""
    comparisons_per_update: int = 40
    """Comparisons behind one optimizer step, over all processes; a round's are split as evenly as this allows."""
    train_batch: int = 10
    """Comparisons in one forward and backward pass of one process; those of two parents count twice."""
    sample_with: Role = "policy"
    """Who samples: "policy" (SPO) or the running "ema" (GradSPO)."""
    signal: Literal["candidates", "clean-gradient"] = "candidates"
    """Where comparisons come from: judged candidates, or a differentiable judge's gradient (GradSPO appendix G)."""
    pairing: Pairing = "best-worst"
    """What stands for z⁺ - z⁻: "best-worst", "all-k" (every candidate votes) or "two-random"."""
    min_gap: float = 0.3
    """Comparisons whose two candidates the judge tells apart by less, P(best) - P(worst), are not trained on."""
    learning_rate: float = 6e-5
    weight_decay: float = 1e-4
    max_grad_norm: float | None = None
    """Gradient clipping; the papers' programs configure 1.0 without effect."""
    ema_decay: float = 0.9
    """Of the running average, after every optimizer step."""

    def __post_init__(self) -> None:
        for name in ("num_rounds", "prompts_per_round", "sample_batch", "comparisons_per_update", "train_batch"):
            require(getattr(self, name) >= 1, f"training.{name}", getattr(self, name), "at least 1")
        require(0 <= self.ema_decay < 1, "training.ema_decay", self.ema_decay, "at least 0 and below 1")
        require(0 <= self.min_gap <= 1, "training.min_gap", self.min_gap, "between 0 and 1")
        require(self.learning_rate > 0, "training.learning_rate", self.learning_rate, "positive")
        require(self.weight_decay >= 0, "training.weight_decay", self.weight_decay, "at least 0")
        norm = self.max_grad_norm
        require(norm is None or norm > 0, "training.max_grad_norm", norm, "positive, or None")


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


class Trainer:
    """A run in progress. `round()` does the next round; `state()` is all it takes to go on elsewhere."""

    def __init__(
        self,
        policy: TrainablePolicy,
        sampler: Sampler,
        judge: Judge,
        objective: Objective,
        *,
        encode: Callable[[list[str]], Conditioning],
        prompts: list[str],
        latent_shape: tuple[int, int, int],
        branching: Branching,
        config: Training,
        seed: int,
        loss_scaling: bool = False,
    ) -> None:
        self.policy = policy
        self.sampler = sampler
        self.judge = judge
        self.objective = objective
        self.encode = encode
        self.stream = PromptStream(prompts, seed=seed)
        self.latent_shape = latent_shape
        self.branching = branching
        self.config = config
        self.seed = seed
        self.processes = processes()
        self.parameters = list(policy.adapter.values())
        self.device = self.parameters[0].device
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, eps=1e-8
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=loss_scaling)
        self.scaler.scale(torch.zeros((), device=self.device))  # a process without comparisons needs a scale too
        self.num_rounds = self.num_updates = self.num_comparisons = 0
        self.seconds = 0.0
        self.calls: Counter[str] = Counter()
        self._judged = judge.num_images

    def round(self, tick: Tick = lambda phase, done, total: None) -> dict[str, object]:
        """Do one round and return its row of metrics."""
        start = time.perf_counter()
        experience = self._collect(tick)
        self.book("sampling")
        updates = self._schedule(sorted(gather_object(list(experience.ids))))
        rows: list[dict[str, float]] = []
        grad_norms = []
        for index, ids in enumerate(updates):
            grad_norms.append(self._update(experience, ids, rows))
            tick("train", index + 1, len(updates))
        self.book("training")
        self.num_rounds += 1
        self.num_comparisons += sum(len(ids) for ids in updates)
        self.seconds += time.perf_counter() - start
        return self._summarise(experience, gather_object(rows), grad_norms)

    def state(self) -> RunState:
        """What `restore` takes on any number of processes."""
        return RunState(
            prompts=self.stream.digest,
            num_rounds=self.num_rounds,
            num_updates=self.num_updates,
            num_comparisons=self.num_comparisons,
            seconds=self.seconds,
            calls=dict(self.calls),
            adapter={name: tensor.detach().cpu().clone() for name, tensor in self.policy.adapter.items()},
            ema={name: tensor.detach().cpu().clone() for name, tensor in self.policy.ema.items()},
            optimizer=copy.deepcopy(self.optimizer.state_dict()),
            scaler=self.scaler.state_dict(),
        )

    def restore(self, state: RunState) -> None:
        """Go on from a saved state; raises ValueError when it is of other prompts or another adapter."""
        if state.prompts != self.stream.digest:
            raise ValueError("prompts: they are not those this run began with; restore the file, or start a new run")
        self.policy.load(adapter=state.adapter, ema=state.ema)
        self.optimizer.load_state_dict(copy.deepcopy(state.optimizer))
        self.scaler.load_state_dict(state.scaler)
        self.num_rounds, self.num_updates = state.num_rounds, state.num_updates
        self.num_comparisons, self.seconds = state.num_comparisons, state.seconds
        self.calls = Counter(state.calls)

    def _collect(self, tick: Tick) -> Experience:
        """Sample this process's share of the round's prompts and pair every pool."""
        config, rank, world = self.config, self.processes.process_index, self.processes.num_processes
        first = self.num_rounds * config.prompts_per_round
        positions = list(range(first, first + config.prompts_per_round))[rank::world]
        chunks = [positions[i : i + config.sample_batch] for i in range(0, len(positions), config.sample_batch)]
        steps: list[StepComparisons] = []
        ids: dict[tuple[int, int], tuple[int, int]] = {}
        judge_scores: list[float] = []
        num_pools = done = 0
        for chunk in chunks:

            def on_step() -> None:
                nonlocal done
                done += 1
                tick("sample", done, len(chunks) * len(self.sampler.timesteps))

            noise = PromptNoise([generator_for(self.seed, Purpose.ROLLOUT, p) for p in chunk], device=self.device)
            found, scores = self._compare([self.stream[position] for position in chunk], noise, on_step)
            for step, (comparisons, sure) in enumerate(found):
                rows = sure.nonzero()[:, 0].tolist()
                ids.update({(chunk[row], step): (len(steps), row) for row in rows})
                steps.append(comparisons)
                num_pools += len(chunk)
            judge_scores.extend(scores)
        return Experience(steps, ids, num_pools, judge_scores)

    def _compare(
        self, prompts: list[str], noise: PromptNoise, on_step: Callable[[], None]
    ) -> tuple[list[tuple[StepComparisons, Bool[Tensor, " b"]]], list[float]]:
        """Comparisons on one trajectory per prompt with which of them train, and the last step's scores."""
        config, denoise, cond = self.config, self.policy.denoiser(self.config.sample_with), self.encode(prompts)
        given: dict[str, Any] = {"cond": cond, "prompts": prompts, "noise": noise, "on_step": on_step}
        given |= {"latent_shape": self.latent_shape, "branching": self.branching}
        if config.signal == "clean-gradient":
            if not isinstance(self.judge, DifferentiableJudge):
                raise ValueError("training.signal: clean-gradient needs a judge with a gradient")
            comparisons, scores = gradient_rollout(denoise, self.sampler, self.judge, **given)
            return [(step, step.noise.flatten(1).any(1)) for step in comparisons], scores.tolist()
        pools, _ = rollout(denoise, self.sampler, self.judge, **given)
        pairs = [pair(step, rule=config.pairing, min_gap=config.min_gap) for pool in pools for step in pool.transitions]
        return pairs, pools[-1].candidates.scores.flatten().tolist() if pools else []

    def _schedule(self, ids: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
        """All processes' comparisons shuffled together and split into updates of nearly equal size."""
        if not ids:
            return []
        generator = generator_for(self.seed, Purpose.COMPARISON_ORDER, self.num_rounds)
        order = torch.randperm(len(ids), generator=generator).tolist()
        num_updates = -(-len(ids) // self.config.comparisons_per_update)
        bounds = [len(ids) * i // num_updates for i in range(num_updates + 1)]
        return [[ids[i] for i in order[low:high]] for low, high in pairwise(bounds)]

    def _update(self, experience: Experience, ids: list[tuple[int, int]], rows: list[dict[str, float]]) -> float:
        """One optimizer step on the mean loss over `ids`, some of them this process's; returns the gradient norm."""
        own = [key for key in ids if key in experience.ids]
        for group in experience.take(own):
            size = max(1, self.config.train_batch // group.x_t.shape[1])
            for batch in (group[start : start + size] for start in range(0, len(group), size)):
                losses, metrics = self.objective(self.policy, self.sampler, batch)
                if not losses.isfinite().all():
                    raise ValueError(
                        f"the loss is not a finite number in round {self.num_rounds + 1}; the last checkpoint is "
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

    def work(self, phase: str) -> dict[str, int]:
        """This process's work since the last call: network calls by role, booked under a phase, and judged images."""
        work = {f"{phase}_{role}": number for role, number in self.policy.calls.items()}
        work["judge_images"] = self.judge.num_images - self._judged
        self.policy.calls.clear()
        self._judged = self.judge.num_images
        return work

    def book(self, phase: str) -> None:
        """Add the work of all processes to the run's."""
        for work in gather_object([self.work(phase)]):
            self.calls.update(work)

    def _summarise(
        self, experience: Experience, rows: list[dict[str, float]], grad_norms: list[float]
    ) -> dict[str, object]:
        judge_scores = gather_object(experience.judge_scores)
        num_pools = sum(gather_object([experience.num_pools]))

        def mean(values: list[float]) -> float | None:
            return sum(values) / len(values) if values else None

        names = [name for name in rows[0] if name != "t"] if rows else []
        by_timestep = {
            str(int(t)): mean([row["rms_delta"] for row in rows if row["t"] == t])
            for t in sorted({row["t"] for row in rows}, reverse=True)
        }
        return {
            "round": self.num_rounds,
            "seconds": round(self.seconds, 3),
            "judge_score": mean(judge_scores),
            "comparisons": len(rows),
            "kept": len(rows) / num_pools if num_pools else None,
            "updates": len(grad_norms),
            "grad_norm": mean(grad_norms),
            **{name: mean([row[name] for row in rows]) for name in names},
            "rms_delta_by_timestep": by_timestep,
        }
