"""A sampler whose times are no integers: rectified flow, written from the protocol alone, in a round of training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from worlds import SPREAD, BrightnessJudge, ShiftPolicy, make_trainer

from stepalign.core.batch import Conditioning
from stepalign.core.choices import Role
from stepalign.core.protocols import Sampler
from stepalign.core.sampler import GaussianStep
from stepalign.objectives.settings import Stepwise
from stepalign.sources.settings import Branching

TIMES = (906.25, 718.75, 531.25, 343.75, 156.25, 0.0)


class Flow:
    """x = (1 - s) x_0 + s noise at time 1000 s; predicts the velocity noise - x_0; half of each step's noise is new."""

    num_steps = 5
    times = TIMES

    def __init__(self, eta: float = 0.5) -> None:
        self.eta = eta

    def with_eta(self, eta: float) -> Flow:
        return Flow(eta)

    def scales(self, step: Tensor) -> tuple[Tensor, Tensor]:
        sigma = torch.tensor(TIMES).double()[step] / 1000
        return 1 - sigma, sigma

    def snr(self, step: Tensor) -> Tensor:
        alpha, sigma = self.scales(step)
        return (alpha / sigma) ** 2

    def std(self, step: Tensor) -> Tensor:
        return self.eta * self.scales(step + 1)[1]

    def noise_response(self, step: Tensor) -> Tensor:
        (alpha, sigma), (alpha_p, sigma_p) = self.scales(step), self.scales(step + 1)
        return alpha_p * sigma / alpha - (1 - self.eta**2) ** 0.5 * sigma_p

    def transition(self, prediction: Tensor, x_t: Tensor, step: Tensor) -> GaussianStep:
        alpha_p, sigma_p = (scale.to(x_t)[:, None, None, None] for scale in self.scales(step + 1))
        x_0, eps = self.predict_x0(prediction, x_t, step), self.predict_eps(prediction, x_t, step)
        return GaussianStep(alpha_p * x_0 + (1 - self.eta**2) ** 0.5 * sigma_p * eps, self.std(step).to(x_t))

    def predict_x0(self, prediction: Tensor, x_t: Tensor, step: Tensor) -> Tensor:
        return x_t - self.scales(step)[1].to(x_t)[:, None, None, None] * prediction

    def predict_eps(self, prediction: Tensor, x_t: Tensor, step: Tensor) -> Tensor:
        return x_t + self.scales(step)[0].to(x_t)[:, None, None, None] * prediction

    def add_noise(self, x_0: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        alpha, sigma = (scale.to(x_0)[:, None, None, None] for scale in self.scales(step))
        return alpha * x_0 + sigma * noise


class VelocityPolicy(ShiftPolicy):
    """Predicts the velocity of Gaussian data exactly, and the adapter's shift; keeps the times that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.times: set[float] = set()

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning, *, role: Role) -> Tensor:
        self.times.update(t.tolist())
        shift = {"policy": self.adapter["shift"], "ema": self.ema["shift"], "reference": 0.0}[role]
        sigma = t[:, None, None, None] / 1000
        x_0 = (1 - sigma) * SPREAD**2 * x_t / ((1 - sigma) ** 2 * SPREAD**2 + sigma**2)
        return (x_t - x_0) / sigma + shift


@pytest.mark.parametrize("weighting", ["spo", "gradspo"])
@pytest.mark.parametrize(
    "inner", [{}, {"num_inner_steps": (2,)}, {"num_inner_steps": (2,), "inner_steps": "look-ahead"}]
)
def test_a_round_of_training_needs_no_integer_timesteps(weighting: str, inner: dict[str, object]) -> None:
    """The step into the sample has no noise; samples grow bright with a negative shift of the velocity."""
    policy, judge = VelocityPolicy(), BrightnessJudge()
    assert isinstance(Flow(), Sampler)
    trainer = make_trainer(
        policy=policy,
        judge=judge,
        objective=Stepwise(weighting=weighting),
        sampler=Flow(),
        branching=Branching(num_candidates=4, timestep_range=(0, 750), **inner),
        prompts_per_round=16,
        learning_rate=0.003,
    )
    row = trainer.round()
    branching_times = TIMES[1:4] if inner.get("inner_steps") != "look-ahead" else (TIMES[1], TIMES[3])
    assert list(row["rms_delta_by_timestep"]) == [str(t) for t in branching_times]
    assert row["judge_timestep"] == judge.seen[-1][0]
    assert {t for t, _ in judge.seen} <= set(TIMES)
    assert policy.times == set(TIMES[:-1])
    assert policy.adapter["shift"].mean() < 0
