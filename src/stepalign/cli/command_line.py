"""The words of the command line: demo, train, train-judge, generate, evaluate, compare, sweep, plot, convert-judge,
push-judge and env."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import tyro
from rich.console import Console

from stepalign.cli.commands import convert_judge, env, plot, push_judge
from stepalign.cli.console import progress_bars, quieten, show_accuracy, show_scores
from stepalign.cli.evaluation_commands import add_parsers, compare, evaluate, generate
from stepalign.runs.recipes import RECIPES, Recipe, load_recipe
from stepalign.support.config import change, check_directory_name, load_named, parse_flags
from stepalign.support.errors import UsageError

QUIET = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
QUIET |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "DATASETS_VERBOSITY": "error"}
USAGE = "stepalign {command} RECIPE-OR-FILE.yaml [--output DIR] [--field value ...] [--help]"
REPORT = "report.html"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are raised, so that they end in one line like all others."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `{self.prog} --help` lists what there is")


def run_command(words: list[str]) -> int:
    """Run the command that some words make up and return its exit status; raises UsageError where they make none."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(words)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    match arguments.command:
        case "train":
            return _train(arguments, rest)
        case "train-judge":
            return _train_judge(arguments, rest)
        case "generate":
            return generate(arguments, rest)
        case "evaluate":
            return evaluate(arguments, rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    match arguments.command:
        case "demo":
            return _run(replace(RECIPES["gradspo-miniature"], seed=arguments.seed), arguments.output)
        case "sweep":
            return _sweep(arguments)
        case "compare":
            return compare(arguments)
        case "plot":
            return plot(arguments)
        case "convert-judge":
            return convert_judge(arguments)
        case "push-judge":
            return push_judge(arguments)
        case _:
            return env()


def _parser() -> Parser:
    parser = Parser(
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
    for command, meaning in (("train", "run a recipe"), ("train-judge", "train a step-aware preference model")):
        train = commands.add_parser(
            command, allow_abbrev=False, add_help=False, help=meaning, usage=USAGE.format(command=command)
        )
        train.add_argument("recipe", nargs="?", metavar="RECIPE-OR-FILE.yaml", help="a named recipe, or a YAML file")
        train.add_argument("--output", type=Path, default=None, help="directory of the run (runs/RECIPE)")
    sweep = commands.add_parser("sweep", allow_abbrev=False, help="run tables of recipes at several seeds and compare")
    sweep.add_argument("file", type=Path, help="YAML with recipe, seeds, tables and changes")
    sweep.add_argument("--output", type=Path, default=None, help="directory of the runs (runs/FILE)")
    sweep.add_argument("--only", default="", help="run only the tables whose names contain this (all)")
    sweep.add_argument("--share", default="1/1", help="i/n: every n-th run from the i-th, for several machines (all)")
    figures = commands.add_parser("plot", allow_abbrev=False, help="draw a figure of the papers").add_subparsers(
        dest="figure", required=True
    )
    gains = figures.add_parser("gains", allow_abbrev=False, help="what a run changed at every timestep")
    gains.add_argument("run", type=Path, help="directory of the run; gains.png and gains.json are written there")
    gains.add_argument("--num-prompts", type=int, default=64, help="held-out prompts, from the first (%(default)s)")
    plot = figures.add_parser("weights", allow_abbrev=False, help="how the objectives weigh the timesteps")
    plot.add_argument("--model", default="miniature", help="whose noise schedule (the miniature's, Stable Diffusion's)")
    plot.add_argument("--num-steps", type=int, default=20, help="sampling steps (%(default)s)")
    plot.add_argument("--output", type=Path, default=Path("weights.png"), help="PNG file to write (%(default)s)")
    push = commands.add_parser("push-judge", allow_abbrev=False, help="upload a trained judge to the Hugging Face hub")
    push.add_argument("folder", type=Path, help="the judge/ folder of a run")
    push.add_argument("repository", help="owner/name on the hub; created if need be")
    push.add_argument("--private", action="store_true", help="create it as a private repository")
    convert = commands.add_parser(
        "convert-judge", allow_abbrev=False, help="turn a released judge checkpoint (.bin) into a safetensors folder"
    )
    convert.add_argument("checkpoint", help="a file, or owner/name/file on the hub")
    convert.add_argument("output", type=Path, help="new or empty directory, for --judge.path")
    convert.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the weights (%(default)s)")
    convert.add_argument("--tokenizer", default=None, help="folder or hub id of its tokenizer (PickScore's)")
    convert.add_argument("--config", type=Path, default=None, help="config.json of its CLIP (PickScore's ViT-H/14)")
    add_parsers(commands)
    commands.add_parser("env", help="versions and devices, for bug reports")
    return parser


def _train(arguments: argparse.Namespace, rest: list[str]) -> int:
    if arguments.recipe is None or _wants_help(rest):
        return _describe(arguments, rest, RECIPES, lambda name: Recipe(name=name))
    return _run(change(load_recipe(arguments.recipe), parse_flags(rest)), arguments.output)


def _train_judge(arguments: argparse.Namespace, rest: list[str]) -> int:
    from stepalign.runs.judge_recipes import JUDGE_RECIPES, JudgeRecipe, load_judge_recipe  # loads transformers

    if arguments.recipe is None or _wants_help(rest):
        return _describe(arguments, rest, JUDGE_RECIPES, lambda name: JudgeRecipe(name=name))
    recipe = change(load_judge_recipe(arguments.recipe), parse_flags(rest))
    quieten()
    from stepalign.runs.judge_job import run_judge

    output = arguments.output or _default_output(recipe.name)
    with progress_bars() as bars:
        summary = run_judge(recipe, output, watcher=bars)
    return _finish(summary, output, show_accuracy)


def _sweep(arguments: argparse.Namespace) -> int:
    quieten()
    from stepalign.runs.sweep import PAGE, load_sweep, run_sweep

    part, slash, parts = arguments.share.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal()):
        raise ValueError(f"share must be i/n, such as 1/4, got {arguments.share!r}")
    sweep, output = load_sweep(arguments.file), arguments.output or Path("runs") / arguments.file.stem
    with progress_bars() as bars:
        run_sweep(sweep, output, only=arguments.only, share=(int(part), int(parts)), watcher=bars)
    print(output / PAGE)
    return 0


def _wants_help(rest: list[str]) -> bool:
    return "-h" in rest or "--help" in rest


def _describe(
    arguments: argparse.Namespace, rest: list[str], known: Mapping[str, Any], blank: Callable[[str], Any]
) -> int:
    """Print a command's usage and recipes, or every field of one recipe with its meaning and its value there."""
    if arguments.recipe is None:
        print(f"usage: {USAGE.format(command=arguments.command)}")
        print(f"recipes: {', '.join(known)}; with a recipe, --help lists its fields")
        return 0 if _wants_help(rest) else 2
    recipe = load_named(arguments.recipe, known, blank)
    try:
        tyro.cli(
            type(recipe),
            default=recipe,
            args=["--help"],
            prog=f"stepalign {arguments.command} {recipe.name} --output DIR",
            description=f"Run {recipe.name}; any field can be changed.",
            config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
            use_underscores=True,
        )
    except SystemExit as done:
        return int(done.code or 0)
    return 0


def _run(recipe: Recipe, output: Path | None) -> int:
    quieten()
    from stepalign.runs.job import run  # loads diffusers: seconds that --help need not take

    output = output or _default_output(recipe.name)
    with progress_bars() as bars:
        summary = run(recipe, output, watcher=bars)
    return _finish(summary, output, show_scores)


def _default_output(name: str) -> Path:
    """Where a recipe's run goes unless told."""
    check_directory_name(name, "output")
    return Path("runs") / name


def _finish(summary: dict[str, Any], output: Path, show: Callable[[dict[str, Any], Console], None]) -> int:
    """Show a run's results, on the process that has them."""
    from stepalign.support.parallel import processes

    processes().destroy_process_group()
    if summary:
        show(summary, Console())
        print(output / REPORT)
        for sign in summary.get("watch", []):
            print(f"stepalign: warning: {sign['message']}", file=sys.stderr)
    return 0
