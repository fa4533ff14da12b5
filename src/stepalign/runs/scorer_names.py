"""Every scorer by its name, the published ones and the miniature's own."""

from __future__ import annotations

import torch

from stepalign.core.protocols import Scorer
from stepalign.miniature import scorers as miniature
from stepalign.scorers import load as metrics
from stepalign.scorers.load import SCORERS


def scorer_entries(entries: tuple[str, ...]) -> dict[str, str]:
    """Scorers by their names, as they were asked for.

    Raises ValueError for names that are not known or come twice, and for weights that are empty or not to be chosen.
    """
    found: dict[str, str] = {}
    for entry in entries:
        name, sign, source = entry.partition("=")
        if name not in (*SCORERS, *miniature.SCORERS):
            known = ", ".join((*SCORERS, *miniature.SCORERS))
            raise ValueError(f"scorers: there is no scorer {name!r}; there are {known}")
        if name in found:
            raise ValueError(f"scorers: {name} is named twice")
        if sign and name in miniature.SCORERS:
            raise ValueError(f"scorers: {name} comes with the package and takes no weights, got {entry!r}")
        if sign and not source:
            raise ValueError(f"scorers: {entry!r} gives no path or hub id after the =")
        found[name] = entry
    if not found:
        raise ValueError(f"scorers: none is named; there are {', '.join((*SCORERS, *miniature.SCORERS))}")
    return found


def load_scorer(entry: str, *, device: str | torch.device) -> Scorer:
    """One scorer as it was asked for."""
    if entry in miniature.SCORERS:
        return miniature.miniature_scorer(entry)
    name, _, source = entry.partition("=")
    return metrics.load_scorer(name, source or None, device=device, dtype=torch.float32)
