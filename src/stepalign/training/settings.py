"""Settings of a run's training, and of the watch for signs of trouble."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stepalign.core.choices import Role
from stepalign.support.config import require

LARGEST = 1e15
"""Bound of a learning rate and a weight decay: the optimizer multiplies them, in fp32."""


@dataclass(frozen=True, slots=True)
class Training:
    """The size of a run's rounds and updates, and the optimizer."""

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
    rollout_role: Role = "policy"
    """The weights that sample: "policy" (SPO) or the running "ema" (GradSPO)."""
    learning_rate: float = 6e-5
    weight_decay: float = 1e-4
    max_grad_norm: float | None = None
    """Gradient clipping; the papers' programs configure 1.0 without effect."""
    ema_decay: float = 0.9
    """Of the running average, after every optimizer step."""
    max_skipped: int = 5
    """Updates in a row whose gradient is not finite after which the run stops; each is skipped, and changes nothing."""

    def __post_init__(self) -> None:
        for name in (
            "num_rounds",
            "prompts_per_round",
            "sample_batch",
            "comparisons_per_update",
            "train_batch",
            "max_skipped",
        ):
            require(getattr(self, name) >= 1, f"training.{name}", getattr(self, name), "at least 1")
        require(0 <= self.ema_decay < 1, "training.ema_decay", self.ema_decay, "at least 0 and below 1")
        require(0 < self.learning_rate < LARGEST, "training.learning_rate", self.learning_rate, "positive, below 1e15")
        require(0 <= self.weight_decay < LARGEST, "training.weight_decay", self.weight_decay, "at least 0, below 1e15")
        norm = self.max_grad_norm
        require(norm is None or norm > 0, "training.max_grad_norm", norm, "positive, or None")


@dataclass(frozen=True, slots=True)
class Watch:
    """When a run is reported to learn nothing, or to diverge."""

    action: Literal["warn", "stop"] = "warn"
    """"warn" notes each sign once; "stop" ends training, too, and evaluates what there is."""
    num_rounds: int = 3
    """Rounds in a row that show it: without comparisons, with a constant judge, outside the trust region, unmoved."""
    max_outside: float = 0.95
    """Share of comparisons outside the trust region, which give no gradient."""
    min_rms_delta: float = 1e-6
    """Rms of the prediction's change, in units of the noise it predicts, below which nothing moves."""
    max_rms_delta: float = 1.0
    """Rms of the prediction's change above which the policy has diverged."""

    def __post_init__(self) -> None:
        require(self.num_rounds >= 1, "watch.num_rounds", self.num_rounds, "at least 1")
        require(0 < self.max_outside <= 1, "watch.max_outside", self.max_outside, "above 0 and at most 1")
        require(self.min_rms_delta >= 0, "watch.min_rms_delta", self.min_rms_delta, "at least 0")
        require(self.max_rms_delta > 0, "watch.max_rms_delta", self.max_rms_delta, "positive")
