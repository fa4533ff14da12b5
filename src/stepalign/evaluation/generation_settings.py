"""Settings of the generation of images, apart from the code that generates them, so that they load fast."""

from __future__ import annotations

from dataclasses import dataclass, field

from stepalign.runs.recipes import FrozenModel
from stepalign.support.config import require


@dataclass(frozen=True, slots=True)
class Generation:
    """The model that generates images, and its sampling settings."""

    model: str
    """Diffusers folder, hub id, single `.safetensors` file, or "miniature"."""
    base: FrozenModel = field(default_factory=FrozenModel)
    num_steps: int = 20
    """Sampling steps N."""
    eta: float = 0.0
    """DDIM noise; 0 is the deterministic sampling that the papers evaluate with, 1 ancestral sampling."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters on top, PATH or PATH:SCALE: a run's adapter/ folder, a PEFT folder, a .safetensors or .bin file in
    the layout of diffusers, PEFT or kohya, or a hub id. Scale 1, the default, is as trained, 0 leaves it out."""
    unet: str | None = None
    """A fine-tuned UNet, a diffusers folder or hub id, in place of the model's own."""
    num_images: int = 1
    """Images of every prompt."""
    seed: int = 0
    """Image n of prompt p starts from the same noise at any batch size and for any model of this latent size."""
    batch_size: int = 8
    """Images generated at once."""

    def __post_init__(self) -> None:
        require(bool(self.model), "model", repr(self.model), "a folder, a hub id, a file or miniature")
        require(1 <= self.num_steps < 1000, "num_steps", self.num_steps, "between 1 and 999")
        require(0 <= self.eta <= 1, "eta", self.eta, "between 0 and 1")
        require(all(self.adapters), "adapters", self.adapters, "paths or hub ids")
        require(self.unet != "", "unet", repr(self.unet), "a folder or a hub id")
        require(self.num_images >= 1, "num_images", self.num_images, "at least 1")
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
