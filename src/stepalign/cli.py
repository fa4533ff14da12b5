"""The command line: `stepalign demo | train | convert-judge | env`."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from stepalign.config import parse_flags
from stepalign.recipes import RECIPES, Recipe, change, load_recipe

QUIET = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
PACKAGES = ("stepalign", "torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "huggingface_hub")
TRAIN_USAGE = "stepalign train RECIPE-OR-FILE.yaml [--output DIR] [--field value ...] [--help]"
PHASES = {"sample": "  sampling", "train": "  training", "evaluate": "evaluating"}


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for a run that failed, 2 for a command that makes no sense."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        match arguments.command:
            case "env":
                _refuse(parser, rest)
                return _env()
            case "convert-judge":
                _refuse(parser, rest)
                return _convert_judge(arguments)
            case "demo":
                _refuse(parser, rest)
                recipe = replace(RECIPES["gradspo-miniature"], seed=arguments.seed)
                return _train(recipe, arguments.output)
            case _:
                wants_help = "-h" in rest or "--help" in rest
                if arguments.recipe is None:
                    print(f"usage: {TRAIN_USAGE}")
                    print(f"recipes: {', '.join(RECIPES)}; with a recipe, --help lists its fields")
                    return 0 if wants_help else 2
                if wants_help:
                    return _describe(load_recipe(arguments.recipe))
                return _train(change(load_recipe(arguments.recipe), parse_flags(rest)), arguments.output)
    except ValueError as error:
        print(f"stepalign: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"stepalign: cannot read or write {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("stepalign: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stepalign",
        description="Align text-to-image diffusion models with preferences, step by step.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo", allow_abbrev=False, help="align the miniature model and write a report (minutes)"
    )
    demo.add_argument("--output", type=Path, default=Path("runs/demo"), help="directory of the run (%(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seed of the run (%(default)s)")
    train = commands.add_parser(
        "train",
        allow_abbrev=False,
        add_help=False,
        help="run a recipe",
        usage=TRAIN_USAGE,
    )
    train.add_argument(
        "recipe", nargs="?", metavar="RECIPE-OR-FILE.yaml", help=f"one of {', '.join(RECIPES)}, or a YAML file"
    )
    train.add_argument("--output", type=Path, default=None, help="directory of the run (runs/RECIPE)")
    convert = commands.add_parser(
        "convert-judge", allow_abbrev=False, help="turn a released judge checkpoint (.bin) into a safetensors folder"
    )
    convert.add_argument("checkpoint", help="a file, or owner/name/file on the hub")
    convert.add_argument("output", type=Path, help="new or empty directory, for --judge.path")
    convert.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the weights (%(default)s)")
    convert.add_argument("--tokenizer", default=None, help="folder or hub id of its tokenizer (PickScore's)")
    convert.add_argument("--config", type=Path, default=None, help="config.json of its CLIP (PickScore's ViT-H/14)")
    commands.add_parser("env", help="versions and devices, for bug reports")
    return parser


def _refuse(parser: argparse.ArgumentParser, rest: list[str]) -> None:
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")


def _describe(recipe: Recipe) -> int:
    """Print every field of a recipe with its meaning and its value there."""
    try:
        tyro.cli(
            Recipe,
            default=recipe,
            args=["--help"],
            prog=f"stepalign train {recipe.name} --output DIR",
            description=f"Run {recipe.name}; any field can be changed.",
            config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
            use_underscores=True,
        )
    except SystemExit as done:
        return int(done.code or 0)
    return 0


def _train(recipe: Recipe, output: Path | None) -> int:
    # These load diffusers: seconds that --help need not take.
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from stepalign.job import REPORT, run
    from stepalign.parallel import processes

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()

    output = output or Path("runs") / recipe.name
    with RoundBars(Console(stderr=True, quiet=not processes().is_main_process)) as bars:
        summary = run(recipe, output, watcher=bars)
    processes().destroy_process_group()
    if summary.get("scores"):
        _show(summary, Console())
    if summary:
        print(output / REPORT)
    return 0


def _show(summary: dict[str, Any], console: Console) -> None:
    """The scores of a finished run as a table."""
    table = Table(title=f"{summary['recipe']}, seed {summary['seed']}: {summary['num_prompts']} held-out prompts")
    for heading in ("score", "base", "aligned", "difference", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "score" else "right")
    for name, row in summary["scores"].items():
        low, high = row["interval"]
        table.add_row(
            name,
            f"{row['base']:.4f}",
            f"{row['aligned']:.4f}",
            f"{row['difference']:+.4f}",
            f"{low:+.4f} to {high:+.4f}",
        )
    console.print(table)


class RoundBars:
    """Progress bars over rounds and within them: judge score, time left."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console)
        self._rounds = self._progress.add_task("rounds", total=None)
        self._phase = self._progress.add_task("", total=None)

    def __enter__(self) -> RoundBars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress.live.is_started:
            self._progress.stop()

    def phase(self, name: str, done: int, total: int) -> None:
        """Move the lower bar; the first call shows both, so that a run which cannot start prints its error alone."""
        self._progress.start()
        description = PHASES[name]
        if self._progress.tasks[self._phase].description != description:
            self._progress.reset(self._phase)
        self._progress.update(self._phase, description=description, completed=done, total=total)

    def round(self, row: dict[str, Any], total: int) -> None:
        """Move the upper bar and show the round's judge score."""
        score = row["judge_score"]
        described = "rounds" if score is None else f"rounds (judge score {score:.3f})"
        self._progress.update(self._rounds, completed=row["round"], total=total, description=described)


def _convert_judge(arguments: argparse.Namespace) -> int:
    """Write a released step-aware preference model as config, safetensors and tokenizer."""
    import torch  # like what follows, too slow to import for --help
    from transformers import CLIPConfig, CLIPTokenizer

    from stepalign.clip import resolve_folder
    from stepalign.judges.spm import RELEASED_TOKENIZER, StepAwarePreferenceModel

    output = arguments.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output: {output} exists and is not an empty directory; give another")
    config = None if arguments.config is None else CLIPConfig.from_json_file(arguments.config)
    tokenizer = CLIPTokenizer.from_pretrained(resolve_folder(arguments.tokenizer or RELEASED_TOKENIZER))
    model = StepAwarePreferenceModel.from_checkpoint(arguments.checkpoint, config)
    model.save_pretrained(output, dtype=torch.bfloat16 if arguments.dtype == "bf16" else torch.float32)
    tokenizer.save_pretrained(output)
    print(output)
    return 0


def _env() -> int:
    """Print versions and devices."""
    import torch

    print(f"python {platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        try:
            print(f"{package} {version(package)}")
        except PackageNotFoundError:
            print(f"{package} not installed")
    print(
        f"cpu: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )
    if not torch.cuda.is_available():
        print("cuda: none")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        print(f"cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.1f} GiB, CUDA {torch.version.cuda}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
