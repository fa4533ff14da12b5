"""SPO (arXiv 2406.04314 eq. 4) and GradSPO (Tee et al., NeurIPS 2025, eq. 12) as one family.

With delta = eps_theta(x_t) - eps_ref(x_t), both guided, and z the noises of the two candidates, every member is,
unclipped,

    loss = softplus(beta · kappa_t · mean[delta ⊙ (z⁺ − z⁻)]),       kappa_t = 2 · a_t · g_t · sqrt(1 − abar_t)

because both compare eps with targets T = base − g_t sqrt(1 − abar_t) z whose base cancels between the two. The mean
is over c, h, w (the papers print a sum; beta = 10 belongs to the mean).

Where the two candidates left different parents (MSPO, SPO section 4.5) nothing cancels: with delta, eps and base at
each one's own parent the loss is softplus(−beta (r⁺ − r⁻)) of the log-ratios

    r = −a_t mean[(eps_theta − T)² − (eps_ref − T)²] = −a_t mean[delta ⊙ (eps_theta + eps_ref − 2 base)]
        − kappa_t mean[delta ⊙ z],           one loss for every pair of transitions at the same t.

    method      a_t                    g_t
    SPO         A(t) = c_t²/(2 σ_t²)   B(t) = σ_t / (c_t sqrt(1 − abar_t)),     so kappa_t = c_t / σ_t
    GradSPO     1                      gamma
    min-SNR     min(SNR_t, 5) / SNR_t  gamma
    P2          1 / (1 + SNR_t)        gamma

Numbers: in Stable Diffusion's schedule with 20 steps and eta = 1, at t = 501: sigma = .429, A = .196, B = 1.88 and
kappa = .626 (SPO). For one latent entry with delta = .2, z⁺ = 1, z⁻ = −.5, kappa = .5 and beta = 10 the loss is
softplus(10 · .5 · .2 · 1.5) = softplus(1.5) = 1.701.
"""

from __future__ import annotations

import math
from typing import assert_never

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stepalign.core.batch import Conditioning, StepComparisons
from stepalign.core.protocols import Grouped, Metrics, Policy, Sampler
from stepalign.core.sampling import times_at
from stepalign.objectives.settings import Stepwise, Weighting

MIN_SNR_CAP = 5.0
"""The cap of Hang et al. (arXiv 2303.09556)."""


def stepwise_loss(
    settings: Stepwise, policy: Policy, sampler: Sampler, batch: StepComparisons
) -> tuple[Float[Tensor, " b"], Metrics]:
    """One loss per comparison and its metrics: margin, accuracy, rms_delta (also by timestep), outside.

    Of two parents' rms_delta the larger counts.
    """
    p = batch.x_t.shape[1]
    x_t, step, cond = batch.x_t.flatten(0, 1), batch.step.repeat_interleave(p), batch.cond.tile(p)
    t = times_at(sampler, step)
    with torch.no_grad():
        eps_ref = _eps(settings, sampler, policy.predict(x_t, t, cond, role="reference"), x_t, step)
        base = _base(settings, policy, sampler, batch, x_t, step, cond)
    eps = _eps(settings, sampler, policy.predict(x_t, t, cond, role="policy"), x_t, step)

    noise = batch.noise
    if settings.noise == "max-min" and p == 1:
        half = (noise[:, 0] - noise[:, 1]) / 2
        noise = torch.stack([half, -half], 1)
    delta = eps - eps_ref.detach()
    weight = target_weight(settings.weighting, sampler, batch.step).to(delta)[:, None]
    length = guidance_step(settings, sampler, batch.step).to(delta)[:, None]
    log_ratio = -2 * weight * length * (delta.unflatten(0, (-1, p)) * noise).mean((2, 3, 4))
    if base is not None:
        quadratic = (delta * (eps + eps_ref - 2 * base)).mean((1, 2, 3)).unflatten(0, (-1, p))
        log_ratio = log_ratio - weight * quadratic
    if settings.trust_region == "clamp":
        log_ratio = clamp_log_ratio(log_ratio, settings.clip)
    margin = settings.beta * (log_ratio[:, 0] - log_ratio[:, 1])
    loss = F.softplus(-margin)

    rms_delta = delta.detach().square().mean((1, 2, 3)).sqrt().unflatten(0, (-1, p)).amax(1)
    if settings.trust_region == "clamp":
        low, high = clip_limits(settings.clip)
        outside = ((log_ratio.detach() <= low) | (log_ratio.detach() >= high)).all(1)
    else:
        outside = rms_delta > settings.radius
    if settings.trust_region == "rms":
        loss = torch.where(outside, loss.detach(), loss)
    metrics: Metrics = {
        "margin": margin.detach(),
        "accuracy": (margin.detach().sign() + 1) / 2,
        "rms_delta": rms_delta,
        "outside": outside.to(margin.dtype),
        "rms_delta_by_timestep": Grouped(rms_delta, times_at(sampler, batch.step)),
    }
    return loss, metrics


