"""Protocols for policy, sampler, judge, source, objective and scorer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int, Real
from PIL import Image
from torch import Tensor, nn

from stepalign.core.batch import Batch, Conditioning
from stepalign.core.choices import Role
from stepalign.core.experience import Collected

B_co = TypeVar("B_co", bound=Batch, covariant=True)
B_contra = TypeVar("B_contra", bound=Batch, contravariant=True)


@dataclass(frozen=True, slots=True, eq=False)
class Grouped:
    """A metric that is reported as a mean per group of rows."""

    values: Float[Tensor, " b"]
    by: Real[Tensor, " b"]
    """The group of each row, such as its timestep."""


Metrics = dict[str, Float[Tensor, " b"] | Grouped]
"""Detached, one value per row, under any names."""


@runtime_checkable
class Denoiser(Protocol):
    """A guided prediction of the base model's own kind (noise, velocity or clean sample), in float32."""

    def __call__(
        self, x_t: Float[Tensor, "b c h w"], t: Real[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]: ...


@runtime_checkable
class Policy(Protocol):
    """One network that predicts in several roles."""

    def predict(
        self, x_t: Float[Tensor, "b c h w"], t: Real[Tensor, " b"], cond: Conditioning, *, role: Role
    ) -> Float[Tensor, "b c h w"]:
        """A guided prediction; gradients flow for the role "policy" only."""
        ...


@runtime_checkable
class TrainablePolicy(Policy, Protocol):
    """A policy whose adapter an optimizer can change."""

    calls: Counter[Role]
    """Samples through the network by role; guidance counts twice."""

    @property
    def adapter(self) -> dict[str, Tensor]:
        """The trained parameters."""
        ...

    @property
    def ema(self) -> dict[str, Tensor]:
        """Their running average, under the same names."""
        ...

    def denoiser(self, role: Role) -> Denoiser: ...

    def update_ema(self, decay: float) -> None:
        """ema <- decay * ema + (1 - decay) * policy."""
        ...

    def load(self, *, adapter: dict[str, Tensor], ema: dict[str, Tensor]) -> None:
        """Load saved adapter weights."""
        ...


@runtime_checkable
class Transition(Protocol):
    """One denoising step as a Gaussian over x_prev."""

    @property
    def mean(self) -> Float[Tensor, "b c h w"]: ...

    def sample(self, noise: Float[Tensor, "b k c h w"]) -> Float[Tensor, "b k c h w"]:
        """k ways to take the step, one per noise."""
        ...

    def mean_log_prob(self, x_prev: Float[Tensor, "b k c h w"]) -> Float[Tensor, "b k"]:
        """The log-density per latent entry."""
        ...


@runtime_checkable
class Sampler(Protocol):
    """The steps from noise to sample, each a distribution.

    A step is named by its index, 0 at the highest noise to N - 1; where it begins a sample is alpha x_0 + sigma noise.
    """

    @property
    def num_steps(self) -> int:
        """N."""
        ...

    @property
    def times(self) -> tuple[int | float, ...]:
        """The time at which every step begins, as the network and judges take it, and last that of finished samples."""
        ...

    def with_eta(self, eta: float) -> Sampler:
        """The same steps with another noise scale; 0 is deterministic."""
        ...

    def transition(
        self, prediction: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], step: Int[Tensor, " b"]
    ) -> Transition: ...

    def predict_x0(
        self, prediction: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], step: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]: ...

    def predict_eps(
        self, prediction: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], step: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]: ...

    def add_noise(
        self, x_0: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], step: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """alpha x_0 + sigma noise."""
        ...

    def scales(self, step: Int[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """alpha and sigma where a step begins, in float64."""
        ...

    def snr(self, step: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The signal-to-noise ratio (alpha / sigma)², in float64."""
        ...

    def std(self, step: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The step's standard deviation, in float64; 0 where it has no noise to choose."""
        ...

    def noise_response(self, step: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The change of the step's mean per change of the predicted noise, negated, in float64."""
        ...


@runtime_checkable
class Source(Protocol[B_co]):
    """Collects the experience of training rounds."""

    @property
    def digest(self) -> str:
        """Of the data it works through; a run resumes on the same data only."""
        ...

    def collect(self, index: int, tick: Callable[[int, int], None]) -> Collected[B_co]:
        """This process's experience of round `index`, counted from 0; decided by the seed and the index.

        `tick` is called with the amount of work done and the total. It must not wait for other processes.
        """
        ...


@runtime_checkable
class Objective(Protocol[B_contra]):
    """A loss over a batch of experience, one value per row, and the metrics to report of it."""

    def __call__(self, policy: Policy, sampler: Sampler, batch: B_contra) -> tuple[Float[Tensor, " b"], Metrics]: ...


@runtime_checkable
class Judge(Protocol):
    """Scores samples x_t by the clean samples x_0 predicted from them at times t; larger is better."""

    def __call__(
        self,
        x_t: Float[Tensor, "b c h w"],
        x_0: Float[Tensor, "b c h w"],
        t: Real[Tensor, " b"],
        prompts: list[str],
    ) -> Float[Tensor, " b"]: ...


@runtime_checkable
class DifferentiableJudge(Judge, Protocol):
    """A judge that also returns the gradient of its scores."""

    def gradient(
        self, x_0: Float[Tensor, "b c h w"], t: Real[Tensor, " b"], prompts: list[str]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b c h w"]]:
        """The scores of clean samples predicted at times t, and the gradients with respect to them."""
        ...


@runtime_checkable
class PairScorer(Protocol):
    """A judge that trains: it scores both images of labelled pairs at a noise level."""

    @property
    def model(self) -> nn.Module:
        """The network whose parameters are trained and saved."""
        ...

    @property
    def device(self) -> torch.device: ...

    def enable_gradient_checkpointing(self) -> None:
        """Trade time for memory in training."""
        ...

    def text_features(self, prompts: list[str]) -> Float[Tensor, "b e"]:
        """A judge's embeddings of prompts."""
        ...

    def scores(
        self,
        latents: Float[Tensor, "b 2 c h w"],
        cond: Conditioning,
        text: Float[Tensor, "b e"],
        t: Int[Tensor, " b"],
        noise: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, "b 2"]:
        """The scores of both images of each pair at the pair's timestep and under its noise."""
        ...

    def drain_counters(self) -> dict[str, int]:
        """The work done since the last call, by kind."""
        ...


@runtime_checkable
class Metric(Protocol):
    """Scores finished images with values in [0, 1]; larger is better."""

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]: ...


@dataclass(frozen=True, slots=True)
class ScorerRecord:
    """The description of a scorer that makes its scores reproducible; part of every result."""

    name: str
    """The column's name, with the version where versions differ: "hps-v2.1"."""
    weights: str
    """Where they came from: a hub id, or the last part of a local path."""
    sha256: str
    """Of the weights' files."""
    preprocessing: str
    """Preprocessing of an image, in words."""
    scale: str
    """Scale of the score: "exp(logit_scale) cos", "100 cos"."""
    needs_prompt: bool
    libraries: dict[str, str]
    """Versions of the libraries that decide the score."""
    content: str = ""
    """The digest of weights, config and tokenizer as loaded, whatever files they came from; "" before it was kept."""


@runtime_checkable
class Scorer(Protocol):
    """Scores finished images with the preprocessing of published numbers; larger is better.

    The same networks as a `Metric`, a differentiable reward on tensors, prepare images differently.
    """

    @property
    def record(self) -> ScorerRecord:
        """Weights and preprocessing; reading the weight files may take seconds."""
        ...

    def num_cut(self, prompts: list[str]) -> int:
        """How many prompts are longer than its text encoder reads; 0 where none is read."""
        ...

    def score(self, images: list[Image.Image], prompts: list[str]) -> Float[Tensor, " b"]:
        """One fp32 score per image, on the CPU; images of any size and mode."""
        ...


@runtime_checkable
class Decode(Protocol):
    """Latents to images with values in [-1, 1], not clamped."""

    def __call__(self, x_0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 hh ww"]: ...
