"""Checks before a run's first round and after its last, on one prompt with noise of their own.

One prediction, one decoded image and one backward pass must look as they should. A run's numbers are the same with and
without them, and their work is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepalign.core.batch import Conditioning, StepComparisons
from stepalign.core.choices import Role
from stepalign.core.sampling import times_at
from stepalign.core.seeding import PromptNoise, Purpose, generator_for
from stepalign.runs.assemble import Parts
from stepalign.runs.recipes import Recipe
from stepalign.sources.branching import windows
from stepalign.support.finite import NotFinite, check_finite
from stepalign.support.watcher import Watcher
from stepalign.training.held_out_scores import ScoreChange
from stepalign.training.watch import HealthWatch, Row, Sign

RANGE = 5.0
"""Decoded images lie around [-1, 1]; beyond this they are no images."""


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Two noisy latents of one prompt at the first step that trains, and the clean samples predicted there."""

    prompts: list[str]
    cond: Conditioning
    step: Int[Tensor, " b"]
    x_t: Float[Tensor, "b c h w"]
    prediction: Float[Tensor, "b c h w"]
    x_0: Float[Tensor, "b c h w"]


def start_health(parts: Parts, rows: list[Row], watcher: Watcher) -> HealthWatch:
    """Check a run before its next round; returns its watch, with the signs of the rows so far.

    Raises ValueError for what makes training pointless, naming the part and what to try.
    """
    health = HealthWatch(parts.recipe.watch, rows, watcher.note)
    probe = make_probe(parts)
    lines = [check_reach(parts)]
    if parts.trainer.num_rounds == 0:
        lines.append(check_reference(parts, probe))
    for check in (check_gradients, check_decoded, check_judge):
        line, sign = check(parts, probe)
        lines.append(line)
        if sign is not None:
            health.add(sign)
    parts.trainer.drain_counters("checks")  # not counted
    if parts.trainer.num_rounds == 0:
        watcher.note(f"checked: {'; '.join(lines)}")
    return health


@torch.no_grad()
def make_probe(parts: Parts) -> Probe:
    """The probe of a run; its prompt is the first that training uses."""
    recipe, sampler, device = parts.recipe, parts.sampler, parts.model.device
    noise = PromptNoise([generator_for(recipe.seed, Purpose.START_CHECK, row) for row in range(2)], device=device)
    prompts = [parts.stream[0]] * 2
    cond, x_t = parts.model.encode(prompts), noise.normal(*parts.model.latent_shape)
    step = torch.full((2,), min(windows(recipe.branching, sampler)), device=device)
    prediction = parts.policy.predict(x_t, times_at(sampler, step), cond, role="reference")
    return Probe(prompts, cond, step, x_t, prediction, sampler.predict_x0(prediction, x_t, step))


def check_reach(parts: Parts) -> str:
    """The adapter reaches at least one module."""
    tensors = parts.policy.adapter
    modules = {name.partition(".lora_")[0] for name in tensors}
    if not modules:
        raise ValueError("start: the adapter reaches no module of the network, so that nothing can be trained")
    size = sum(tensor.numel() for tensor in tensors.values())
    return f"the adapter reaches {len(modules)} modules, {size / 1e6:.3g} million weights"


@torch.no_grad()
def check_reference(parts: Parts, probe: Probe) -> str:
    """The untrained policy predicts the base model's bits."""
    for role in ("policy", "ema"):
        apart = effect(parts, probe, role)
        if apart:
            raise ValueError(
                f"start: before any update the {role} differs from the base model by rms {apart:.3g}; adapter and "
                "reference do not go through the same computation, and training would learn the difference"
            )
    return "policy and reference predict the same bits"


@torch.no_grad()
def effect(parts: Parts, probe: Probe, role: Role) -> float:
    """How far a role's predicted noise is from the base model's: rms of the difference."""
    prediction = parts.policy.predict(probe.x_t, times_at(parts.sampler, probe.step), probe.cond, role=role)
    eps, base = (parts.sampler.predict_eps(value, probe.x_t, probe.step) for value in (prediction, probe.prediction))
    return (eps - base).square().mean().sqrt().item()


def check_gradients(parts: Parts, probe: Probe) -> tuple[str, Sign | None]:
    """The first backward pass gives every tensor B a finite gradient, and not zeros alone."""
    updater = parts.trainer.updater
    noise = torch.stack([probe.x_t, -probe.x_t], 1)  # any direction will do
    batch = StepComparisons(probe.cond, probe.step, probe.x_t[:, None], probe.prediction[:, None], noise)
    scale = updater.scaler.get_scale()
    while True:
        losses, _ = parts.trainer.objective(parts.policy, parts.sampler, batch)
        check_finite(losses, "the first loss", "check the model's files and objective.beta")
        (losses.mean() * scale).backward()
        gradients = {
            name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            for name, tensor in parts.policy.adapter.items()
            if "lora_A" not in name
        }
        updater.optimizer.zero_grad(set_to_none=True)
        if scale <= 1 or all(gradient.isfinite().all() for gradient in gradients.values()):
            break
        scale /= 2  # as loss scaling does
    for name, gradient in gradients.items():
        check_finite(gradient.flatten(), f"the first gradient of {name}", "check the model's files and base.precision")
    still = [name for name, gradient in gradients.items() if not gradient.any()]
    if len(still) == len(gradients):
        raise ValueError(
            "start: the first backward pass gives the adapter no gradient at all, so that nothing can be trained; "
            "check objective.weighting and branching.timestep_range"
        )
    sign = None
    if still:
        sign = Sign(
            "tensors without gradient",
            0,
            f"{len(still)} of the adapter's {len(gradients)} tensors B get no gradient, {still[0]} first: they "
            "stay untrained",
        )
    return f"{len(gradients) - len(still)} of {len(gradients)} tensors B have a gradient", sign


