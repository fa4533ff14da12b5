"""Figures of the slow tests: with STEPALIGN_HOLDS=FILE.json each is written into that file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def note_figure(name: str, figure: dict[str, Any]) -> None:
    """Add one figure to the file that the environment names, if it names one."""
    if path := os.environ.get("STEPALIGN_HOLDS"):
        file = Path(path)
        known = json.loads(file.read_text()) if file.is_file() else {}
        command = "STEPALIGN_HOLDS=benchmarks/results/holds.json make test-slow"
        figures = {"command": command} | known | {name: figure}
        file.write_text(json.dumps(dict(sorted(figures.items())), indent=1) + "\n")
