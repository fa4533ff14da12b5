"""The same bits again: MKL's reproducible mode, and what else of a machine decides the last bits of a result.

On some processors (AMD's with AVX-512) the last bits of an MKL product depend on whether its operands begin at a
multiple of 64 bytes in memory, and weights mapped from a file do not. MKL's conditional numerical reproducibility makes
them equal (Intel oneMKL developer guide, "Obtaining Numerically Reproducible Results").

MKL reads the mode from the environment when it first computes, so setting it is sure to take effect only before torch
is loaded.
"""

from __future__ import annotations

import os
import sys
import warnings
from functools import cache

MKL_MODE, STRICT = "MKL_CBWR", "AUTO,STRICT"
"""The processor's fastest kernels, with results that do not depend on the alignment of memory."""
_LATE = MKL_MODE not in os.environ and "torch" in sys.modules


def set_mkl_mode() -> None:
    """Ask MKL for its reproducible mode, unless the user chose a mode; the package's import does this first."""
    os.environ.setdefault(MKL_MODE, STRICT)


def mkl_mode() -> str:
    """The mode that MKL was asked for, as records and bug reports state it; "none" where torch does not use MKL."""
    import torch  # here, because the mode is to be set before torch is loaded

    if not torch.backends.mkl.is_available():
        return "none"
    mode = os.environ.get(MKL_MODE, "not set")
    return f"{mode}, set after torch was loaded" if _LATE else mode


def mkl_warning() -> str | None:
    """Why a run on this CPU may not repeat its bits, in a sentence for the user; None if nothing speaks against it."""
    import torch

    if torch.accelerator.is_available() or not torch.backends.mkl.is_available():
        return None
    if not _LATE and any(word in os.environ.get(MKL_MODE, "") for word in ("STRICT", "COMPATIBLE")):
        return None
    return (
        f"{MKL_MODE} is {mkl_mode()}: on some processors a run may not repeat its last bits; "
        f"import stepalign before torch, or set {MKL_MODE}={STRICT}"
    )


@cache
def warn_about_mkl() -> None:
    """Warn, once, if results on this CPU may depend on the alignment of memory."""
    if (warning := mkl_warning()) is not None:
        warnings.warn(warning, stacklevel=2)


def processor() -> str:
    """What of this machine's CPU decides the last bits of a result, in words."""
    import platform

    import torch

    kernels = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} CPU, {kernels}, {torch.get_num_threads()} threads, MKL mode {mkl_mode()}"
