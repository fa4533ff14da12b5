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
    """The sampling grid, from high noise to low."""

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
    The last step leads to timestep 0, whose cumulative alpha the schedule gives.
    """

    def __init__(self, schedule: NoiseSchedule, *, eta: float = 1.0) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta is between 0 (deterministic) and 1 (ancestral), got {eta}")
        self.schedule = schedule
        self.eta = eta
        alphas = schedule.alphas_cumprod.double()
        grid = list(schedule.timesteps)
        if not all(0 <= t < len(alphas) for t in grid):
            raise ValueError(
                f"{len(grid)} steps reach timestep {max(grid)}, beyond the model's {len(alphas)}; take fewer"
            )
        alpha_t = alphas[grid]
        alpha_p = torch.cat([alphas[grid[1:]], torch.tensor([schedule.final_alpha_cumprod], dtype=torch.float64)])
        variance = eta**2 * (1 - alpha_p) / (1 - alpha_t) * (1 - alpha_t / alpha_p)
        self._alphas = alphas
        self._alpha_p = alpha_p
        self._std = variance.sqrt()
        self._direction = (1 - alpha_p - variance).clamp_min(0).sqrt()
        self._response = (alpha_p * (1 - alpha_t) / alpha_t).sqrt() - self._direction
        self._step_of = torch.full((len(alphas),), -1)
        self._step_of[grid] = torch.arange(len(grid))

    def with_eta(self, eta: float) -> DDIM:
        """The same steps with another noise scale."""
        return DDIM(self.schedule, eta=eta)

    @property
    def timesteps(self) -> tuple[int, ...]:
        """From high noise to low."""
        return self.schedule.timesteps

    def previous(self, t: int) -> int:
        """The timestep that a step from t leads to; 0 after the last."""
        step = int(self._steps(torch.tensor([t]))) + 1
        return self.timesteps[step] if step < len(self.timesteps) else 0

    def is_stochastic(self, t: int) -> bool:
        """Whether the step from t has noise to choose: not with eta = 0, nor into a final alpha of 1."""
        return self.std(torch.tensor([t])).item() > 0

    def alpha_bar(self, t: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The cumulative alpha of any training timestep, in float64."""
        rows = t.cpu()
        if ((rows < 0) | (rows >= len(self._alphas))).any():
            raise ValueError(f"t must be between 0 and {len(self._alphas) - 1}, got {rows.min()} to {rows.max()}")
        return self._alphas[rows].to(t.device)

    def scales(self, t: Int[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """alpha = sqrt(abar_t) and sigma = sqrt(1 - abar_t) of any training timestep, in float64."""
        alpha_bar = self.alpha_bar(t)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def snr(self, t: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The signal-to-noise ratio abar_t / (1 - abar_t) of any training timestep, in float64."""
        alpha_bar = self.alpha_bar(t)
        return alpha_bar / (1 - alpha_bar)

    def std(self, t: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The step's standard deviation, in float64."""
        return self._at_step(self._std, t)

    def noise_response(self, t: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """c_t = -d mean / d eps = sqrt(abar_p (1 - abar_t) / abar_t) - sqrt(1 - abar_p - var), in float64."""
        return self._at_step(self._response, t)

    def transition(
        self, prediction: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]
    ) -> GaussianStep:
        """The step from x_t under a prediction of the model's own kind; t must lie on the grid."""
        alpha_p = self._at_step(self._alpha_p, t)
        x_0 = self.predict_x0(prediction, x_t, t)
        eps = self.predict_eps(prediction, x_t, t)
        mean = _like(alpha_p.sqrt(), x_t) * x_0 + _like(self._at_step(self._direction, t), x_t) * eps
        return GaussianStep(mean, self.std(t).to(x_t.dtype))

    def predict_x0(
        self, prediction: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """The clean sample that a prediction at any training timestep implies."""
        alpha, sigma = self._factors(t, x_t)
        match self.schedule.prediction_type:
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
        match self.schedule.prediction_type:
            case "epsilon":
                return prediction
            case "v_prediction":
                return alpha * prediction + sigma * x_t
            case "sample":
                return (x_t - alpha * prediction) / sigma

    def add_noise(
        self, x_0: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise."""
        alpha, sigma = self._factors(t, x_0)
        return alpha * x_0 + sigma * noise

    def _factors(self, t: Int[Tensor, " b"], x: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor]:
        """alpha and sigma as factors of x."""
        alpha, sigma = self.scales(t)
        return _like(alpha, x), _like(sigma, x)

    def _at_step(self, table: Float[Tensor, " n"], t: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        return table[self._steps(t)].to(t.device)

    def _steps(self, t: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """The steps that timesteps belong to, on the CPU."""
        rows = t.cpu()
        inside = (rows >= 0) & (rows < len(self._step_of))
        steps = torch.where(inside, self._step_of[rows.clamp(0, len(self._step_of) - 1)], -1)
        if (steps < 0).any():
            raise ValueError(f"t = {rows[steps < 0][0]} is not on the sampling grid {self.timesteps}")
        return steps


def _like(values: Float[Tensor, " b"], x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 1 1"]:
    return values.to(x.dtype)[:, None, None, None]
