"""A denoising step is a distribution: DDIM with noise (Song et al., arXiv 2010.02502).

Notation: t -> p is one step, `alpha_bar` the cumulative alpha, alpha = alpha_bar_t / alpha_bar_p. Coefficients are
kept in float64 and cast to the sample's dtype where they meet it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepalign.core.choices import PredictionType

SMALLEST_ALPHA = 1e-12
"""Cumulative alphas below it are zero terminal SNR (Lin et al., arXiv 2305.08891); cosine schedules end at 2e-9."""


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """The noise schedule of a base model's training, from its scheduler config."""

    alphas_cumprod: Float[Tensor, " steps"]
    """Float64, one per training timestep."""
    final_alpha_cumprod: float
    """The cumulative alpha that the last step leads to: alphas_cumprod[0], or 1 with `set_alpha_to_one`."""
    prediction_type: PredictionType
    timesteps: tuple[int, ...]
    """The sampling grid, from high noise to low: the timestep of every step."""

    def __post_init__(self) -> None:
        alphas = self.alphas_cumprod
        if not ((alphas >= 0) & (alphas <= 1)).all():
            raise ValueError("noise schedule: cumulative alphas lie between 0 and 1; check the scheduler's betas")
        if self.prediction_type == "epsilon" and alphas.min() < SMALLEST_ALPHA:
            raise ValueError(
                f"noise schedule: its cumulative alpha falls to {alphas.min().item():.3g} at timestep "
                f"{int(alphas.argmin())} (zero terminal SNR, rescale_betas_zero_snr), where noise alone says nothing "
                "of the image: an epsilon model cannot sample from there; take the model's own scheduler config, or "
                "prediction_type v_prediction if that is what the model was trained with"
            )

    def alpha_bar(self, t: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The cumulative alpha of any training timestep, in float64."""
        rows, alphas = t.cpu(), self.alphas_cumprod.double()
        if ((rows < 0) | (rows >= len(alphas))).any():
            raise ValueError(f"t must be between 0 and {len(alphas) - 1}, got {rows.min()} to {rows.max()}")
        return alphas[rows].to(t.device)

    def add_noise(
        self, x_0: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, at any training timestep."""
        alpha, sigma = self._factors(t, x_0)
        return alpha * x_0 + sigma * noise

    def predict_x0(
        self, prediction: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """The clean sample that a prediction at any training timestep implies."""
        alpha, sigma = self._factors(t, x_t)
        match self.prediction_type:
            case "epsilon":
                return (x_t - sigma * prediction) / alpha
            case "v_prediction":
                return alpha * x_t - sigma * prediction
            case "sample":
                return prediction

    def predict_eps(
        self, prediction: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """The noise that a prediction at any training timestep implies."""
        alpha, sigma = self._factors(t, x_t)
        match self.prediction_type:
            case "epsilon":
                return prediction
            case "v_prediction":
                return alpha * prediction + sigma * x_t
            case "sample":
                return (x_t - alpha * prediction) / sigma

    def _factors(self, t: Int[Tensor, " b"], x: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t) as factors of x."""
        alpha_bar = self.alpha_bar(t)
        return _like(alpha_bar.sqrt(), x), _like((1 - alpha_bar).sqrt(), x)


@dataclass(frozen=True, slots=True)
class GaussianStep:
    """One denoising step: x_prev ~ N(mean, std² I)."""

    mean: Float[Tensor, "b c h w"]
    std: Float[Tensor, " b"]

    def sample(self, noise: Float[Tensor, "b k c h w"]) -> Float[Tensor, "b k c h w"]:
        """k ways to take the step, one per noise."""
        return self.mean[:, None] + self.std[:, None, None, None, None] * noise

    def mean_log_prob(self, x_prev: Float[Tensor, "b k c h w"]) -> Float[Tensor, "b k"]:
        """The log-density of each x_prev divided by the number of latent entries; needs std > 0."""
        squares = (x_prev - self.mean[:, None]).square().mean((2, 3, 4))
        std = self.std[:, None]
        return -squares / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)


class DDIM:
    """DDIM sampling with noise scale eta; eta = 1 is ancestral sampling, 0 the deterministic ODE.

    A step from t to p has
        x0   = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)
        var  = eta² (1 - abar_p) / (1 - abar_t) (1 - abar_t / abar_p)
        mean = sqrt(abar_p) x0 + sqrt(1 - abar_p - var) eps.
    Step i leads from the grid's timestep i to the next, the last to timestep 0, whose cumulative alpha the schedule
    gives.
    """

    def __init__(self, schedule: NoiseSchedule, *, eta: float = 1.0) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta is between 0 (deterministic) and 1 (ancestral), got {eta}")
        self.schedule = schedule
        self.eta = eta
        self.times = (*schedule.timesteps, 0)
        alphas = schedule.alphas_cumprod.double()
        grid = list(schedule.timesteps)
        if not all(0 <= t < len(alphas) for t in grid):
            raise ValueError(
                f"{len(grid)} steps reach timestep {max(grid)}, beyond the model's {len(alphas)}; take fewer"
            )
        alpha_t = alphas[grid]
        alpha_p = torch.cat([alphas[grid[1:]], torch.tensor([schedule.final_alpha_cumprod], dtype=torch.float64)])
        variance = eta**2 * (1 - alpha_p) / (1 - alpha_t) * (1 - alpha_t / alpha_p)
        self._grid = torch.tensor(grid)
        self._alpha_t = alpha_t
        self._alpha_p = alpha_p
        self._std = variance.sqrt()
        self._direction = (1 - alpha_p - variance).clamp_min(0).sqrt()
        self._response = (alpha_p * (1 - alpha_t) / alpha_t).sqrt() - self._direction

    def with_eta(self, eta: float) -> DDIM:
        """The same steps with another noise scale."""
        return DDIM(self.schedule, eta=eta)

    @property
    def num_steps(self) -> int:
        """N; steps count from 0, the highest noise, to N - 1."""
        return len(self._grid)

    def scales(self, step: Int[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """alpha = sqrt(abar_t) and sigma = sqrt(1 - abar_t) where the step begins, in float64."""
        alpha_bar = self._at_step(self._alpha_t, step)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def snr(self, step: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The signal-to-noise ratio abar_t / (1 - abar_t) where the step begins, in float64."""
        alpha_bar = self._at_step(self._alpha_t, step)
        return alpha_bar / (1 - alpha_bar)

    def std(self, step: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The step's standard deviation, in float64: 0 with eta = 0, and into a final alpha of 1."""
        return self._at_step(self._std, step)

    def noise_response(self, step: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """c_t = -d mean / d eps = sqrt(abar_p (1 - abar_t) / abar_t) - sqrt(1 - abar_p - var), in float64."""
        return self._at_step(self._response, step)

    def transition(
        self, prediction: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], step: Int[Tensor, " b"]
    ) -> GaussianStep:
        """The step from x_t under a prediction of the model's own kind."""
        alpha_p = self._at_step(self._alpha_p, step)
        x_0 = self.predict_x0(prediction, x_t, step)
        eps = self.predict_eps(prediction, x_t, step)
        mean = _like(alpha_p.sqrt(), x_t) * x_0 + _like(self._at_step(self._direction, step), x_t) * eps
        return GaussianStep(mean, self.std(step).to(x_t.dtype))

    def predict_x0(
        self, prediction: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], step: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """The clean sample that a prediction where the step begins implies."""
        return self.schedule.predict_x0(prediction, x_t, self._grid[self._rows(step)])

    def predict_eps(
        self, prediction: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], step: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """The noise that a prediction where the step begins implies."""
        return self.schedule.predict_eps(prediction, x_t, self._grid[self._rows(step)])

    def add_noise(
        self, x_0: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], step: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Clean samples with the noise level at which the step begins."""
        return self.schedule.add_noise(x_0, noise, self._grid[self._rows(step)])

    def _at_step(self, table: Float[Tensor, " n"], step: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        return table[self._rows(step)].to(step.device)

    def _rows(self, step: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """Steps on the CPU, where the tables are."""
        rows = step.cpu()
        outside = (rows < 0) | (rows >= self.num_steps)
        if outside.any():
            raise ValueError(f"step = {rows[outside][0]} is none of the sampler's steps, 0 to {self.num_steps - 1}")
        return rows


def _like(values: Float[Tensor, " b"], x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 1 1"]:
    return values.to(x)[:, None, None, None]
