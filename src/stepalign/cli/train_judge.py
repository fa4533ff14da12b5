"""`stepalign train-judge`: train a step-aware preference model by a recipe."""

from __future__ import annotations

import argparse

from stepalign.cli.command import Command
from stepalign.cli.recipe_arguments import add_recipe_arguments, default_output, finish, named_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `stepalign train-judge`."""
    from stepalign.runs.judge_recipes import JUDGE_RECIPES, load_judge_recipe

    add_recipe_arguments(parser, JUDGE_RECIPES, load_judge_recipe)


def run_train_judge(arguments: argparse.Namespace) -> int:
    """Run a named judge recipe, or one from a file, with the fields that the command line changes."""
    from stepalign.cli.console import progress_bars, quieten, show_accuracy
    from stepalign.runs.judge_recipes import load_judge_recipe
    from stepalign.support.config import change, parse_flags

    recipe = change(load_judge_recipe(arguments.recipe), parse_flags(arguments.fields))
    output = arguments.output or default_output(recipe.name)
    quieten()
    from stepalign.runs.judge_job import run_judge

    with progress_bars() as bars:
        summary = run_judge(recipe, output, watcher=bars)
    return finish(summary, output, show_accuracy)


TRAIN_JUDGE = Command(
    "train-judge",
    "judge",
    "train a step-aware preference model by a recipe",
    add_arguments,
    run_train_judge,
    output=named_output,
    takes_fields=True,
    resumable=True,
    memory_advice=(
        "--base.max_batch 1, a smaller --training.micro_batch, --data.encode_batch or --evaluation.batch_size, "
        "--training.gradient_checkpointing true, or a smaller --base.resolution"
    ),
)
