"""Reproducibility on CPUs: MKL's reproducible mode, and the properties of a machine that decide last bits.

On some processors (AMD's with AVX-512) the last bits of an MKL product depend on whether its operands begin at a
multiple of 64 bytes in memory, and weights mapped from a file do not. MKL's conditional numerical reproducibility makes
them equal (Intel oneMKL developer guide, "Obtaining Numerically Reproducible Results").

MKL reads the mode from the environment when it first computes, so setting it reliably takes effect only before torch is
loaded.
"""

from __future__ import annotations

import os
import sys
import warnings
from functools import cache

MKL_MODE, STRICT = "MKL_CBWR", "AUTO,STRICT"
"""The processor's fastest kernels with results independent of memory alignment."""
_LATE = MKL_MODE not in os.environ and "torch" in sys.modules


def set_mkl_mode() -> None:
    """Set MKL's reproducible mode, unless the user chose a mode; the package's import does this first."""
    os.environ.setdefault(MKL_MODE, STRICT)


def mkl_mode() -> str:
    """The requested mode of MKL, for records and bug reports; "none" where torch does not use MKL."""
    import torch  # here, because the mode must be set before torch is loaded

    if not torch.backends.mkl.is_available():
        return "none"
    mode = os.environ.get(MKL_MODE, "not set")
    return f"{mode}, set after torch was loaded" if _LATE else mode


def mkl_warning() -> str | None:
    """The reason why a run on this CPU may not repeat its bits, as a sentence; None if there is none."""
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
    """The properties of this machine's CPU that decide the last bits of a result, in words."""
    import platform

    import torch

    kernels = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} CPU, {kernels}, {torch.get_num_threads()} threads, MKL mode {mkl_mode()}"
