"""Any clean-image metric as a judge: it scores the decoded x̂0 and does not know the timestep."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepalign.protocols import Decode, Metric


class ImageJudge:
    """Judges the decoded x̂0, clamped to [0, 1], with a metric."""

    def __init__(self, metric: Metric, decode: Decode, *, max_batch: int | None = None) -> None:
        self.metric = metric
        self.decode = decode
        self.max_batch = max_batch
        """Images decoded and judged at once; None for all."""
        self.num_images = 0

    @torch.no_grad()
    def __call__(
        self,
        x_t: Float[Tensor, "b c h w"],
        x_0: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        prompts: list[str],
    ) -> Float[Tensor, " b"]:
        assert len(prompts) == len(x_0)
        step = self.max_batch or max(1, len(x_0))
        self.num_images += len(x_0)
        return torch.cat(
            [
                self.metric((self.decode(x_0[i : i + step]) / 2 + 0.5).clamp(0, 1), prompts[i : i + step])
                for i in range(0, len(x_0), step)
            ]
        )
