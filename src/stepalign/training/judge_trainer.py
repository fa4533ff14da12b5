"""Training a judge on labelled pairs of images, as the step-aware preference model is trained (SPO supplement 2).

The judge scores the clean samples that a frozen base model predicts from the noised pairs at every noise level.

What a step does is decided by the seed and the step's number alone; processes share its pairs and sum their
gradients, so that their number changes nothing but the speed, up to rounding.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object, reduce
from jaxtyping import Float
from torch import Tensor

from stepalign.core.protocols import PairScorer
from stepalign.core.seeding import EpochOrder, PromptNoise, Purpose, generator_for
from stepalign.data.prepared import PreparedPairs
from stepalign.judges.pairs import agreement
from stepalign.support.finite import NotFinite, check_finite
from stepalign.support.parallel import processes, together
from stepalign.training.gradients import sum_gradients
from stepalign.training.judge_settings import NUM_TRAIN_TIMESTEPS, JudgeTraining


@dataclass(frozen=True, slots=True)
class JudgeState:
    """Everything that decides the rest of a judge's training, given its recipe and its pairs."""

    pairs: str
    """A digest of the training pairs; the order they come in is decided by seed and position."""
    num_steps: int
    """Optimizer steps done."""
    seconds: float
    calls: dict[str, int]
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    num_skipped: int = 0
    """Steps left out because their gradient was not finite."""
    num_failures: int = 0
    """Consecutive skipped steps at the end."""


