"""The multilayer perceptron from embedding to score, shared by LAION's aesthetic predictor and ImageReward."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

WIDTHS = (1024, 128, 64, 16, 1)


class ScoreHead(nn.Module):
    """Five linear layers from an embedding to a number; the dropouts of training leave gaps in their numbering."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = zip((width, *WIDTHS[:-1]), WIDTHS, strict=True)
        first, second, third, fourth, last = (nn.Linear(wide, narrow) for wide, narrow in sizes)
        self.layers = nn.Sequential(
            first, nn.Dropout(0.2), second, nn.Dropout(0.2), third, nn.Dropout(0.1), fourth, last
        )

    def forward(self, embeddings: Float[Tensor, "b e"]) -> Float[Tensor, " b"]:
        scores: Tensor = self.layers(embeddings)
        return scores.squeeze(-1)
