"""`stepalign train`: train a LoRA adapter by a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from stepalign.cli.command import Command
from stepalign.cli.recipe_arguments import add_recipe_arguments, default_output, finish, named_output

if TYPE_CHECKING:
    from stepalign.runs.recipes import Recipe

MEMORY = (
    "--base.max_batch 1, a smaller --training.train_batch, --training.sample_batch, --judge.max_batch or "
    "--evaluation.batch_size, --base.gradient_checkpointing true, or a smaller --base.resolution"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `stepalign train`."""
    from stepalign.runs.recipes import RECIPES, load_recipe

    add_recipe_arguments(parser, RECIPES, load_recipe)


def run_train(arguments: argparse.Namespace) -> int:
    """Run a named recipe, or one from a file, with the fields that the command line changes."""
    from stepalign.runs.recipes import load_recipe
    from stepalign.support.config import change, parse_flags

    recipe = change(load_recipe(arguments.recipe), parse_flags(arguments.fields))
    return run_recipe(recipe, arguments.output or default_output(recipe.name))


def run_recipe(recipe: Recipe, output: Path) -> int:
    """Run a recipe with its progress and its scores shown."""
    from stepalign.cli.console import progress_bars, quieten, show_scores

    quieten()
    from stepalign.runs.job import run

    with progress_bars() as bars:
        summary = run(recipe, output, watcher=bars)
    return finish(summary, output, show_scores)


TRAIN = Command(
    "train",
    "align",
    "train a LoRA adapter by a recipe",
    add_arguments,
    run_train,
    output=named_output,
    takes_fields=True,
    resumable=True,
    memory_advice=MEMORY,
)
