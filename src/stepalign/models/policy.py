"""One network: the base model with a LoRA adapter, its reference and its running average.

The policy is the adapter "policy", its running average the adapter "ema", the reference the network with adapters off.
Nothing is copied but adapter weights.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Real
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from stepalign.core.batch import Conditioning, cat
from stepalign.core.choices import Role
from stepalign.core.protocols import Denoiser
from stepalign.models.base import ATTENTION_PROJECTIONS
from stepalign.models.forward import Forward, unet_forward
from stepalign.support.finite import NotFinite, check_finite, precision_remedy

NAMES: dict[Role, str] = {
    "policy": "the UNet with the trained adapter",
    "ema": "the UNet with the adapter's running average",
    "reference": "the base UNet",
}
DAMAGED = "the model's files are damaged, or are not of this architecture"
DIVERGED = "training has diverged: start again with a lower training.learning_rate"
GROWN = "the predictions before them grew without bound; check the model's files, or its adapter's learning rate"


class GuidedNetwork:
    """A denoising network under classifier-free guidance, the negative conditioning given once.

    Calling it gives eps_neg + guidance_scale (eps_cond - eps_neg) in float32, both halves in one forward pass;
    with guidance_scale 1 only the conditional half is run.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        negative: Conditioning,
        guidance_scale: float,
        forward: Forward = unet_forward,
        autocast: torch.dtype | None = None,
        max_batch: int | None = None,
    ) -> None:
        if guidance_scale < 1:
            raise ValueError(f"guidance_scale must be at least 1 (no guidance), got {guidance_scale}")
        self.network = network
        self.forward = forward
        self.guidance_scale = guidance_scale
        self.negative = negative
        self.autocast = autocast
        self.max_batch = max_batch
        """Samples at once; None for all."""

    @property
    def forwards_per_prediction(self) -> int:
        """Network evaluations per prediction: 2 under guidance, else 1."""
        return 1 if self.guidance_scale == 1 else 2

    def __call__(
        self, x_t: Float[Tensor, "b c h w"], t: Real[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """A guided prediction; raises NotFinite, naming the first part that is not finite."""
        return self.predict(x_t, t, cond, name="the UNet", otherwise=DAMAGED)

    def predict(
        self, x_t: Float[Tensor, "b c h w"], t: Real[Tensor, " b"], cond: Conditioning, *, name: str, otherwise: str
    ) -> Float[Tensor, "b c h w"]:
        """A guided prediction by a network of this name; `otherwise` is what to try where it is not finite and
        precision is not the cause.

        The batches are the same with gradients and without, so that two roles that are equal predict the same bits.
        """
        size = self.max_batch or max(1, len(x_t))
        rows = [slice(start, start + size) for start in range(0, max(1, len(x_t)), size)]
        parts = [self._predict(x_t[row], t[row], cond[row]) for row in rows]
        prediction = parts[0] if len(parts) == 1 else torch.cat(parts)
        if not prediction.isfinite().all():
            check_finite(cond.tokens, "the text encoder's output", DAMAGED)
            check_finite(x_t, f"the latents at timestep {_span(t)}", GROWN)
            remedy = precision_remedy(self.autocast or torch.float32, "base.precision", otherwise=otherwise)
            check_finite(prediction, f"the prediction of {name} at timestep {_span(t)}", remedy)
        return prediction

    def _predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        if self.guidance_scale == 1:
            return self._forward(x_t, t, cond)
        negative = self.negative.map(lambda value: value.expand(len(x_t), *value.shape[1:]).to(x_t.device))
        both = self._forward(torch.cat([x_t, x_t]), torch.cat([t, t]), cat([negative, cond]))
        uncond, conditional = both.chunk(2)
        return uncond + self.guidance_scale * (conditional - uncond)

    def _forward(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        with torch.autocast(x_t.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return self.forward(self.network, x_t, t, cond)


class LoraPolicy:
    """A guided network whose attention projections carry a trained adapter and its average.

    Adapters start without effect: A normal with standard deviation 1/rank, sampled with `seed`, B = 0, alpha = rank.
    The average starts as a copy.
    """

    def __init__(
        self, guided: GuidedNetwork, *, rank: int, seed: int, target_modules: tuple[str, ...] = ATTENTION_PROJECTIONS
    ) -> None:
        if rank < 1:
            raise ValueError(f"lora rank must be at least 1, got {rank}")
        self.guided = guided
        self.calls: Counter[Role] = Counter()
        """Samples through the network by role; guidance counts twice."""
        network = guided.network.requires_grad_(False)
        config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(target_modules))
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # the second adapter is meant
            torch.manual_seed(seed)
            for name in ("policy", "ema"):
                inject_adapter_in_model(config, network, adapter_name=name)
        self._layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
        if not self._layers:
            raise ValueError(f"no layer of the network is named {', '.join(target_modules)}; nothing can be trained")
        network.eval()
        self.adapter = self._adapter("policy")
        self.ema = self._adapter("ema")
        for tensor in [*self.adapter.values(), *self.ema.values()]:
            tensor.data = tensor.data.float()
        self.update_ema(0.0)
        self._activate("policy")

    def predict(
        self, x_t: Float[Tensor, "b c h w"], t: Real[Tensor, " b"], cond: Conditioning, *, role: Role
    ) -> Float[Tensor, "b c h w"]:
        """A guided prediction; gradients flow for the role "policy" only.

        Raises NotFinite: of the base model where it is not finite without the adapter either.
        """
        self.calls[role] += self.guided.forwards_per_prediction * len(x_t)
        named = {"name": NAMES[role], "otherwise": DAMAGED if role == "reference" else DIVERGED}
        try:
            if role == "policy":
                return self.guided.predict(x_t, t, cond, **named)
            with torch.no_grad(), self._as(role):
                return self.guided.predict(x_t, t, cond, **named)
        except NotFinite:
            if role != "reference":
                self.predict(x_t, t, cond, role="reference")
            raise

    def denoiser(self, role: Role) -> Denoiser:
        """The policy in one role, as a denoiser for sampling."""

        def denoise(x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            return self.predict(x_t, t, cond, role=role)

        return denoise

    def weights(self, role: Role) -> dict[str, Tensor]:
        """The adapter of a role."""
        return self.ema if role == "ema" else self.adapter

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """ema <- decay * ema + (1 - decay) * policy, over adapter weights."""
        for ema, online in zip(self.ema.values(), self.adapter.values(), strict=True):
            ema.lerp_(online, 1 - decay)

    @torch.no_grad()
    def load(self, *, adapter: dict[str, Tensor], ema: dict[str, Tensor]) -> None:
        """Take over saved adapter weights; raises ValueError when they are not this policy's."""
        for own, saved in ((self.adapter, adapter), (self.ema, ema)):
            if own.keys() != saved.keys() or any(own[name].shape != saved[name].shape for name in own):
                raise ValueError("the saved adapter is of another network or rank")
            for name, tensor in own.items():
                tensor.copy_(saved[name])

    def _adapter(self, name: str) -> dict[str, Tensor]:
        """An adapter's weights under peft's names, without the adapter's own."""
        marker = f".{name}."
        found = self.guided.network.named_parameters()
        return {key.replace(marker, "."): value for key, value in found if "lora_" in key and marker in key}

    @contextmanager
    def _as(self, role: Role) -> Iterator[None]:
        self._activate(role)
        try:
            yield
        finally:
            self._activate("policy")

    def _activate(self, role: Role) -> None:
        for layer in self._layers:
            layer.enable_adapters(role != "reference")
            layer.set_adapter(["ema" if role == "ema" else "policy"], inference_mode=role != "policy")


def _span(t: Real[Tensor, " b"]) -> str:
    """A batch's timestep, or its first and last."""
    low, high = t.min().item(), t.max().item()
    return str(low) if low == high else f"{low} to {high}"
