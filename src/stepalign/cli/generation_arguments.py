"""Arguments of the commands that generate images: generate, and evaluate with a model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODEL = 'diffusers folder, hub id, single .safetensors file, or "miniature"'
PROMPTS = "a set by name (miniature, geneval, parti, hpdv2-benchmark, ...), or a .txt, .json, .jsonl, .csv or .tsv file"
OUTSIDE = "read images that manifest.jsonl names outside its folder, which is refused otherwise"
MEMORY = "a smaller --batch_size, --base.max_batch 1 or a smaller --base.resolution"


def add_prompt_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the arguments that choose prompts, and --help with the fields of the sampling settings."""
    from stepalign.cli.field_help import FieldHelp
    from stepalign.evaluation.generation_settings import Generation

    parser.add_argument("--prompts", required=required, default=None, help=PROMPTS)
    parser.add_argument("--num-prompts", type=int, default=None, help="only the first N prompts (all)")
    parser.add_argument("--prompt-folder", type=Path, default=None, help="folder of downloaded prompt files")
    parser.add_argument(
        *("-h", "--help"),
        action=FieldHelp,
        settings=lambda arguments: Generation(model=arguments.model or "MODEL"),
        help="show this help with the fields of the sampling settings, and exit",
    )


def generate_images(arguments: argparse.Namespace, output: Path) -> Mapping[str, Any] | None:
    """Generate images of the chosen prompts into a folder and return its record, on the process that has it."""
    from stepalign.cli.console import progress_bars
    from stepalign.data.prompt_sets import load_prompt_set
    from stepalign.evaluation.generation import generate_folder
    from stepalign.evaluation.generation_settings import Generation
    from stepalign.miniature.world import split_captions
    from stepalign.support.config import override, parse_flags, require

    settings = override(Generation(model=arguments.model), parse_flags(arguments.fields))
    folder, num = arguments.prompt_folder, arguments.num_prompts
    require(folder is None or folder.is_dir(), "prompt-folder", folder, "a folder that is there")
    found = load_prompt_set(arguments.prompts, folder=folder, own={"miniature": split_captions()[1]})
    require(num is None or num >= 1, "num-prompts", num, "at least 1")
    categories = None if found.categories is None else found.categories[:num]
    with progress_bars(rounds=False) as bars:
        return generate_folder(settings, found.prompts[:num], output, categories=categories, watcher=bars)
