"""Hyperparameters of the objectives, and the papers' values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from stepalign.support.config import require

Weighting = Literal["spo", "gradspo", "min-snr", "p2"]


@dataclass(frozen=True, slots=True)
class Stepwise:
    """A stepwise preference loss; `objectives.stepwise` has the mathematics."""

    kind: Literal["stepwise"] = "stepwise"
    """The family of losses."""
    weighting: Weighting = "gradspo"
    """How timesteps weigh: "spo" (eq. 4), "gradspo" (uniform in the target), "min-snr" or "p2" (GradSPO Table 8)."""
    beta: float = 10.0
    """Inverse temperature of the preference model, on a mean over latent entries."""
    gamma: float = 0.5
    """Length of GradSPO's guidance step; "spo" has its own B(t) and ignores it."""
    trust_region: Literal["clamp", "rms"] | None = "rms"
    """"clamp": each likelihood ratio is clamped to 1 ± clip, as in the released programs; "rms": a comparison whose
    rms(delta) exceeds the radius gives no gradient; None: the papers' equations as printed."""
    clip: float = 0.1
    """Half-width of "clamp"."""
    radius: float = 0.309
    """Limit of rms(delta) for "rms"; sqrt(ln 1.1) = .309 is where "clamp" with clip = .1 stops GradSPO."""
    noise: Literal["max-min", "separate"] = "max-min"
    """Which noise moves each target: half the difference, ±(z⁺ − z⁻)/2, or its own z⁺, z⁻. It matters for "clamp" only;
    where there are two parents each keeps its own."""

    def __post_init__(self) -> None:
        for name, value in (("beta", self.beta), ("gamma", self.gamma), ("radius", self.radius)):
            require(0 < value < math.inf, f"objective.{name}", value, "positive")
        require(0 < self.clip < 1, "objective.clip", self.clip, "between 0 and 1")


SPO = Stepwise(weighting="spo", trust_region="clamp", noise="separate")
"""SPO as released: its clamp, and targets that keep their own noise."""
GRADSPO = Stepwise(weighting="gradspo", trust_region="clamp", noise="max-min")
"""GradSPO as released; `replace(GRADSPO, trust_region="rms")` is the same without the third forward pass."""
Objectives = Stepwise
"""The settings that `objectives.load` knows a loss for; `kind` picks the member of the union."""
