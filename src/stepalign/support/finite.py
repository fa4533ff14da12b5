"""Checks for finite values, which name the first part that is not finite and a remedy."""

from __future__ import annotations

import torch
from torch import Tensor


class NotFinite(ValueError):
    """A value that is not finite; the message names its part and a remedy."""

    def __init__(self, message: str, *, row: int = 0) -> None:
        super().__init__(message)
        self.row = row
        """The first affected entry of the batch."""


def check_finite(values: Tensor, part: str, remedy: str) -> None:
    """Raise NotFinite, with the part and a remedy, unless all values "b ..." are finite."""
    finite = values.isfinite()
    if finite.all():
        return
    bad = (~finite.flatten(1).all(1) if values.ndim > 1 else ~finite.reshape(-1)).nonzero()[:, 0].tolist()
    num = len(values) if values.ndim else 1
    raise NotFinite(f"{part}: {len(bad)} of {num} are not finite numbers; {remedy}", row=bad[0])


def precision_remedy(dtype: torch.dtype, field: str, *, otherwise: str) -> str:
    """The remedy for a part in the precision of a config field: a wider one where fp16 overflows."""
    if dtype == torch.float16:
        return f"fp16 overflows above 65504: give --{field} bf16 or fp32"
    return otherwise


def check_scores(scores: Tensor, t: int | float) -> None:
    """Raise NotFinite, naming the judge, unless all its scores "b" at a timestep are finite numbers."""
    check_finite(scores, f"the judge's scores at timestep {t}", "check the files of the judge")
