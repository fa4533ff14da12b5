"""The share of a gain that is independent of the prompt, from scores with other prompts' texts.

Such a column is a diagnostic of its scorer, not a score: it is left out of score tables, p-values and the ranking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stepalign.evaluation.result_card import WRONG
from stepalign.support.statistics import mean_interval


@dataclass(frozen=True, slots=True)
class AnyTextGain:
    """A scorer's difference between two models, other minus base, with other prompts' texts."""

    scorer: str
    base: str
    other: str
    difference: float
    """Mean over prompts."""
    interval: tuple[float, float]
    """95 %, over prompts."""
    share: float | None
    """This difference over the one with the images' own prompts; None unless both are significant and of one sign."""


def is_diagnostic(column: str) -> bool:
    """Whether a column holds scores with other prompts' texts."""
    return column.endswith(WRONG)


def any_text_gains(
    means: dict[str, np.ndarray], *, chosen: Sequence[tuple[int, int]], models: Sequence[str]
) -> list[AnyTextGain]:
    """The diagnostics of some pairs of models; `means` holds every column's means "m c" over prompts."""
    found = []
    for base, other in chosen:
        for column in filter(is_diagnostic, means):
            scorer = column.removesuffix(WRONG)
            gains = means[column][other] - means[column][base]
            interval = mean_interval(gains)
            share = None
            if scorer in means:
                own = means[scorer][other] - means[scorer][base]
                low, high = mean_interval(own)
                if (low > 0 and interval[0] > 0) or (high < 0 and interval[1] < 0):
                    share = float(gains.mean() / own.mean())
            found.append(AnyTextGain(scorer, models[base], models[other], float(gains.mean()), interval, share))
    return found