def preference_losses(scores: Float[Tensor, "b 2"], label: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The cross-entropy of each label under softmax over two scores, ties shifted to an optimum of 0.

    By hand: scores (1, 0) and label 1 give -ln(.7311) = .3133; label .5 gives .8133 - .6931 = .1201, and 0 for equal
    scores.
    """
    target = torch.stack([label, 1 - label], 1)
    entropy = -(target * target.clamp_min(1e-12).log()).sum(1)
    return -(target * F.log_softmax(scores, dim=1)).sum(1) - entropy


class JudgeTrainer:
    """A judge's training in progress: `step()` does a step, `state()` is all that another trainer resumes from."""

    def __init__(self, scorer: PairScorer, *, pairs: PreparedPairs, config: JudgeTraining, seed: int) -> None:
        self.scorer = scorer
        self.pairs = pairs
        self.config = config
        self.seed = seed
        self.processes = processes()
        model = scorer.model.train().requires_grad_(True)
        if config.gradient_checkpointing:
            scorer.enable_gradient_checkpointing()
        self.parameters = list(model.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, eps=1e-8
        )
        self.order = EpochOrder(len(pairs), seed=seed, purpose=Purpose.JUDGE_ORDER)
        self.num_steps = self.num_skipped = self.num_failures = 0
        self.seconds = 0.0
        self.calls: Counter[str] = Counter()

    def step(self) -> dict[str, Any]:
        """Do one optimizer step and return its row of metrics.

        A step whose loss or gradient is not finite changes no weight and has no loss and no norm in its row; raises
        NotFinite after `max_skipped` of them in a row.
        """
        start = time.perf_counter()
        size, rank, world = self.config.batch_size, self.processes.process_index, self.processes.num_processes
        positions = range(self.num_steps * size, (self.num_steps + 1) * size)
        weight = self.pairs.weight[[self.order[position] for position in positions]].sum().item()
        sums = self._sum(together(lambda: self._accumulate(list(positions)[rank::world], weight)))
        loss, right, decided = sums.tolist()
        rate = self.config.learning_rate * linear_schedule(
            self.num_steps, self.config.num_warmup_steps, self.config.num_steps
        )
        grad_norm = self._update(rate, loss)
        for calls in gather_object([self.scorer.drain_counters()]):
            self.calls.update(calls)
        self.num_steps += 1
        self.seconds += time.perf_counter() - start
        accuracy = right / decided if decided else None
        shown = loss if math.isfinite(loss) else None
        row = {"step": self.num_steps, "loss": shown, "accuracy": accuracy, "learning_rate": rate}
        return row | {"grad_norm": grad_norm, "seconds": round(self.seconds, 3)}

    def state(self) -> JudgeState:
        """The state from which `restore` resumes on any number of processes."""
        return JudgeState(
            pairs=self.pairs.digest(),
            num_steps=self.num_steps,
            seconds=self.seconds,
            calls=dict(self.calls),
            model=self.scorer.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            num_skipped=self.num_skipped,
            num_failures=self.num_failures,
        )

    def restore(self, state: JudgeState) -> None:
        """Resume from a saved state, whose tensors it takes over; raises ValueError when it is of other pairs."""
        if state.pairs != self.pairs.digest():
            raise ValueError("data.pairs: they are not those this run began with; restore the data, or start a new run")
        self.scorer.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        self.num_steps, self.seconds = state.num_steps, state.seconds
        self.num_skipped, self.num_failures = state.num_skipped, state.num_failures
        self.calls = Counter(state.calls)

    def _accumulate(self, positions: list[int], total_weight: float) -> Float[Tensor, "3"]:
        """Add this process's share of the gradient; returns its sums of loss, right and decided pairs.

        Each distinct prompt is embedded once: micro-batches accumulate gradients at the embeddings, and one backward
        pass takes them through the text tower, if it trains.
        """
        sums = torch.zeros(3, device=self.scorer.device)
        if not positions:
            return sums
        batch = self.pairs.take([self.order[position] for position in positions])
        distinct = list(dict.fromkeys(batch.prompts))
        text = self.scorer.text_features(distinct)
        leaf = text.detach().requires_grad_(True)
        rows = torch.tensor([distinct.index(prompt) for prompt in batch.prompts], device=self.scorer.device)
        for start in range(0, len(positions), self.config.micro_batch):
            part = slice(start, start + self.config.micro_batch)
            draws = PromptNoise(
                [generator_for(self.seed, Purpose.JUDGE_TRAINING, position) for position in positions[part]],
                device=self.scorer.device,
            )
            t, noise = draws.choice(NUM_TRAIN_TIMESTEPS), draws.normal(*batch.latents.shape[2:])
            label, weight = batch.label[part].to(t.device), batch.weight[part].to(t.device)
            scores = self.scorer.scores(batch.latents[part], batch.cond[part], leaf[rows[part]], t, noise)
            losses = preference_losses(scores, label) * weight / total_weight
            losses.sum().backward()
            right = agreement(scores.detach(), label)
            sums += torch.stack([losses.detach().sum(), right.nansum(), right.isfinite().sum()]).to(sums)
        if text.requires_grad:
            text.backward(leaf.grad)
        return sums

    def _update(self, rate: float, loss: float) -> float | None:
        """One optimizer step with the gradients of all processes; returns their norm, None for a step left out."""
        sum_gradients(self.parameters)
        norm = torch.nn.utils.get_total_norm(
            [grad for parameter in self.parameters if (grad := parameter.grad) is not None]
        )
        if not (math.isfinite(loss) and norm.isfinite()):
            self._skip("gradient" if math.isfinite(loss) else "loss")
            return None
        torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.max_grad_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        largest = torch.nn.utils.get_total_norm(self.parameters, norm_type=math.inf)
        check_finite(largest, f"the weights after step {self.num_steps + 1}", "lower training.learning_rate")
        self.num_failures = 0
        return norm.item()

    def _skip(self, part: str) -> None:
        """Leave out a step whose loss or gradient is not finite; raises NotFinite after too many in a row."""
        self.optimizer.zero_grad(set_to_none=True)
        self.num_skipped += 1
        self.num_failures += 1
        if self.num_failures >= self.config.max_skipped:
            raise NotFinite(
                f"the {part} of step {self.num_steps + 1} is not a finite number; {self._remedy()} "
                f"({self.num_failures} steps in a row were skipped for it, training.max_skipped)"
            )

    def _remedy(self) -> str:
        """The remedy where a loss or gradient is not finite."""
        if self.num_steps + 1 == self.num_skipped:
            return "no step was taken yet: check the files of judge.start and the pairs"
        return "training has diverged: start again with a lower training.learning_rate"

    def _sum(self, value: Tensor) -> Tensor:
        return reduce(value, "sum") if self.processes.num_processes > 1 else value


def linear_schedule(step: int, num_warmup: int, num_steps: int) -> float:
    """Linear warm-up to 1, then linear decay to 0 at num_steps."""
    if step < num_warmup:
        return (step + 1) / num_warmup
    return max(0.0, (num_steps - step) / max(1, num_steps - num_warmup))