def guidance_step(settings: Stepwise, sampler: Sampler, step: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """g_t sqrt(1 - abar_t), in float64: how far a unit noise moves the target."""
    if settings.weighting == "spo":
        return sampler.std(step) / _response(sampler, step)
    return settings.gamma * sampler.scales(step)[1]


def kappa(settings: Stepwise, sampler: Sampler, step: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """kappa_t, in float64: the whole weight of a timestep in the unclipped loss."""
    return 2 * target_weight(settings.weighting, sampler, step) * guidance_step(settings, sampler, step)


def _base(
    settings: Stepwise,
    policy: Policy,
    sampler: Sampler,
    batch: StepComparisons,
    x_t: Float[Tensor, "n c h w"],
    step: Int[Tensor, " n"],
    cond: Conditioning,
) -> Float[Tensor, "n c h w"] | None:
    """The base of the targets at n parents, where it does not cancel: under the clamp, and for two parents.

    GradSPO's clamp takes the average's prediction, all else the one that was sampled with.
    """
    if settings.trust_region != "clamp" and batch.x_t.shape[1] == 1:
        return None
    if settings.trust_region != "clamp" or settings.weighting == "spo":
        return _eps(settings, sampler, batch.prediction.flatten(0, 1), x_t, step)
    return _eps(settings, sampler, policy.predict(x_t, times_at(sampler, step), cond, role="ema"), x_t, step)


def _eps(
    settings: Stepwise,
    sampler: Sampler,
    prediction: Float[Tensor, "n c h w"],
    x_t: Float[Tensor, "n c h w"],
    step: Int[Tensor, " n"],
) -> Float[Tensor, "n c h w"]:
    """The noise that a prediction implies; under "spo", minus the step's mean where the SNR is zero.

    There x_t is noise alone, whatever the prediction, and c_t infinite: the limit of c_t delta is the difference
    of the means, which is finite. `_response` is 1 there, so that all formulas hold.
    """
    eps = sampler.predict_eps(prediction, x_t, step)
    if settings.weighting != "spo" or sampler.noise_response(step).isfinite().all():
        return eps
    zero = sampler.noise_response(step).isinf()[:, None, None, None]
    return torch.where(zero, -sampler.transition(prediction, x_t, step).mean, eps)


def target_weight(weighting: Weighting, sampler: Sampler, step: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """a_t, the weight of the squared distance to the target."""
    snr = sampler.snr(step)
    match weighting:
        case "spo":
            return (_response(sampler, step) / sampler.std(step)) ** 2 / 2
        case "gradspo":
            return torch.ones_like(snr)
        case "min-snr":
            return torch.where(snr > MIN_SNR_CAP, MIN_SNR_CAP / snr, 1.0)  # 1, too, where the SNR is 0
        case "p2":
            return 1 / (1 + snr)
    assert_never(weighting)


def _response(sampler: Sampler, step: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """c_t, and 1 where the SNR is zero and c_t infinite; see `_eps`."""
    response = sampler.noise_response(step)
    return torch.where(response.isinf(), 1.0, response)


def clip_limits(clip: float) -> tuple[float, float]:
    """ln(1 - clip) and ln(1 + clip)."""
    return math.log1p(-clip), math.log1p(clip)


def clamp_log_ratio(log_ratio: Float[Tensor, "b 2"], clip: float) -> Float[Tensor, "b 2"]:
    """ln of the likelihood ratios clamped to [1 - clip, 1 + clip]; outside, the gradient is exactly zero."""
    return log_ratio.clamp(*clip_limits(clip))
