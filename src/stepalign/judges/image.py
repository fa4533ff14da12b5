"""Any clean-image metric as a judge: it scores the decoded x̂0 and does not know the timestep."""

from __future__ import annotations

from jaxtyping import Float, Real
from torch import Tensor

from stepalign.core.protocols import Decode, Metric
from stepalign.judges.decoding import decoded_gradients, decoded_scores


class ImageJudge:
    """Judges the decoded x̂0, clamped to [0, 1], with a metric."""

    def __init__(self, metric: Metric, decode: Decode, *, max_batch: int | None = None) -> None:
        self.metric = metric
        self.decode = decode
        self.max_batch = max_batch
        """Images decoded and judged at once; None for all."""

    def __call__(
        self,
        x_t: Float[Tensor, "b c h w"],
        x_0: Float[Tensor, "b c h w"],
        t: Real[Tensor, " b"],
        prompts: list[str],
    ) -> Float[Tensor, " b"]:
        return decoded_scores(self._score, self.decode, x_0, t, prompts, max_batch=self.max_batch)

    def gradient(
        self, x_0: Float[Tensor, "b c h w"], t: Real[Tensor, " b"], prompts: list[str]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b c h w"]]:
        """The scores of clean samples and their gradients with respect to them; needs a differentiable metric."""
        return decoded_gradients(self._score, self.decode, x_0, t, prompts, max_batch=self.max_batch)

    def _score(
        self, images: Float[Tensor, "b 3 hh ww"], t: Real[Tensor, " b"], prompts: list[str]
    ) -> Float[Tensor, " b"]:
        return self.metric((images / 2 + 0.5).clamp(0, 1), prompts)
