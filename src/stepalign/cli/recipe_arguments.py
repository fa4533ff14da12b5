"""Arguments, help and ending shared by the commands that run a recipe: train, train-judge and demo."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

REPORT = "report.html"


class RecipeHelp(argparse.Action):
    """`--help`: the command's arguments, or after a recipe every field of the recipe."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, load: Callable[[str], Any]) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show this, or after a recipe its fields, and exit")
        self._load = load

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: object) -> None:
        if namespace.recipe is None:
            parser.print_help()
        else:
            from stepalign.cli.field_help import describe_recipe

            print(describe_recipe(parser.prog, self._load(namespace.recipe)))
        parser.exit()


def add_recipe_arguments(parser: argparse.ArgumentParser, known: Iterable[str], load: Callable[[str], Any]) -> None:
    """Add a recipe, --output and --help; `load` reads the recipe of a name or file."""
    parser.usage = f"{parser.prog} RECIPE-OR-FILE.yaml [--output DIR] [--field value ...] [--help]"
    parser.epilog = f"recipes: {', '.join(known)}; `{parser.prog} RECIPE --help` lists the fields of one"
    parser.add_argument("recipe", metavar="RECIPE-OR-FILE.yaml", help="a named recipe, or a YAML file")
    parser.add_argument("--output", type=Path, default=None, help="directory of the run (runs/RECIPE)")
    parser.add_argument("-h", "--help", action=RecipeHelp, load=load)


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
