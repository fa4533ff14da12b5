"""A world one can see through: Gaussian data, a policy that can only shift it, a judge that likes it bright."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stepalign.core.batch import Conditioning, StepComparisons
from stepalign.core.choices import Pairing, Role
from stepalign.core.protocols import Denoiser, Metrics
from stepalign.core.sampler import DDIM, NoiseSchedule
from stepalign.core.sampling import times_at
from stepalign.judges.counted import CountedJudge
from stepalign.objectives.load import load_objective
from stepalign.objectives.settings import Stepwise
from stepalign.objectives.stepwise import stepwise_loss
from stepalign.sources.by_prompt import PromptSampling
from stepalign.sources.load import load_source
from stepalign.sources.prompt_order import PromptStream
from stepalign.sources.settings import Branching, Candidates, Sources
from stepalign.training.settings import Training
from stepalign.training.trainer import Trainer
from stepalign.training.updater import Updater

LATENT_SHAPE = (2, 2, 2)
SPREAD = 0.5
"""Standard deviation of the data around its prompt's mean."""
PROMPTS = ["a cat", "a dog", "a house by the sea", "a tree", "two boats"]
SMALL = Training(
    num_rounds=4,
    prompts_per_round=4,
    sample_batch=3,
    comparisons_per_update=7,
    train_batch=3,
    learning_rate=0.01,
)


def make_sampler(num_steps: int = 20, *, final_alpha: float | None = None, eta: float = 1.0) -> DDIM:
    """Stable Diffusion's schedule, written out."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    grid = tuple(step * (1000 // num_steps) + 1 for step in reversed(range(num_steps)))
    final = alphas[0].item() if final_alpha is None else final_alpha
    return DDIM(NoiseSchedule(alphas, final, "epsilon", grid), eta=eta)


def encode(prompts: list[str]) -> Conditioning:
    """The mean of a prompt's data, in place of tokens: a tenth of the prompt's length."""
    return Conditioning(torch.tensor([[[len(prompt) / 10]] for prompt in prompts]))


class ShiftPolicy:
    """Predicts the noise of Gaussian data exactly; its adapter adds one number per latent entry."""

    def __init__(self) -> None:
        self.adapter = {"shift": torch.zeros(LATENT_SHAPE, requires_grad=True)}
        self.ema = {"shift": torch.zeros(LATENT_SHAPE)}
        self.calls: Counter[Role] = Counter()
        self._schedule = make_sampler().schedule

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning, *, role: Role) -> Tensor:
        self.calls[role] += len(x_t)
        alpha = self._schedule.alpha_bar(t)[:, None, None, None].float()
        mean = cond.tokens.mean((1, 2))[:, None, None, None]
        eps = (1 - alpha).sqrt() / (alpha * SPREAD**2 + 1 - alpha) * (x_t - alpha.sqrt() * mean)
        if role == "policy":
            return eps + self.adapter["shift"]
        return eps + self.ema["shift"] if role == "ema" else eps

    def denoiser(self, role: Role) -> Denoiser:
        return lambda x_t, t, cond: self.predict(x_t, t, cond, role=role)

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        self.ema["shift"].lerp_(self.adapter["shift"], 1 - decay)

    @torch.no_grad()
    def load(self, *, adapter: dict[str, Tensor], ema: dict[str, Tensor]) -> None:
        self.adapter["shift"].copy_(adapter["shift"])
        self.ema["shift"].copy_(ema["shift"])


class BrightnessJudge:
    """Likes large x̂0; remembers what it saw."""

    def __init__(self, scale: float = 10.0) -> None:
        self.scale = scale
        self.seen: list[tuple[int, str]] = []

    def __call__(self, x_t: Tensor, x_0: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
        self.seen.extend(zip(t.tolist(), prompts, strict=True))
        return self.scale * x_0.mean((1, 2, 3))


def make_trainer(
    *,
    policy: object = None,
    judge: object = None,
    objective: object = None,
    source: Sources | None = None,
    pairing: Pairing = "best-worst",
    min_gap: float = 0.0,
    branching: Branching | None = None,
    prompts: list[str] = PROMPTS,
    num_steps: int = 20,
    sampler: DDIM | None = None,
    seed: int = 0,
    latent_shape: tuple[int, int, int] = LATENT_SHAPE,
    encode: object = encode,
    loss_scaling: bool = False,
    **training: object,
) -> Trainer:
    """A trainer in this world unless other parts are given; `training` changes fields of SMALL.

    The objective is settings or a loss.
    """
    policy, sampler, config = policy or ShiftPolicy(), sampler or make_sampler(num_steps), replace(SMALL, **training)
    sampling = PromptSampling(
        policy.denoiser(config.rollout_role),
        sampler,
        encode,
        PromptStream(prompts, seed=seed),
        latent_shape,
        prompts_per_round=config.prompts_per_round,
        sample_batch=config.sample_batch,
        seed=seed,
        device=torch.device("cpu"),
    )
    judge, objective = judge or BrightnessJudge(), objective or Stepwise()
    judge = judge if isinstance(judge, CountedJudge) else CountedJudge(judge)
    source = source or Candidates(pairing=pairing, min_gap=min_gap)
    return Trainer(
        load_source(source, branching or Branching(num_candidates=2), sampling, judge),
        load_objective(objective) if isinstance(objective, Stepwise) else objective,
        Updater(policy, config=config, seed=seed, loss_scaling=loss_scaling),
        sampler=sampler,
        counters=[judge.calls],
    )


def assert_same(one: Any, other: Any) -> None:
    """Equal nested dicts, tensors in them bit by bit."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    else:
        assert one == other


class PairRecorder:
    """The default objective, remembering which comparisons each update was made of, by timestep and noise."""

    def __init__(self, policy: ShiftPolicy) -> None:
        self.updates: list[list[tuple[float, ...]]] = [[]]
        update_ema = policy.update_ema

        def counted(decay: float) -> None:
            update_ema(decay)
            self.updates.append([])

        policy.update_ema = counted

    def __call__(self, policy: ShiftPolicy, sampler: DDIM, batch: StepComparisons) -> tuple[Tensor, Metrics]:
        noise = batch.noise.flatten(1).tolist()
        self.updates[-1].extend((t, *row) for t, row in zip(times_at(sampler, batch.step).tolist(), noise, strict=True))
        return stepwise_loss(Stepwise(), policy, sampler, batch)


def shared_rounds() -> dict[str, Any]:
    """Two rounds of this world by the processes that share them: the comparisons a process saw, and its end."""
    policy = ShiftPolicy()
    recorder = PairRecorder(policy)
    trainer = make_trainer(policy=policy, judge=BrightnessJudge(20.0), objective=recorder, min_gap=0.3)
    rows = [trainer.round() for _ in range(2)]
    return {
        "updates": recorder.updates,
        "adapter": policy.adapter["shift"].detach(),
        "ema": policy.ema["shift"],
        "calls": dict(trainer.calls),
        "rows": rows,
    }
