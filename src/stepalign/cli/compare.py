"""`stepalign compare`: compare folders of scored images."""

from __future__ import annotations

import argparse
from pathlib import Path

from stepalign.cli.command import Command
from stepalign.cli.generation_arguments import OUTSIDE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `stepalign compare`."""
    parser.add_argument("folders", type=Path, nargs="+", help="two or more; the others are compared with the first")
    parser.add_argument("--names", nargs="+", default=None, help="their names in tables (as they were evaluated)")
    parser.add_argument("--output", type=Path, default=Path("runs/comparison"), help="folder to write (%(default)s)")
    parser.add_argument("--allow-outside", action="store_true", help=OUTSIDE)


def run_compare(arguments: argparse.Namespace) -> int:
    """Compare evaluated folders prompt by prompt and write the report."""
    from stepalign.evaluation.compare import compare_folders, write_comparison

    comparison = compare_folders(arguments.folders, names=arguments.names, allow_outside=arguments.allow_outside)
    write_comparison(comparison, arguments.output)
    print(arguments.output / "report.html")
    return 0


COMPARE = Command(
    "compare",
    "evaluate",
    "compare folders of scored images: confidence intervals and a report",
    add_arguments,
    run_compare,
    output=lambda arguments: arguments.output,
)
