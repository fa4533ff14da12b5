"""Settings of a judge's training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stepalign.support.config import require

NUM_TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True, slots=True)
class JudgeTraining:
    """Optimization of the judge; the defaults are the paper's for Stable Diffusion 1.5."""

    num_steps: int = 8000
    """Optimizer steps."""
    batch_size: int = 64
    """Pairs per optimizer step, over all processes."""
    micro_batch: int = 8
    """Pairs in one forward and backward pass of one process; gradients accumulate over the rest."""
    learning_rate: float = 3e-6
    """Largest learning rate, after the warm-up."""
    num_warmup_steps: int = 500
    """Steps of linear warm-up; a linear decay to zero follows."""
    weight_decay: float = 0.3
    """Weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Norm to which the gradient is clipped."""
    max_skipped: int = 5
    """Steps in a row whose gradient is not finite after which the run stops; each is skipped, and changes nothing."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Precision of the forward passes; weights, gradients and scores are fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "micro_batch", "max_skipped"):
            require(getattr(self, name) >= 1, f"training.{name}", getattr(self, name), "at least 1")
        for name in ("num_warmup_steps", "weight_decay"):
            require(getattr(self, name) >= 0, f"training.{name}", getattr(self, name), "at least 0")
        for name in ("learning_rate", "max_grad_norm"):
            require(0 < getattr(self, name) < 1e15, f"training.{name}", getattr(self, name), "positive, below 1e15")
