"""`stepalign convert-judge`: convert a released judge."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stepalign.cli.command import Command

if TYPE_CHECKING:
    from transformers import CLIPConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `stepalign convert-judge`."""
    parser.add_argument("checkpoint", help="a file, or owner/name/file on the hub")
    parser.add_argument("output", type=Path, help="new or empty directory, for --judge.path")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the weights (%(default)s)")
    parser.add_argument("--tokenizer", default=None, help="folder or hub id of its tokenizer (PickScore's)")
    parser.add_argument("--config", type=Path, default=None, help="config.json of its CLIP (PickScore's ViT-H/14)")


def run_convert_judge(arguments: argparse.Namespace) -> int:
    """Write a released step-aware preference model as config, safetensors and tokenizer."""
    import torch
    from transformers import CLIPTokenizer

    from stepalign.judges.spm import StepAwarePreferenceModel
    from stepalign.judges.spm_files import RELEASED_TOKENIZER
    from stepalign.models.clip import check_tokenizer, resolve_folder
    from stepalign.runs.checks import check_folder

    output = arguments.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output: {output} exists and is not an empty directory; give another")
    config = None if arguments.config is None else read_clip_config(arguments.config)
    check_folder(arguments.tokenizer, "tokenizer")
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


def read_clip_config(path: Path) -> CLIPConfig:
    """The CLIP that a config.json describes; raises ValueError naming the file."""
    from transformers import CLIPConfig

    from stepalign.support.parsing import parse_json, read_text

    values = parse_json(read_text(path, "config"), f"config: {path}")
    if not isinstance(values, dict):
        raise ValueError(f"config: {path} holds a JSON {type(values).__name__}; the config of a CLIP is an object")
    try:
        return CLIPConfig.from_dict(values)
    except Exception as error:  # a damaged config has transformers raise nearly anything
        raise ValueError(f"config: {path} is not of a CLIP: {error}") from error


CONVERT_JUDGE = Command(
    "convert-judge",
    "judge",
    "convert a released judge (.bin) to a safetensors folder",
    add_arguments,
    run_convert_judge,
)
