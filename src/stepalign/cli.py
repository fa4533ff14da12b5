"""The command line: `stepalign demo | train | train-judge | sweep | plot | convert-judge | push-judge | env`."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from stepalign.config import change, load_named, parse_flags
from stepalign.console import RoundBars, show_accuracy, show_scores
from stepalign.recipes import RECIPES, Recipe, load_recipe

QUIET = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
QUIET |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "DATASETS_VERBOSITY": "error"}
PACKAGES = ("stepalign", "torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "huggingface_hub")
USAGE = "stepalign {command} RECIPE-OR-FILE.yaml [--output DIR] [--field value ...] [--help]"
REPORT = "report.html"


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
                return _run(replace(RECIPES["gradspo-miniature"], seed=arguments.seed), arguments.output)
            case "push-judge":
                _refuse(parser, rest)
                return _push_judge(arguments)
            case "plot":
                _refuse(parser, rest)
                return _plot(arguments)
            case "sweep":
                _refuse(parser, rest)
                return _sweep(arguments)
            case "train-judge":
                return _train_judge(arguments, rest)
            case _:
                return _train(arguments, rest)
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
    for command, meaning in (("train", "run a recipe"), ("train-judge", "train a step-aware preference model")):
        train = commands.add_parser(
            command, allow_abbrev=False, add_help=False, help=meaning, usage=USAGE.format(command=command)
        )
        train.add_argument("recipe", nargs="?", metavar="RECIPE-OR-FILE.yaml", help="a named recipe, or a YAML file")
        train.add_argument("--output", type=Path, default=None, help="directory of the run (runs/RECIPE)")
    sweep = commands.add_parser("sweep", allow_abbrev=False, help="run tables of recipes at several seeds and compare")
    sweep.add_argument("file", type=Path, help="YAML with recipe, seeds, tables and changes")
    sweep.add_argument("--output", type=Path, default=None, help="directory of the runs (runs/FILE)")
    sweep.add_argument("--share", default="1/1", help="i/n: every n-th run from the i-th, for several machines (all)")
    plot = commands.add_parser("plot", allow_abbrev=False, help="draw a figure of the papers")
    plot.add_argument("figure", choices=("weights",), help="weights: how the objectives weigh the timesteps")
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
    commands.add_parser("env", help="versions and devices, for bug reports")
    return parser


def _refuse(parser: argparse.ArgumentParser, rest: list[str]) -> None:
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")


def _train(arguments: argparse.Namespace, rest: list[str]) -> int:
    if arguments.recipe is None or _wants_help(rest):
        return _describe(arguments, rest, RECIPES, lambda name: Recipe(name=name))
    return _run(change(load_recipe(arguments.recipe), parse_flags(rest)), arguments.output)


def _train_judge(arguments: argparse.Namespace, rest: list[str]) -> int:
    from stepalign.judge_recipes import JUDGE_RECIPES, JudgeRecipe, load_judge_recipe  # loads transformers

    if arguments.recipe is None or _wants_help(rest):
        return _describe(arguments, rest, JUDGE_RECIPES, lambda name: JudgeRecipe(name=name))
    recipe = change(load_judge_recipe(arguments.recipe), parse_flags(rest))
    _quieten()
    from stepalign.judge_job import run_judge

    output = arguments.output or Path("runs") / recipe.name
    with _bars() as bars:
        summary = run_judge(recipe, output, watcher=bars)
    return _finish(summary, output, show_accuracy)


def _sweep(arguments: argparse.Namespace) -> int:
    _quieten()
    from stepalign.sweep import PAGE, load_sweep, run_sweep

    part, slash, parts = arguments.share.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal()):
        raise ValueError(f"share must be i/n, such as 1/4, got {arguments.share!r}")
    sweep, output = load_sweep(arguments.file), arguments.output or Path("runs") / arguments.file.stem
    with _bars() as bars:
        run_sweep(sweep, output, share=(int(part), int(parts)), watcher=bars)
    print(output / PAGE)
    return 0


def _plot(arguments: argparse.Namespace) -> int:
    _quieten()
    from stepalign.assemble import base_model
    from stepalign.checkpoint import replacing
    from stepalign.figures import plot_weights
    from stepalign.recipes import Model
    from stepalign.sampler import DDIM

    model = base_model(arguments.model, Model(num_steps=arguments.num_steps))
    picture = plot_weights(DDIM(model.schedule(arguments.num_steps)))
    with replacing(arguments.output) as temporary:
        temporary.write_bytes(picture)
    print(arguments.output)
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
    _quieten()
    from stepalign.job import run  # loads diffusers: seconds that --help need not take

    output = output or Path("runs") / recipe.name
    with _bars() as bars:
        summary = run(recipe, output, watcher=bars)
    return _finish(summary, output, show_scores)


def _quieten() -> None:
    """Keep the libraries from printing between the bars."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()


def _bars() -> RoundBars:
    from stepalign.parallel import processes

    return RoundBars(Console(stderr=True, quiet=not processes().is_main_process))


def _finish(summary: dict[str, Any], output: Path, show: Callable[[dict[str, Any], Console], None]) -> int:
    """Show a run's results, on the process that has them."""
    from stepalign.parallel import processes

    processes().destroy_process_group()
    if summary:
        show(summary, Console())
        print(output / REPORT)
    return 0


def _push_judge(arguments: argparse.Namespace) -> int:
    """Upload a judge's folder."""
    from stepalign.judges.spm_files import publish

    print(publish(arguments.folder, arguments.repository, private=arguments.private))
    return 0


def _convert_judge(arguments: argparse.Namespace) -> int:
    """Write a released step-aware preference model as config, safetensors and tokenizer."""
    import torch  # like what follows, too slow to import for --help
    from transformers import CLIPConfig, CLIPTokenizer

    from stepalign.clip import check_tokenizer, resolve_folder
    from stepalign.judges.spm import StepAwarePreferenceModel
    from stepalign.judges.spm_files import RELEASED_TOKENIZER

    output = arguments.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output: {output} exists and is not an empty directory; give another")
    config = None if arguments.config is None else CLIPConfig.from_json_file(arguments.config)
    model = StepAwarePreferenceModel.from_checkpoint(arguments.checkpoint, config)
    tokenizer = None
    try:
        tokenizer = CLIPTokenizer.from_pretrained(resolve_folder(arguments.tokenizer or RELEASED_TOKENIZER))
        check_tokenizer(tokenizer, model.config.text_config.vocab_size, "tokenizer")
    except ValueError:
        if arguments.tokenizer is not None:
            raise
        tokenizer = None
    model.save_pretrained(output, dtype=torch.bfloat16 if arguments.dtype == "bf16" else torch.float32)
    if tokenizer is None:
        print(
            f"stepalign: {RELEASED_TOKENIZER} cannot be reached, so the folder has no tokenizer yet: --judge.path "
            "needs CLIP's tokenizer files in it",
            file=sys.stderr,
        )
    else:
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
