"""A wrapper of a judge that counts its images."""

from __future__ import annotations

from collections import Counter

from jaxtyping import Float, Real
from torch import Tensor

from stepalign.core.protocols import DifferentiableJudge, Judge


class CountedJudge:
    """A judge that counts the images it scores, in `calls`, until they are cleared."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.calls: Counter[str] = Counter()

    def __call__(
        self,
        x_t: Float[Tensor, "b c h w"],
        x_0: Float[Tensor, "b c h w"],
        t: Real[Tensor, " b"],
        prompts: list[str],
    ) -> Float[Tensor, " b"]:
        self.calls["judge_images"] += len(x_0)
        return self.judge(x_t, x_0, t, prompts)

    def gradient(
        self, x_0: Float[Tensor, "b c h w"], t: Real[Tensor, " b"], prompts: list[str]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b c h w"]]:
        """The judge's scores and their gradients; raises ValueError for a judge without."""
        if not isinstance(self.judge, DifferentiableJudge):
            raise ValueError("source.kind: clean-gradient needs a judge with a gradient")
        self.calls["judge_images"] += len(x_0)
        return self.judge.gradient(x_0, t, prompts)
