"""`stepalign demo`: align the miniature model."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from stepalign.cli.command import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `stepalign demo`."""
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="directory of the run (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run (%(default)s)")


def run_demo(arguments: argparse.Namespace) -> int:
    """Run the miniature's GradSPO recipe."""
    from stepalign.cli.train import run_recipe
    from stepalign.runs.recipes import RECIPES

    return run_recipe(replace(RECIPES["gradspo-miniature"], seed=arguments.seed), arguments.output)


DEMO = Command(
    "demo",
    "align",
    "align the miniature model and write a report (minutes on a CPU)",
    add_arguments,
    run_demo,
    output=lambda arguments: arguments.output,
    resumable=True,
)
