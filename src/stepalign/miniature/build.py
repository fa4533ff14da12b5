"""Trains the miniature from scratch: `python -m stepalign.miniature.build [--output DIR] [--seed 0]`.

Base model first (VAE; text encoder and UNet), then the judges on its predictions. Seeded; some forty minutes on
two busy cores. The figures of a build are written to build.json beside the weights.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

from stepalign import miniature
from stepalign.miniature.base import build_base
from stepalign.miniature.preferences import build_judges
from stepalign.support.files import write_text
from stepalign.support.json_text import to_json

STEPS = {"vae": 1600, "denoiser": 4800, "clip": 1000, "pickscore": 1500, "spm": 1500}


def build(output: Path, *, seed: int, steps: dict[str, int]) -> dict[str, object]:
    """Train everything into `output`, overwriting it, and return minutes, losses and accuracies by stage."""
    start = time.perf_counter()
    figures: dict[str, object] = {"seed": seed, "steps": steps}
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        tasks = {name: bars.add_task(name, total=total) for name, total in steps.items()}

        def progress(stage: str, step: int, total: int, loss: float) -> None:
            bars.update(tasks[stage], completed=step, description=f"{stage} (loss {loss:.4f})")

        model = output / miniature.MODEL.name
        figures |= build_base(
            model, seed=seed, vae_steps=steps["vae"], denoiser_steps=steps["denoiser"], progress=progress
        )
        figures["base_minutes"] = round((time.perf_counter() - start) / 60, 1)
        figures |= build_judges(
            model,
            output / miniature.PICKSCORE.name,
            output / miniature.SPM.name,
            seed=seed,
            steps=(steps["clip"], steps["pickscore"], steps["spm"]),
            progress=progress,
        )
    figures["minutes"] = round((time.perf_counter() - start) / 60, 1)
    write_text(output / "build.json", to_json(figures, indent=2) + "\n")
    return figures


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description="Make the miniature model and its judges from nothing.")
    parser.add_argument("--output", type=Path, default=miniature.WEIGHTS, help="where to write (the package's weights)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(to_json(build(arguments.output, seed=arguments.seed, steps=STEPS), indent=2))


if __name__ == "__main__":
    main()
