"""Arguments, help and ending shared by the commands that run a recipe: train, train-judge and demo."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

REPORT = "report.html"


def add_recipe_arguments(parser: argparse.ArgumentParser, known: Iterable[str], load: Callable[[str], Any]) -> None:
    """Add a recipe, --output and --help; `load` reads the recipe of a name or file."""
    from stepalign.cli.field_help import FieldHelp

    parser.usage = f"{parser.prog} RECIPE-OR-FILE.yaml [--output DIR] [--field value ...] [--help]"
    parser.epilog = f"recipes: {', '.join(known)}"
    parser.add_argument("recipe", metavar="RECIPE-OR-FILE.yaml", help="a named recipe, or a YAML file")
    parser.add_argument("--output", type=Path, default=None, help="directory of the run (runs/RECIPE)")
    parser.add_argument(
        *("-h", "--help"),
        action=FieldHelp,
        settings=lambda arguments: None if arguments.recipe is None else load(arguments.recipe),
        help="show this help, after a recipe with its fields, and exit",
    )


def named_output(arguments: argparse.Namespace) -> Path:
    """The directory of a run as far as it is known before the recipe is read."""
    return arguments.output or Path("runs") / Path(arguments.recipe).stem


def default_output(name: str) -> Path:
    """The directory of a recipe's run unless --output names another."""
    from stepalign.support.config import check_directory_name

    check_directory_name(name, "output")
    return Path("runs") / name


def finish(summary: Mapping[str, Any] | None, output: Path, show: Callable[..., None]) -> int:
    """Show a run's results, on the process that has them."""
    from rich.console import Console

    from stepalign.support.parallel import processes

    processes().destroy_process_group()
    if summary:
        show(summary, Console())
        print(output / REPORT)
        for sign in summary.get("watch", []):
            print(f"stepalign: warning: {sign['message']}", file=sys.stderr)
    return 0
