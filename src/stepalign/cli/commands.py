"""The smaller commands of the command line; what is slow to import is imported where it is used."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from stepalign.cli.console import progress_bars, quieten
from stepalign.support.parsing import parse_json, read_text
from stepalign.support.reproducibility import mkl_warning, processor

if TYPE_CHECKING:
    from transformers import CLIPConfig

PACKAGES = ("stepalign", "torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "huggingface_hub")


def plot(arguments: argparse.Namespace) -> int:
    """Draw one of the papers' figures."""
    quieten()
    if arguments.figure == "gains":
        from stepalign.runs.gains import PICTURE, measure_gains

        with progress_bars(rounds=False) as bars:
            measure_gains(
                arguments.run,
                num_prompts=arguments.num_prompts,
                tick=lambda done, total: bars.phase("evaluate", done, total),
            )
        print(arguments.run / PICTURE)
        return 0
    from stepalign.core.sampler import DDIM
    from stepalign.reports.figures import plot_weights
    from stepalign.runs.assemble import base_model
    from stepalign.runs.checks import check_base
    from stepalign.runs.recipes import Model
    from stepalign.support.files import replacing

    check_base(arguments.model, Model())
    model = base_model(arguments.model, Model(num_steps=arguments.num_steps))
    picture = plot_weights(DDIM(model.schedule(arguments.num_steps)))
    with replacing(arguments.output) as temporary:
        temporary.write_bytes(picture)
    print(arguments.output)
    return 0


def push_judge(arguments: argparse.Namespace) -> int:
    """Upload a judge's folder."""
    from stepalign.judges.spm_files import publish

    print(publish(arguments.folder, arguments.repository, private=arguments.private))
    return 0


def convert_judge(arguments: argparse.Namespace) -> int:
    """Write a released step-aware preference model as config, safetensors and tokenizer."""
    import torch  # like what follows, too slow to import for --help
    from transformers import CLIPTokenizer

    from stepalign.judges.spm import StepAwarePreferenceModel
    from stepalign.judges.spm_files import RELEASED_TOKENIZER
    from stepalign.models.clip import check_tokenizer, resolve_folder
    from stepalign.runs.checks import check_folder

    output = arguments.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output: {output} exists and is not an empty directory; give another")
    config = None if arguments.config is None else _clip_config(arguments.config)
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


def _clip_config(path: Path) -> CLIPConfig:
    """The CLIP that a config.json describes; raises ValueError naming the file."""
    from transformers import CLIPConfig

    values = parse_json(read_text(path, "config"), f"config: {path}")
    if not isinstance(values, dict):
        raise ValueError(f"config: {path} holds a JSON {type(values).__name__}; the config of a CLIP is an object")
    try:
        return CLIPConfig.from_dict(values)
    except Exception as error:  # a damaged config has transformers raise nearly anything
        raise ValueError(f"config: {path} is not of a CLIP: {error}") from error


def env() -> int:
    """Print versions and devices."""
    import torch

    print(f"python {platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        try:
            print(f"{package} {version(package)}")
        except PackageNotFoundError:
            print(f"{package} not installed")
    print(f"cpu: {platform.processor() or platform.machine()}, {os.cpu_count()} cores; computes as {processor()}")
    if (warning := mkl_warning()) is not None:
        print(warning)
    if not torch.cuda.is_available():
        print("cuda: none")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        print(f"cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.1f} GiB, CUDA {torch.version.cuda}")
    return 0