@torch.no_grad()
def check_decoded(parts: Parts, probe: Probe) -> tuple[str, Sign | None]:
    """The image decoded from a predicted clean sample lies around [-1, 1] and is not of one colour."""
    images = parts.model.decode(probe.x_0)
    low, high = images.min().item(), images.max().item()
    if low == high:
        raise ValueError("start: the VAE decodes latents to images of one colour; check base.vae and the model's files")
    sign = None
    if max(-low, high) > RANGE:
        sign = Sign(
            "decoded range",
            0,
            f"decoded images lie between {low:.3g} and {high:.3g} instead of around -1 and 1: check base.vae, its "
            "scaling factor and the model's prediction type",
        )
    return f"decoded images lie between {low:.2f} and {high:.2f}", sign


@torch.no_grad()
def check_judge(parts: Parts, probe: Probe) -> tuple[str, Sign | None]:
    """Check that the judge distinguishes two images of a prompt and, if step-aware, timesteps."""
    first, last = parts.sampler.times[0], parts.sampler.times[-2]
    by_t = {
        t: parts.judge(probe.x_t, probe.x_0, torch.full((2,), t, device=parts.model.device), probe.prompts).float()
        for t in (first, last)
    }
    for t, scores in by_t.items():
        check_finite(scores, f"the judge's scores at timestep {t}", "check the judge's files")
    spread = max(abs((scores[0] - scores[1]).item()) for scores in by_t.values())
    if spread == 0:
        raise ValueError(
            "start: the judge gives different images of a prompt the same score, so that nothing can be learned from "
            "it; check judge.path and judge.kind"
        )
    moved = (by_t[first] - by_t[last]).abs().max().item()
    sign = None
    if parts.recipe.judge.kind == "spm" and moved == 0:
        sign = Sign(
            "judge blind to timesteps",
            0,
            f"the judge scores an image alike at timesteps {first} and {last}: a step-aware judge that is "
            "not trained yet, or trained without timesteps; judge.kind pickscore says so",
        )
    return f"the judge's scores of two images differ by {spread:.3g}, of two timesteps by {moved:.3g}", sign


def check_end(parts: Parts, health: HealthWatch) -> str | None:
    """Add the sign that training changed nothing, or too much; returns why the policy is of no use, if it is."""
    rounds, failed = parts.trainer.num_rounds, None
    if parts.trainer.num_updates == 0:
        health.add(
            Sign(
                "nothing trained",
                rounds,
                f"no optimizer update was made in {rounds} rounds, and the adapter is the untrained one; lower "
                "source.min_gap",
            )
        )
        skipped = parts.trainer.updater.num_skipped
        return f"none of {skipped} updates had a gradient of finite numbers: nothing was trained" if skipped else None
    if parts.trainer.updater.num_failures:
        failed = (
            f"training ended with {parts.trainer.updater.num_failures} updates in a row whose gradient is not finite: "
            "the policy has diverged; start again with a lower training.learning_rate"
        )
    try:
        moved = effect(parts, make_probe(parts), parts.recipe.exported_role)
        sign = change_sign(parts.recipe, moved, rounds)
    except NotFinite as error:
        failed = f"the trained policy is of no use: {error}"
        sign = Sign("policy not finite", rounds, failed)
    if sign is not None:
        health.add(sign)
    parts.trainer.drain_counters("checks")  # not counted
    return failed


def change_sign(recipe: Recipe, moved: float, rounds: int) -> Sign | None:
    """The sign of an adapter that changes the predicted noise by so much, if it is odd."""
    if moved < recipe.watch.min_rms_delta:
        return Sign(
            "nothing moves",
            rounds,
            f"the adapter changes the predicted noise by rms {moved:.3g} (watch.min_rms_delta): nothing was learned; "
            "raise training.learning_rate",
        )
    if moved > recipe.watch.max_rms_delta:
        return Sign(
            "policy diverged",
            rounds,
            f"the adapter changes the predicted noise, which has rms 1, by rms {moved:.3g} (watch.max_rms_delta): the "
            "policy has diverged; lower training.learning_rate",
        )
    return None


def add_falls(health: HealthWatch, scores: dict[str, ScoreChange], rounds: int) -> None:
    """Add a sign for every held-out score that training has significantly lowered."""
    for name, row in scores.items():
        low, high = row["interval"]
        if high < 0:
            health.add(
                Sign(
                    f"held-out {name} fell",
                    rounds,
                    f"training has lowered {name} on held-out prompts by {-row['difference']:.3g} (95 % interval "
                    f"{-high:.3g} to {-low:.3g}); lower training.learning_rate, or train for fewer rounds",
                )
            )
