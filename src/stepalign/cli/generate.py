"""`stepalign generate`: generate images of prompts."""

from __future__ import annotations

import argparse
from pathlib import Path

from stepalign.cli.command import Command
from stepalign.cli.generation_arguments import MEMORY, MODEL, add_prompt_arguments, generate_images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `stepalign generate`."""
    parser.add_argument("model", help=MODEL)
    parser.add_argument("--output", type=Path, required=True, help="folder of the images")
    add_prompt_arguments(parser, required=True)


def run_generate(arguments: argparse.Namespace) -> int:
    """Generate images of prompts into a folder."""
    from stepalign.cli.console import quieten

    quieten()
    record = generate_images(arguments, arguments.output)
    if record:
        print(f"{record['num_images']} images of {record['num_prompts']} prompts in {arguments.output}")
    return 0


GENERATE = Command(
    "generate",
    "evaluate",
    "generate images of prompts, each from a seed of its own",
    add_arguments,
    run_generate,
    output=lambda arguments: arguments.output,
    takes_fields=True,
    resumable=True,
    memory_advice=MEMORY,
)
