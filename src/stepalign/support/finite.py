"""Values that must be finite numbers: the part that first is not is named, with what to try for it."""

from __future__ import annotations

import torch
from torch import Tensor


class NotFinite(ValueError):
    """A value that stopped being a finite number; the message names its part and what to try."""

    def __init__(self, message: str, *, row: int = 0) -> None:
        super().__init__(message)
        self.row = row
        """The first entry of the batch that is affected."""


def check_finite(values: Tensor, part: str, remedy: str) -> None:
    """Raise NotFinite, naming a part and what to try, unless all values "b ..." are finite numbers."""
    finite = values.isfinite()
    if finite.all():
        return
    bad = (~finite.flatten(1).all(1) if values.ndim > 1 else ~finite.reshape(-1)).nonzero()[:, 0].tolist()
    num = len(values) if values.ndim else 1
    raise NotFinite(f"{part}: {len(bad)} of {num} are not finite numbers; {remedy}", row=bad[0])


def precision_remedy(dtype: torch.dtype, field: str, *, otherwise: str) -> str:
    """What to try for a part computed in a precision that the config field sets: a wider one where fp16 overflows."""
    if dtype == torch.float16:
        return f"fp16 overflows above 65504: give --{field} bf16 or fp32"
    return otherwise
