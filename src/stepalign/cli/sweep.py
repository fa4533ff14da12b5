"""`stepalign sweep`: run tables of recipes at several seeds."""

from __future__ import annotations

import argparse
from pathlib import Path

from stepalign.cli.command import Command
from stepalign.cli.train import MEMORY


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `stepalign sweep`."""
    parser.add_argument("file", type=Path, help="YAML with recipe, seeds, tables and changes")
    parser.add_argument("--output", type=Path, default=None, help="directory of the runs (runs/FILE)")
    parser.add_argument("--only", default="", help="run only the tables whose names contain this (all)")
    parser.add_argument("--share", default="1/1", help="i/n: every n-th run from the i-th, for several machines (all)")


def output_of(arguments: argparse.Namespace) -> Path:
    """The directory of a sweep's runs."""
    return arguments.output or Path("runs") / arguments.file.stem


def run(arguments: argparse.Namespace) -> int:
    """Run a sweep, or this machine's share of it, and write the page that compares its runs."""
    from stepalign.cli.console import progress_bars, quieten

    quieten()
    from stepalign.runs.sweep import PAGE, run_sweep
    from stepalign.runs.sweep_file import load_sweep

    part, slash, parts = arguments.share.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal()):
        raise ValueError(f"share must be i/n, such as 1/4, got {arguments.share!r}")
    plan, output = load_sweep(arguments.file), output_of(arguments)
    with progress_bars() as bars:
        run_sweep(plan, output, only=arguments.only, share=(int(part), int(parts)), watcher=bars)
    print(output / PAGE)
    return 0


SWEEP = Command(
    "sweep",
    "align",
    "train recipes at several seeds and compare them",
    add_arguments,
    run,
    output=output_of,
    resumable=True,
    memory_advice=f"{MEMORY.replace('--', '')}, as `changes` in its file",
)
