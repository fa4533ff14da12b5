"""A working text-to-image model of a few megabytes, with its judges, its world and two held-out oracles.

See README.md in this folder; `python -m stepalign.miniature.build` trains all of it from scratch.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
MODEL = WEIGHTS / "model"
"""A diffusers folder."""
PICKSCORE = WEIGHTS / "pickscore"
"""A CLIP trained on preferences over clean images."""
SPM = WEIGHTS / "spm"
"""The step-aware preference model made from it."""
