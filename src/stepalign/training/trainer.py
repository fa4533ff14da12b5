"""The loop: experience in, adapter out. A round samples with pools, pairs their candidates and trains on the pairs.

What a round does is decided by the recipe's seed and the round's number alone; processes share its prompts and sum
their gradients, so that their number changes nothing but the speed.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from jaxtyping import Bool
from torch import Tensor

from stepalign.core.batch import Conditioning, StepComparisons, pair
from stepalign.core.protocols import DifferentiableJudge, Judge, Objective, Sampler, TrainablePolicy
from stepalign.core.seeding import PromptNoise, Purpose, generator_for
from stepalign.sources.clean_gradient import gradient_rollout
from stepalign.sources.prompt_order import PromptStream
from stepalign.sources.rollout import Branching, rollout
from stepalign.support.files import RunState
from stepalign.support.finite import check_finite
from stepalign.support.parallel import processes, together
from stepalign.training.settings import Training
from stepalign.training.updater import Experience, Learned, Updater

Tick = Callable[[str, int, int], None]
"""Called with "sample" or "train", how much of that phase is done and how much there is."""


@dataclass(frozen=True, slots=True)
class _Compared:
    """What one trajectory per prompt gave."""

    pairs: list[tuple[StepComparisons, Bool[Tensor, " b"]]]
    """By step: comparisons, and which of them train."""
    scores: list[float]
    """The judge's, at the last timestep it judged."""
    timestep: int | None
    """That timestep."""
    spreads: list[float]
    """Best less worst score of every pool."""


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
        self.encode = encode
        self.stream = PromptStream(prompts, seed=seed)
        self.latent_shape = latent_shape
        self.branching = branching
        self.config = config
        self.seed = seed
        self.processes = processes()
        self.updater = Updater(policy, sampler, objective, config=config, seed=seed, loss_scaling=loss_scaling)
        self.device = self.updater.device
        self.num_rounds = self.num_comparisons = 0
        self.seconds = 0.0
        self.calls: Counter[str] = Counter()
        self._judged = judge.num_images

    def round(self, tick: Tick = lambda phase, done, total: None) -> dict[str, object]:
        """Do one round and return its row of metrics."""
        start = time.perf_counter()
        experience = together(lambda: self._collect(tick))
        self.book("sampling")
        learned = self.updater.learn(
            experience, index=self.num_rounds, tick=lambda done, total: tick("train", done, total)
        )
        self.book("training")
        self.num_rounds += 1
        self.num_comparisons += learned.num_comparisons
        self.seconds += time.perf_counter() - start
        return self._summarise(experience, learned)

    @property
    def num_updates(self) -> int:
        """Optimizer steps taken so far."""
        return self.updater.num_updates

    def state(self) -> RunState:
        """What `restore` takes on any number of processes."""
        optimizer, scaler = self.updater.state()
        return RunState(
            prompts=self.stream.digest,
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
        """Go on from a saved state; raises ValueError when it is of other prompts or another adapter."""
        if state.prompts != self.stream.digest:
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

    def _collect(self, tick: Tick) -> Experience:
        """Sample this process's share of the round's prompts and pair every pool."""
        config, rank, world = self.config, self.processes.process_index, self.processes.num_processes
        first = self.num_rounds * config.prompts_per_round
        positions = list(range(first, first + config.prompts_per_round))[rank::world]
        chunks = [positions[i : i + config.sample_batch] for i in range(0, len(positions), config.sample_batch)]
        steps: list[StepComparisons] = []
        ids: dict[tuple[int, int], tuple[int, int]] = {}
        judge_scores: list[float] = []
        spreads: list[float] = []
        timestep: int | None = None
        num_pools = done = 0
        for chunk in chunks:

            def on_step() -> None:
                nonlocal done
                done += 1
                tick("sample", done, len(chunks) * len(self.sampler.timesteps))

            noise = PromptNoise([generator_for(self.seed, Purpose.ROLLOUT, p) for p in chunk], device=self.device)
            found = self._compare([self.stream[position] for position in chunk], noise, on_step)
            for step, (comparisons, sure) in enumerate(found.pairs):
                rows = sure.nonzero()[:, 0].tolist()
                ids.update({(chunk[row], step): (len(steps), row) for row in rows})
                steps.append(comparisons)
                num_pools += len(chunk)
            judge_scores.extend(found.scores)
            spreads.extend(found.spreads)
            timestep = found.timestep
        return Experience(steps, ids, num_pools, judge_scores, spreads, timestep)

    def _compare(self, prompts: list[str], noise: PromptNoise, on_step: Callable[[], None]) -> _Compared:
        """Comparisons on one trajectory per prompt."""
        config, denoise, cond = self.config, self.policy.denoiser(self.config.sample_with), self.encode(prompts)
        given: dict[str, Any] = {"cond": cond, "prompts": prompts, "noise": noise, "on_step": on_step}
        given |= {"latent_shape": self.latent_shape, "branching": self.branching}
        if config.signal == "clean-gradient":
            if not isinstance(self.judge, DifferentiableJudge):
                raise ValueError("training.signal: clean-gradient needs a judge with a gradient")
            comparisons, scores = gradient_rollout(denoise, self.sampler, self.judge, **given)
            pairs = [(step, step.noise.flatten(1).any(1)) for step in comparisons]
            return _Compared(pairs, scores.tolist(), int(comparisons[-1].t[0]) if comparisons else None, [])
        pools, _ = rollout(denoise, self.sampler, self.judge, **given)
        pairs = [pair(step, rule=config.pairing, min_gap=config.min_gap) for pool in pools for step in pool.transitions]
        if not pools:
            return _Compared(pairs, [], None, [])
        spreads = torch.cat([pool.candidates.scores.amax(1) - pool.candidates.scores.amin(1) for pool in pools])
        last = pools[-1]
        return _Compared(pairs, last.candidates.scores.flatten().tolist(), last.t_prev, spreads.tolist())

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

    def _summarise(self, experience: Experience, learned: Learned) -> dict[str, object]:
        rows: list[dict[str, float]] = gather_object(learned.rows)
        judge_scores = gather_object(experience.judge_scores)
        timesteps = [t for t in gather_object([experience.judge_timestep]) if t is not None]
        num_pools = sum(gather_object([experience.num_pools]))
        names = [name for name in rows[0] if name != "t"] if rows else []
        by_timestep = {
            str(int(t)): _mean([row["rms_delta"] for row in rows if row["t"] == t])
            for t in sorted({row["t"] for row in rows}, reverse=True)
        }
        return {
            "round": self.num_rounds,
            "seconds": round(self.seconds, 3),
            "judge_score": _mean(judge_scores),
            "judge_timestep": max(timesteps, default=None),
            "judge_spread": _mean(gather_object(experience.judge_spreads)),
            "comparisons": learned.num_found,
            "kept": learned.num_found / num_pools if num_pools else None,
            "updates": len(learned.grad_norms),
            "skipped": learned.num_skipped,
            "loss_scale": learned.loss_scale,
            "grad_norm": _mean(learned.grad_norms),
            **{name: _mean([row[name] for row in rows]) for name in names},
            "rms_delta_by_timestep": by_timestep,
        }


def _mean(values: list[float]) -> float | None:
    """Of the values that are finite numbers; None where none is."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None
