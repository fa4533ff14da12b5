"""The processes that share a run."""

from __future__ import annotations

import torch
from accelerate import PartialState

from stepalign.reproducibility import warn_about_mkl


def processes() -> PartialState:
    """This process's place among those that `accelerate launch` or `torchrun` started; alone otherwise.

    Without a GPU the processes talk through gloo, which accelerate has to be told.
    """
    warn_about_mkl()
    return PartialState(cpu=not torch.accelerator.is_available())
